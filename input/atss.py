"""Adaptive training sample selection (Zhang et al. 2020): each box has its own threshold for the IoU of its anchors.

- The candidates of a box are the anchors of the `NUM_LOCATIONS` locations of each level that are nearest to its centre
  (ties: the lowest index).
- A candidate whose centre lies inside the box and whose IoU is at least the mean of the candidates' IoUs plus their
  standard deviation is positive. Of several boxes the one with the highest IoU takes the anchor, then the one with the
  lowest index.
- Padding and difficult boxes and low-quality matches are treated as in `input/targets.py`, but the low-quality match of
  a box is one of its candidates, and an anchor is ignored where it would be positive for a difficult box.

All shapes are static, so that one form serves CPUs, GPUs and XLA.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from input import boxes as box_ops
from input import low_quality
from input.anchors import locations
from input.config import InputConfig
from input.types import Batch

NUM_LOCATIONS = 9  # of each level, as in the paper (section 3.3)


def match(batch: Batch, anchors: np.ndarray, config: InputConfig) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Which box each anchor is assigned to.

    Args:
      batch: its boxes that take no part are empty.
      anchors: f32 [a, 4] px.
      config: the anchors and the size of the network's input.

    Returns:
      i32 [b, a]: indexes of boxes.
      bool [b, a]: whether the anchor is assigned to that box.
      bool [b, a]: whether it is ignored if not.
    """
    num_images, num_boxes = tf.unstack(tf.shape(batch.classes))
    num_anchors = len(anchors)
    candidates = _candidates(batch.boxes, config)  # [b, m, c]
    candidate_boxes = tf.gather(tf.constant(anchors), candidates)
    boxes = batch.boxes[:, :, tf.newaxis]
    ious = box_ops.paired_iou(boxes, candidate_boxes)

    mean = tf.reduce_mean(ious, axis=-1, keepdims=True)
    variance = tf.reduce_sum(tf.square(ious - mean), axis=-1, keepdims=True) / (candidates.shape[-1] - 1)
    centers = (candidate_boxes[..., :2] + candidate_boxes[..., 2:]) / 2
    inside = tf.reduce_all((centers > boxes[..., :2]) & (centers < boxes[..., 2:]), axis=-1)
    positive = inside & (ious >= mean + tf.sqrt(variance))

    ordinary = ~batch.difficult[..., tf.newaxis]
    scores = tf.where(positive & ordinary, ious, 0.0)
    if config.match.force_match:
        distances = box_ops.squared_center_distance(boxes, candidate_boxes)
        forced, best = low_quality.matches(
            tf.where(ordinary, ious, 0.0), tf.cast(candidates, tf.float32), distances, config.match.low_quality_ties
        )
        scores = tf.where(forced, best + low_quality.BONUS, scores)

    # All pairs of a box and a candidate on one axis, and the anchors of all images on another.
    anchor = tf.reshape(candidates + tf.range(num_images)[:, tf.newaxis, tf.newaxis] * num_anchors, [-1, 1])
    shape = [num_images * num_anchors]
    flat_scores = tf.reshape(scores, [-1])
    best_of_anchor = tf.tensor_scatter_nd_max(tf.zeros(shape), anchor, flat_scores)
    box = tf.broadcast_to(tf.range(num_boxes)[:, tf.newaxis], tf.shape(candidates))
    takes = (flat_scores > 0) & (flat_scores == tf.gather(best_of_anchor, anchor[:, 0]))
    first_box = tf.where(takes, tf.reshape(box, [-1]), num_boxes - 1)
    index = tf.tensor_scatter_nd_min(tf.fill(shape, num_boxes - 1), anchor, first_box)
    on_difficult = tf.reshape(tf.cast(positive & ~ordinary, tf.float32), [-1])
    ignored = tf.tensor_scatter_nd_max(tf.zeros(shape), anchor, on_difficult) > 0
    index, matched, ignored = (
        tf.reshape(values, [num_images, num_anchors]) for values in (index, best_of_anchor > 0, ignored)
    )
    return index, matched, ignored


def _candidates(boxes: tf.Tensor, config: InputConfig) -> tf.Tensor:
    """Indexes i32 [b, m, c] of the candidates of boxes [b, m, 4], c static."""
    per_location = config.anchor.anchors_per_location
    num_images, num_boxes = tf.unstack(tf.shape(boxes)[:2])
    box_centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    candidates, first = [], 0
    for centers in locations(config.anchor, config.image_size):
        rows, columns, _ = centers.shape
        # A window of so many rows and columns around the nearest location holds the nearest `NUM_LOCATIONS`.
        indexes, squares = [], []
        for axis, positions in enumerate((centers[:, 0, 0], centers[0, :, 1])):
            side = min(NUM_LOCATIONS, len(positions))
            distances = tf.abs(box_centers[..., axis, tf.newaxis] - positions)
            start = tf.argmin(distances, axis=-1, output_type=tf.int32) - side // 2
            start = tf.clip_by_value(start, 0, len(positions) - side)
            indexes.append(start[..., tf.newaxis] + tf.range(side))
            squares.append(tf.square(tf.gather(distances, indexes[-1], batch_dims=2)))
        distances = squares[0][..., :, tf.newaxis] + squares[1][..., tf.newaxis, :]
        location = indexes[0][..., :, tf.newaxis] * columns + indexes[1][..., tf.newaxis, :]
        size = distances.shape[-2] * distances.shape[-1]
        _, nearest = tf.math.top_k(-tf.reshape(distances, [num_images, num_boxes, size]), min(NUM_LOCATIONS, size))
        location = tf.gather(tf.reshape(location, [num_images, num_boxes, size]), nearest, batch_dims=2)
        of_locations = first + location[..., tf.newaxis] * per_location + tf.range(per_location)
        candidates.append(tf.reshape(of_locations, [num_images, num_boxes, nearest.shape[-1] * per_location]))
        first += rows * columns * per_location
    return tf.concat(candidates, axis=-1)
