"""Ignored regions of an image in training: anchors inside them are neither objects nor background."""

from __future__ import annotations

import tensorflow as tf

from input import boxes as box_ops
from input.types import BACKGROUND, IGNORED, Batch

INSIDE = 0.5  # the share of an anchor's area that must lie in one region


def ignore_inside(class_targets: tf.Tensor, batch: Batch, anchors: tf.Tensor, *, method: str) -> tf.Tensor:
    """Class targets i32 [b, a] in which the background inside a region is IGNORED; anchors with an object stay.

    An IoU would not do: that of an anchor inside a large region is small. So the share of the anchor counts, as with
    COCO's crowds.

    Args:
      class_targets: i32 [b, a].
      batch: boxes and classes are read; a box of the class IGNORED is a region.
      anchors: f32 [a, 4] px.
      method: as for `targets.assign`: "dense" has static shapes, "sparse" costs next to nothing without a region.
    """
    is_region = batch.classes == IGNORED
    boxes = tf.cast(batch.boxes, tf.float32)
    if method == "dense":
        boxes = tf.where(is_region[..., tf.newaxis], boxes, 0.0)  # an empty box holds nothing
        inside = tf.reduce_any(_holds(boxes, anchors), axis=1)
    else:
        found = tf.where(is_region)  # [r, 2]
        holds = tf.cast(_holds(tf.gather_nd(boxes, found), anchors), tf.float32)
        inside = tf.math.unsorted_segment_max(holds, found[:, 0], tf.shape(boxes)[0]) > 0.5
    return tf.where(inside & (class_targets == BACKGROUND), IGNORED, class_targets)


def _holds(regions: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
    """Which anchors [a, 4] are inside which regions [..., r, 4]: bool [..., r, a]."""
    regions = regions[..., tf.newaxis, :]
    low = tf.maximum(regions[..., :2], anchors[:, :2])
    high = tf.minimum(regions[..., 2:], anchors[:, 2:])
    return box_ops.area(tf.concat([low, high], axis=-1)) >= INSIDE * box_ops.area(anchors)
