"""One training step, in replica context."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from input import batch_augment, types
from input.targets import assign
from model import losses
from model.types import Losses
from trainer.config import Config


class StepResult(NamedTuple):
    """Sums over all replicas."""

    losses: Losses  # f32 scalars
    num_positives: tf.Tensor  # f32 scalar: positive anchors in the global batch


def make_train_step(
    model: tf.keras.Model, optimizer: tf.keras.optimizers.Optimizer, config: Config, *, method: str
) -> Callable[..., StepResult]:
    """The function that `strategy.run` calls with a replica's batch.

    The loss is divided by the number of positive anchors of the *global* batch, and gradients are summed over replicas,
    so N replicas do exactly what one replica with the whole batch would do.

    Args:
      model: the network.
      optimizer: may be a `LossScaleOptimizer`.
      config: augmentation, anchors and losses.
      method: of `targets.assign_targets`: dense on a GPU, sparse on a CPU.

    Returns:
      `train_step(batch, targets=None) -> StepResult`; `targets` are given where the host has assigned them.
    """
    scales_loss = isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer)

    def train_step(batch: types.Batch, targets: types.Targets | None = None) -> StepResult:
        replicas = tf.distribute.get_replica_context()
        if targets is None:
            batch = batch_augment.augment(batch, config.input.augment)
            images, targets = batch.images, assign(batch, config.input, method=method)
        else:
            images = batch_augment.augment_images(batch, config.input.augment)
        num_positives = replicas.all_reduce("sum", losses.count_positives(targets))

        with tf.GradientTape() as tape:
            predictions = model(images, training=True)
            local = losses.detection_losses(predictions, targets, tf.maximum(num_positives, 1.0), config.loss)
            scaled = optimizer.get_scaled_loss(local.loss) if scales_loss else local.loss
        gradients = tape.gradient(scaled, model.trainable_variables)
        if scales_loss:
            gradients = optimizer.get_unscaled_gradients(gradients)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        global_losses = tf.nest.map_structure(lambda value: replicas.all_reduce("sum", value), local)
        return StepResult(losses=global_losses, num_positives=num_positives)

    return train_step
