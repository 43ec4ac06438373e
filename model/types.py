"""What the network, the losses and the post-processing give. b batch, a anchors, k classes, d detections."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Predictions(NamedTuple):
    """What the network predicts for every anchor, always in float32."""

    class_logits: tf.Tensor  # f32 [b, a, k]
    box_deltas: tf.Tensor  # f32 [b, a, 4] (dy, dx, dh, dw)


class Losses(NamedTuple):
    """Scalars, float32."""

    loss: tf.Tensor
    class_loss: tf.Tensor
    box_loss: tf.Tensor


class Detections(NamedTuple):
    """Best first; rows from `num_detections` on are zeros with class -1."""

    boxes: tf.Tensor  # f32 [b, d, 4] ymin xmin ymax xmax, px of the network's input
    scores: tf.Tensor  # f32 [b, d]
    classes: tf.Tensor  # i32 [b, d], 0-based
    num_detections: tf.Tensor  # i32 [b]
