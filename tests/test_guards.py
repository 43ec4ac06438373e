"""What a run does when its loss is not finite, when nothing gets better, and with odd data."""

from __future__ import annotations

import dataclasses
import json
import types

import numpy as np
import pytest
import small_network
import tensorflow as tf
import tiny
import toy_shards

from input.config import AugmentConfig
from trainer import checkpoints, evaluate, guards, resume, train

pytestmark = pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    return {split: toy_shards.write_shards(folder, count, split=split) for split, count in (("train", 10), ("val", 3))}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(checkpoints, "make_model", small_network.make_model)


def run(records, model_dir, *, val=(), labels=toy_shards.LABELS, batch_size=2, **settings):
    """A run of `settings` of the TrainConfig."""
    data = dataclasses.replace(tiny.CONFIG.input, batch_size=batch_size)
    config = tiny.config(train={"eager": True, **settings}, labels=labels, input=data)
    return train.train_and_evaluate(config, train_paths=records, val_paths=val, model_dir=str(model_dir))


def rates_of(model_dir):
    lines = map(json.loads, (model_dir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["learning_rate"] for line in lines if "loss" in line}


def log_of(model_dir):
    (log,) = (model_dir / "logs").iterdir()
    return log.read_text()


CONSTANT = dataclasses.replace(tiny.CONFIG.train.optimizer, lr_schedule="constant", learning_rate=0.01)


class Diverging:
    """Makes the loss NaN in a step, the first `times` that it is reached."""

    def __init__(self, step, times):
        self.step, self.left = step, times

    def __call__(self, result, last_step, train_paths):
        if last_step == self.step and self.left:
            self.left -= 1
            bad = tf.constant([0, 3], tf.int64)
            check_finite(result._replace(bad_records=bad), last_step, train_paths)
        check_finite(result, last_step, train_paths)


check_finite = guards.check_finite


def test_a_run_goes_back_with_half_the_rate_and_keeps_it_when_resumed(records, tmp_path, monkeypatch):
    monkeypatch.setattr(guards, "check_finite", Diverging(step=6, times=2))
    settings = {"optimizer": CONSTANT, "on_non_finite": "rollback", "checkpoint_every": 4}
    resume.write_evaluated_step(str(tmp_path), 6)
    monkeypatch.setattr(resume, "set_aside", lambda model_dir: None)  # it would remove that
    assert run(records["train"], tmp_path, train_steps=8, **settings).step == 8
    assert rates_of(tmp_path) == {2: approx(0.01), 4: approx(0.01), 6: approx(0.0025), 8: approx(0.0025)}
    log = log_of(tmp_path)
    assert "first for the batch of images image-0 (record 0 of " in log
    assert "going back from step 6 to step 4 with 0.5 of the learning rate (rollback 1 of at most 3)" in log
    assert "going back from step 6 to step 4 with 0.25 of the learning rate (rollback 2 of at most 3)" in log
    assert json.loads((tmp_path / "rollbacks.json").read_text()) == [{"at": 6, "to": 4}] * 2
    assert resume.read_evaluated_step(str(tmp_path)) == 4  # so that step 6 is evaluated anew
    run(records["train"], tmp_path, train_steps=10, **settings)
    assert rates_of(tmp_path)[10] == approx(0.0025)


def approx(value):
    return pytest.approx(value, rel=1e-6)


def test_a_run_goes_back_so_many_times_only_and_to_its_start_if_need_be(records, tmp_path, monkeypatch):
    monkeypatch.setattr(guards, "check_finite", Diverging(step=2, times=9))
    with pytest.raises(FloatingPointError, match=r"between steps \d and 2, first for the batch of images image-0"):
        run(records["train"], tmp_path, on_non_finite="rollback", max_rollbacks=2)
    assert json.loads((tmp_path / "rollbacks.json").read_text()) == [{"at": 2, "to": 0}] * 2


def test_gradients_that_are_not_finite_are_seen_although_the_loss_is(records, tmp_path, monkeypatch):
    monkeypatch.setattr(tf.linalg, "global_norm", lambda gradients: tf.constant(np.nan))
    with pytest.raises(FloatingPointError, match="between steps 1 and 1, first for the batch of images image-"):
        run(records["train"], tmp_path, train_steps=1)
    # With loss scaling, such a step is skipped.
    run(records["train"], tmp_path / "scaled", train_steps=2, precision="mixed_float16")
    assert "not finite" not in log_of(tmp_path / "scaled")


def loop_result(steps, *, skipped=0, positives=1.0):
    return types.SimpleNamespace(num_steps=steps, num_skipped=skipped, num_positives=positives)


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        ((loop_result(20), 1.0), (loop_result(20), 2.0), "the loss scale fell to 1"),
        ((loop_result(5, skipped=5), 8.0), (loop_result(5, skipped=4), 8.0), "10 steps in a row were skipped"),
        ((loop_result(50, positives=0.0), None), (loop_result(50), None), "no anchor matched an object in 100 steps"),
    ],
)
def test_an_alarm_is_one_line_each_time_that_it_begins(caplog, wrong, right, message):
    alarms = guards.Alarms()
    for loop in (right, wrong, wrong, wrong, right, wrong, wrong):
        alarms.look(*loop)
    assert len(caplog.messages) == 2
    assert all(message in said for said in caplog.messages)


