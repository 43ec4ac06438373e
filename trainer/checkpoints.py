"""Saving a run, resuming it, and keeping its best checkpoint.

`RUN/checkpoints/` holds the latest few checkpoints, `RUN/best/` the one with the best evaluation and `metrics.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from input import files
from model import retinanet
from trainer import reporting
from trainer.config import Config
from trainer.reporting import log


def config_path(model_dir: str) -> str:
    return os.path.join(model_dir, "config.json")


def save_config(config: Config, model_dir: str) -> None:
    """Writes `RUN/config.json`."""
    files.write_text(config_path(model_dir), config.to_json())


def read_config(model_dir: str) -> Config:
    """The settings of the run in `model_dir`.

    Raises:
      FileNotFoundError: `model_dir` holds no run.
      ValueError: the file is damaged, or has settings that are not known here.
    """
    path = config_path(model_dir)
    if not files.exists(path):
        raise FileNotFoundError(f"{path} does not exist: name the folder of a training run.")
    try:
        return Config.from_json(files.read(path).decode())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): put back a copy; or delete it and train with the same flags again, which "
            "writes it anew."
        ) from error


def make_model(config: Config) -> tf.keras.Model:
    """The network of a run, freshly initialised, under the current precision policy and strategy."""
    return retinanet.make_model(
        config.model,
        num_classes=len(config.labels),
        anchors_per_location=config.input.anchor.anchors_per_location,
        image_size=config.input.image_size,
    )


def list_steps(model_dir: str, folder: str = "checkpoints") -> list[int]:
    """The steps of which `RUN/checkpoints/` (or `best`) holds a file, damaged or not, from the latest down."""
    folder = os.path.join(model_dir, folder)
    names = files.names(folder) if files.is_dir(folder) else []
    found = (re.fullmatch(r"ckpt-(\d+)\.(index|data-\d+-of-\d+)", name) for name in names)
    return sorted({int(match[1]) for match in found if match}, reverse=True)


def find_damage(path: str) -> str | None:
    """What is wrong with a checkpoint, in TensorFlow's words; None if all of it can be read.

    TensorFlow saves a checksum with each tensor and with the index, and compares it whenever it reads.
    """
    try:
        reader = tf.compat.v1.train.NewCheckpointReader(path)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except (tf.errors.OpError, IndexError, ValueError) as error:
        return str(error).partition("\n")[0] or type(error).__name__
    return None


def _remove_damaged_lists(model_dir: str) -> None:
    """TensorFlow's list of the checkpoints in a folder is not needed to find them, but a damaged one would stop it."""
    for name in ("checkpoints", "best"):
        folder = os.path.join(model_dir, name)
        try:
            tf.train.get_checkpoint_state(folder)
        except UnicodeDecodeError:
            log.warning("%s is damaged and is written anew", os.path.join(folder, "checkpoint"))
            files.remove(os.path.join(folder, "checkpoint"))


