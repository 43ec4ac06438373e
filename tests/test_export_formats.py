"""Each format, loaded in a process that knows nothing of this project, detects what the model does."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import painted
import pytest
import tensorflow as tf
import tiny
import toy_shards
import yaml
from PIL import Image

from input import augment
from model import necks
from model.config import DetectConfig, ModelConfig
from trainer import checkpoints, export, export_formats, inference

DOCS = pathlib.Path(__file__).parent.parent / "docs" / "EXPORT.md"
CONFIG = dataclasses.replace(tiny.CONFIG, detect=DetectConfig(score_threshold=0.0, max_detections=10))
IMAGE_SIZE = CONFIG.input.image_size
# The largest differences allowed: of scores, and of edges in px. int8 has 256 values for all logits.
TOLERANCES = {
    "saved_model": (1e-4, 0.01),
    "tflite_float32": (1e-4, 0.01),
    "tflite_float16": (0.01, 0.2),
    "tflite_dynamic": (0.1, 2.0),
    "tflite_int8": (0.1, 2.0),
    "onnx": (1e-4, 0.01),
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def model():
    """An untrained network, except that its scores differ widely and its boxes leave their anchors."""
    tf.keras.utils.set_random_seed(0)
    model = checkpoints.make_model(CONFIG)
    for head, factor in ((model.class_head, 60.0), (model.box_head, 5.0)):
        head.output_conv.kernel.assign(factor * head.output_conv.kernel)
    return model


@pytest.fixture(scope="module")
def photograph():
    return augment.resize(toy_shards.blocks(1)[0], IMAGE_SIZE).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOLERANCES)
def test_the_program_in_the_docs_finds_what_the_model_does(kind, model, photograph, tmp_path):
    if kind == "onnx" and not all(map(importlib.util.find_spec, ("tf2onnx", "onnxruntime"))):
        pytest.skip("needs pip install -e '.[onnx]' onnxruntime, on Python 3.9 to 3.11")
    records = toy_shards.write_shards(tmp_path / "records") if kind == "tflite_int8" else []
    export.export(model, CONFIG, str(tmp_path / "EXPORT"), kind=kind, records=records)
    Image.fromarray(photograph).save(tmp_path / "photo.jpg", "PNG")  # the same pixels for every decoder
    saved_model, fit, tflite, int8, onnx, show = blocks("python")
    chosen = {"saved_model": [saved_model], "tflite_int8": [fit, int8, show], "onnx": [fit, onnx, show]}
    program = "".join(chosen.get(kind, [fit, tflite, show]))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(" ", 2) for line in done.stdout.splitlines()]
    found = [(label, float(score), np.array(box.strip("[]").split(), float)) for label, score, box in rows]

    predictions = inference.predict(model, photograph[np.newaxis], CONFIG)
    expected = inference.make_postprocess(CONFIG)(predictions)
    assert np.ptp(expected.scores) > 0.1
    assert len(found) == expected.num_detections[0] == 10
    score_tolerance, box_tolerance = TOLERANCES[kind]
    agreeing = sum(
        any(
            label == CONFIG.labels[category]
            and abs(score - other) <= score_tolerance
            and np.abs(box - edges).max() <= box_tolerance
            for label, score, box in found
        )
        for category, other, edges in zip(
            expected.classes[0].numpy(), expected.scores[0].numpy(), expected.boxes[0].numpy()
        )
    )
    # Small differences may decide which of two boxes is suppressed.
    assert agreeing >= (10 if box_tolerance < 0.1 else 8)


@pytest.mark.slow
def test_the_signature_is_shown(tmp_path):
    export.export(painted.PaintFinder(), painted.CONFIG, str(tmp_path), batch_size=2)
    command = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", "show", f"--dir={tmp_path}"]
    command += ["--tag_set=serve", "--signature_def=serving_default"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for name, kind, shape in (
        ("image_bytes", "DT_STRING", "(2)"),
        ("boxes", "DT_FLOAT", "(2, 10, 4)"),
        ("num_detections", "DT_INT32", "(2)"),
        ("valid", "DT_BOOL", "(2)"),
    ):
        assert re.search(rf"\['{name}'\] tensor_info:\s+dtype: {kind}\s+shape: {re.escape(shape)}", done.stdout)


def test_a_file_of_tensorflow_lite_finds_what_the_model_does(tmp_path):
    """A network without layers, which converts within a second, in batches of two."""
    finder = painted.PaintFinder()
    export.export(finder, painted.CONFIG, str(tmp_path / "export"), kind="tflite_float32", batch_size=2)
    assert {path.name for path in (tmp_path / "export").iterdir()} == {
        "model.tflite",
        "labels.txt",
        "config.json",
        "metrics.json",
    }
    interpreter = tf.lite.Interpreter(str(tmp_path / "export" / "model.tflite"))
    operators = {operator["op_name"] for operator in interpreter._get_ops_details()}
    assert not [name for name in operators if name == "CUSTOM" or name.startswith("Flex")]
    images = tf.stack([augment.letterbox(p.pixels, painted.IMAGE_SIZE)[0] for p in (painted.LARGER, painted.EMPTY)])
    found = interpreter.get_signature_runner()(images=images)
    expected = inference.make_postprocess(painted.CONFIG)(inference.predict(finder, images, painted.CONFIG))
    assert found["num_detections"].tolist() == [1, 0]
    for name, values in expected._asdict().items():
        assert found[name].dtype == values.dtype.as_numpy_dtype
        np.testing.assert_allclose(found[name], values, rtol=1e-5)


def test_int8_keeps_the_maps_of_a_bifpn():
    """The padding of its pools must not widen the ranges that the 256 values are spread over."""
    bifpn = necks.make_neck(ModelConfig(neck="bifpn", neck_filters=8, neck_repeats=1))
    rng = np.random.default_rng(0)
    examples = [tf.constant(rng.normal(size=[1, 8, 8, 4]), tf.float32) for _ in range(8)]

    def predict(images):
        maps = bifpn([images, images[:, ::2, ::2], images[:, ::4, ::4]])
        return {f"p{level}": p for level, p in zip(range(3, 8), maps)}

    expected = predict(images=examples[0])
    signature = [tf.TensorSpec([1, 8, 8, 4], name="images")]
    content = export_formats._to_tflite(bifpn, predict, signature, "tflite_int8", examples)
    found = tf.lite.Interpreter(model_content=content).get_signature_runner()(images=examples[0])
    for name, p in expected.items():
        assert np.corrcoef(found[name].ravel(), np.ravel(p))[0, 1] > 0.95, name


def test_images_to_learn_the_ranges_from_are_spread_evenly(tmp_path, monkeypatch):
    paintings = [painted.Painting(64, 96, (0, 0, 64, 8 * number), 0) for number in range(1, 10)]
    path = painted.write_shard(tmp_path / "train-00000-of-00001.tfrecord", paintings)
    monkeypatch.setattr(export_formats, "NUM_EXAMPLES", 3)
    images = list(export_formats.example_images([path], painted.IMAGE_SIZE))
    assert [np.count_nonzero(image[0, :, 0]) // 8 for image in images] == [1, 4, 7]
    with pytest.raises(ValueError, match="tflite_int8 needs --records"):
        export_formats.convert(painted.PaintFinder(), painted.CONFIG, "tflite_int8")


def test_the_extra_that_onnx_needs_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(ValueError, match=r"--format=onnx needs a converter: pip install 'retinanet-tf\[onnx\]'"):
        export_formats.convert(painted.PaintFinder(), painted.CONFIG, "onnx")


def test_soft_suppression_is_refused_for_onnx_before_the_network_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "require_possible", lambda *_: None)  # the converter may be missing
    soft = dataclasses.replace(painted.CONFIG, detect=DetectConfig(soft_nms_sigma=0.5))
    checkpoints.save_config(soft, str(tmp_path))
    with pytest.raises(ValueError, match=r"has no soft .* the run has --soft_nms_sigma=0\.5: choose another --format"):
        export.export_run(str(tmp_path), str(tmp_path / "export"), kind="onnx")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        export.export_run(str(tmp_path), str(tmp_path / "export"), kind="tflite_float32")


def test_what_is_known_of_the_checkpoint_travels_with_it(tmp_path):
    run = inference.TrainedRun(painted.CONFIG, painted.PaintFinder(), 20, "RUN/best/ckpt-20")
    assert export.read_metrics(str(tmp_path), run) == {
        "checkpoint": "ckpt-20",
        "step": 20,
        "averaged": False,
        "validation": {},
        "splits": {},
    }
    lines = [{"step": 10, "eval/loss": 2.0}, {"step": 20, "loss": 1.0}, {"step": 20, "eval/loss": 1.5}]
    written = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(f'{written}{{"step": 30, "lo')  # the last one is being written
    (tmp_path / "eval").mkdir()
    for name, step in (("test", 20), ("val", 10)):
        (tmp_path / "eval" / f"{name}.json").write_text(json.dumps({"step": step, "coco_ap": 0.5}))
    (tmp_path / "eval" / "test.detections.json").write_text("[]")
    known = export.read_metrics(str(tmp_path), run)
    assert known["validation"] == lines[2]
    assert known["splits"] == {"test": {"step": 20, "coco_ap": 0.5}}
    export.export(run.model, run.config, str(tmp_path / "export"), kind="tflite_float32", metrics=known)
    assert json.loads((tmp_path / "export" / "metrics.json").read_text()) == known


def test_the_compose_file_and_the_request_of_the_docs():
    (text,) = blocks("yaml")
    service = yaml.safe_load(text)["services"]["detector"]
    assert service["image"] == f"tensorflow/serving:{tf.__version__}" or not tf.__version__.startswith("2.15")
    assert service["ports"] == ["8501:8501"]
    name = service["environment"]["MODEL_NAME"]
    assert service["volumes"] == [f"./models/{name}:/models/{name}:ro"]
    (request,) = re.findall(r'-d "(.*)"\n', DOCS.read_text(encoding="utf-8"))
    body = json.loads(request.replace('\\"', '"').replace("$(base64 -w0 photo.jpg)", "AAAA"))
    assert body == {"inputs": {"image_bytes": [{"b64": "AAAA"}]}}
    for block in blocks("python"):
        ast.parse(block)
