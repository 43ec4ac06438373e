"""Exports a trained model as a SavedModel that takes image files and returns boxes in their own pixels.

`python -m trainer.export --model_dir=RUN --output_dir=EXPORT [--checkpoint=PATH]`

EXPORT holds the SavedModel, `labels.txt` (class 0 is its first line) and `config.json`. Both signatures return
`boxes` f32 [b, d, 4] (ymin, xmin, ymax, xmax in pixels of each original image), `scores` f32 [b, d], `classes` i32
[b, d] and `num_detections` i32 [b]; later rows are zeros with class -1.

- `serving_default` takes `image_bytes`, string [b]: JPEG, PNG, BMP or GIF (the first frame) files of any sizes.
- `serving_images` takes `images`, u8 [b, h, w, 3]: RGB pixels, all images of the same size.

An EXIF orientation is not applied: boxes are in the pixels as stored.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import tensorflow as tf
from absl import flags as absl_flags

from input import augment
from trainer import command, inference
from trainer.config import Config


def make_serving_module(model: tf.keras.Model, config: Config) -> tf.Module:
    """The module to export: the functions `serve_bytes` and `serve_images`, and the variables they need."""
    detect = inference.make_detector(model, config)
    image_size = config.input.image_size

    def detect_each(load: Callable[[tf.Tensor], tuple], inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        signature = (
            tf.TensorSpec([*image_size, 3], tf.uint8),
            tf.TensorSpec([4], tf.float32),
            tf.TensorSpec([2], tf.int32),
        )
        # Decoding has kernels of the CPU alone; its small arithmetic and the loop go with it, instead of crossing to a
        # GPU and back for every image. The batch then crosses as uint8, once.
        with tf.device("CPU"):
            images = tf.map_fn(load, inputs, fn_output_signature=signature)
        return detect(*images)._asdict()

    def letterbox(image: tf.Tensor) -> tuple:
        return *augment.letterbox(image, image_size), tf.shape(image)[:2]

    module = tf.Module()
    # Only the variables: with the Keras model as an attribute, the functions of each layer would be saved too.
    module.model_variables = model.variables
    module.serve_bytes = tf.function(
        lambda image_bytes: detect_each(lambda item: augment.load_and_letterbox(item, image_size), image_bytes),
        input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")],
    )
    module.serve_images = tf.function(
        lambda images: detect_each(letterbox, images),
        input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")],
    )
    return module


def export(model: tf.keras.Model, config: Config, output_dir: str) -> None:
    """Writes the SavedModel, `labels.txt` and `config.json`; an earlier export in `output_dir` is replaced.

    Raises:
      ValueError: `output_dir` holds something other than an export.
    """
    output_dir = output_dir.rstrip("/")
    is_export = tf.io.gfile.exists(os.path.join(output_dir, "saved_model.pb"))
    if not is_export and tf.io.gfile.exists(output_dir) and tf.io.gfile.listdir(output_dir):
        raise ValueError(f"{output_dir} is not empty and holds no export to replace: choose another --output_dir.")
    partial = f"{output_dir}.partial"
    module = make_serving_module(model, config)
    tf.saved_model.save(
        module, partial, signatures={"serving_default": module.serve_bytes, "serving_images": module.serve_images}
    )
    for name, text in (
        ("labels.txt", "".join(f"{label}\n" for label in config.labels)),
        ("config.json", config.to_json()),
    ):
        with tf.io.gfile.GFile(os.path.join(partial, name), "w") as file:
            file.write(text)
    if tf.io.gfile.exists(output_dir):
        tf.io.gfile.rmtree(output_dir)
    tf.io.gfile.rename(partial, output_dir)


def export_run(model_dir: str, output_dir: str, checkpoint: str | None = None, *, averaged: bool = True) -> str:
    """Exports a run's checkpoint in float32, whatever the run trained with, and returns the checkpoint's path.

    Args:
      model_dir: RUN.
      output_dir: EXPORT.
      checkpoint: a path; None for the best, else the latest.
      averaged: take the averaged weights where the run keeps them.

    Raises:
      FileNotFoundError: there is no such run or checkpoint.
      ValueError: `output_dir` holds something other than an export.
    """
    run = inference.load_for_inference(model_dir, checkpoint, averaged=averaged)
    export(run.model, run.config, output_dir)
    return run.path


def main() -> None:
    flags = absl_flags.FLAGS
    path = export_run(flags.model_dir, flags.output_dir, flags.checkpoint, averaged=flags.averaged)
    print(f"exported {path} to {flags.output_dir}")


if __name__ == "__main__":
    absl_flags.DEFINE_string("model_dir", None, "The run's folder.", required=True)
    absl_flags.DEFINE_string("output_dir", None, "Where the SavedModel is written.", required=True)
    absl_flags.DEFINE_string("checkpoint", None, "The checkpoint to use; default: the best, else the latest.")
    absl_flags.DEFINE_bool("averaged", True, "Take the averaged weights where the run keeps them (--ema_decay).")
    command.run(main)
