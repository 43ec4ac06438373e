"""Keras's optimizers, set up for detection."""

from __future__ import annotations

import tensorflow as tf

from trainer import schedules
from trainer.config import OptimizerConfig

_NOT_DECAYED = ("bias", "gamma", "beta")  # decay would pull biases and batch norm away from the values they estimate


def make_optimizer(config: OptimizerConfig, *, train_steps: int, loss_scaling: bool) -> tf.keras.optimizers.Optimizer:
    """SGD with momentum, or AdamW. Gradients are clipped after they are summed over replicas and unscaled.

    Keras's weight decay is decoupled: each step subtracts `rate * decay` of a weight from it. The L2 term of the papers
    goes through the momentum, where it adds up to 1 / (1 - momentum) times as much, so SGD's decay is scaled to match.

    Args:
      config: the optimizer, its rates, decay and clipping.
      train_steps: the length of the run, for the schedule.
      loss_scaling: wraps the optimizer in a dynamic `LossScaleOptimizer`, for float16.
    """
    settings = {
        "learning_rate": schedules.make_schedule(config, train_steps),
        "global_clipnorm": config.clip_norm or None,
        # On a GPU Keras would by itself compile the update of each variable as a program of its own.
        "jit_compile": False,
    }
    if config.optimizer == "sgd":
        decay = config.weight_decay / (1 - config.momentum)
        optimizer = tf.keras.optimizers.SGD(momentum=config.momentum, weight_decay=decay or None, **settings)
    else:
        optimizer = tf.keras.optimizers.AdamW(weight_decay=config.weight_decay, **settings)
    if config.weight_decay:
        optimizer.exclude_from_weight_decay(var_names=_NOT_DECAYED)
    return tf.keras.mixed_precision.LossScaleOptimizer(optimizer) if loss_scaling else optimizer
