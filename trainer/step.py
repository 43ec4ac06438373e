"""One training step, in replica context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from input import batch_augment, types
from input.anchors import make_anchors
from input.targets import assign
from model import losses
from model.types import Losses, Predictions
from trainer.config import Config

# As large as PyTorch's buckets: large enough to use the whole bandwidth, small enough to start early.
_IN_PACKS = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=25 * 2**20)


class StepResult(NamedTuple):
    """Sums over all replicas."""

    losses: Losses  # f32 scalars
    num_positives: tf.Tensor  # f32 scalar: positive anchors in the global batch
    gradient_norm: tf.Tensor  # f32 scalar: global norm of the summed gradients, before they are clipped


def make_train_step(
    model: tf.keras.Model,
    optimizer: tf.keras.optimizers.Optimizer,
    config: Config,
    *,
    method: str,
    compile_stages: bool = False,
) -> Callable[..., StepResult]:
    """The function that `strategy.run` calls with a replica's batch.

    The loss is divided by the number of positive anchors of the *global* batch, and gradients are summed over replicas,
    so N replicas do exactly what one replica with the whole batch would do. The same holds for the parts of
    `accumulation_steps`, except for batch norm, whose statistics are those of a part.

    Args:
      model: the network.
      optimizer: may be a `LossScaleOptimizer`.
      config: augmentation, anchors and losses.
      method: of `targets.assign`: dense on a GPU, sparse on a CPU.
      compile_stages: compile what stands before and behind the network with XLA, each as one program. Run op by op, the
        matrices of all boxes and anchors and of all anchors and classes would pass through a GPU's memory many times.

    Returns:
      `train_step(batch, targets=None) -> StepResult`; `targets` are given where the host has assigned them.
    """
    anchors = tf.constant(make_anchors(config.input.anchor, config.input.image_size))
    num_parts = config.train.accumulation_steps
    scales_loss = isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer)

    def stage(function: Callable[..., Any]) -> Callable[..., Any]:
        return tf.function(function, jit_compile=True) if compile_stages else function

    @stage
    def augment_and_assign(batch: types.Batch) -> tuple[tf.Tensor, types.Targets]:
        batch = batch_augment.augment(batch, config.input.augment, config.input.preprocessing)
        return batch.images, assign(batch, config.input, method=method)

    @stage
    def augment_images(batch: types.Batch) -> tf.Tensor:
        return batch_augment.augment_images(batch, config.input.augment, config.input.preprocessing)

    @stage
    def losses_and_gradients(
        predictions: Predictions, targets: types.Targets, part: tf.Tensor, normalizer: tf.Tensor, loss_scale: tf.Tensor
    ) -> tuple[Losses, Predictions]:
        # Cut here, where XLA does it: outside, a GPU would send the class targets through the host, as they are int32.
        targets = tf.nest.map_structure(lambda values: _cut(values, part, num_parts), targets)
        with tf.GradientTape() as tape:
            tape.watch(predictions)
            values = losses.detection_losses(predictions, targets, normalizer, config.loss, anchors)
            scaled = values.loss * loss_scale
        return values, tape.gradient(scaled, predictions)

    def pass_through(
        images: tf.Tensor, targets: types.Targets, part: int, normalizer: tf.Tensor, loss_scale: tf.Tensor
    ) -> tuple[Losses, list[tf.Tensor]]:
        """The losses and the gradients of a part, whose images these are; the targets are those of all parts."""
        with tf.GradientTape() as tape:
            predictions = model(images, training=True)
        # The part as a tensor, or XLA would compile this anew for each.
        values, upstream = losses_and_gradients(predictions, targets, tf.constant(part), normalizer, loss_scale)
        return values, tape.gradient(predictions, model.trainable_variables, output_gradients=upstream)

    def train_step(batch: types.Batch, targets: types.Targets | None = None) -> StepResult:
        replicas = tf.distribute.get_replica_context()
        if targets is None:
            images, targets = augment_and_assign(batch)
        else:
            images = augment_images(batch)
        num_positives = replicas.all_reduce("sum", losses.count_positives(targets))

        normalizer = tf.maximum(num_positives, 1.0)
        loss_scale = gradient_scale = tf.constant(1.0)
        if scales_loss:
            loss_scale = optimizer.get_scaled_loss(loss_scale)
            (gradient_scale,) = optimizer.get_unscaled_gradients([gradient_scale])

        local, gradients = pass_through(_cut(images, 0, num_parts), targets, 0, normalizer, loss_scale)
        for part in range(1, num_parts):
            with tf.control_dependencies(gradients):  # one after the other, or all would be in memory at once
                images_of_part = _cut(images, part, num_parts)
            more, more_gradients = pass_through(images_of_part, targets, part, normalizer, loss_scale)
            local = tf.nest.map_structure(tf.add, local, more)
            gradients = [gradient + other for gradient, other in zip(gradients, more_gradients)]
        # TensorFlow reverses the gradients, so that the first pack is that of the last layers and travels while the
        # backward pass computes the rest.
        gradients = replicas.all_reduce("sum", gradients, options=_IN_PACKS)
        gradients, norm = _scale_and_clip(gradients, gradient_scale, config.train.optimizer.clip_norm)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables), skip_gradients_aggregation=True)
        global_losses = tf.unstack(replicas.all_reduce("sum", tf.stack(local)))
        return StepResult(Losses(*global_losses), num_positives, norm)

    return train_step


def _scale_and_clip(
    gradients: Sequence[tf.Tensor], scale: tf.Tensor, clip_norm: float
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """The gradients times `scale`, clipped to a global norm (0: not clipped), and their norm before clipping.

    It computes what `get_unscaled_gradients`, `tf.linalg.global_norm` and `tf.clip_by_global_norm` do, of which each
    would pass over all gradients. As in the last, clipping to a norm that is not finite makes every gradient NaN.
    """
    norm = tf.linalg.global_norm(gradients) * scale
    if clip_norm:
        scale = tf.where(norm < np.inf, scale * clip_norm / tf.maximum(norm, clip_norm), np.nan)
    return [gradient * scale for gradient in gradients], norm


def _cut(values: tf.Tensor, part: int | tf.Tensor, num_parts: int) -> tf.Tensor:
    """One of equal parts of a tensor, along its first axis."""
    if num_parts == 1:
        return values
    size, *others = values.shape
    size //= num_parts
    return tf.slice(values, [part * size, *[0] * len(others)], [size, *others])
