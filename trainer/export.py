"""Exports a trained model as a SavedModel that takes image files and returns boxes in their own pixels.

`python -m trainer.export --model_dir=RUN --output_dir=EXPORT [--checkpoint=PATH] [--format=saved_model]`

EXPORT holds the SavedModel, or the files that `export_formats.py` describes. Beside them are `labels.txt` (class 0 is
its first line), `config.json` (the run's settings) and `metrics.json` (what is known of how good this checkpoint is).

Both signatures of the SavedModel return `boxes` f32 [b, d, 4] (ymin, xmin, ymax, xmax in pixels of each original
image), `scores` f32 [b, d], `classes` i32 [b, d], `num_detections` i32 [b] and `valid` bool [b]; later rows are zeros
with class -1.

- `serving_default` takes `image_bytes`, string [b]: JPEG, PNG, BMP or GIF (the first frame) files of any sizes.
- `serving_images` takes `images`, u8 [b, h, w, 3]: RGB pixels, all images of the same size.

A file that cannot be decoded, or a JPEG, PNG or GIF whose header claims more than 100 million pixels, has no detections
and is not `valid`; the others of its batch are not affected.

An EXIF orientation is not applied: boxes are in the pixels as stored.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from absl import flags as absl_flags

from input import augment, files, shards
from input.types import PAD_VALUE
from model.types import Detections
from trainer import checkpoints, command, export_formats, inference, run_report
from trainer.config import Config

FORMATS = ("saved_model", *export_formats.FORMATS)
_MODEL_FILES = {"saved_model.pb", "model.tflite", "network.tflite", "model.onnx"}  # an export has one of them
_OTHER_FILES = {
    *("variables", "assets", "fingerprint.pb", "postprocess.tflite"),
    *("labels.txt", "config.json", "metrics.json"),
}
MAX_PIXELS = 100_000_000  # as the converter's --max_pixels: a JPEG of 65,000 x 65,000 takes 22 s and gigabytes


def make_serving_module(model: tf.keras.Model, config: Config, batch_size: int | None = None) -> tf.Module:
    """The module to export: the functions `serve_bytes` and `serve_images`, and the variables they need.

    They take `batch_size` images, or any number of them if it is None.
    """
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
            numbered = tf.data.Dataset.from_tensor_slices(image_bytes).enumerate()
            loaded = numbered.map(load, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
            loaded = loaded.concatenate(tf.data.Dataset.from_tensor_slices(grey)).batch(count + 1)
            indexes, *values = loaded.get_single_element()
            rows = tf.scatter_nd(indexes[:, tf.newaxis], tf.range(1, tf.size(indexes) + 1), [count + 1])[:-1]
            valid = tf.ensure_shape(rows > 0, [batch_size])
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
        serve_bytes, input_signature=[tf.TensorSpec([batch_size], tf.string, name="image_bytes")]
    )
    module.serve_images = tf.function(
        serve_images, input_signature=[tf.TensorSpec([batch_size, None, None, 3], tf.uint8, name="images")]
    )
    return module


def num_pixels(encoded: tf.Tensor) -> tf.Tensor:
    """The pixels that the header of a JPEG, PNG or GIF file claims, i64; 0 for other files. Nothing is decoded."""

    def sides(start: int, length: int, kind: tf.DType, *, little_endian: bool) -> Callable[[], tf.Tensor]:
        """Two numbers that stand at a place in the file."""
        return lambda: tf.cast(
            tf.io.decode_raw(tf.strings.substr(encoded, start, length), kind, little_endian), tf.int64
        )

    def starts_with(signature: bytes) -> tf.Tensor:
        return tf.strings.substr(encoded, 0, len(signature)) == signature

    found = tf.case(
        [
            (starts_with(b"\xff\xd8\xff"), lambda: tf.cast(tf.io.extract_jpeg_shape(encoded)[:2], tf.int64)),
            # After the signature of 8 bytes the first chunk: its length, "IHDR", width and height.
            (starts_with(b"\x89PNG\r\n\x1a\n"), sides(16, 8, tf.int32, little_endian=False)),
            (starts_with(b"GIF8"), sides(6, 4, tf.uint16, little_endian=True)),
        ],
        default=lambda: tf.zeros([1], tf.int64),
    )
    return tf.reduce_prod(found)


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


def require_possible(output_dir: str, kind: str, records: Sequence[str]) -> None:
    """Raises for what would make `export` fail, as far as it can be told without a model.

    Raises:
      ValueError: as `export` raises it.
    """
    there = set(files.names(output_dir)) if files.exists(output_dir) else set()
    if strangers := sorted(there - _MODEL_FILES - _OTHER_FILES if there & _MODEL_FILES else there):
        raise ValueError(
            f"{output_dir} holds {strangers[0]}, which belongs to no export, and would be removed: choose another "
            "--output_dir."
        )
    if kind == "tflite_int8" and not records:
        raise ValueError("--format=tflite_int8 needs --records: shards of images such as the network will see.")
    if kind == "onnx" and not importlib.util.find_spec("tf2onnx"):
        raise ValueError("--format=onnx needs a converter: pip install 'retinanet-tf[onnx]'.")


def export(
    model: tf.keras.Model,
    config: Config,
    output_dir: str,
    *,
    kind: str = "saved_model",
    batch_size: int = 0,
    records: Sequence[str] = (),
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Writes the model with `labels.txt`, `config.json` and `metrics.json`.

    An earlier export in `output_dir` is replaced.

    Args:
      model: the network.
      config: the run's settings.
      output_dir: EXPORT.
      kind: one of FORMATS.
      batch_size: the size of every batch; 0: any size, or 1 for a format whose size is fixed.
      records: shards, which `tflite_int8` needs.
      metrics: the content of `metrics.json`.

    Raises:
      ValueError: `output_dir` holds something other than an export, or what the format needs is missing.
    """
    output_dir = output_dir.rstrip("/")
    require_possible(output_dir, kind, records)
    partial = f"{output_dir}.partial"
    files.remove_tree(partial)
    files.make_dirs(partial)
    try:
        if kind == "saved_model":
            module = make_serving_module(model, config, batch_size or None)
            signatures = {"serving_default": module.serve_bytes, "serving_images": module.serve_images}
            tf.saved_model.save(module, partial, signatures=signatures)
        else:
            converted = export_formats.convert(model, config, kind, batch_size=batch_size or 1, records=records)
            for name, content in converted.items():
                with files.create(os.path.join(partial, name)) as file:
                    file.write(content)
        for name, text in (
            ("labels.txt", "".join(f"{label}\n" for label in config.labels)),
            ("config.json", config.to_json()),
            ("metrics.json", json.dumps(metrics or {}, indent=2) + "\n"),
        ):
            files.write_text(os.path.join(partial, name), text)
    except BaseException:
        files.remove_tree(partial)
        raise
    files.remove_tree(output_dir)
    files.replace(partial, output_dir)