class Checkpoints:
    """The checkpoints of one run: the model, the optimizer, whose `iterations` is the step, and the averaged weights.

    The position in the data follows from the step, so no iterator is saved.

    Args:
      model_dir: RUN.
      model, optimizer, averaged: what is saved; their variables exist already.
      keep: how many of the latest to keep.
      is_chief: false in a worker whose files nobody reads. It saves too, because saving is collective, and then
        deletes what it wrote.
      all_workers: tells whether a value is true in every worker, so that all know whether saving has failed in one.
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
        all_workers: Callable[[bool], bool] = bool,
    ) -> None:
        _remove_damaged_lists(model_dir)
        self._checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
        if averaged is not None:
            self._checkpoint.averaged = averaged
        self._is_chief, self._all_workers = is_chief, all_workers
        self._root = model_dir if is_chief else os.path.join(model_dir, f"worker-{os.getpid()}.partial")
        self._model_dir = model_dir
        self._latest = tf.train.CheckpointManager(
            self._checkpoint, os.path.join(self._root, "checkpoints"), max_to_keep=keep
        )
        self._best = tf.train.CheckpointManager(self._checkpoint, os.path.join(self._root, "best"), max_to_keep=1)
        self.saved_step = -1  # of the latest checkpoint that was saved or restored here; -1: none
        self.has_failed = False  # whether the last attempt to save failed
        self._best_path = os.path.join(model_dir, "best", "metrics.json")
        self.best = self._read_best()  # the metrics of the best evaluation and its `step`; empty if there is none

    def _read_best(self) -> dict[str, Any]:
        if not files.exists(self._best_path):
            return {}
        try:
            best = json.loads(files.read(self._best_path))
            return {**best, "step": int(best["step"])}
        except (ValueError, KeyError, TypeError):
            log.warning("%s is damaged: the next evaluation counts as the best so far", self._best_path)
            return {}

    def path(self, step: int, folder: str = "checkpoints") -> str:
        """The checkpoint of this step, without the ending of its files."""
        return os.path.join(self._model_dir, folder, f"ckpt-{step}")

    def restore(self) -> bool:
        """Restores the latest checkpoint that is not damaged, and returns true; false where there is none at all.

        Raises:
          ValueError: all are damaged, or the latest whole one is of another network or optimizer.
        """
        steps = list_steps(self._model_dir)
        for step in steps:
            path = self.path(step)
            if damage := find_damage(path):
                then = "so the one before is taken" if step != steps[-1] else "and there is none before it"
                log.warning("%s is damaged, %s: %s", path, then, damage)
                continue
            try:
                self._checkpoint.restore(path).assert_consumed()
            except (AssertionError, ValueError) as error:
                raise ValueError(
                    f"{path} is of another network or optimizer: use the flags that the run was started with, or "
                    f"another --model_dir. ({str(error).partition(chr(10))[0]})"
                ) from error
            self.saved_step = step
            return True
        if steps:
            raise ValueError(
                f"every checkpoint in {os.path.join(self._model_dir, 'checkpoints')} is damaged, as the log says; "
                "nothing was changed. Put back a copy, or start again with another --model_dir."
            )
        if files.exists(config_path(self._model_dir)):
            log.warning("%s holds a run without a checkpoint: it begins again at step 0", self._model_dir)
        return False

    def save(self, step: int) -> bool:
        """Saves `RUN/checkpoints/ckpt-STEP`, unless that is the latest one; returns false where it could not be saved.

        A full disk must not end a run: the log says what is wrong, and the checkpoints before remain.
        """
        if step == self.saved_step:
            return True
        is_saved = self._write(self._latest, step)
        if is_saved and self.has_failed:
            log.info("%s is saved: there is room again", self.path(step))
        self.has_failed = not is_saved
        if is_saved:
            self.saved_step = step
        return is_saved

    def _write(self, manager: tf.train.CheckpointManager, step: int) -> bool:
        return self._all_workers(self._write_own(manager, step))

    def _write_own(self, manager: tf.train.CheckpointManager, step: int) -> bool:
        try:
            manager.save(checkpoint_number=step)
        except (tf.errors.OpError, OSError) as error:
            with contextlib.suppress(OSError):
                for name in files.names(manager.directory):
                    unfinished = os.path.join(manager.directory, name)
                    if re.match(rf"ckpt-{step}[._]", name):
                        files.remove_tree(unfinished) if files.is_dir(unfinished) else files.remove(unfinished)
            if not self.has_failed:
                log.error(
                    "%s cannot be saved (%s): is the disk full? The run goes on, and tries again after each loop",
                    *(os.path.join(manager.directory, f"ckpt-{step}"), str(error).partition("\n")[0]),
                )
            return False
        self._discard()
        return True

    def save_if_best(self, step: int, metrics: dict[str, Any], key: str) -> bool:
        """Saves to `RUN/best/` if `metrics[key]` is the highest of the run so far; returns whether it is."""
        if key in self.best and (self.best[key] or 0.0) >= (metrics[key] or 0.0):
            return False
        if not self._write(self._best, step):
            return False
        self.best = {"step": step, **metrics}
        if self._is_chief:
            reporting.write_or_say(self._best_path, json.dumps(self.best, indent=2) + "\n")
        return True

    def forget_best(self) -> None:
        """Lets the next evaluation count as the best so far; until then the best checkpoint remains."""
        self.best = {}
        if self._is_chief and files.exists(self._best_path):
            files.remove(self._best_path)

    def _discard(self) -> None:
        if not self._is_chief:
            with contextlib.suppress(OSError):
                files.remove_tree(self._root)
