"""Weights averaged over the run: they are evaluated and exported in place of the last ones, which are noisier."""

from __future__ import annotations

import tensorflow as tf


def start(averaged: tf.keras.Model, model: tf.keras.Model) -> None:
    """Gives `averaged`, a network of the same form, the weights of `model`; call it before the first step."""
    for average, variable in zip(averaged.variables, model.variables):
        average.assign(variable)


def update(
    strategy: tf.distribute.Strategy,
    averaged: tf.keras.Model,
    model: tf.keras.Model,
    *,
    decay: float,
    num_updates: tf.Tensor,
) -> None:
    """Moves every average towards its variable, statistics of batch norm included; call it in cross-replica context.

    average += (1 - d) * (variable - average), with d = min(decay, (1 + n) / (10 + n)) after n updates, so that a short
    run does not average the noise it started from (as TensorFlow's `ExponentialMovingAverage` does).

    Args:
      strategy: that of both networks.
      averaged: the averages.
      model: the network that trains.
      decay: of the average, near 1.
      num_updates: i64 scalar, updates of `model` so far.
    """
    n = tf.cast(num_updates, tf.float32)
    share = 1.0 - tf.minimum(decay, (1.0 + n) / (10.0 + n))
    for average, variable in zip(averaged.variables, model.variables):
        strategy.extended.update(
            average, lambda average, variable: average.assign_add((variable - average) * share), args=(variable,)
        )
