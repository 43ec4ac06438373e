"""Saving, resuming, keeping the best, and loading for inference.

`RUN/checkpoints/` holds the latest few, `RUN/best/` the one with the best evaluation beside its `metrics.json`.
"""

import json
import os
import shutil
from typing import Optional

import tensorflow as tf

from input import anchors, files
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
    """Refuses to resume a run with another network, label list or optimizer; a folder without a run is fine.

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
      FileNotFoundError: there is no run.
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


def make_anchors(config: Config):
    """f32 [a, 4] px of the network's input."""
    return anchors.make_anchors(config.input.anchor, config.input.image_size)


class Checkpoints:
    """The checkpoints of one run: model, optimizer (its `iterations` is the step) and nothing else.

    The position in the data follows from the step, so no iterator is saved.

    Args:
      model_dir: RUN.
      model, optimizer: what is saved; their variables exist already.
      keep: how many of the latest to keep.
      is_chief: false in a worker whose files nobody reads; it saves, because saving is collective, and throws away.
    """

    def __init__(self, model_dir: str, model, optimizer, *, keep: int, is_chief: bool = True):
        self._checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
        self._is_chief = is_chief
        self._root = model_dir if is_chief else os.path.join(model_dir, f"worker-{os.getpid()}.partial")
        self._model_dir = model_dir
        self._latest = tf.train.CheckpointManager(
            self._checkpoint, os.path.join(self._root, "checkpoints"), max_to_keep=keep
        )
        self._best = tf.train.CheckpointManager(self._checkpoint, os.path.join(self._root, "best"), max_to_keep=1)

    def restore(self) -> bool:
        """Restores the latest checkpoint; false where there is none."""
        path = tf.train.latest_checkpoint(os.path.join(self._model_dir, "checkpoints"))
        if path is None:
            return False
        self._checkpoint.restore(path).assert_consumed()
        return True

    def save(self, step: int) -> None:
        """Saves `RUN/checkpoints/ckpt-STEP`."""
        self._latest.save(checkpoint_number=step)
        self._discard()

    def save_if_best(self, step: int, metrics: dict, key: str) -> bool:
        """Saves to `RUN/best/` if `metrics[key]` is the highest of the run so far."""
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

    def _discard(self):
        if not self._is_chief:
            shutil.rmtree(self._root, ignore_errors=True)


def find_checkpoint(model_dir: str, checkpoint: Optional[str] = None) -> str:
    """The path prefix of the checkpoint asked for, else the best one, else the latest.

    Raises:
      FileNotFoundError: there is none.
    """
    if checkpoint:
        if tf.io.gfile.isdir(checkpoint):
            checkpoint = tf.train.latest_checkpoint(checkpoint) or checkpoint
        checkpoint = checkpoint[: -len(".index")] if checkpoint.endswith(".index") else checkpoint
        if not os.path.exists(f"{checkpoint}.index"):
            raise FileNotFoundError(
                f"--checkpoint={checkpoint}: there is no {checkpoint}.index; give a folder of checkpoints or a path "
                "such as RUN/checkpoints/ckpt-500."
            )
        return checkpoint
    for folder in ("best", "checkpoints"):
        path = tf.train.latest_checkpoint(os.path.join(model_dir, folder))
        if path:
            return path
    raise FileNotFoundError(f"{model_dir} holds no checkpoint yet: train first, or wait for the first evaluation.")


def load_for_inference(model_dir: str, checkpoint: Optional[str] = None):
    """The trained network of a run.

    Args:
      model_dir: RUN.
      checkpoint: a path prefix or a folder; None for the best, else the latest.

    Returns:
      (config, model, step, path) with float32 computation, whatever the run trained with.

    Raises:
      FileNotFoundError: no run or no checkpoint.
      ValueError: a checkpoint of another network.
    """
    config = read_config(model_dir)
    path = find_checkpoint(model_dir, checkpoint)
    model = make_model(config)
    try:
        tf.train.Checkpoint(model=model).restore(path).assert_existing_objects_matched().expect_partial()
    except (AssertionError, ValueError) as error:
        raise ValueError(
            f"{path} does not fit the network of {config_path(model_dir)}: give a --checkpoint of this run. ({error})"
        ) from error
    return config, model, int(path.rsplit("-", 1)[1]), path
