"""Geometry of boxes, in graph mode and in float32 whatever the precision of the inputs.

A box is (ymin, xmin, ymax, xmax) in pixels; it is empty when its height or its width is not positive.
"""

from __future__ import annotations

import math

import tensorflow as tf

# The largest log size ratio that `decode` accepts, so that nothing overflows; as in detectron2 and torchvision.
MAX_LOG_RATIO = math.log(1000 / 16)


def area(boxes: tf.Tensor) -> tf.Tensor:
    """Area in px^2, f32 [...], of boxes [..., 4]; 0 for empty ones."""
    ymin, xmin, ymax, xmax = tf.unstack(tf.cast(boxes, tf.float32), axis=-1)
    return tf.maximum(ymax - ymin, 0.0) * tf.maximum(xmax - xmin, 0.0)


def paired_iou(boxes_a: tf.Tensor, boxes_b: tf.Tensor) -> tf.Tensor:
    """Intersection over union, f32 [...], of boxes [..., 4] with their partners [..., 4] (broadcast together).

    It is 0 where either box is empty, and never NaN for finite boxes.
    """
    ymin_a, xmin_a, ymax_a, xmax_a = tf.unstack(tf.cast(boxes_a, tf.float32), axis=-1)
    ymin_b, xmin_b, ymax_b, xmax_b = tf.unstack(tf.cast(boxes_b, tf.float32), axis=-1)
    height = tf.maximum(tf.minimum(ymax_a, ymax_b) - tf.maximum(ymin_a, ymin_b), 0.0)
    width = tf.maximum(tf.minimum(xmax_a, xmax_b) - tf.maximum(xmin_a, xmin_b), 0.0)
    intersection = height * width
    return tf.math.divide_no_nan(intersection, area(boxes_a) + area(boxes_b) - intersection)


def iou(boxes_a: tf.Tensor, boxes_b: tf.Tensor) -> tf.Tensor:
    """Intersection over union of every box with every other: boxes [..., n, 4], [..., m, 4] -> f32 [..., n, m]."""
    boxes_a, boxes_b = tf.convert_to_tensor(boxes_a), tf.convert_to_tensor(boxes_b)
    return paired_iou(boxes_a[..., :, tf.newaxis, :], boxes_b[..., tf.newaxis, :, :])


def squared_center_distance(boxes_a: tf.Tensor, boxes_b: tf.Tensor) -> tf.Tensor:
    """Squared distance of the centres in px^2, f32 [...], of boxes [..., 4] and their partners [..., 4]."""
    (centers_a, _), (centers_b, _) = _centers_and_sizes(boxes_a), _centers_and_sizes(boxes_b)
    return tf.reduce_sum(tf.square(centers_a - centers_b), axis=-1)


def clip(boxes: tf.Tensor, image_size: tuple[int, int] | tf.Tensor) -> tf.Tensor:
    """Boxes f32 [..., 4] clipped to the image; a box wholly outside it becomes empty.

    Args:
      boxes: [..., 4] px.
      image_size: (height, width), or a tensor [..., 2] that broadcasts against the boxes' leading axes.
    """
    limit = tf.cast(image_size, tf.float32)
    return tf.clip_by_value(tf.cast(boxes, tf.float32), 0.0, tf.concat([limit, limit], axis=-1))


def still_shown(boxes: tf.Tensor, visible_area: tf.Tensor, center_visible: tf.Tensor, min_visible: float) -> tf.Tensor:
    """Which boxes to keep when a part of each is cropped away or covered; the same rule for every augmentation.

    A box is kept if some of it is visible and either its centre or at least `min_visible` of its area is.

    Args:
      boxes: f32 [..., 4], whole.
      visible_area: f32 [...].
      center_visible: bool [...].
      min_visible: share of the area, 0 to 1.

    Returns:
      bool [...].
    """
    return (visible_area > 0) & (center_visible | (visible_area >= min_visible * area(boxes)))


def encode(boxes: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
    """The deltas that turn anchors into boxes, in the parametrisation of R-CNN (Girshick et al. 2014, appendix C).

    Args:
      boxes: [..., 4] px, not empty.
      anchors: [..., 4] px, broadcast with `boxes`.

    Returns:
      f32 [..., 4]: (dy, dx, dh, dw), shifts of the centre in units of the anchor's size, and logs of the size ratios.
    """
    centers, sizes = _centers_and_sizes(boxes)
    anchor_centers, anchor_sizes = _centers_and_sizes(anchors)
    return tf.concat([(centers - anchor_centers) / anchor_sizes, tf.math.log(sizes / anchor_sizes)], axis=-1)


def decode(deltas: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
    """Boxes f32 [..., 4] px from deltas [..., 4] at anchors [..., 4]: the inverse of `encode`.

    Sizes are limited to 1000 / 16 times the anchor's.
    """
    shifts, log_ratios = tf.split(tf.cast(deltas, tf.float32), 2, axis=-1)
    anchor_centers, anchor_sizes = _centers_and_sizes(anchors)
    centers = shifts * anchor_sizes + anchor_centers
    half_sizes = tf.exp(tf.minimum(log_ratios, MAX_LOG_RATIO)) * anchor_sizes / 2.0
    return tf.concat([centers - half_sizes, centers + half_sizes], axis=-1)


def to_original(boxes: tf.Tensor, transforms: tf.Tensor, original_sizes: tf.Tensor) -> tf.Tensor:
    """Boxes [b, d, 4] in px of the network's input -> f32 [b, d, 4] in px of the original images, clipped to them.

    Args:
      boxes: [b, d, 4] px.
      transforms: [b, 4], (scale_y, scale_x, offset_y, offset_x): input px = scale * original px + offset.
      original_sizes: [b, 2], height and width.
    """
    scales, offsets = tf.split(tf.cast(transforms, tf.float32)[:, tf.newaxis], 2, axis=-1)
    original_boxes = (tf.cast(boxes, tf.float32) - tf.tile(offsets, [1, 1, 2])) / tf.tile(scales, [1, 1, 2])
    return clip(original_boxes, tf.convert_to_tensor(original_sizes)[:, tf.newaxis])


def _centers_and_sizes(boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    low, high = tf.split(tf.cast(boxes, tf.float32), 2, axis=-1)
    return (low + high) / 2.0, high - low
