"""Measures detection on this machine: the network, its post-processing, and the whole of `trainer.predict`.

    python benchmarks/inference.py [--backbone=resnet50 --image_size=320 --batch_sizes=1,8] [--peer_command=CMD]

`network` is the network alone, in float32 with oneDNN; `postprocess` takes what it predicts; `predict` is the whole of
`trainer.predict` on JPEG files of 640x480, from reading them to writing the pictures with about ten boxes each. The
network is untrained, but its scores are spread so that suppression gets all its candidates and returns as many
detections as it may. The peer's command runs a block of its own; {batch_size} in it is replaced, and its last line must
contain "N cpu_ms/image".

The last line printed is JSON, for each batch size: processor time in ms for an image, `postprocess_share` and
`pipeline_share`, what post-processing adds to the network and what `predict` adds to both, and `ratio_to_peer`, the
peer's time over the network's. The blocks take turns, and each time is the least of its turns: other programs, which
share the caches and the memory, can only add to it, and in a single turn they add more than `predict` does.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"  # on some CPUs it is not TensorFlow's default

import numpy as np
import tensorflow as tf
from absl import app, flags
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import synthetic
from input.config import InputConfig, parse_image_size
from model.config import BACKBONES, ModelConfig
from trainer import checkpoints, export, inference, predict
from trainer.config import Config

FLAGS = flags.FLAGS
flags.DEFINE_enum("backbone", "resnet50", BACKBONES, "The backbone.")
flags.DEFINE_string("image_size", "320", "Size of the network's input: N, or HxW.")
flags.DEFINE_list("batch_sizes", ["1", "8"], "Numbers of images at a time.")
flags.DEFINE_integer("num_classes", 20, "Number of classes.", lower_bound=1)
flags.DEFINE_integer("images", 8, "Number of images in a block.", lower_bound=1)
flags.DEFINE_integer("rounds", 5, "Number of turns.", lower_bound=1)
flags.DEFINE_string("peer_command", None, "Shell command of the peer, which prints 'N cpu_ms/image' on its last line.")


NUM_DRAWN = 10  # boxes in a picture, on average


def make_network() -> tuple[tf.keras.Model, Config]:
    """An untrained network whose logits have a deviation of 1: many of them lie above the threshold."""
    config = Config(
        labels=tuple(f"class {index}" for index in range(FLAGS.num_classes)),
        input=InputConfig(image_size=parse_image_size(FLAGS.image_size)),
        model=ModelConfig(backbone=FLAGS.backbone),
    )
    model = checkpoints.make_model(config)
    noise = tf.random.stateless_uniform([1, *config.input.image_size, 3], [0, 0], 0, 256, tf.int32)
    logits = inference.predict(model, tf.cast(noise, tf.uint8), config).class_logits
    kernel = model.class_head.output_conv.kernel
    kernel.assign(kernel / tf.math.reduce_std(logits))
    return model, config


def write_photographs(folder: str) -> list[str]:
    """JPEG files of smooth noise, which compress like photographs."""
    paths = []
    for index in range(FLAGS.images):
        noise = np.random.default_rng(index).integers(0, 256, (48, 64, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        paths.append(os.path.join(folder, f"{index}.jpg"))
        Path(paths[-1]).write_bytes(file.getvalue())
    return paths


def measure(model: tf.keras.Model, config: Config, batch_size: int, folder: str) -> dict[str, float]:
    """The figures for a batch size."""
    paths = write_photographs(folder)
    module = export.make_serving_module(model, config)
    detector = predict.Detector(config.labels, module.serve_bytes, module.serve_images)
    height, width = config.input.image_size
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (batch_size, height, width, 3), np.uint8))
    transforms = tf.tile([[1.0, 1.0, 0.0, 0.0]], [batch_size, 1])
    sizes = tf.tile([[height, width]], [batch_size, 1])
    run_network = tf.function(lambda images: inference.predict(model, images, config))
    run_postprocess = tf.function(inference.make_decoder(config))
    predictions = run_network(images)
    scores = detector.detect_bytes(tf.constant([Path(path).read_bytes() for path in paths]))["scores"].numpy()
    threshold = float(np.sort(scores, axis=None)[-min(NUM_DRAWN * len(paths), scores.size)])

    def network() -> None:
        for _ in range(FLAGS.images // batch_size):
            run_network(images).box_deltas.numpy()

    def postprocess() -> None:
        for _ in range(FLAGS.images // batch_size):
            run_postprocess(predictions, transforms, sizes).boxes.numpy()

    def whole() -> None:
        predict.predict(
            detector, paths, os.path.join(folder, "output"), score_threshold=threshold, batch_size=batch_size
        )

    work = {"network": network, "postprocess": postprocess, "predict": whole}
    for block in work.values():
        block()
    turns: list[dict[str, float]] = []
    for _ in range(FLAGS.rounds):
        turn = {f"{name}_cpu_ms": synthetic.measure(block).cpu / FLAGS.images * 1e3 for name, block in work.items()}
        if FLAGS.peer_command:
            command = FLAGS.peer_command.replace("{batch_size}", str(batch_size))
            turn["peer_cpu_ms"] = synthetic.peer_cpu_ms(command)
        turns.append(turn)
        print({name: round(value, 3) for name, value in turn.items()}, flush=True)
    least = {name: min(turn[name] for turn in turns) for name in turns[0]}
    model_cpu_ms = least["network_cpu_ms"] + least["postprocess_cpu_ms"]
    result = {
        **least,
        "postprocess_share": least["postprocess_cpu_ms"] / least["network_cpu_ms"],
        "pipeline_share": least["predict_cpu_ms"] / model_cpu_ms - 1,
    }
    if FLAGS.peer_command:
        result["ratio_to_peer"] = least["peer_cpu_ms"] / least["network_cpu_ms"]
    return {name: round(value, 3) for name, value in result.items()}


def main(_: list[str]) -> None:
    batch_sizes = [int(text) for text in FLAGS.batch_sizes]
    if any(size < 1 or FLAGS.images % size for size in batch_sizes):
        raise ValueError(f"--images={FLAGS.images} must be a multiple of each of --batch_sizes.")
    model, config = make_network()
    result = {}
    for batch_size in batch_sizes:
        with tempfile.TemporaryDirectory() as folder:
            result[f"batch_{batch_size}"] = measure(model, config, batch_size, folder)
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
