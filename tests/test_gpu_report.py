"""The GPU report: its cases, its goals, its page; the whole of it as a rehearsal."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
import toy_shards
from absl.testing import flagsaver

from benchmarks import gpu_report, gpu_report_page
from trainer import model_cost

CHECKOUT = pathlib.Path(__file__).parent.parent


def make_report(rates=None, num_devices=8, **changes):
    """A report as on 8 GPUs, in which each image a second and replica is worth `rates[case]`."""
    sections = gpu_report.make_cases(gpu_report.FULL, num_devices)
    rows = {
        title: [
            {
                **dataclasses.asdict(case),
                "images_per_s": 100.0 * case.num_replicas * (rates or {}).get(case, 1.0),
                "first_step_s": 40.0,
                "data_wait": 0.01,
                "loss": 1.5,
                "peak_bytes": 8_000_000_000,
                "estimated_bytes": 10_000_000_000,
            }
            for case in cases
        ]
        for title, cases in sections.items()
    }
    report = {
        "date": "2026-01-01T00:00:00+00:00",
        "rehearsal": False,
        "machine": {"devices": ["Some <GPU>"] * num_devices, "versions": {"TensorFlow": "2.15.1"}},
        "images_per_replica": 16,
        "network": "--backbone=resnet50",
        "sections": rows,
        "resume": {"killed_at": 26, "resumed_at": 20, "ended_at": 60, "seconds_to_the_end": 50.5, "resumed": True},
        **changes,
    }
    return {**report, "goals": gpu_report_page.goals(report)}


def goals_of(report):
    return {goal["name"]: (goal["value"], goal["met"]) for goal in gpu_report_page.goals(report)}


def test_cases_cover_what_the_report_promises():
    sections = gpu_report.make_cases(gpu_report.FULL, 8)
    cases = {case for cases in sections.values() for case in cases}
    assert {(case.precision, case.image_size) for case in sections["Precision and size"]} == {
        (precision, size) for precision in ("float32", "mixed_float16", "mixed_bfloat16") for size in (512, 640, 800)
    }
    assert [case.num_replicas for case in sections["Replicas"]] == [1, 2, 4, 8]
    assert {case.norm for case in sections["Normalisation"]} == {"local", "sync", "frozen", "group"}
    assert {case.compile_stages for case in cases} == {case.real_images for case in cases} == {True, False}
    assert len(cases) == 9 + 1 + 3 + 1 + 3  # what appears in two sections is measured once


def test_one_gpu_has_no_replicas_to_compare():
    sections = gpu_report.make_cases(gpu_report.FULL, 1)
    assert {case.num_replicas for cases in sections.values() for case in cases} == {1}
    assert [case.num_replicas for case in gpu_report.make_cases(gpu_report.FULL, 3)["Replicas"]] == [1, 2]


def test_the_flags_of_a_case():
    case = gpu_report.Case(image_size=640, precision="mixed_float16", num_replicas=4, compile_stages=False)
    found = gpu_report.trainer_flags(case, gpu_report.FULL, on_gpu=True)
    assert {"--image_size=640", "--batch_size=64", "--num_gpus=4", "--compile_stages=False"} <= set(found)


def test_each_case_is_compared_with_the_estimate_of_its_own_network():
    """Of cases that differ in what --print_model does not see there is one estimate."""
    sections = gpu_report.make_cases(gpu_report.FULL, 8)
    estimated = {gpu_report.estimated_case(case) for cases in sections.values() for case in cases}
    assert {(case.norm, case.compile_stages) for case in estimated} == {
        ("local", True), ("local", False), ("frozen", True), ("group", True), ("sync", True)
    }  # fmt: skip
    assert len(estimated) == 3 * 2 + 4  # sizes in float32 and float16, and at one size the others
    base = gpu_report.Case(image_size=640, precision="mixed_bfloat16", norm="sync", num_replicas=8)
    same = gpu_report.Case(image_size=640, precision="mixed_float16", norm="sync", real_images=True)
    assert gpu_report.estimated_case(base) == gpu_report.estimated_case(same)


def test_an_estimate_is_of_the_case_and_of_the_records(tmp_path, monkeypatch):
    seen = []

    def measure_memory(config, precision):
        seen.append((config, precision))
        return model_cost.Memory(variables=100, image=10.0, rest=1.0)

    monkeypatch.setattr(model_cost, "measure_memory", measure_memory)
    paths = toy_shards.write_shards(tmp_path)
    case = gpu_report.Case(image_size=64, precision="mixed_float16", norm="group", compile_stages=False)
    case_flags = gpu_report.trainer_flags(case, gpu_report.REHEARSAL, on_gpu=False)
    job = {"kind": "estimate", "case": dataclasses.asdict(case), "flags": case_flags, "paths": paths}
    with flagsaver.flagsaver():
        assert gpu_report.do_job(job) == {"peak_bytes": 100 + 1 + 2 * 10}
    ((config, precision),) = seen
    assert precision == "mixed_float16"
    assert config.labels == toy_shards.LABELS
    assert (config.model.norm, config.train.compile_stages) == ("group", False)


def test_goals():
    base, real = gpu_report.make_cases(gpu_report.FULL, 8)["Images read from disk, against noise"]
    assert goals_of(make_report({real: 0.9})) == {
        "real_to_synthetic": (pytest.approx(0.9), False),
        "speedup_of_8_replicas": (8.0, True),
        "largest_peak_to_estimate": (0.8, True),
        "resumed_after_a_kill": (True, True),
    }
    eight = dataclasses.replace(base, num_replicas=8)
    assert goals_of(make_report({eight: 0.85}))["speedup_of_8_replicas"] == (pytest.approx(6.8), False)
    assert "speedup_of_8_replicas" not in goals_of(make_report(num_devices=1))


def test_what_was_not_measured_meets_no_goal():
    report = make_report(resume={"error": "the run ended before it could be killed"})
    report["sections"]["Images read from disk, against noise"][1] = {"error": "out of memory"}
    for rows in report["sections"].values():
        for row in rows:
            row["peak_bytes"] = None
    found = goals_of(report)
    assert found["real_to_synthetic"] == found["largest_peak_to_estimate"] == (None, None)
    assert found["resumed_after_a_kill"] == (None, None)


def test_the_page_is_whole():
    report = make_report()
    failed = report["sections"]["Precision and size"][-1]
    for name in ("images_per_s", "first_step_s", "data_wait", "loss", "peak_bytes"):
        del failed[name]
    failed["error"] = "out of memory"
    page = gpu_report_page.make_page(report)
    text = " ".join(ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n")).itertext())
    assert not re.search(r"(src|href)=|https?://(?!www\.w3\.org/1999/xhtml)|<script", page)
    assert "Training on 8 x Some <GPU>" in text
    assert "out of memory" in text
    assert "8 replicas" in text
    assert "640x640, float16, norm local, stages not compiled" in text
    assert "A rehearsal" not in text
    assert "A rehearsal" in gpu_report_page.make_page(make_report(rehearsal=True))


def command(*arguments):
    return subprocess.run(
        [sys.executable, "benchmarks/gpu_report.py", *arguments],
        **{"cwd": CHECKOUT, "capture_output": True, "text": True},
    )


@pytest.mark.slow
def test_a_rehearsal(tmp_path):
    result = command("--rehearse", f"--output_dir={tmp_path}", "--minutes=60")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    for rows in report["sections"].values():
        for row in rows:
            assert row["images_per_s"] > 0, row
            assert row["estimated_bytes"] > 0, row
    assert report["resume"]["resumed"] is True
    assert report["resume"]["ended_at"] == gpu_report.REHEARSAL.resume_steps
    assert json.loads(result.stdout.splitlines()[-1])["resumed_after_a_kill"] is True
    ElementTree.parse(tmp_path / "report.html")


@pytest.mark.slow
def test_without_time_nothing_is_measured(tmp_path):
    result = command("--rehearse", f"--output_dir={tmp_path}", "--minutes=0.5")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert all("skipped" in rows[-1] for rows in report["sections"].values())
    assert "the time was over" in (tmp_path / "report.html").read_text()
