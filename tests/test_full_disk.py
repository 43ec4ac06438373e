"""A disk that is full for a while: a run goes on, says so once, and then writes what has waited."""

from __future__ import annotations

import collections
import json
import logging
import pathlib
import re
import resource
import subprocess

import no_learning
import pytest
import tiny
import toy_shards
from tensorflow.core.util import event_pb2

from input import files, tfrecord
from trainer import checkpoints, resume, writers


def test_lines_that_cannot_be_written_wait_whole(tmp_path):
    """The kernel's limit on the size of files cuts a write off, as a full disk does."""
    path = tmp_path / "lines"
    lines = files.LineFile(str(path))
    lines.add("a" * 59)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            lines.add("b" * 59)
        with pytest.raises(OSError, match="File too large"):
            lines.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "a" * 59 + "\n"
    lines.add("c")
    assert path.read_text().splitlines() == ["a" * 59, "b" * 59, "c"]


@pytest.fixture
def disk(tmp_path):
    """A disk of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: pathlib.Path) -> None:
    with open(disk / "filler", "wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def test_a_run_outlives_a_full_disk(disk, tmp_path, monkeypatch, caplog):
    """It is full from the report of step 6 until that of step 22, with three evaluations and checkpoints between."""
    report = writers.Progress.on_log

    def report_and_fill(self, event):
        report(self, event)
        if event["step"] == 6:
            fill(disk)
        if event["step"] == 22:
            (disk / "filler").unlink()

    no_learning.install(monkeypatch)
    monkeypatch.setattr(writers.Progress, "on_log", report_and_fill)
    records = toy_shards.write_shards(tmp_path / "records", 4, 1)
    logging.getLogger("retinanet").addHandler(caplog.handler)
    try:
        result = no_learning.run(records, disk / "run", tiny.config(train={"train_steps": 30, "eval_every": 5}))
    finally:
        logging.getLogger("retinanet").removeHandler(caplog.handler)
    assert (result.step, result.stopped_by) == (30, None)

    said = collections.Counter(
        re.sub(r"\d+", "N", record.getMessage().replace(str(disk), ""))
        for record in caplog.records
        if record.levelno >= logging.ERROR
    )
    assert set(said.values()) == {1}, said
    assert all("No space left on device" in message for message in said), said

    model_dir = disk / "run"
    lines = [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(2, 31, 2))
    assert [line["step"] for line in lines if "eval/loss" in line] == list(range(5, 31, 5))
    (log,) = (model_dir / "logs").iterdir()
    logged = log.read_text()
    assert all(f"step {line['step']}/30  loss" in logged for line in lines if "loss" in line)
    assert checkpoints.list_steps(str(model_dir))[0] == 30
    assert all(checkpoints.find_damage(f"{model_dir}/checkpoints/ckpt-{step}") is None for step in (30, 25))
    assert resume.read_evaluated_step(str(model_dir)) == 30
    assert "complete (written" in (model_dir / "report.html").read_text()
    assert not list(model_dir.rglob("*.partial"))
    shown = set()
    for path in (model_dir / "events").iterdir():
        try:
            for record in tfrecord.read_records(str(path)):
                shown.add(event_pb2.Event.FromString(record).step)
        except tfrecord.DamagedShardError:
            continue  # where the disk was full; TensorBoard goes on with the next file
    assert {2, 4, 6, 26, 28, 30} <= shown
