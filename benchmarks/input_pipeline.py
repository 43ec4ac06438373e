"""What the input costs, against the floor of reading, decoding and resizing alone; and against a peer.

    python benchmarks/input_pipeline.py --records='OUT/train-*.tfrecord' [--image_size=512] [--peer_command=CMD]

`host` is all that the host does for training with --augment=paper; `unordered` the same with --nodeterministic_input.
`floor` reads the same files with the same threads: record, image/encoded, decode, one bilinear resize, uint8, batch.
`full` is the host with scale jitter 0.5-2.0, and what a device does after it: flip, float, normalise (compiled by XLA)
and targets; here all on this CPU. These take turns, and so does the peer's command, whose last line must hold
"N images/s". The last line is JSON, of medians over the turns; ratios are medians of the turns' ratios.
"""

import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from input import batch_augment, pipeline, shards, targets
from input.config import AugmentConfig, InputConfig

# Without these the system takes back each freed batch and hands it out anew, page by page, which a GPU's allocator does
# not: a float batch then costs more to allocate than to compute. They hold for the peer's command too.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}

FLAGS = flags.FLAGS
flags.DEFINE_string("records", None, "Shards, as a pattern.", required=True)
flags.DEFINE_integer("image_size", 512, "Height and width of the network's input.")
flags.DEFINE_integer("batch_size", 16, "Images in a batch.")
flags.DEFINE_integer("batches", 60, "Batches in a turn.")
flags.DEFINE_integer("rounds", 5, "Turns.")
flags.DEFINE_string("peer_command", None, "Shell command that prints its 'N images/s' on its last line.")


def make_floor(paths, config):
    """As little as can be done."""
    features = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}

    def load(serialized):
        image = tf.io.decode_jpeg(tf.io.parse_single_example(serialized, features)["image/encoded"], channels=3)
        return tf.cast(tf.image.resize(tf.cast(image, tf.float32), config.image_size), tf.uint8)

    return (
        tf.data.TFRecordDataset(paths, num_parallel_reads=tf.data.AUTOTUNE)
        .repeat()
        .map(load, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(FLAGS.batch_size, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def make_full(paths, config):
    """Host and device stages of one training batch, without the network; an iterator, not a dataset."""
    augment = AugmentConfig(horizontal_flip=0.5, scale_min=0.5, scale_max=2.0)
    config = dataclasses.replace(config, augment=augment)
    dataset = pipeline.make_dataset(paths, config, training=True, batch_size=FLAGS.batch_size)

    augment_images = tf.function(lambda batch: batch_augment.augment_images(batch, augment), jit_compile=True)

    @tf.function
    def assign_targets(batch):
        return targets.assign(batch_augment.augment_boxes(batch, augment), config, method="sparse")

    for batch in dataset:
        yield augment_images(batch), assign_targets(batch)


def images_per_s(batches):
    start = time.perf_counter()
    for _ in range(FLAGS.batches):
        next(batches)
    return FLAGS.batches * FLAGS.batch_size / (time.perf_counter() - start)


def peer_images_per_s():
    result = subprocess.run(FLAGS.peer_command, shell=True, capture_output=True, text=True, check=True)
    last_line = result.stdout.strip().splitlines()[-1]
    return float(re.search(r"([\d.]+) images/s", last_line).group(1))


def take_turn(name, paths, config):
    """Images a second of one stage, its iterator made anew so that no stage works while another is timed."""
    if name == "peer":
        return peer_images_per_s()
    if name == "floor":
        dataset = make_floor(paths, config)
    elif name in ("host", "unordered"):
        config = dataclasses.replace(config, deterministic_input=name == "host")
        dataset = pipeline.make_dataset(paths, config, training=True, batch_size=FLAGS.batch_size)
    else:
        dataset = make_full(paths, config)
    batches = iter(dataset)
    for _ in range(5):
        next(batches)
    return images_per_s(batches)


def main(_):
    paths = shards.expand_glob(FLAGS.records)
    config = InputConfig(image_size=(FLAGS.image_size, FLAGS.image_size), augment=AugmentConfig.preset("paper"))
    names = ["host", "floor", "unordered", "full"] + (["peer"] if FLAGS.peer_command else [])
    turns = []
    for number in range(FLAGS.rounds):
        order = names if number % 2 else names[::-1]  # so that none always follows the same one
        turns.append({name: take_turn(name, paths, config) for name in order})
        print({name: round(value, 1) for name, value in turns[-1].items()}, flush=True)

    def median(value_of):
        return round(statistics.median(map(value_of, turns)), 3)

    result = {f"{name}_images_per_s": median(lambda turn, name=name: turn[name]) for name in names}
    result["ratio_to_floor"] = median(lambda turn: turn["host"] / turn["floor"])
    result["unordered_to_host"] = median(lambda turn: turn["unordered"] / turn["host"])
    if FLAGS.peer_command:
        result["ratio_to_peer"] = median(lambda turn: turn["full"] / turn["peer"])
    print(json.dumps(result))


if __name__ == "__main__":
    if not ALLOCATOR.keys() <= os.environ.keys():  # they are read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    app.run(main)
