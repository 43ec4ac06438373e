"""Learning rates: Keras's schedules after a linear warm-up, and one cycle."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.config import PAPER_BATCH_SIZE, OptimizerConfig


class LinearWarmup(tf.keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly to `after(0)` over `warmup_steps` steps, then follows `after`, counted from there.

    Step s of the warm-up, counted from 0, has (s + 1) / warmup_steps of the rate, so that the first step trains too.
    """

    def __init__(self, after: tf.keras.optimizers.schedules.LearningRateSchedule, warmup_steps: int) -> None:
        super().__init__()
        self.after = after
        self.warmup_steps = warmup_steps

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        step = tf.cast(step, tf.float32)
        warmup = tf.cast(self.warmup_steps, tf.float32)
        rising = self.after(0) * tf.minimum(1.0, (step + 1) / tf.maximum(warmup, 1.0))
        return tf.where(step < warmup, rising, self.after(tf.maximum(step - warmup, 0.0)))

    def get_config(self) -> dict[str, Any]:
        return {"after": self.after, "warmup_steps": self.warmup_steps}


class OneCycle(tf.keras.optimizers.schedules.LearningRateSchedule):
    """One cosine up to the peak in the first 30% of the run, one down to the end (Smith & Topin 2018).

    It starts at 1/25 of the peak, as PyTorch's `OneCycleLR` does; unlike there the momentum stays as it is.
    """

    def __init__(self, peak: float, steps: int, end: float) -> None:
        super().__init__()
        self.peak = peak
        self.steps = steps
        self.end = end

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        step = tf.cast(step, tf.float32)
        top = 0.3 * self.steps
        up = tf.minimum(step / top, 1.0)
        down = tf.clip_by_value((step - top) / (self.steps - top), 0.0, 1.0)
        start = tf.where(step < top, self.peak / 25, self.end)
        return start + (self.peak - start) * 0.5 * (1 - tf.cos(np.pi * (up + down)))

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "steps": self.steps, "end": self.end}


class Adjustable(tf.keras.optimizers.schedules.LearningRateSchedule):
    """The schedule of a run, which can lower it and give it another length without compiling its step again.

    A run of another length has its own warm-up, and passes through the same rates after it. Make this in the strategy's
    scope.

    Args:
      config: as for `make_schedule`.
      train_steps: likewise; its values are those of `make_schedule` until `factor` or `train_steps` is assigned.
    """

    def __init__(self, config: OptimizerConfig, train_steps: int) -> None:
        super().__init__()
        self.schedule, self.planned_steps = make_schedule(config, train_steps), float(train_steps)
        self.warmup_steps = 0.0 if config.lr_schedule == "one_cycle" else float(config.warmup_steps)
        self.factor = tf.Variable(1.0, trainable=False, name="rate_factor")
        self.train_steps = tf.Variable(self.planned_steps, trainable=False, name="train_steps")

    def _warmup(self, train_steps: tf.Tensor | float) -> tf.Tensor:
        return tf.minimum(self.warmup_steps, tf.floor(train_steps / 10))

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        step = tf.cast(step, tf.float32)
        warmup, planned_warmup = self._warmup(self.train_steps), self._warmup(self.planned_steps)
        after = (step - warmup) * ((self.planned_steps - planned_warmup) / tf.maximum(self.train_steps - warmup, 1.0))
        rising = step * (planned_warmup / tf.maximum(warmup, 1.0))
        return self.factor * self.schedule(tf.where(step < warmup, rising, planned_warmup + after))

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError("it is part of a run and not saved")


def scale_to_batch(config: OptimizerConfig, batch_size: int) -> OptimizerConfig:
    """The config with the learning rate that `scale_learning_rate` asks for (Goyal et al. 2017, section 2.1)."""
    if not config.scale_learning_rate:
        return config
    return dataclasses.replace(config, learning_rate=config.learning_rate * batch_size / PAPER_BATCH_SIZE)


def make_schedule(config: OptimizerConfig, train_steps: int) -> tf.keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate as a function of the step.

    Args:
      config: the rate, its shape and the warm-up, which is cut to a tenth of the run if it is longer.
      train_steps: the length of the run, warm-up included.

    Returns:
      A schedule whose value is a float32 scalar.
    """
    keras = tf.keras.optimizers.schedules
    if config.lr_schedule == "one_cycle":
        return OneCycle(config.learning_rate, train_steps, config.learning_rate * config.lr_end)
    warmup = min(config.warmup_steps, train_steps // 10)
    rate, steps = config.learning_rate, max(1, train_steps - warmup)
    if config.lr_schedule == "constant":
        after = keras.PiecewiseConstantDecay([float(steps)], [rate, rate])
    elif config.lr_schedule == "cosine":
        after = keras.CosineDecay(rate, steps, alpha=config.lr_end)
    elif config.lr_schedule == "step":
        boundaries = [float(round(share * train_steps) - warmup) for share in config.lr_steps]
        after = keras.PiecewiseConstantDecay(boundaries, [rate * 0.1**i for i in range(len(boundaries) + 1)])
    elif config.lr_schedule == "polynomial":
        after = keras.PolynomialDecay(rate, steps, end_learning_rate=rate * config.lr_end, power=config.lr_power)
    else:
        after = keras.ExponentialDecay(rate, steps, decay_rate=config.lr_decay)
    return LinearWarmup(after, warmup)
