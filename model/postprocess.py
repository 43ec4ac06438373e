"""From predictions to detections: the best candidates, decoding, non-maximum suppression class by class."""

from __future__ import annotations

import math

import tensorflow as tf

from input import boxes
from model.config import DetectConfig
from model.types import Detections, Predictions


def detect(
    predictions: Predictions, anchors: tf.Tensor, config: DetectConfig, image_size: tuple[int, int]
) -> Detections:
    """The best detections of each image.

    Of all pairs of anchor and class, the `pre_nms_top_k` with the highest scores go through greedy non-maximum
    suppression within their class. Detections score above `score_threshold`; boxes are clipped to the image, and boxes
    without area are dropped.

    Args:
      predictions: f32 [b, a, k] and [b, a, 4].
      anchors: f32 [a, 4] px.
      config: thresholds and counts.
      image_size: (height, width) of the network's input, px.

    Returns:
      Detections, d = `max_detections`.
    """
    num_anchors, num_classes = predictions.class_logits.shape[1:]

    # The best pairs belong to the anchors whose best class scores highest. So one top-k over a and one over
    # top_anchors * k replace one over a * k. Both take the first of equals; the anchors are sorted, so that equal pairs
    # keep their order.
    top_anchors = min(config.pre_nms_top_k, num_anchors)
    _, anchor_index = tf.math.top_k(tf.reduce_max(predictions.class_logits, axis=-1), top_anchors, sorted=False)
    anchor_index = tf.sort(anchor_index, axis=-1)
    logits = tf.reshape(
        tf.gather(predictions.class_logits, anchor_index, batch_dims=1), [-1, top_anchors * num_classes]
    )
    logits, pair_index = tf.math.top_k(logits, min(config.pre_nms_top_k, top_anchors * num_classes))
    anchor_index = tf.gather(anchor_index, pair_index // num_classes, batch_dims=1)
    classes = pair_index % num_classes
    scores = tf.sigmoid(logits)

    decoded = boxes.decode(
        tf.gather(predictions.box_deltas, anchor_index, batch_dims=1), tf.gather(anchors, anchor_index)
    )
    decoded = boxes.clip(decoded, image_size)
    scores = tf.where(boxes.area(decoded) > 0, scores, 0.0)

    # One suppression for all classes: the boxes of each class are moved to an image of their own. These images form a
    # square and not a row, because float32 resolves large coordinates coarsely.
    grid = math.ceil(math.sqrt(num_classes))
    cell = tf.cast(tf.stack([classes // grid, classes % grid] * 2, axis=-1), tf.float32)
    moved = decoded + cell * tf.constant([*image_size, *image_size], tf.float32)

    def suppress(image: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        boxes, scores = image
        selection = tf.raw_ops.NonMaxSuppressionV4(
            boxes=boxes,
            scores=scores,
            max_output_size=config.max_detections,
            iou_threshold=config.nms_iou,
            score_threshold=config.score_threshold,
            pad_to_max_output_size=True,
        )
        return tuple(selection)

    kept, num_detections = tf.map_fn(
        suppress,
        (moved, scores),
        fn_output_signature=(tf.TensorSpec([config.max_detections], tf.int32), tf.TensorSpec([], tf.int32)),
    )
    is_detection = tf.range(config.max_detections) < num_detections[:, tf.newaxis]
    return Detections(
        boxes=tf.where(is_detection[..., tf.newaxis], tf.gather(decoded, kept, batch_dims=1), 0.0),
        scores=tf.where(is_detection, tf.gather(scores, kept, batch_dims=1), 0.0),
        classes=tf.where(is_detection, tf.gather(classes, kept, batch_dims=1), -1),
        num_detections=num_detections,
    )
