"""Measures the throughput of the input, against a floor of reading, decoding and resizing alone, and against a peer.

    python benchmarks/input_pipeline.py --records='OUT/train-*.tfrecord' [--image_size=512] [--peer_command=CMD]

`host` is all that the host does for training with --augment=paper; `unordered` is the same with
--nodeterministic_input. `floor` reads the same files with the same threads and does the least possible: record,
image/encoded, decode, one bilinear resize, uint8, batch. `full` is the host stage with scale jitter 0.5-2.0 and then
the device stage: flip, float, normalise (compiled by XLA) and targets, all on this CPU. They take turns, and so does
the peer's command, whose last line must contain "N images/s". The last line printed is JSON: medians over the turns,
and medians of the ratios within a turn.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from input import batch_augment, pipeline, shards, targets
from input.config import AugmentConfig, InputConfig
from input.types import Batch, Targets

# Without these settings the system takes back the memory of each batch and gives it out again page by page, so that a
# float batch costs more to allocate than to compute; a GPU's allocator does not do so. They apply to the peer too.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}

FLAGS = flags.FLAGS
flags.DEFINE_string("records", None, "Pattern of the shards to read, such as 'OUT/train-*.tfrecord'.", required=True)
flags.DEFINE_integer("image_size", 512, "Height and width of the network's input.")
flags.DEFINE_integer("batch_size", 16, "Number of images in a batch.")
flags.DEFINE_integer("batches", 60, "Number of batches in a turn.")
flags.DEFINE_integer("rounds", 5, "Number of turns.")
flags.DEFINE_string("peer_command", None, "Shell command of the peer, which prints 'N images/s' on its last line.")


def make_floor(paths: Sequence[str], config: InputConfig) -> tf.data.Dataset:
    features = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}

    def load(serialized: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_jpeg(tf.io.parse_single_example(serialized, features)["image/encoded"], channels=3)
        return tf.cast(tf.image.resize(tf.cast(image, tf.float32), config.image_size), tf.uint8)

    return (
        tf.data.TFRecordDataset(paths, num_parallel_reads=tf.data.AUTOTUNE)
        .repeat()
        .map(load, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(FLAGS.batch_size, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def make_full(paths: Sequence[str], config: InputConfig) -> Iterator[tuple[tf.Tensor, Targets]]:
    """Host and device stages of training batches, without the network."""
    augment = AugmentConfig(horizontal_flip=0.5, scale_min=0.5, scale_max=2.0)
    config = dataclasses.replace(config, augment=augment)
    dataset = pipeline.make_dataset(paths, config, training=True, batch_size=FLAGS.batch_size)

    augment_images = tf.function(lambda batch: batch_augment.augment_images(batch, augment), jit_compile=True)

    @tf.function
    def assign_targets(batch: Batch) -> Targets:
        return targets.assign(batch_augment.augment_boxes(batch, augment), config, method="sparse")

    for batch in dataset:
        yield augment_images(batch), assign_targets(batch)


def images_per_s(batches: Iterator[Any]) -> float:
    start = time.perf_counter()
    for _ in range(FLAGS.batches):
        next(batches)
    return FLAGS.batches * FLAGS.batch_size / (time.perf_counter() - start)


def peer_images_per_s() -> float:
    result = subprocess.run(FLAGS.peer_command, shell=True, capture_output=True, text=True, check=True)
    last_line = result.stdout.strip().splitlines()[-1]
    found = re.search(r"([\d.]+) images/s", last_line)
    if not found:
        raise ValueError(f"the last line of --peer_command has no 'N images/s': {last_line!r}.")
    return float(found.group(1))


def take_turn(name: str, paths: Sequence[str], config: InputConfig) -> float:
    """Images a second of one of the names; its iterator is new, so that no other works while this one is timed."""
    if name == "peer":
        return peer_images_per_s()
    if name == "floor":
        batches = iter(make_floor(paths, config))
    elif name in ("host", "unordered"):
        config = dataclasses.replace(config, deterministic_input=name == "host")
        batches = iter(pipeline.make_dataset(paths, config, training=True, batch_size=FLAGS.batch_size))
    else:
        batches = make_full(paths, config)
    for _ in range(5):
        next(batches)
    return images_per_s(batches)


def main(_: list[str]) -> None:
    paths = shards.expand_glob(FLAGS.records)
    config = InputConfig(image_size=(FLAGS.image_size, FLAGS.image_size), augment=AugmentConfig.preset("paper"))
    names = ["host", "floor", "unordered", "full"] + (["peer"] if FLAGS.peer_command else [])
    turns: list[dict[str, float]] = []
    for number in range(FLAGS.rounds):
        order = names if number % 2 else names[::-1]  # so that none always follows the same other one
        turns.append({name: take_turn(name, paths, config) for name in order})
        print({name: round(value, 1) for name, value in turns[-1].items()}, flush=True)

    def median_ratio(name: str, other: str) -> float:
        return round(statistics.median(turn[name] / turn[other] for turn in turns), 3)

    result = {f"{name}_images_per_s": round(statistics.median(turn[name] for turn in turns), 3) for name in names}
    result["ratio_to_floor"] = median_ratio("host", "floor")
    result["unordered_to_host"] = median_ratio("unordered", "host")
    if FLAGS.peer_command:
        result["ratio_to_peer"] = median_ratio("full", "peer")
    print(json.dumps(result))


if __name__ == "__main__":
    if not ALLOCATOR.keys() <= os.environ.keys():  # they are read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    app.run(main)
