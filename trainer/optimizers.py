"""Optimizers: Keras's own, set up for detection."""

import tensorflow as tf

from trainer import schedules
from trainer.config import OptimizerConfig

_NOT_DECAYED = ("bias", "gamma", "beta")  # decay pulls batch norm and biases away from what they measure


def make_optimizer(config: OptimizerConfig, *, train_steps: int, loss_scaling: bool) -> tf.keras.optimizers.Optimizer:
    """SGD with momentum or AdamW; gradients are clipped after aggregation over replicas and unscaling.

    Keras's weight decay is decoupled: each step takes `rate * decay` of a weight. The L2 term of the papers enters the
    momentum instead, where it adds up to 1 / (1 - momentum) times as much; SGD's decay is scaled to match.

    Args:
      config: kind, rates, decay, clipping.
      train_steps: the length of the run, for the schedule.
      loss_scaling: wrap in a dynamic `LossScaleOptimizer`, for float16.
    """
    settings = {
        "learning_rate": schedules.make_schedule(config, train_steps),
        "global_clipnorm": config.clip_norm or None,
    }
    if config.optimizer == "sgd":
        decay = config.weight_decay / (1 - config.momentum)
        optimizer = tf.keras.optimizers.SGD(momentum=config.momentum, weight_decay=decay or None, **settings)
    else:
        optimizer = tf.keras.optimizers.AdamW(weight_decay=config.weight_decay, **settings)
    if config.weight_decay:
        optimizer.exclude_from_weight_decay(var_names=_NOT_DECAYED)
    return tf.keras.mixed_precision.LossScaleOptimizer(optimizer) if loss_scaling else optimizer
