"""The progress line, metrics for each step, and TensorBoard."""

from __future__ import annotations

import dataclasses
import io
import json
import sys

import painted
import pytest
import tensorflow as tf

from trainer import writers

START = {"step": 5, "train_steps": 25, "batch_size": 4, "config": dataclasses.asdict(painted.CONFIG)}
REPORT = {
    **{"step": 15, "train_steps": 25},
    **{"loss": 3.0, "class_loss": 1.0, "box_loss": 2.0, "learning_rate": 0.1, "positives": 6.0},
    **{"images_per_s": 5.0, "data_wait": 0.25, "hours": 0.1, "hours_left": 0.0025},
}
EVALUATION = {
    **{"step": 5, "loss": 1.5, "coco_ap": 0.25, "coco_ar1": 0.5, "num_images": 3, "coco_ap_small": None},
    "per_class": {"red": {"coco_ap": 0.25, "coco_ap50": 0.75}, "yellow": {"coco_ap": None, "coco_ap50": None}},
    "samples": [{"record": 0, "image_id": "0", "size": [256, 384], "objects": [], "detections": []}],
}


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
    records = [painted.write_shard(folder / "val-00000-of-00001.tfrecord", [painted.LARGER])]
    writer.on_start({"model_dir": str(folder), "val_records": records, **START})
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


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_one_bar_takes_the_place_of_the_lines(tmp_path, caplog, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    caplog.set_level("INFO", "retinanet")
    tell(writers.Progress(), tmp_path)
    assert caplog.messages == ["step 5  evaluation: loss 1.5000  coco_ap 0.2500"]
    shown = terminal.getvalue().split("\r")
    assert any(line.startswith(" 60%|") and "step 15/25  left 0:00:09  loss 3.0000" in line for line in shown)


def test_the_lines_of_the_metrics_file(tmp_path):
    tell(writers.MetricsFile(), tmp_path)
    assert lines(tmp_path) == [REPORT, {"step": 5, "eval/loss": 1.5, "eval/coco_ap": 0.25, "eval/coco_ar1": 0.5}]


def test_tensorboard_gets_the_same_numbers_with_settings_and_pictures(tmp_path):
    tell(writers.TensorBoard(), tmp_path)
    (path,) = (tmp_path / "events").iterdir()
    found = {
        (value.tag, event.step): value
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    config = tf.make_ndarray(found.pop(("config", 5)).tensor).item()
    assert b'    "neck_filters": 16' in config
    hparams = str(found.pop(("_hparams_/session_start_info", 0)).metadata)
    assert "model.neck_filters" in hparams
    width, height, png = tf.make_ndarray(found.pop(("objects_and_detections/0", 5)).tensor).tolist()
    assert (int(width), int(height)) == (2 * 384 + 4, 256)
    assert tf.io.decode_png(png).shape == (256, 2 * 384 + 4, 3)
    assert {key: tf.make_ndarray(value.tensor).item() for key, value in found.items()} == {
        **{(f"train/{name}", 15): pytest.approx(value) for name, value in REPORT.items() if name != "step"},
        ("train/positives_per_image", 15): 1.5,
        **{(f"eval/{name}", 5): EVALUATION[name] for name in ("loss", "coco_ap", "coco_ar1")},
        **{("eval_coco_ap_of_class/red", 5): 0.25, ("eval_coco_ap50_of_class/red", 5): 0.75},
    }
