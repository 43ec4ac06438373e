"""What the network and its two consumers hand on. b batch, a anchors, k classes, d detections."""

from typing import NamedTuple

import tensorflow as tf


class Predictions(NamedTuple):
    """The network's answer for every anchor, always float32."""

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
