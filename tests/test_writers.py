"""The progress line, metrics for each step, and TensorBoard."""

from __future__ import annotations

import json

import pytest
import tensorflow as tf

from trainer import writers

REPORT = {
    **{"step": 15, "train_steps": 25},
    **{"loss": 3.0, "class_loss": 1.0, "box_loss": 2.0, "learning_rate": 0.1},
    **{"images_per_s": 5.0, "data_wait": 0.25, "hours": 0.1, "hours_left": 0.0025},
}
EVALUATION = {"step": 5, "loss": 1.5, "coco_ap": 0.25, "coco_ar1": 0.5, "num_images": 3, "coco_ap_small": None}


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_resume_drops_the_lines_after_its_step(tmp_path):
    metrics = writers.MetricsFile()
    metrics.on_start({"model_dir": str(tmp_path), "step": 0})
    for step in (10, 20, 30):
        metrics.on_log({"step": step, "loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    metrics.on_start({"model_dir": str(tmp_path), "step": 20})
    metrics.on_log({"step": 25, "loss": 0.5})
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 25]


def tell(writer, folder):
    """Of one report and of one evaluation."""
    writer.on_start({"model_dir": str(folder), "step": 5})
    writer.on_log(REPORT)
    writer.on_evaluate(EVALUATION)
    writer.on_end({})


def test_the_progress_line(tmp_path, caplog):
    caplog.set_level("INFO", "retinanet")
    progress = writers.Progress()
    tell(progress, tmp_path)
    progress.on_log({**REPORT, "cost": 2.5, "cost_left": 0.625})
    line = "step 15/25  loss 3.0000 (class 1.0000, box 2.0000)  5.0 images/s  waiting for data 25%  left 0:00:09"
    evaluation = "step 5  evaluation: loss 1.5000  coco_ap 0.2500"
    assert caplog.messages == [line, evaluation, f"{line}  cost 2.50, 0.62 to come"]


def test_the_lines_of_the_metrics_file(tmp_path):
    tell(writers.MetricsFile(), tmp_path)
    assert lines(tmp_path) == [REPORT, {"step": 5, "eval/loss": 1.5, "eval/coco_ap": 0.25, "eval/coco_ar1": 0.5}]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    tell(writers.TensorBoard(), tmp_path)
    (path,) = (tmp_path / "events").iterdir()
    found = {
        (value.tag, event.step): tf.make_ndarray(value.tensor).item()
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    assert found == {
        **{(f"train/{name}", 15): pytest.approx(value) for name, value in REPORT.items() if name != "step"},
        **{(f"eval/{name}", 5): EVALUATION[name] for name in ("loss", "coco_ap", "coco_ar1")},
    }