def test_a_run_ends_after_evaluations_without_anything_better_also_when_it_is_resumed(records, tmp_path, monkeypatch):
    """The best evaluation is that of step 4, so --patience=3 ends the run at step 10, and for good."""
    quality = {2: 0.1, 4: 0.3, 6: 0.2, 8: 0.3, 10: 0.1}
    steps = [0]

    def make_evaluator(model, config, paths, **options):
        def evaluator():
            steps.append(steps[-1] + 2)
            return {"coco_ap": quality[steps[-1]], "loss": 1.0}

        return evaluator

    monkeypatch.setattr(evaluate, "make_evaluator", make_evaluator)
    settings = {"patience": 3, "eval_every": 2, "optimizer": CONSTANT}
    for train_steps, last in ((6, 6), (20, 10), (20, 10)):
        assert run(records["train"], tmp_path, val=records["val"], train_steps=train_steps, **settings).step == last
    assert steps == [0, 2, 4, 6, 8, 10]
    assert "stopped at step 10 of 20, since 3 evaluations brought nothing better" in log_of(tmp_path)
    assert json.loads((tmp_path / "best" / "metrics.json").read_text())["step"] == 4
    with pytest.raises(ValueError, match="--patience=3 counts evaluations: give --val_records"):
        run(records["train"], tmp_path / "none", patience=3)


def test_lack_of_memory_says_what_to_lower():
    config = tiny.config(input=dataclasses.replace(tiny.CONFIG.input, batch_size=16, image_size=(512, 640)))
    with (
        pytest.raises(ValueError, match="memory does not suffice") as raised,
        guards.explaining_lack_of_memory(config, 2),
    ):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[8,64]\nmore")
    message = str(raised.value)
    assert "for 8 images of 512x640 at a time in float32 (resnet18-fpn, OOM when allocating tensor" in message
    assert "more" not in message
    for remedy in ("--accumulation_steps=2,", "--batch_size=8,", "--precision=mixed_bfloat16", "--image_size=256x320"):
        assert remedy in message


def write(folder, objects):
    """A shard of images with the given classes of objects, and labels.txt."""
    (path,) = toy_shards.write_shards(folder, len(objects), num_shards=1)
    with tf.io.TFRecordWriter(path) as writer:
        for index, classes in enumerate(objects):
            boxes = [(4, 4, 30, 30)] * len(classes)
            writer.write(toy_shards.example(f"{index}", toy_shards.blocks(index)[0], boxes, classes))
    return [path]


@pytest.mark.parametrize(
    ("objects", "labels", "batch_size"),
    [([[0]], ("round", "square"), 2), ([[0], [1]], ("round", "square"), 5), ([[0], [0], []], ("round",), 2)],
    ids=["one image", "a batch larger than the data", "one class"],
)
def test_little_data_trains(tmp_path, objects, labels, batch_size):
    paths = write(tmp_path / "records", objects)
    result = run(paths, tmp_path / "run", labels=labels, batch_size=batch_size, train_steps=3)
    assert result.step == 3
    said = "the training records hold no object of square (1 of 2 classes), so the detector cannot learn them"
    assert (said in log_of(tmp_path / "run")) == (objects == [[0]])


@pytest.mark.parametrize(
    ("augment", "max_boxes", "said"),
    [
        ({"mosaic": 0.1}, 5, "4 images, as --mosaic mixes them, hold 8 objects on average, and no image may hold more "
                             "than 6: most stay unmixed; give --max_boxes=10"),
        ({"mosaic": 0.1}, 7, None),
        ({"cutmix": 0.1}, 2, "2 images, as --mixup or --cutmix mixes them, hold 4 objects on average"),
        ({"cutmix": 0.1}, 4, None),
        ({}, 1, None),
    ],
)  # fmt: skip
def test_images_with_too_many_objects_to_be_mixed_are_warned_of(tmp_path, caplog, augment, max_boxes, said):
    paths = write(tmp_path, [[0, 1], [1, 1, 0], [0]])
    config = dataclasses.replace(tiny.CONFIG.input, max_boxes=max_boxes, augment=AugmentConfig(**augment))
    guards.check_objects(paths, toy_shards.LABELS, config)
    assert [record.getMessage()[: len(said or "")] for record in caplog.records] == ([said] if said else [])


def test_data_without_any_object_is_refused(tmp_path):
    paths = write(tmp_path / "records", [[], []])
    with pytest.raises(ValueError, match=r"the training records hold no object: check --train_records"):
        run(paths, tmp_path / "run")


def test_other_labels_in_validation_are_refused_before_training(records, tmp_path):
    val = toy_shards.write_shards(tmp_path / "val", 2, split="val")
    (tmp_path / "val" / "labels.txt").write_text("round\ntriangle\n")
    with pytest.raises(
        ValueError, match=r"the labels beside .*val-00000.* are round, triangle, but the model knows round"
    ):
        run(records["train"], tmp_path / "run", val=val)
