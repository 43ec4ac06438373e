"""Measures a whole training step on this machine, against its own convolutions and against a peer.

    python benchmarks/train_step.py [--backbone=resnet50 --image_size=320 --batch_size=4] [--xla] [--peer_command=CMD]

The step is the trainer's: augmentation, assignment of targets, network, losses, gradients and update, in float32 with
oneDNN, fed with images of noise. `share_of_conv_peak` is the processor time of the network's convolutions and their
gradients, each run by itself on the same shapes, as a share of that of the whole step: 1 would be a step that costs
nothing beside its convolutions. The blocks take turns, so that other programs disturb all alike. The peer's command
runs a block of its own, and its last line must contain "N cpu_ms/image". The last line printed is JSON: medians over
the turns, and medians of the ratios within a turn.

On a busy machine run it on one core (`taskset -c 1 python ...`, which holds for the peer too): threads that spin while
they wait for each other, as those of OpenMP do, count as processor time.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"  # on some CPUs it is not TensorFlow's default

import tensorflow as tf
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import synthetic
from input.config import InputConfig, parse_image_size
from model.config import BACKBONES, ModelConfig
from trainer.config import Config, TrainConfig

FLAGS = flags.FLAGS
flags.DEFINE_enum("backbone", "resnet50", BACKBONES, "The backbone.")
flags.DEFINE_string("image_size", "320", "Size of the network's input: N, or HxW.")
flags.DEFINE_integer("batch_size", 4, "Number of images in a step.", lower_bound=1)
flags.DEFINE_integer("num_classes", 20, "Number of classes.", lower_bound=1)
flags.DEFINE_bool("xla", False, "Compile the step with XLA, as the trainer's --xla does.")
flags.DEFINE_integer("steps", 3, "Number of steps in a block.", lower_bound=1)
flags.DEFINE_integer("rounds", 5, "Number of turns.", lower_bound=1)
flags.DEFINE_string("peer_command", None, "Shell command of the peer, which prints 'N cpu_ms/image' on its last line.")


def make_config() -> Config:
    return Config(
        labels=tuple(f"class {index}" for index in range(FLAGS.num_classes)),
        input=InputConfig(image_size=parse_image_size(FLAGS.image_size), batch_size=FLAGS.batch_size),
        model=ModelConfig(backbone=FLAGS.backbone),
        train=TrainConfig(distribution="one_device", xla=FLAGS.xla),
    )


def make_convolutions(model: tf.keras.Model, image_shape: tuple[int, ...]) -> Callable[[], Any]:
    """A compiled function that runs each convolution of the network with its gradients, one after the other."""
    traced = tf.function(model).get_concrete_function(tf.TensorSpec(image_shape), training=True)
    found = [operation for operation in traced.graph.get_operations() if operation.type == "Conv2D"]
    tensors: dict[tuple[int, ...], tf.Tensor] = {}

    def noise(shape: tf.TensorShape) -> tf.Tensor:
        return tensors.setdefault(tuple(shape), tf.random.normal(shape))

    inputs = [[noise(tensor.shape) for tensor in (*operation.inputs, *operation.outputs)] for operation in found]

    @tf.function
    def run(inputs: list[list[tf.Tensor]]) -> list[tf.Tensor]:
        done: list[tf.Tensor] = []

        def finish(result: tf.Tensor) -> None:
            done.append(tf.reshape(result, [-1])[0])  # so that the memory is free again

        for operation, (x, kernel, upstream) in zip(found, inputs):
            settings = {name: operation.get_attr(name) for name in ("strides", "padding", "explicit_paddings")}
            settings["padding"] = settings["padding"].decode()
            with tf.control_dependencies(done[-1:]):
                finish(tf.raw_ops.Conv2D(input=x, filter=kernel, **settings))
            with tf.control_dependencies(done[-1:]):
                gradient = tf.raw_ops.Conv2DBackpropFilter(
                    input=x, filter_sizes=kernel.shape, out_backprop=upstream, **settings
                )
                finish(gradient)
            if operation is found[0]:
                continue  # nothing needs the gradient by the images
            with tf.control_dependencies(done[-1:]):
                gradient = tf.raw_ops.Conv2DBackpropInput(
                    input_sizes=x.shape, filter=kernel, out_backprop=upstream, **settings
                )
                finish(gradient)
        return done

    return lambda: run(inputs)[-1].numpy()


def main(_: list[str]) -> None:
    config = make_config()
    trainer = synthetic.Trainer(config, tf.distribute.OneDeviceStrategy("/cpu:0"))
    convolutions = make_convolutions(trainer.model, (FLAGS.batch_size, *config.input.image_size, 3))
    trainer.run(2)
    convolutions()
    turns: list[dict[str, float]] = []
    for _round in range(FLAGS.rounds):
        step = synthetic.measure(lambda: trainer.run(FLAGS.steps))
        turn = {
            "images_per_s": FLAGS.steps * FLAGS.batch_size / step.wall,
            "cpu_ms_per_image": step.cpu / FLAGS.steps / FLAGS.batch_size * 1e3,
            "conv_cpu_ms_per_image": synthetic.measure(convolutions).cpu / FLAGS.batch_size * 1e3,
        }
        turn["share_of_conv_peak"] = turn["conv_cpu_ms_per_image"] / turn["cpu_ms_per_image"]
        if FLAGS.peer_command:
            turn["peer_cpu_ms_per_image"] = synthetic.peer_cpu_ms(FLAGS.peer_command)
            turn["ratio_to_peer"] = turn["peer_cpu_ms_per_image"] / turn["cpu_ms_per_image"]
        turns.append(turn)
        print({name: round(value, 3) for name, value in turn.items()}, flush=True)
    print(json.dumps({name: round(statistics.median(turn[name] for turn in turns), 3) for name in turns[0]}))


if __name__ == "__main__":
    app.run(main)
