"""Evaluation: from records to numbers, on one device and on two, once and again."""

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import painted
import pytest
import tensorflow as tf
from absl import app

from input import anchors, augment, batch_augment, boxes
from model import postprocess
from model.config import DetectConfig
from model.types import Predictions
from trainer import checkpoints, evaluate, metrics

# Everything an untrained network says, so that there is something to compare.
TALKATIVE = dataclasses.replace(painted.CONFIG, detect=DetectConfig(score_threshold=0.0, max_detections=10))


@pytest.fixture
def shard(tmp_path):
    return painted.write_shard(tmp_path / "test-00000-of-00001.tfrecord", painted.PAINTINGS)


@pytest.fixture
def seen_detections(monkeypatch):
    """The detections of each evaluation, as handed to the metrics."""
    seen = []

    def compute_metrics(ground_truths, detections, labels):
        seen.append(detections)
        return {}

    monkeypatch.setattr(metrics, "compute_metrics", compute_metrics)
    return seen


def letterboxed(paintings):
    images, transforms = zip(*(augment.letterbox(painting.pixels, painted.IMAGE_SIZE) for painting in paintings))
    sizes = [(painting.height, painting.width) for painting in paintings]
    return tf.stack(images), tf.stack(transforms), tf.constant(sizes)


def test_what_is_painted_is_found(shard):
    """Wide, tall and tiny pictures and one without objects, in batches of two: the last is padded."""
    result = evaluate.evaluate(painted.PaintFinder(), painted.CONFIG, [shard])
    assert result["num_images"] == 5
    assert (result["voc07_ap50"], result["voc12_ap50"]) == (1, 1)
    assert result["coco_ap50"] == pytest.approx(1)
    assert result["coco_ap"] > 0.8
    assert [values["num_detections"] for values in result["per_class"].values()] == [2, 2]


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_the_batch_size_changes_nothing(shard, seen_detections, batch_size):
    model = painted.PaintFinder()
    evaluate.evaluate(model, painted.CONFIG, [shard], batch_size=batch_size)
    (detections,) = seen_detections
    for painting, found in zip(painted.PAINTINGS, detections):
        assert found.classes.tolist() == ([painting.category] if painting.box else [])
        expected = np.reshape(painting.box or (), (-1, 4))
        np.testing.assert_allclose(found.boxes, expected, atol=painting.tolerance)


@pytest.mark.parametrize("wrap", [lambda function: function, tf.function], ids=["eager", "graph"])
def test_the_detector_is_network_then_detection_then_original_coordinates(wrap):
    model = checkpoints.make_model(TALKATIVE)
    images, transforms, sizes = letterboxed(painted.PAINTINGS[:2])
    found = wrap(evaluate.make_detector(model, TALKATIVE))(images, transforms, sizes)

    predictions = model(batch_augment.normalize(images), training=False)
    all_anchors = anchors.make_anchors(TALKATIVE.input.anchor, painted.IMAGE_SIZE)
    expected = postprocess.detect(predictions, all_anchors, TALKATIVE.detect, painted.IMAGE_SIZE)
    expected_boxes = boxes.to_original(expected.boxes, transforms, sizes).numpy()
    for row in range(2):
        real = np.all(expected_boxes[row, :, 2:] > expected_boxes[row, :, :2], axis=1)
        count = found.num_detections[row].numpy()
        assert count == real.sum() > 0
        np.testing.assert_allclose(found.boxes[row, :count], expected_boxes[row][real], atol=1e-3)
        np.testing.assert_allclose(found.scores[row, :count], expected.scores[row].numpy()[real], atol=1e-6)
        np.testing.assert_array_equal(found.classes[row, :count], expected.classes[row].numpy()[real])


def test_what_is_found_in_the_padding_is_dropped():
    image_size, original = painted.IMAGE_SIZE, painted.Painting(20, 96, None)  # 64 x 96: rows 20 to 64 are padding
    all_anchors = tf.constant(anchors.make_anchors(painted.CONFIG.input.anchor, image_size))
    in_padding, in_image = (30.0, 10.0, 60.0, 40.0), (5.0, 50.0, 15.0, 80.0)

    def model(images, training):
        deltas = boxes.encode([in_padding, in_image], all_anchors[:2])
        rest = len(all_anchors) - 2
        logits = tf.pad(tf.constant([[4.0, -9.0], [-9.0, 2.0]]), [[0, rest], [0, 0]], constant_values=-9.0)
        return Predictions(logits[tf.newaxis], tf.pad(deltas, [[0, rest], [0, 0]])[tf.newaxis])

    found = evaluate.make_detector(model, painted.CONFIG)(*letterboxed([original]))
    assert found.num_detections.numpy().tolist() == [1]
    np.testing.assert_allclose(found.boxes[0, 0], in_image, atol=1e-4)
    assert found.classes[0].numpy().tolist() == [1] + [-1] * 9
    np.testing.assert_allclose(found.scores[0], [tf.sigmoid(2.0)] + [0.0] * 9, rtol=1e-6)
    assert not np.any(found.boxes[0, 1:])


