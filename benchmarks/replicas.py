"""Measures what it costs to split a training step over two replicas, on a machine without GPUs.

    python benchmarks/replicas.py [--backbone=resnet50 --image_size=320 --batch_size=4]

The CPU is split into two logical devices. `overhead` is the processor time of a step on both, with `--norm=local`,
divided by that of one device with the same global batch; `overhead_sync` is the same with `--norm=sync`.
`half_batch` says how much of them a smaller batch costs by itself: what an image costs one device in a batch of a
replica's size, divided by what it costs in the global batch. The four take turns. With `sync` the losses must be
those of one device up to rounding: `sync_loss_difference` is the largest relative difference over the steps timed, and
above 1e-3 it is an error; with `local` each replica normalises by its own images.
The last line printed is JSON: medians over the turns of ratios within a turn.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"  # on some CPUs it is not TensorFlow's default

import tensorflow as tf
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import synthetic
from input.config import InputConfig, parse_image_size
from model.config import BACKBONES, ModelConfig
from trainer import distribution
from trainer.config import Config, TrainConfig

FLAGS = flags.FLAGS
flags.DEFINE_enum("backbone", "resnet50", BACKBONES, "The backbone.")
flags.DEFINE_string("image_size", "320", "Size of the network's input: N, or HxW.")
flags.DEFINE_integer("batch_size", 4, "Number of images in a step, over both replicas.", lower_bound=2)
flags.DEFINE_integer("steps", 1, "Number of steps in a block.", lower_bound=1)
flags.DEFINE_integer("rounds", 3, "Number of turns.", lower_bound=1)

MAX_LOSS_DIFFERENCE = 1e-3


def make_trainer(norm: str, strategy: tf.distribute.Strategy, batch_size: int) -> synthetic.Trainer:
    tf.keras.utils.set_random_seed(0)  # the same weights for all
    config = Config(
        labels=tuple(f"class {index}" for index in range(20)),
        input=InputConfig(image_size=parse_image_size(FLAGS.image_size), batch_size=batch_size),
        model=ModelConfig(backbone=FLAGS.backbone, norm=norm),
    )
    return synthetic.Trainer(config, strategy)


def main(_: list[str]) -> None:
    distribution.set_up_devices(TrainConfig(logical_cpus=2))
    one, two = tf.distribute.OneDeviceStrategy("/cpu:0"), tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    batch_size = FLAGS.batch_size
    num_images = {"half": batch_size // 2}
    trainers = {
        "one": make_trainer("local", one, batch_size),
        "half": make_trainer("local", one, num_images["half"]),
        "two": make_trainer("local", two, batch_size),
        "two_sync": make_trainer("sync", two, batch_size),
    }
    for trainer in trainers.values():
        trainer.run(1)
    turns: list[dict[str, float]] = []
    for number in range(FLAGS.rounds):
        costs, losses = {}, {}
        for name, trainer in list(trainers.items())[:: 1 if number % 2 else -1]:
            results = []
            costs[name] = synthetic.measure(lambda: results.append(trainer.run(FLAGS.steps)))  # noqa: B023
            losses[name] = float(results[0].losses.loss) / FLAGS.steps
        turns.append(
            {
                **{
                    f"{name}_cpu_ms_per_image": cost.cpu / FLAGS.steps / num_images.get(name, batch_size) * 1e3
                    for name, cost in costs.items()
                },
                "half_batch": costs["half"].cpu / num_images["half"] / (costs["one"].cpu / batch_size),
                "overhead": costs["two"].cpu / costs["one"].cpu,
                "overhead_sync": costs["two_sync"].cpu / costs["one"].cpu,
                "sync_loss_difference": abs(losses["two_sync"] / losses["one"] - 1),
            }
        )
        print({name: round(value, 6) for name, value in turns[-1].items()}, flush=True)
    result = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    result["sync_loss_difference"] = max(turn["sync_loss_difference"] for turn in turns)
    print(json.dumps({name: round(value, 6) for name, value in result.items()}))
    if result["sync_loss_difference"] > MAX_LOSS_DIFFERENCE:
        sys.exit(f"error: with --norm=sync two replicas have other losses than one: {result['sync_loss_difference']}.")


if __name__ == "__main__":
    app.run(main)
