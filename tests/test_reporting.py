"""A log file for each day, metrics for each step."""

from __future__ import annotations

import json
import logging

import pytest

from trainer import reporting


def test_each_day_has_its_log_file(tmp_path):
    handler = reporting.DailyFileHandler(str(tmp_path))
    for created, text in ((1_700_000_000, "first"), (1_700_000_060, "second"), (1_700_172_800, "two days on")):
        record = logging.makeLogRecord({"msg": text, "levelname": "INFO", "created": created})
        handler.emit(record)
    days = sorted(path.name for path in tmp_path.iterdir())
    assert len(days) == 2
    assert all(len(name) == len("2026-01-31.log") for name in days)
    assert "first" in (tmp_path / days[0]).read_text()
    assert "second" in (tmp_path / days[0]).read_text()
    assert "two days on" in (tmp_path / days[1]).read_text()


def test_the_log_file_holds_what_is_logged_until_it_is_closed(tmp_path):
    handler = reporting.log_to(str(tmp_path))
    reporting.log.info("to be found")
    reporting.stop_logging(handler)
    reporting.log.info("not to be found")
    (file,) = (tmp_path / "logs").iterdir()
    assert "to be found" in file.read_text()
    assert "not to be found" not in file.read_text()


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_resume_drops_the_lines_after_its_step(tmp_path):
    metrics = reporting.MetricsFile(str(tmp_path), step=0)
    for step in (10, 20, 30):
        metrics.write({"step": step, "loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    resumed = reporting.MetricsFile(str(tmp_path), step=20)
    resumed.write({"step": 25, "loss": 0.5})
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 25]


def test_the_report_of_a_step(tmp_path, monkeypatch):
    """10 steps of 4 images in 8 s, 2 s of them waiting; 10 steps left."""
    clock = iter([100.0, 108.0])
    monkeypatch.setattr(reporting.time, "monotonic", lambda: next(clock))
    handler = reporting.log_to(str(tmp_path))
    reporter = reporting.Reporter(str(tmp_path), step=5, train_steps=25, batch_size=4)
    reporter.training(
        15,
        {"loss": 3.0, "class_loss": 1.0, "box_loss": 2.0},
        data_wait_s=2.0,
        extra={"learning_rate": 0.1},
    )
    reporter.close()
    reporting.stop_logging(handler)
    (line,) = lines(tmp_path)
    assert line == {
        "step": 15,
        "loss": 3.0,
        "class_loss": 1.0,
        "box_loss": 2.0,
        "learning_rate": 0.1,
        "images_per_s": pytest.approx(5.0),
        "data_wait": pytest.approx(0.25),
    }
    (log,) = (tmp_path / "logs").iterdir()
    assert "step 15/25  loss 3.0000 (class 1.0000, box 2.0000)  5.0 images/s  waiting for data 25%  left 0:00:08" in (
        log.read_text()
    )
    assert list((tmp_path / "events").iterdir())


def test_the_report_of_an_evaluation(tmp_path):
    handler = reporting.log_to(str(tmp_path))
    reporter = reporting.Reporter(str(tmp_path), step=0, train_steps=10, batch_size=4)
    reporter.evaluation(5, {"loss": 1.5, "coco_ap": 0.25, "coco_ar1": 0.5, "num_images": 3, "coco_ap_small": None})
    reporter.close()
    reporting.stop_logging(handler)
    assert lines(tmp_path) == [{"step": 5, "eval/loss": 1.5, "eval/coco_ap": 0.25, "eval/coco_ar1": 0.5}]
    (log,) = (tmp_path / "logs").iterdir()
    assert log.read_text().endswith("step 5  evaluation: loss 1.5000  coco_ap 0.2500\n")