def test_evaluating_again_sees_new_weights_and_compiles_nothing(shard):
    model = painted.PaintFinder()
    evaluator = evaluate.make_evaluator(model, painted.CONFIG, [shard])
    assert evaluator()["voc12_ap50"] == 1
    model.logit.assign(-20.0)  # too quiet to be a detection
    assert evaluator()["voc12_ap50"] == 0
    assert model.num_traces == 1


def test_two_replicas_find_what_one_does(shard, seen_detections, two_replicas):
    with two_replicas.scope():
        model = checkpoints.make_model(TALKATIVE)
    moving = [variable for variable in model.non_trainable_variables if "moving_mean" in variable.name]
    assert moving
    for variable in moving:
        variable.assign(tf.random.stateless_normal(variable.shape, [1, 2], stddev=0.1))
    evaluate.evaluate(model, TALKATIVE, [shard], strategy=two_replicas, batch_size=3)  # rounded to 2
    evaluate.evaluate(model, TALKATIVE, [shard])
    on_two, on_one = seen_detections
    assert len(on_two) == len(painted.PAINTINGS)
    for ours, theirs in zip(on_two, on_one):
        assert len(ours.classes) > 0
        np.testing.assert_array_equal(ours.classes, theirs.classes)
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-6)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-3)


def test_other_labels_are_refused(tmp_path):
    shard = painted.write_shard(tmp_path / "test-00000-of-00001.tfrecord", painted.PAINTINGS, labels=("red", "blue"))
    with pytest.raises(ValueError, match=r"red, blue, but the model knows red, yellow.*--labels"):
        evaluate.make_evaluator(painted.PaintFinder(), painted.CONFIG, [shard])


def test_the_command_writes_and_prints_the_metrics(tmp_path, shard):
    run = tmp_path / "run"
    checkpoints.save_config(TALKATIVE, str(run))
    model = checkpoints.make_model(TALKATIVE)
    prefix = tf.train.Checkpoint(model=model).save(str(run / "checkpoints" / "ckpt"))
    pattern = str(tmp_path / "test-*.tfrecord")
    command = [sys.executable, "-m", "trainer.evaluate", f"--model_dir={run}", f"--records={pattern}"]
    done = subprocess.run([*command, f"--checkpoint={prefix}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "eval" / "test.json").read_text())
    expected = evaluate.evaluate(model, TALKATIVE, [shard])
    assert result.keys() == {*expected, "checkpoint", "step", "records"}
    for key in ("voc07_ap50", "voc12_ap50", "coco_ap", "coco_ap50"):
        assert result[key] == pytest.approx(expected[key])
    assert (result["num_images"], result["per_class"].keys()) == (5, {"red", "yellow"})
    assert (result["step"], result["checkpoint"], result["records"]) == (1, prefix, [shard])
    assert done.stdout.splitlines()[0] == f"5 images, {prefix}"
    assert done.stdout.splitlines()[1:] == evaluate.format_table(result).splitlines()


def test_the_commands_errors_are_one_line(tmp_path, monkeypatch):
    flags = SimpleNamespace(model_dir=str(tmp_path), records=["none-*"], checkpoint=None, batch_size=None)
    monkeypatch.setattr(evaluate.absl_flags, "FLAGS", flags)
    with pytest.raises(SystemExit, match=r"^error: no file matches 'none-"):
        evaluate.main(["evaluate"])
    with pytest.raises(app.UsageError, match="unexpected arguments: test-0"):
        evaluate.main(["evaluate", "test-0"])


def test_the_table():
    row = {"voc07_ap50": 0.5, "voc12_ap50": 0.25, "coco_ap": 0.125, "coco_ap50": None}
    result = {
        **row,
        "per_class": {
            "cat": {**row, "num_objects": 3, "num_difficult": 1},
            "eel": {**dict.fromkeys(row), "num_objects": 0, "num_difficult": 2},
        },
    }
    assert evaluate.format_table(result).splitlines() == [
        "             voc07_ap50  voc12_ap50     coco_ap   coco_ap50    objects  difficult",
        "cat              0.5000      0.2500      0.1250           -          3          1",
        "eel                   -           -           -           -          0          2",
        "all classes      0.5000      0.2500      0.1250           -          3          3",
    ]