def read_metrics(model_dir: str, run: inference.TrainedRun) -> dict[str, Any]:
    """What the run's folder says about the weights of a checkpoint, averaged or not.

    Returns:
      `checkpoint` (its name), `step`, `averaged`, `validation` (the line of its evaluation in `RUN/metrics.jsonl`) and
      `splits` (the content of `RUN/eval/SPLIT.json` for each split on which it was evaluated). The last two may be
      empty.
    """
    folder = os.path.join(model_dir, "eval")
    keeps_averages = run.config.train.ema_decay > 0  # they are then what is evaluated while the run trains
    lines = run_report.read_metrics(model_dir) if run.averaged == keeps_averages else []
    validation = [line for line in lines if line["step"] == run.step and "eval/loss" in line]
    splits = {}
    for name in files.names(folder) if files.exists(folder) else ():
        split, suffix = os.path.splitext(name)
        if suffix != ".json" or split.endswith(".detections"):
            continue
        try:
            values = json.loads(files.read(os.path.join(folder, name)))
            # Earlier versions do not say which weights they took: the averaged ones, unless they were told otherwise.
            is_of_these = values["step"] == run.step and values.get("averaged", keeps_averages) == run.averaged
        except (KeyError, TypeError, ValueError):
            continue  # a file of another program
        if is_of_these:
            splits[split] = values
    return {
        "checkpoint": os.path.basename(run.path),
        "step": run.step,
        "averaged": run.averaged,
        "validation": validation[-1] if validation else {},
        "splits": splits,
    }


def export_run(
    model_dir: str,
    output_dir: str,
    checkpoint: str | None = None,
    *,
    averaged: bool = True,
    kind: str = "saved_model",
    batch_size: int = 0,
    records: Sequence[str] = (),
) -> str:
    """Exports a run's checkpoint, computing in float32 whatever the run trained with; returns the checkpoint's path.

    Args:
      model_dir: RUN.
      output_dir: EXPORT.
      checkpoint: a path; None for the best, else the latest.
      averaged: take the averaged weights where the run keeps them.
      kind: as for `export`.
      batch_size: as for `export`.
      records: as for `export`.

    Raises:
      FileNotFoundError: there is no such run or checkpoint.
      ValueError: as `export` raises it.
    """
    require_possible(output_dir, kind, records)
    export_formats.require_convertible(checkpoints.read_config(model_dir), kind)  # before the network is made
    run = inference.load_for_inference(model_dir, checkpoint, averaged=averaged)
    export(
        run.model,
        run.config,
        output_dir,
        kind=kind,
        batch_size=batch_size,
        records=records,
        metrics=read_metrics(model_dir, run),
    )
    return run.path


def main() -> None:
    flags = absl_flags.FLAGS
    path = export_run(
        flags.model_dir,
        flags.output_dir,
        flags.checkpoint,
        averaged=flags.averaged,
        kind=flags.format,
        batch_size=flags.batch_size,
        records=shards.expand_glob(flags.records) if flags.records else (),
    )
    print(f"exported {path} to {flags.output_dir}")


if __name__ == "__main__":
    absl_flags.DEFINE_string("model_dir", None, "The run's folder.", required=True)
    absl_flags.DEFINE_string("output_dir", None, "Where the export is written.", required=True)
    absl_flags.DEFINE_string("checkpoint", None, "The checkpoint to use; default: the best, else the latest.")
    absl_flags.DEFINE_bool("averaged", True, "Take the averaged weights where the run keeps them (--ema_decay).")
    absl_flags.DEFINE_enum("format", "saved_model", FORMATS, "The format; docs/EXPORT.md says what each is for.")
    absl_flags.DEFINE_integer(
        "batch_size",
        0,
        "Fixed number of images in a batch. 0: any number in a SavedModel, 1 in other formats.",
        lower_bound=0,
    )
    absl_flags.DEFINE_list(
        "records", [], "For tflite_int8: shards of images such as the network will see, to learn its ranges from."
    )
    command.run(main)
