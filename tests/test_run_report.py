"""The page of a run: what it shows at each event, and that it is well-formed whatever the names."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import painted
import pytest

from input import shards
from trainer import page, run_report, samples
from trainer.matching import ImageDetections

LABELS = ("<b>red</b>", "猫 & dog")
CONFIG = dataclasses.replace(painted.CONFIG, labels=LABELS)
PAINTINGS = (painted.LARGER, painted.WIDE, painted.EMPTY)


@pytest.fixture
def records(tmp_path):
    return [painted.write_shard(tmp_path / "val-00000-of-00001.tfrecord", PAINTINGS, LABELS)]


def chosen(records):
    """The samples of an evaluation that found the first object where it is, and one elsewhere with a low score."""
    truths = shards.read_annotations(records)
    found = ImageDetections(
        boxes=np.float32([painted.LARGER.box, (0, 0, 9, 9)]), scores=np.float32([0.9, 0.1]), classes=np.int32([0, 1])
    )
    nothing = ImageDetections(np.zeros([0, 4], np.float32), np.zeros([0], np.float32), np.zeros([0], np.int32))
    return samples.choose([0, 1, 2], truths, [found, nothing, nothing])


def start_event(folder, records, step=0):
    return {
        "model_dir": str(folder / "RUN <1> [2]"),
        **{"step": step, "train_steps": 1000, "num_images": 3, "batch_size": 2, "num_replicas": 1},
        **{"train_records": records, "val_records": records, "config": dataclasses.asdict(CONFIG)},
    }


def log_event(step):
    speed = {"images_per_s": 4.0, "data_wait": 0.25, "hours_left": (1000 - step) * 2 / 4 / 3600}
    return {"step": step, "train_steps": 1000, "loss": 500.0 / step, "learning_rate": 0.1, **speed}


def evaluate_event(records, step):
    averages = {"coco_ap": 0.25, "coco_ap50": 0.5}
    per_class = {label: {**averages, "num_objects": 1} for label in LABELS}
    return {"step": step, **averages, "per_class": per_class, "samples": chosen(records)}


def read(folder):
    """The page's text, and its elements as an XML parser sees them."""
    text = (folder / "RUN <1> [2]/report.html").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text.replace("<!DOCTYPE html>\n", ""))
    return " ".join(" ".join(root.itertext()).split()), root


def test_the_page_follows_the_run(tmp_path, records, monkeypatch):
    clock = iter(np.arange(0.0, 10_000.0, 30.0).tolist())
    monkeypatch.setattr(run_report.time, "monotonic", lambda: next(clock))
    report = run_report.Report(lambda: 90.0)
    start = start_event(tmp_path, records)
    report.on_start(start)
    text, root = read(tmp_path)
    assert "state running" in text
    assert "time so far 0:01:30" in text
    assert "step 0 of 1,000" in text
    assert [element.get("content") for element in root.iter() if element.get("http-equiv") == "refresh"] == ["60"]

    with open(tmp_path / "RUN <1> [2]/metrics.jsonl", "w", encoding="utf-8") as file:
        for step in (10, 20):
            file.write(json.dumps(log_event(step)) + "\n")
        file.write('{"step": 20, "eval/evaluation_s": 9.0}\n{"step": 30, "lo')  # being written
    report.on_log(log_event(10))
    report.on_log(log_event(20))
    text, root = read(tmp_path)
    assert "speed 4.0 images/s, waiting for data 25%" in text
    assert "time so far 0:01:30 evaluations 0:00:09, 10.0% of this time" in text
    assert "time left 0:08:10" in text  # 980 steps of 2 images at 4 images/s
    curves = [element.get("aria-label") for element in root.iter("{http://www.w3.org/1999/xhtml}svg")]
    assert curves == ["loss", "learning rate", "images a second", "share of the time waiting for data"]

    report.on_evaluate(evaluate_event(records, 20))
    text, root = read(tmp_path)
    assert "Average precision after step 20" in text
    assert "<b>red</b> 0.250 0.500 1 猫 & dog 0.250 0.500 1" in text
    assert len(list(root.iter("{http://www.w3.org/1999/xhtml}img"))) == len(PAINTINGS)
    assert "evaluation: val 1 3" in text  # a shard of three images, without a manifest
    assert "model.neck_filters 16" in text

    (tmp_path / "RUN <1> [2]" / "eval").mkdir()
    (tmp_path / "RUN <1> [2]" / "eval" / "val.html").write_text("...")
    report.on_end({"step": 37, "train_steps": 1000, "metrics": {}, "stopped_by": 15, "error": None})
    text, root = read(tmp_path)
    assert "step 37 of 1,000" in text  # not 20, the step of the last log
    assert "Evaluation: eval/val.html" in text
    assert "stopped by SIGTERM; the same command resumes it" in text
    assert not [element for element in root.iter() if element.get("http-equiv")]


