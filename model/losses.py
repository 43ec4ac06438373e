"""Focal losses for the classes; smooth L1 and losses of the IoU for the boxes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from input import boxes as box_ops
from input.types import IGNORED, Targets
from model.config import LossConfig
from model.types import Losses, Predictions

_IOU_LOSS_WEIGHT = 2.0  # balances a loss of the IoU with the focal loss, as in mmdetection's and ATSS's settings


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


def quality_focal_loss(logits: tf.Tensor, qualities: tf.Tensor, *, gamma: float) -> tf.Tensor:
    """Focal loss with targets from 0 to 1, not 0 or 1 (Li et al. 2020, equation 2), summed over the classes.

    With p = sigmoid(logit) and y the target, a term is |p - y|**gamma times the cross entropy of p and y. The gradient
    is written out for the sake of memory, as that of `focal_loss`; there are none of a higher order.

    Args:
      logits: f32 [..., k].
      qualities: f32 [..., k], from 0 to 1.
      gamma: focusing exponent, >= 1.

    Returns:
      f32 [...].
    """

    @tf.custom_gradient
    def loss(logits: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=qualities, logits=logits)
        probability = tf.sigmoid(logits)
        error = probability - qualities
        distance = tf.abs(error)
        modulator = distance**gamma
        steepness = gamma * distance ** (gamma - 1) * tf.sign(error) * probability * tf.sigmoid(-logits)
        slope = steepness * cross_entropy + modulator * error
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


def iou_loss(boxes: tf.Tensor, target_boxes: tf.Tensor, *, kind: str) -> tf.Tensor:
    """1 - IoU and what `kind` adds, which gives a direction to boxes that do not overlap.

    - "giou": the share of the smallest box around both that neither covers (Rezatofighi et al. 2019).
    - "diou": the squared distance of the centres over that of the corners of this box (Zheng et al. 2020, equation 7).
    - "ciou": diou's term and alpha * v, where v compares the aspect ratios (equations 8 to 11).

    Args:
      boxes, target_boxes: f32 [..., 4] px, none of them empty.
      kind: "giou", "diou" or "ciou".

    Returns:
      f32 [...].
    """
    low = tf.minimum(boxes[..., :2], target_boxes[..., :2])
    high = tf.maximum(boxes[..., 2:], target_boxes[..., 2:])
    iou = box_ops.paired_iou(boxes, target_boxes)
    sizes, target_sizes = (x[..., 2:] - x[..., :2] for x in (boxes, target_boxes))
    if kind == "giou":
        hull = tf.reduce_prod(high - low, axis=-1)
        union = (box_ops.area(boxes) + box_ops.area(target_boxes)) / (1 + iou)
        return 1 - iou + (hull - union) / hull
    shift = (boxes[..., :2] + boxes[..., 2:] - target_boxes[..., :2] - target_boxes[..., 2:]) / 2
    loss = 1 - iou + tf.reduce_sum(shift**2, axis=-1) / tf.reduce_sum((high - low) ** 2, axis=-1)
    if kind == "ciou":
        angle, target_angle = (tf.atan(x[..., 1] / x[..., 0]) for x in (sizes, target_sizes))
        v = (2 / np.pi * (target_angle - angle)) ** 2
        # The paper takes alpha as a constant. It is 0 where both boxes are equal.
        loss += tf.stop_gradient(tf.math.divide_no_nan(v, 1 - iou + v)) * v
    return loss


def count_positives(targets: Targets) -> tf.Tensor:
    """Number of anchors with a class, f32 []. Sum it over the replicas and take at least 1 before dividing by it."""
    return tf.reduce_sum(tf.cast(_on_device(targets.class_targets) >= 0, tf.float32))


def detection_losses(
    predictions: Predictions, targets: Targets, num_positives: tf.Tensor, config: LossConfig, anchors: tf.Tensor
) -> Losses:
    """Both losses, summed over the given images and divided by `num_positives`.

    An IGNORED anchor adds nothing, an anchor without a class adds no box loss, and `targets.weights` multiplies both
    losses.

    Args:
      predictions: of the network.
      targets: of the same anchors.
      num_positives: f32 [], positive anchors of the global batch, at least 1; so the losses of the replicas add up to
        that of the whole batch.
      config: which losses, and their settings.
      anchors: f32 [a, 4] px.

    Returns:
      Losses, f32 []; `loss` is the sum of the other two, `box_loss` already weighted.
    """
    class_targets = _on_device(targets.class_targets)
    if config.box_loss != "smooth_l1" or config.class_loss == "quality_focal":
        shifts, log_ratios = tf.split(predictions.box_deltas, 2, axis=-1)
        # Sizes that no object has, at either end, would overflow.
        log_ratios = tf.clip_by_value(log_ratios, -box_ops.MAX_LOG_RATIO, box_ops.MAX_LOG_RATIO)
        boxes = box_ops.decode(tf.concat([shifts, log_ratios], axis=-1), anchors)
        target_boxes = box_ops.decode(targets.box_targets, anchors)
    if config.class_loss == "quality_focal":
        iou = tf.stop_gradient(box_ops.paired_iou(boxes, target_boxes))
        qualities = tf.one_hot(targets.class_targets, predictions.class_logits.shape[-1]) * iou[..., tf.newaxis]
        focal = quality_focal_loss(predictions.class_logits, qualities, gamma=config.focal_gamma)
    else:
        focal = focal_loss(
            predictions.class_logits, targets.class_targets, alpha=config.focal_alpha, gamma=config.focal_gamma
        )
    class_weights = tf.where(class_targets == IGNORED, 0.0, targets.weights)
    class_loss = tf.reduce_sum(class_weights * focal) / num_positives
    box_weights = tf.where(class_targets >= 0, targets.weights, 0.0)
    if config.box_loss == "smooth_l1":
        distances = smooth_l1(predictions.box_deltas, targets.box_targets, beta=config.smooth_l1_beta)
    else:
        distances = _IOU_LOSS_WEIGHT * iou_loss(boxes, target_boxes, kind=config.box_loss)
    box_loss = config.box_loss_weight * tf.reduce_sum(box_weights * distances) / num_positives
    return Losses(loss=class_loss + box_loss, class_loss=class_loss, box_loss=box_loss)


def _on_device(class_targets: tf.Tensor) -> tf.Tensor:
    # TensorFlow compares int32 on the host, even if the numbers are on a GPU; floats represent them exactly.
    return tf.cast(class_targets, tf.float32)
