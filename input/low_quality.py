"""Low-quality matches: every box gets an anchor, even if no IoU reaches the threshold.

A box that lies wholly inside many anchors of one shape has the same IoU with all of them. Which of them it gets is a
choice: the first, as in the RetinaNet paper's own code, the one whose centre is nearest, or all.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

NEAR_TIE = 1e-6  # IoUs closer than this are equal, so that rounding does not choose an anchor
NEAR_DISTANCE = 1e-2  # px^2: so are squared distances closer than this
BONUS = 2.0  # added to the IoU of a low-quality match, which is then above every other


def matches(
    ious: tf.Tensor, indexes: tf.Tensor, squared_distances: tf.Tensor, ties: str
) -> tuple[tf.Tensor, tf.Tensor]:
    """The anchors that each box gets.

    Args:
      ious: f32 [..., n], of a box with anchors; 0 where a pair has no part in this.
      indexes: f32 [..., n] or [n]: the anchors' indexes. Floats hold them exactly below 2**24, and TensorFlow would
        compare and reduce int32 on the host.
      squared_distances: f32 [..., n] px^2, of the centres of box and anchor; read for "nearest" alone.
      ties: "first", "nearest" or "all".

    Returns:
      bool [..., n]: whether the box gets this anchor.
      f32 [..., 1]: the box's highest IoU.
    """
    best = tf.reduce_max(ious, axis=-1, keepdims=True)
    chosen = (ious > 0.0) & (ious >= best - NEAR_TIE)
    if ties == "all":
        return chosen, best
    if ties == "nearest":
        nearest = tf.reduce_min(tf.where(chosen, squared_distances, np.inf), axis=-1, keepdims=True)
        chosen &= squared_distances <= nearest + NEAR_DISTANCE
    return indexes == tf.reduce_min(tf.where(chosen, indexes, np.inf), axis=-1, keepdims=True), best
