"""Saving a run, resuming it, and keeping its best checkpoint.

`RUN/checkpoints/` holds the latest few checkpoints, `RUN/best/` the one with the best evaluation and `metrics.json`.
"""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import tensorflow as tf

from input import files
from model import retinanet
from trainer.config import Config


def config_path(model_dir: str) -> str:
    return os.path.join(model_dir, "config.json")


def write_file(path: str, text: str) -> None:
    """Writes a text file whole or not at all."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with files.create(path) as file:
        file.write(text.encode())


def require_same_run(config: Config, model_dir: str) -> None:
    """Refuses to resume a run with other labels, or another network or optimizer; a folder without a run is fine.

    Raises:
      ValueError: naming what differs.
    """
    if not os.path.exists(config_path(model_dir)):
        return
    earlier = read_config(model_dir)
    for name, was, now in (
        ("label list", earlier.labels, config.labels),
        ("network", earlier.model, config.model),
        ("anchor settings", earlier.input.anchor, config.input.anchor),
        ("optimizer", earlier.train.optimizer.optimizer, config.train.optimizer.optimizer),
        ("loss scaling", earlier.train.precision == "mixed_float16", config.train.precision == "mixed_float16"),
    ):
        if was != now:
            raise ValueError(
                f"{model_dir} holds a run with another {name}: it was {was}, now {now}. "
                "Use the same settings to resume it, or another --model_dir."
            )


def save_config(config: Config, model_dir: str) -> None:
    """Writes `RUN/config.json`."""
    write_file(config_path(model_dir), config.to_json())


def read_config(model_dir: str) -> Config:
    """The settings of the run in `model_dir`.

    Raises:
      FileNotFoundError: `model_dir` holds no run.
    """
    path = config_path(model_dir)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} does not exist: --model_dir must name the folder of a training run.")
    with open(path, encoding="utf-8") as file:
        return Config.from_json(file.read())


def make_model(config: Config) -> tf.keras.Model:
    """The network of a run, freshly initialised, under the current precision policy and strategy."""
    return retinanet.make_model(
        config.model,
        num_classes=len(config.labels),
        anchors_per_location=config.input.anchor.anchors_per_location,
        image_size=config.input.image_size,
    )


class Checkpoints:
    """The checkpoints of one run: the model, the optimizer, whose `iterations` is the step, and the averaged weights.

    The position in the data follows from the step, so no iterator is saved.

    Args:
      model_dir: RUN.
      model, optimizer, averaged: what is saved; their variables exist already.
      keep: how many of the latest to keep.
      is_chief: false in a worker whose files nobody reads. It saves too, because saving is collective, and then
        deletes what it wrote.
    """

    def __init__(
        self,
        model_dir: str,
        model: tf.keras.Model,
        optimizer: tf.keras.optimizers.Optimizer,
        averaged: tf.keras.Model | None = None,
        *,
        keep: int,
        is_chief: bool = True,
    ) -> None:
        self._checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
        if averaged is not None:
            self._checkpoint.averaged = averaged
        self._is_chief = is_chief
        self._root = model_dir if is_chief else os.path.join(model_dir, f"worker-{os.getpid()}.partial")
        self._model_dir = model_dir
        self._latest = tf.train.CheckpointManager(
            self._checkpoint, os.path.join(self._root, "checkpoints"), max_to_keep=keep
        )
        self._best = tf.train.CheckpointManager(self._checkpoint, os.path.join(self._root, "best"), max_to_keep=1)

    def restore(self) -> bool:
        """Restores the latest checkpoint and returns true; false where there is none."""
        path = tf.train.latest_checkpoint(os.path.join(self._model_dir, "checkpoints"))
        if path is None:
            return False
        self._checkpoint.restore(path).assert_consumed()
        return True

    def save(self, step: int) -> None:
        """Saves `RUN/checkpoints/ckpt-STEP`."""
        self._latest.save(checkpoint_number=step)
        self._discard()

    def save_if_best(self, step: int, metrics: dict[str, Any], key: str) -> bool:
        """Saves to `RUN/best/` if `metrics[key]` is the highest of the run so far; returns whether it is."""
        path = os.path.join(self._model_dir, "best", "metrics.json")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                best = json.load(file)
            if (best[key] or 0.0) >= (metrics[key] or 0.0):
                return False
        self._best.save(checkpoint_number=step)
        self._discard()
        if self._is_chief:
            write_file(path, json.dumps({"step": step, **metrics}, indent=2) + "\n")
        return True

    def _discard(self) -> None:
        if not self._is_chief:
            shutil.rmtree(self._root, ignore_errors=True)
