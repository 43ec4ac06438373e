"""Compares a run exported to each format with the run itself: average precision, and the size of the files.

    python benchmarks/export_formats.py --model_dir=RUN --records='OUT/test-*.tfrecord' --examples='OUT/train-*'

Every format sees the same letterboxed images, but for `saved_model`, which is given the images' files. `keras` is the
run's network as `trainer.evaluate` calls it. The last line printed is JSON: for each format `voc12_ap50`, `coco_ap`,
and for those of one or two files `size`, as a share of the float32 file's. ONNX is left out where its converter is not
installed.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from input import boxes, pipeline, shards, tfrecord
from trainer import export, export_formats, inference, metrics
from trainer.matching import ImageDetections

FLAGS = flags.FLAGS
flags.DEFINE_string("model_dir", None, "The run's folder.", required=True)
flags.DEFINE_list("records", None, "The shards to evaluate on.", required=True)
flags.DEFINE_list("examples", None, "The shards that int8 learns its ranges from.", required=True)

Detect = Callable[[np.ndarray], Mapping[str, np.ndarray]]


def load(converted: Mapping[str, bytes]) -> Detect:
    """A function that runs the files of a format."""
    if "model.onnx" in converted:
        import onnxruntime

        session = onnxruntime.InferenceSession(converted["model.onnx"])
        names = [output.name for output in session.get_outputs()]
        return lambda images: dict(zip(names, session.run(names, {"images": images})))
    interpreters = [tf.lite.Interpreter(model_content=content) for content in converted.values()]
    first, *rest = (interpreter.get_signature_runner() for interpreter in interpreters)

    def detect(images: np.ndarray) -> Mapping[str, np.ndarray]:
        outputs = first(images=images)
        for runner in rest:
            outputs = runner(**outputs)
        return outputs

    return detect


def saved_model(run: inference.TrainedRun, records: Sequence[str]) -> Iterator[ImageDetections]:
    """What a SavedModel finds in the images of the records, given their files."""
    with tempfile.TemporaryDirectory() as temporary:
        export.export(run.model, run.config, temporary)
        serve = tf.saved_model.load(temporary).signatures["serving_default"]
        for record in itertools.chain.from_iterable(map(tfrecord.read_records, records)):
            (encoded,) = tfrecord.decode_example(record, frozenset(["image/encoded"]))["image/encoded"]
            outputs = {name: values.numpy()[0] for name, values in serve(image_bytes=tf.constant([encoded])).items()}
            yield kept(outputs, outputs["boxes"])


def kept(outputs: Mapping[str, np.ndarray], boxes_of_image: np.ndarray) -> ImageDetections:
    count = int(outputs["num_detections"])
    return ImageDetections(boxes_of_image[:count], outputs["scores"][:count], outputs["classes"][:count].astype(int))


def main(_: list[str]) -> None:
    run = inference.load_for_inference(FLAGS.model_dir)
    records, examples = shards.expand_glob(FLAGS.records), shards.expand_glob(FLAGS.examples)
    truths = shards.read_annotations(records)
    dataset = pipeline.make_dataset(records, run.config.input, training=False, batch_size=1)
    postprocess = inference.make_postprocess(run.config)
    keras = tf.function(lambda images: postprocess(inference.predict(run.model, images, run.config))._asdict())

    def find(detect: Detect) -> Iterator[ImageDetections]:
        for batch in dataset:
            outputs = {name: np.asarray(values)[0] for name, values in detect(batch.images.numpy()).items()}
            edges = boxes.to_original(outputs["boxes"][np.newaxis], batch.transforms, batch.original_sizes)
            yield kept(outputs, edges[0].numpy())

    def evaluate(found: Iterable[ImageDetections]) -> dict[str, float]:
        result = metrics.compute_metrics(truths, list(found), run.config.labels)
        return {name: round(result[name], 4) for name in ("voc12_ap50", "coco_ap")}

    results: dict[str, dict[str, float]] = {"keras": evaluate(find(keras))}
    results["saved_model"] = evaluate(saved_model(run, records))
    print(results, flush=True)
    full_size = 0
    for kind in export_formats.FORMATS:
        if kind == "onnx" and not importlib.util.find_spec("tf2onnx"):
            continue
        converted = export_formats.convert(run.model, run.config, kind, records=examples)
        size = sum(map(len, converted.values()))
        full_size = full_size or size
        results[kind] = {**evaluate(find(load(converted))), "size": round(size / full_size, 3)}
        print(kind, results[kind], flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    app.run(main)
