"""Focal loss for the classes, smooth L1 for the boxes (Lin et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from input.types import IGNORED, Targets
from model.config import LossConfig
from model.types import Losses, Predictions


def focal_loss(logits: tf.Tensor, class_targets: tf.Tensor, *, alpha: float, gamma: float) -> tf.Tensor:
    """Sigmoid focal loss (Lin et al. 2017, equation 5), summed over the classes.

    With y the one-hot target and s = (1 - 2y) * logit, a term is alpha_t * softplus(s) * sigmoid(s)**gamma. Its
    derivative by s is alpha_t * sigmoid(s)**gamma * (sigmoid(s) + gamma * softplus(s) * (1 - sigmoid(s))).

    The gradient is written out for two reasons. It is finite everywhere, whereas automatic differentiation of
    (1 - p_t)**gamma gives NaN at p_t = 1 for gamma < 1. And it keeps one tensor of the logits' size for the backward
    pass instead of half a dozen. There are no gradients of a higher order.

    Args:
      logits: f32 [..., k].
      class_targets: i32 [...], a class 0..k-1; any other value, such as BACKGROUND, means that all k are background.
      alpha: weight of the foreground terms; the background terms have 1 - alpha.
      gamma: focusing exponent, >= 0.

    Returns:
      f32 [...].
    """

    @tf.custom_gradient
    def loss(logits: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        is_target = tf.one_hot(class_targets, logits.shape[-1], on_value=True, off_value=False)
        signed = tf.where(is_target, -logits, logits)
        cross_entropy = tf.math.softplus(signed)
        modulator = tf.where(is_target, alpha, 1 - alpha) * tf.exp(gamma * tf.math.log_sigmoid(signed))
        probability = tf.sigmoid(signed)
        slope = modulator * (probability + gamma * cross_entropy * (1 - probability))
        slope = tf.where(is_target, -slope, slope)
        return tf.reduce_sum(modulator * cross_entropy, axis=-1), lambda upstream: upstream[..., tf.newaxis] * slope

    return loss(logits)


def smooth_l1(box_deltas: tf.Tensor, box_targets: tf.Tensor, *, beta: float) -> tf.Tensor:
    """Smooth L1 (Girshick 2015, equation 3), summed over the four deltas.

    A term is d**2 / (2 * beta) for |d| < beta, else |d| - beta / 2.

    Args:
      box_deltas, box_targets: f32 [..., 4].
      beta: where the quadratic part ends, > 0.

    Returns:
      f32 [...].
    """
    distance = tf.abs(box_deltas - box_targets)
    quadratic = tf.minimum(distance, beta)
    return tf.reduce_sum(quadratic * (distance - 0.5 * quadratic), axis=-1) / beta


def count_positives(targets: Targets) -> tf.Tensor:
    """Number of anchors with a class, f32 []. Sum it over the replicas and take at least 1 before dividing by it."""
    return tf.reduce_sum(tf.cast(_on_device(targets.class_targets) >= 0, tf.float32))


def detection_losses(
    predictions: Predictions, targets: Targets, num_positives: tf.Tensor, config: LossConfig
) -> Losses:
    """Both losses, summed over the given images and divided by `num_positives`.

    An IGNORED anchor adds nothing, an anchor without a class adds no box loss, and `targets.weights` multiplies both
    losses.

    Args:
      predictions: of the network.
      targets: of the same anchors.
      num_positives: f32 [], positive anchors of the global batch, at least 1; so the losses of the replicas add up to
        that of the whole batch.
      config: alpha, gamma, beta and the weight of the box loss.

    Returns:
      Losses, f32 []; `loss` is the sum of the other two, `box_loss` already weighted.
    """
    focal = focal_loss(
        predictions.class_logits, targets.class_targets, alpha=config.focal_alpha, gamma=config.focal_gamma
    )
    class_targets = _on_device(targets.class_targets)
    class_weights = tf.where(class_targets == IGNORED, 0.0, targets.weights)
    class_loss = tf.reduce_sum(class_weights * focal) / num_positives
    box_weights = tf.where(class_targets >= 0, targets.weights, 0.0)
    distances = smooth_l1(predictions.box_deltas, targets.box_targets, beta=config.smooth_l1_beta)
    box_loss = config.box_loss_weight * tf.reduce_sum(box_weights * distances) / num_positives
    return Losses(loss=class_loss + box_loss, class_loss=class_loss, box_loss=box_loss)


def _on_device(class_targets: tf.Tensor) -> tf.Tensor:
    # TensorFlow compares int32 on the host, even if the numbers are on a GPU; floats represent them exactly.
    return tf.cast(class_targets, tf.float32)
