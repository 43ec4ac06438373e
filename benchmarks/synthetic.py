"""Training steps on images of noise, for the benchmarks: what a step costs when its batch is already there."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from input import augment, random_numbers
from input.types import Batch
from trainer import checkpoints, distribution, optimizers
from trainer.config import Config
from trainer.loop import LoopResult, make_train_loop

NUM_BOXES = 8  # in each image
_TRAIN_STEPS = 10_000  # more than are run, for the schedule


class Cost(NamedTuple):
    """What a piece of work took."""

    wall: float  # seconds
    cpu: float  # seconds of all threads of this process


def measure(work: Callable[[], Any]) -> Cost:
    cpu, start = time.process_time(), time.perf_counter()
    work()
    return Cost(wall=time.perf_counter() - start, cpu=time.process_time() - cpu)


def peer_cpu_ms(command: str) -> float:
    """The processor time of a peer's program for an image, in ms: its last line has "N cpu_ms/image"."""
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    last_line = result.stdout.strip().splitlines()[-1]
    found = re.search(r"([\d.]+) cpu_ms/image", last_line)
    if not found:
        raise ValueError(f"the last line of --peer_command has no 'N cpu_ms/image': {last_line!r}.")
    return float(found.group(1))


def make_batch(config: Config, batch_size: int, seed: int = 0) -> Batch:
    """Images of noise, with `NUM_BOXES` boxes each, of sides from 20 px to 20 px and two fifths of the image's."""
    num_boxes = min(NUM_BOXES, config.input.max_boxes)
    rng = np.random.default_rng(seed)
    height, width = config.input.image_size
    corners = rng.uniform(0, 0.5, (batch_size, num_boxes, 2)) * [height, width]
    sides = 20 + rng.uniform(0, 0.4, corners.shape) * [height, width]
    blank = augment.blank(
        config.input,
        record_index=tf.range(batch_size, dtype=tf.int64),
        random_numbers=tf.constant(rng.random((batch_size, random_numbers.NUM_PER_IMAGE)), tf.float32),
    )
    boxes, classes = blank.boxes.numpy(), blank.classes.numpy()  # padding
    boxes[:, :num_boxes] = np.concatenate([corners, corners + sides], axis=-1)
    classes[:, :num_boxes] = rng.integers(0, len(config.labels), (batch_size, num_boxes))
    return blank._replace(
        images=tf.constant(rng.integers(0, 256, blank.images.shape, np.uint8)),
        boxes=tf.constant(boxes),
        classes=tf.constant(classes),
        valid=tf.ones([batch_size], tf.bool),
    )


class Trainer:
    """The trainer's own compiled loop.

    Args:
      config: every setting; `labels` are filled in.
      strategy: where it runs.
      paths: the shards that it reads; without them it is fed with one batch of noise again and again.
    """

    def __init__(self, config: Config, strategy: tf.distribute.Strategy, paths: Sequence[str] = ()) -> None:
        num_replicas = strategy.num_replicas_in_sync
        with strategy.scope():
            model = checkpoints.make_model(distribution.resolve_norm(config, num_replicas))
            optimizer = optimizers.make_optimizer(
                config.train.optimizer,
                train_steps=_TRAIN_STEPS,
                loss_scaling=config.train.precision == "mixed_float16",
                backbone=model.backbone.name,
            )
            optimizer.build(model.trainable_variables)
        self.model = model
        self._loop = make_train_loop(strategy, model, optimizer, config)
        if paths:
            self._iterator = distribution.make_iterator(strategy, config, paths, first_step=0)
        else:
            shares = tf.data.Dataset.from_tensor_slices(make_batch(config, config.input.batch_size))
            shares = shares.batch(config.input.batch_size // num_replicas, drop_remainder=True).cache().repeat()
            shares = shares.map(lambda batch: (batch,)).prefetch(2 * num_replicas)
            self._iterator = iter(strategy.distribute_datasets_from_function(lambda _: shares))

    def run(self, num_steps: int) -> LoopResult:
        """Runs so many steps, and waits until they are done."""
        result = self._loop(self._iterator, tf.constant(num_steps))
        result.losses.loss.numpy()
        return result
