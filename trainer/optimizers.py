"""Keras's optimizers, set up for detection."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from trainer import schedules
from trainer.config import OptimizerConfig

_NOT_DECAYED = ("bias", "gamma", "beta")  # decay would pull biases and normalisation away from the values they estimate


class _ByName:
    """Mixed into a Keras optimizer: weight decay and learning rate that depend on a variable's name.

    Decay is decoupled: each step subtracts `rate * decay` of a kernel from it. Keras's own would not know the slower
    variables' rate.
    """

    decay: float
    slow_name: str
    slow_factor: float
    _factor = 1.0  # of the rate, for the variable that is being updated

    def set_up(self, *, decay: float, slow_name: str, slow_factor: float) -> None:
        """Takes the decay, and the factor of the rate of variables with `slow_name` in their name."""
        self.decay, self.slow_name, self.slow_factor = decay, slow_name, slow_factor

    @property
    def learning_rate(self) -> Any:
        rate = super().learning_rate  # type: ignore[misc]  # of the optimizer that this is mixed into
        return rate if self._factor == 1.0 else rate * self._factor

    def is_decayed(self, variable: tf.Variable) -> bool:
        return not any(name in variable.name for name in _NOT_DECAYED)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        self._factor = self.slow_factor if self.slow_name in variable.name else 1.0
        self.update_variable(gradient, variable)
        self._factor = 1.0

    def update_variable(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Updates one variable. TensorFlow has an operation for most rules; Keras's `update_step` is eight or more."""
        raise NotImplementedError

    def decay_variable(self, variable: tf.Variable) -> None:
        if self.decay and self.is_decayed(variable):
            variable.assign_sub(variable * (self.decay * self.learning_rate))


class SGD(_ByName, tf.keras.optimizers.SGD):
    """SGD with momentum."""

    def update_variable(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        self.decay_variable(variable)
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=self.momentums[self._index_dict[self._var_key(variable)]].handle,
            lr=self.learning_rate,
            grad=gradient,
            momentum=self.momentum,
            use_nesterov=self.nesterov,
        )


class AdamW(_ByName, tf.keras.optimizers.Adam):
    """Adam with decoupled decay (Loshchilov & Hutter 2019)."""

    def update_variable(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        self.decay_variable(variable)
        index = self._index_dict[self._var_key(variable)]
        step = tf.cast(self.iterations + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].handle,
            v=self._velocities[index].handle,
            beta1_power=tf.pow(self.beta_1, step),
            beta2_power=tf.pow(self.beta_2, step),
            lr=self.learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


class LAMB(_ByName, tf.keras.optimizers.Adam):
    """Adam whose step has the norm of the variable's value times the rate (You et al. 2020), for very large batches.

    Biases and normalisation take Adam's step as it is.
    """

    def update_variable(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        index = self._index_dict[self._var_key(variable)]
        m, v = self._momentums[index], self._velocities[index]
        step = tf.cast(self.iterations + 1, tf.float32)
        m.assign_add((gradient - m) * (1 - self.beta_1))
        v.assign_add((tf.square(gradient) - v) * (1 - self.beta_2))
        change = m / (1 - tf.pow(self.beta_1, step)) / (tf.sqrt(v / (1 - tf.pow(self.beta_2, step))) + self.epsilon)
        if self.is_decayed(variable):
            change += variable * self.decay
            ratio = tf.norm(variable) / tf.norm(change)
            change *= tf.where(tf.math.is_finite(ratio) & (ratio > 0), ratio, 1.0)  # an untrained kernel may be zero
        variable.assign_sub(change * self.learning_rate)


def make_optimizer(
    config: OptimizerConfig,
    *,
    train_steps: int,
    loss_scaling: bool,
    backbone: str = "backbone",
    schedule: tf.keras.optimizers.schedules.LearningRateSchedule | None = None,
) -> tf.keras.optimizers.Optimizer:
    """SGD with momentum, AdamW or LAMB. The gradients are clipped before, in the training step.

    The L2 term of the papers goes through the momentum, where it adds up to 1 / (1 - momentum) times as much as
    decoupled decay, so SGD's decay is scaled to match.

    Args:
      config: the optimizer, its rates and decay.
      train_steps: the length of the run, for the schedule.
      loss_scaling: wraps the optimizer in a dynamic `LossScaleOptimizer`, for float16.
      backbone: the name of the layer whose variables have `config.backbone_rate` of the learning rate.
      schedule: the learning rate; by default that of `config` over `train_steps`.
    """
    settings = {
        "learning_rate": schedule or schedules.make_schedule(config, train_steps),
        # On a GPU Keras would by itself compile the update of each variable as a program of its own.
        "jit_compile": False,
    }
    decay = config.weight_decay
    if config.optimizer == "sgd":
        decay /= 1 - config.momentum
        optimizer = SGD(momentum=config.momentum, nesterov=config.nesterov, **settings)
    elif config.optimizer == "adamw":
        optimizer = AdamW(**settings)
    else:
        optimizer = LAMB(epsilon=1e-6, **settings)
    optimizer.set_up(decay=decay, slow_name=f"/{backbone}/", slow_factor=config.backbone_rate)
    return tf.keras.mixed_precision.LossScaleOptimizer(optimizer) if loss_scaling else optimizer