def test_a_rollback_is_shown_at_once(tmp_path, records):
    report = run_report.Report(lambda: 90.0)
    report.on_start(start_event(tmp_path, records))
    report.on_log({**log_event(40), "train_steps": 900})
    report.on_evaluate(evaluate_event(records, 40))
    report.on_rollback({"step": 20, "bad_step": 45, "rate_factor": 0.5})
    text, _ = read(tmp_path)
    assert "step 20 of 900" in text
    assert "Average precision after" not in text
    assert "time left" not in text


@pytest.mark.parametrize(("resumed_at", "kept"), [(20, True), (10, False)])
def test_a_resumed_run_shows_its_time_and_keeps_the_evaluation_of_its_past(tmp_path, records, resumed_at, kept):
    first = run_report.Report(lambda: 60.0)
    first.on_start(start_event(tmp_path, records))
    first.on_evaluate(evaluate_event(records, 20))
    second = run_report.Report(lambda: 3600.0)
    start = start_event(tmp_path, records, resumed_at)
    start["config"]["train"]["price_per_hour"] = 2.5
    second.on_start(start)
    text, _ = read(tmp_path)
    assert ("Average precision after step 20" in text) == kept
    assert "time so far 1:00:00" in text
    assert "cost so far 2.50" in text
    second.on_end({"step": 1000, "train_steps": 1000, "metrics": {}, "stopped_by": None, "error": "no <disk>"})
    assert "failed: no <disk>" in read(tmp_path)[0]


def test_a_damaged_file_of_the_last_evaluation_does_not_end_the_run(tmp_path, records):
    folder = tmp_path / "RUN <1> [2]"
    folder.mkdir()
    for content in (b'{"evaluation": {"st', b"\xff\x00"):
        (folder / "report.json").write_bytes(content)
        run_report.Report(lambda: 60.0).on_start(start_event(tmp_path, records))
        assert "state running" in read(tmp_path)[0]


def test_samples_are_drawn_beside_the_truth(records):
    first, second, third = chosen(records)
    assert (first["record"], first["image_id"], first["size"]) == (0, "0", [256, 384])
    assert first["objects"] == [[0, [100.0, 5.0, 200.0, 300.0]]]
    assert first["detections"] == [[0, pytest.approx(0.9), [100.0, 5.0, 200.0, 300.0]]]  # not the one that scores 0.1
    assert third["objects"] == []
    json.dumps([first, second, third])  # plain values
    encoded = run_report.evaluation_page.record_reader(records)(0)["image/encoded"]
    pair = np.asarray(samples.draw({**first, "objects": []}, encoded, LABELS))
    assert pair.shape == (256, 2 * 384 + 4, 3)
    blue = np.array(page.palette.class_colour(0))
    assert (pair[100, 388 + 150] == blue).all()  # the upper edge of the box, on the right alone
    assert (pair[101, 150] == painted.COLOURS[0]).all()
    assert (pair[100, 150] == painted.COLOURS[0]).all()


@pytest.mark.parametrize("count", [0, 1, samples.NUM_SAMPLES, 100])
def test_so_many_samples_are_chosen(count, records):
    truth = shards.read_annotations(records)[2]
    nothing = ImageDetections(np.zeros([0, 4], np.float32), np.zeros([0], np.float32), np.zeros([0], np.int32))
    found = samples.choose(list(range(count)), [truth] * count, [nothing] * count)
    assert len(found) == min(count, samples.NUM_SAMPLES)
    assert [sample["record"] for sample in found[:1] + found[-1:]] == ([0, count - 1] if count else [])


@pytest.mark.parametrize(
    ("values", "end"),
    [([0.1, 0.24], 0.3), ([1.0] * 99 + [1e6], 1.0), ([7.0], 8.0), ([0.0], 1.0), ([], 1.0), ([np.nan, 2.0], 2.0)],
)
def test_an_axis_ends_at_a_round_number_above_nearly_all_values(values, end):
    assert page.axis_end(np.array(values)) == pytest.approx(end)


def test_a_plot_maps_its_ranges_to_the_square():
    drawn = page.plot(
        "t", "x", "y", [page.Line("red", np.array([0.0, 50.0]), np.array([0.0, 4.0]))], x_end=100, y_end=2
    )
    (line,) = ElementTree.fromstring(drawn).iter("polyline")
    texts = [element.text for element in ElementTree.fromstring(page.plot("t", "x", "y", [], y_end=5e-4)).iter("text")]
    assert {"5e-4", "2.5e-4", "0.5"} <= set(texts)
    texts = [element.text for element in ElementTree.fromstring(page.plot("t", "x", "y", [], y_end=1999)).iter("text")]
    assert {"1,000", "1,999"} <= set(texts)  # half of it is 999.5
    assert line.get("points") == "44.0,262.0 164.0,22.0"  # half of 240 px to the right; cut off at the top
