"""From a run's weights to a detector, for evaluation and export alike."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from input import anchors, batch_augment, boxes, files
from model import postprocess
from model.types import Detections, Predictions
from trainer import checkpoints
from trainer.config import Config
from trainer.reporting import log


class TrainedRun(NamedTuple):
    """A run's network with the weights of one checkpoint; it computes in float32 whatever the run trained with."""

    config: Config
    model: tf.keras.Model
    step: int
    path: str  # the checkpoint's path prefix
    averaged: bool = False  # whether these are the averaged weights, which not every run keeps


def find_checkpoint(model_dir: str, checkpoint: str | None = None) -> str:
    """The path prefix of the checkpoint asked for, else of the best one, else of the latest.

    Raises:
      FileNotFoundError: there is none.
      ValueError: all are damaged, or the one asked for is.
    """
    if checkpoint:
        if files.is_dir(checkpoint):
            checkpoint = tf.train.latest_checkpoint(checkpoint) or checkpoint
        checkpoint = checkpoint[: -len(".index")] if checkpoint.endswith(".index") else checkpoint
        if not files.exists(f"{checkpoint}.index"):
            raise FileNotFoundError(
                f"--checkpoint={checkpoint}: there is no {checkpoint}.index; give a folder of checkpoints or a path "
                "such as RUN/checkpoints/ckpt-500."
            )
        if not re.search(r"-\d+$", checkpoint):
            raise ValueError(f"--checkpoint={checkpoint}: its name must end with its step, as in ckpt-500.")
        if damage := checkpoints.find_damage(checkpoint):
            raise ValueError(f"--checkpoint={checkpoint} is damaged ({damage}): give another one of this run.")
        return checkpoint
    found = [
        os.path.join(model_dir, folder, f"ckpt-{step}")
        for folder in ("best", "checkpoints")
        for step in checkpoints.list_steps(model_dir, folder)
    ]
    for path in found:
        damage = checkpoints.find_damage(path)
        if damage is None:
            return path
        log.warning("%s is damaged, so another checkpoint is taken: %s", path, damage)
    if found:
        raise ValueError(f"every checkpoint in {model_dir} is damaged, as the log says: put back a copy.")
    raise FileNotFoundError(f"{model_dir} holds no checkpoint yet: train first, or wait for the first evaluation.")


def load_for_inference(model_dir: str, checkpoint: str | None = None, *, averaged: bool = True) -> TrainedRun:
    """The trained network of a run.

    Args:
      model_dir: RUN.
      checkpoint: a path prefix or a folder; None for the best, else the latest.
      averaged: take the averaged weights where the run keeps them.

    Raises:
      FileNotFoundError: there is no run or no checkpoint.
      ValueError: the checkpoint is of another network.
    """
    config = checkpoints.read_config(model_dir)
    path = find_checkpoint(model_dir, checkpoint)
    model = checkpoints.make_model(config)
    averaged = averaged and config.train.ema_decay > 0
    try:
        branch = "averaged" if averaged else "model"
        tf.train.Checkpoint(**{branch: model}).restore(path).assert_existing_objects_matched().expect_partial()
    except (AssertionError, ValueError) as error:
        raise ValueError(
            f"{path} does not fit the network of {checkpoints.config_path(model_dir)}: give a --checkpoint of this "
            f"run. ({error})"
        ) from error
    return TrainedRun(config=config, model=model, step=int(path.rsplit("-", 1)[1]), path=path, averaged=averaged)


def make_detector(model: tf.keras.Model, config: Config) -> Callable[..., Detections]:
    """The whole way from letterboxed pixels to detections in the original images.

    Returns:
      `detect(images u8 [b, h, w, 3], transforms f32 [b, 4], original_sizes i32 [b, 2]) -> Detections`, as
      `make_decoder` describes them.
    """
    decode = make_decoder(config)

    def detect(images: tf.Tensor, transforms: tf.Tensor, original_sizes: tf.Tensor) -> Detections:
        return decode(predict(model, images, config), transforms, original_sizes)

    return detect


def predict(model: tf.keras.Model, images: tf.Tensor, config: Config) -> Predictions:
    """What the network predicts for u8 [b, h, w, 3] at its own size."""
    return model(batch_augment.normalize(images, config.input.preprocessing), training=False)


def make_decoder(config: Config) -> Callable[..., Detections]:
    """From predictions to detections in the original images.

    Returns:
      `decode(predictions, transforms f32 [b, 4], original_sizes i32 [b, 2]) -> Detections`, whose boxes are in pixels
      of the original images and clipped to them. Detections that lie in the padding alone are dropped.
    """
    detect = make_postprocess(config)

    def decode(predictions: Predictions, transforms: tf.Tensor, original_sizes: tf.Tensor) -> Detections:
        found = detect(predictions)
        original_boxes = boxes.to_original(found.boxes, transforms, original_sizes)
        kept = boxes.area(original_boxes) > 0  # false in the padding rows of `found` too
        order = tf.argsort(tf.cast(~kept, tf.int32), axis=-1, stable=True)
        return Detections(
            boxes=tf.gather(tf.where(kept[..., tf.newaxis], original_boxes, 0.0), order, batch_dims=1),
            scores=tf.gather(tf.where(kept, found.scores, 0.0), order, batch_dims=1),
            classes=tf.gather(tf.where(kept, found.classes, -1), order, batch_dims=1),
            num_detections=tf.reduce_sum(tf.cast(kept, tf.int32), axis=-1),
        )

    return decode


def make_postprocess(config: Config) -> Callable[[Predictions], Detections]:
    """From predictions to detections in pixels of the network's input."""
    all_anchors = anchors.make_anchors(config.input.anchor, config.input.image_size)
    by_level = anchors.num_anchors_by_level(config.input.anchor, config.input.image_size)

    def detect(predictions: Predictions) -> Detections:
        return postprocess.detect(
            predictions, all_anchors, config.detect, config.input.image_size, num_anchors_by_level=by_level
        )

    return detect
