"""A run whose network is a single number, so that a checkpoint's value tells which one it is."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
import tiny

from trainer import checkpoints
from trainer.config import Config, OptimizerConfig
from trainer.optimizers import make_optimizer


def make_model(config: Config | None = None) -> tf.keras.Model:
    """Takes the place of `checkpoints.make_model`."""
    model = tf.keras.Sequential([tf.keras.layers.Dense(1, use_bias=False)])
    model.build([None, 1])
    return model


def set_value(model: tf.keras.Model, value: float) -> None:
    model.set_weights([np.full([1, 1], value)])


def value_of(model: tf.keras.Model) -> float:
    return float(model.get_weights()[0][0, 0])


def make_checkpoints(folder: pathlib.Path, **options: Any) -> tuple[checkpoints.Checkpoints, tf.keras.Model]:
    """The checkpoints of a run that keeps two, and its model with the value 7."""
    model = make_model()
    set_value(model, 7)
    optimizer = make_optimizer(OptimizerConfig(), train_steps=1, loss_scaling=False)
    optimizer.build(model.trainable_variables)
    return checkpoints.Checkpoints(str(folder), model, optimizer, keep=2, **options), model


def save_run(folder: pathlib.Path, steps: Iterable[int] = (), best: Iterable[tuple[int, float | None]] = ()) -> str:
    """Saves the steps, and the (step, metric) of `best`; the value is the step, plus a half in `best`."""
    checkpoints.save_config(tiny.CONFIG, str(folder))
    saved, model = make_checkpoints(folder)
    for step in steps:
        set_value(model, step)
        saved.save(step)
    for step, metric in best:
        set_value(model, step + 0.5)
        saved.save_if_best(step, {"coco_ap": metric}, "coco_ap")
    return str(folder)
