"""Exports a trained model as a SavedModel that takes image files and returns boxes in their own pixels.

`python -m trainer.export --model_dir=RUN --output_dir=EXPORT [--checkpoint=PATH]`

EXPORT holds the SavedModel, `labels.txt` (class 0 is its first line) and `config.json`. Both signatures return
`boxes` f32 [b, d, 4] (ymin, xmin, ymax, xmax in pixels of each original image), `scores` f32 [b, d], `classes` i32
[b, d], `num_detections` i32 [b] and `valid` bool [b]; later rows are zeros with class -1.

- `serving_default` takes `image_bytes`, string [b]: JPEG, PNG, BMP or GIF (the first frame) files of any sizes.
- `serving_images` takes `images`, u8 [b, h, w, 3]: RGB pixels, all images of the same size.

A file that cannot be decoded, or whose header claims more than 100 million pixels, has no detections and is not
`valid`; the others of its batch are not affected.

An EXIF orientation is not applied: boxes are in the pixels as stored.
"""

from __future__ import annotations

import os

import tensorflow as tf
from absl import flags as absl_flags

from input import augment
from input.types import PAD_VALUE
from model.types import Detections
from trainer import command, inference
from trainer.config import Config

MAX_PIXELS = 100_000_000  # as the converter's --max_pixels: a JPEG of 65,000 x 65,000 takes 22 s and gigabytes


def make_serving_module(model: tf.keras.Model, config: Config) -> tf.Module:
    """The module to export: the functions `serve_bytes` and `serve_images`, and the variables they need."""
    detect = inference.make_detector(model, config)
    image_size = config.input.image_size

    def load(index: tf.Tensor, item: tf.Tensor) -> tuple:
        with tf.control_dependencies(
            [tf.debugging.assert_less_equal(num_pixels(item), tf.constant(MAX_PIXELS, tf.int64))]
        ):
            return index, *augment.load_and_letterbox(tf.identity(item), image_size)

    def serve_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        # Only tf.data can leave out what raises an error. A grey image, after the others, is always there: no batch is
        # empty then.
        count = tf.size(image_bytes, tf.int64)
        grey = (count[tf.newaxis], *(value[tf.newaxis] for value in _grey(image_size)))
        with tf.device("CPU"):
            files = tf.data.Dataset.from_tensor_slices(image_bytes).enumerate()
            loaded = files.map(load, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
            loaded = loaded.concatenate(tf.data.Dataset.from_tensor_slices(grey)).batch(count + 1)
            indexes, *values = loaded.get_single_element()
            rows = tf.scatter_nd(indexes[:, tf.newaxis], tf.range(1, tf.size(indexes) + 1), [count + 1])[:-1]
            valid = rows > 0
            rows = tf.where(valid, rows - 1, tf.size(indexes) - 1)
            images = [tf.gather(value, rows) for value in values]
        return without_invalid(detect(*images), valid)

    def serve_images(images: tf.Tensor) -> dict[str, tf.Tensor]:
        signature = (
            tf.TensorSpec([*image_size, 3], tf.uint8),
            tf.TensorSpec([4], tf.float32),
            tf.TensorSpec([2], tf.int32),
        )
        with tf.device("CPU"):  # image by image; a GPU would wait at every one
            loaded = tf.map_fn(letterbox, images, fn_output_signature=signature)
        return without_invalid(detect(*loaded), tf.ones(tf.shape(images)[:1], tf.bool))

    def letterbox(image: tf.Tensor) -> tuple:
        return *augment.letterbox(image, image_size), tf.shape(image)[:2]

    module = tf.Module()
    # Only the variables: with the Keras model as an attribute, the functions of each layer would be saved too.
    module.model_variables = model.variables
    module.serve_bytes = tf.function(
        serve_bytes, input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")]
    )
    module.serve_images = tf.function(
        serve_images, input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")]
    )
    return module


def num_pixels(encoded: tf.Tensor) -> tf.Tensor:
    """The number of pixels that the header of a JPEG or PNG file claims, i64; 0 for other files. Nothing is decoded."""

    def of_png() -> tf.Tensor:  # after the signature of 8 bytes the first chunk: length, "IHDR", width, height
        return tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.int32, little_endian=False)

    def of_other() -> tf.Tensor:
        return tf.zeros([1], tf.int32)

    is_png = tf.strings.substr(encoded, 0, 8) == b"\x89PNG\r\n\x1a\n"
    sides = tf.cond(
        tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff",
        lambda: tf.io.extract_jpeg_shape(encoded)[:2],
        lambda: tf.cond(is_png, of_png, of_other),
    )
    return tf.reduce_prod(tf.cast(sides, tf.int64))


def without_invalid(found: Detections, valid: tf.Tensor) -> dict[str, tf.Tensor]:
    """The outputs of a signature: an image that is not `valid`, bool [b], has no detections."""
    return {
        "boxes": tf.where(valid[:, tf.newaxis, tf.newaxis], found.boxes, 0.0),
        "scores": tf.where(valid[:, tf.newaxis], found.scores, 0.0),
        "classes": tf.where(valid[:, tf.newaxis], found.classes, -1),
        "num_detections": tf.where(valid, found.num_detections, 0),
        "valid": valid,
    }


def _grey(image_size: tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """What `load_and_letterbox` gives for a grey image of the network's size."""
    image = tf.fill([*image_size, 3], tf.constant(PAD_VALUE, tf.uint8))
    return image, tf.constant([1.0, 1.0, 0.0, 0.0]), tf.constant(image_size)


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
