"""An exported network as files of TensorFlow Lite or ONNX, which need no TensorFlow to run.

Unlike a SavedModel they take images of the network's own size, in batches of a fixed size, and their boxes are in
pixels of this input: the program that calls them resizes and pads, as `docs/EXPORT.md` shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from input import anchors, augment, shards, tfrecord
from model.types import Predictions
from trainer import inference
from trainer.config import Config

TFLITE_FORMATS = ("tflite_float32", "tflite_float16", "tflite_dynamic", "tflite_int8")
FORMATS = (*TFLITE_FORMATS, "onnx")
NUM_EXAMPLES = 200  # images from which int8 learns the ranges of the network's numbers
_ONNX_OPSET = 17


def convert(
    model: tf.keras.Model, config: Config, kind: str, *, batch_size: int = 1, records: Sequence[str] = ()
) -> dict[str, bytes]:
    """The network as the files of a format, by their names.

    `model.tflite` and `model.onnx` take `images`, u8 [b, h, w, 3], and return `boxes`, `scores`, `classes` and
    `num_detections`, as `model.types.Detections`. For `tflite_int8` there are two files. `network.tflite` takes the
    images and returns `class_logits` and `box_deltas` in float32. `postprocess.tflite` takes these and returns
    detections; it stays in float32, because with 256 different values a box would be some pixels off.

    Args:
      model: the network.
      config: the run's settings.
      kind: one of FORMATS.
      batch_size: b.
      records: shards of images such as the network will see; `tflite_int8` needs them.

    Raises:
      ValueError: `tflite_int8` without records, or `onnx` without its converter or with soft non-maximum suppression.
    """
    require_convertible(config, kind)
    shape = [batch_size, *config.input.image_size, 3]
    images = tf.TensorSpec(shape, tf.uint8, name="images")
    postprocess = inference.make_postprocess(config)

    def predict(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return inference.predict(model, images, config)._asdict()

    def detect(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return postprocess(inference.predict(model, images, config))._asdict()

    def detect_from(class_logits: tf.Tensor, box_deltas: tf.Tensor) -> dict[str, tf.Tensor]:
        return postprocess(Predictions(class_logits, box_deltas))._asdict()

    if kind == "onnx":
        return {"model.onnx": _to_onnx(detect, [images])}
    if kind != "tflite_int8":
        return {"model.tflite": _to_tflite(model, detect, [images], kind)}
    if not records:
        raise ValueError("--format=tflite_int8 needs --records: shards of images such as the network will see.")
    num_anchors = sum(anchors.num_anchors_by_level(config.input.anchor, config.input.image_size))
    predictions = [
        tf.TensorSpec([batch_size, num_anchors, size], name=name)
        for name, size in (("class_logits", len(config.labels)), ("box_deltas", 4))
    ]
    examples = example_images(records, config.input.image_size).repeat().batch(batch_size).take(NUM_EXAMPLES)
    return {
        "network.tflite": _to_tflite(model, predict, [images], kind, examples),
        "postprocess.tflite": _to_tflite(model, detect_from, predictions, "tflite_float32"),
    }


def require_convertible(config: Config, kind: str) -> None:
    """Refuses what a format cannot hold.

    Raises:
      ValueError: `onnx` with soft non-maximum suppression: tf2onnx drops its sigma, so nothing would be suppressed.
    """
    if kind == "onnx" and config.detect.soft_nms_sigma:
        raise ValueError(
            f"--format=onnx has no soft non-maximum suppression, but the run has "
            f"--soft_nms_sigma={config.detect.soft_nms_sigma:g}: choose another --format; or call trainer.task for the "
            "run again with --soft_nms_sigma=0, which takes no step at its end."
        )


def example_images(records: Sequence[str], image_size: tuple[int, int]) -> tf.data.Dataset:
    """Up to NUM_EXAMPLES images of some shards, evenly spread, each u8 [h, w, 3] of the network's size."""
    stride = max(1, sum(shards.count_records(records)) // NUM_EXAMPLES)

    def load(record: tf.Tensor) -> tf.Tensor:
        return augment.load_and_letterbox(tfrecord.parse_examples(record[tf.newaxis]).images[0], image_size)[0]

    return tf.data.TFRecordDataset(records).shard(stride, 0).take(NUM_EXAMPLES).map(load).ignore_errors()


def _to_tflite(
    model: tf.keras.Model,
    function: Callable[..., dict[str, tf.Tensor]],
    signature: Sequence[tf.TensorSpec],
    kind: str,
    examples: tf.data.Dataset | None = None,
) -> bytes:
    """A function as a file that needs TensorFlow Lite's own operators only."""
    module = tf.Module()
    module.variables_of_model = model.variables
    module.function = tf.function(function, input_signature=signature)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.function.get_concrete_function()], module)
    if kind != "tflite_float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "tflite_float16":
        converter.target_spec.supported_types = [tf.float16]
    if examples is not None:
        # Nothing but int8: an operator that has no such form is an error.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: ([images] for images in examples)
    return converter.convert()


def _to_onnx(function: Callable[..., dict[str, tf.Tensor]], signature: Sequence[tf.TensorSpec]) -> bytes:
    try:
        import tf2onnx
    except ImportError:
        raise ValueError("--format=onnx needs a converter: pip install 'retinanet-tf[onnx]'.") from None
    converted: tuple[Any, Any] = tf2onnx.convert.from_function(
        tf.function(function, input_signature=signature), input_signature=signature, opset=_ONNX_OPSET
    )
    return converted[0].SerializeToString()
