"""A run whose folder is in a bucket, for which `ram://` stands: TensorFlow's files in this process's memory."""

from __future__ import annotations

import json
import signal

import no_learning
import pytest
import tiny
import toy_shards
from tensorflow.core.util import event_pb2

from input import files, tfrecord
from trainer import evaluate, lock, run_report, writers


@pytest.fixture
def records(tmp_path):
    return toy_shards.write_shards(tmp_path / "records", 4, 1, split="val")


@pytest.fixture
def run(monkeypatch):
    no_learning.install(monkeypatch)
    monkeypatch.setattr(lock, "_BEAT_S", 0.05)
    return no_learning.run


def steps_of(model_dir):
    return [line["step"] for line in run_report.read_metrics(model_dir)]


@pytest.fixture
def bucket(tmp_path):
    folder = f"ram://{tmp_path.name}/run"
    yield folder
    files.remove_tree(f"ram://{tmp_path.name}")


def test_a_run_in_a_bucket_is_stopped_resumed_and_read(run, records, bucket, tmp_path, monkeypatch):
    report = writers.Progress.on_log

    def report_and_stop(self, event):
        report(self, event)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(writers.Progress, "on_log", report_and_stop)
        assert run(records, bucket).step == 2
    assert b"stopped by SIGTERM" in files.read(f"{bucket}/report.html")
    assert run(records, bucket).step == 6
    run(records, tmp_path / "disk")
    assert steps_of(bucket) == [2, 4, 4, 6, 6]
    own = {"logs", "events", "trainer.lock"}
    assert set(files.names(bucket)) - own == {path.name for path in (tmp_path / "disk").iterdir()} - own
    assert not files.exists(f"{bucket}/trainer.lock")
    (log,) = files.glob(f"{bucket}/logs/*.log")
    assert b"resuming at step 2 of 6" in files.read(log)
    assert b"step 6/6  loss" in files.read(log)
    written = files.glob(f"{bucket}/events/*")
    events = [event_pb2.Event.FromString(record) for path in written for record in tfrecord.read_records(path)]
    assert {event.step for event in events} == {0, 2, 4, 6}
    page = files.read(f"{bucket}/report.html")
    assert b"complete (written" in page
    assert b"Average precision after step 6" in page

    result = evaluate.evaluate_run(bucket, records, resamples=0)
    assert json.loads(files.read(f"{bucket}/eval/val.json"))["coco_ap"] == result["coco_ap"]
    assert b"</html>" in files.read(f"{bucket}/eval/val.html")
    assert result["checkpoint"] == f"{bucket}/best/ckpt-4"


def test_a_damaged_checkpoint_in_a_bucket_gives_way_to_the_one_before(run, records, bucket):
    run(records, bucket)
    path = f"{bucket}/checkpoints/ckpt-6.data-00000-of-00001"
    content = files.read(path)
    with files.create(path) as file:
        file.write(content[: len(content) // 2])
    assert run(records, bucket, tiny.config(train={"train_steps": 8})).step == 8
    (log,) = files.glob(f"{bucket}/logs/*.log")
    assert b"ckpt-6 is damaged, so the one before is taken" in files.read(log)
    assert b"resuming at step 4 of 8" in files.read(log)
    assert steps_of(bucket) == [2, 4, 4, 6, 8, 8]


def test_other_settings_and_a_second_trainer_are_refused_in_a_bucket(run, records, bucket):
    run(records, bucket, tiny.config(train={"train_steps": 2}))
    optimizer = tiny.CONFIG.train.optimizer.__class__(learning_rate=0.02, warmup_steps=0)
    other = {"train_steps": 4, "optimizer": optimizer}
    with pytest.raises(ValueError, match=r"learning_rate was 0\.01, now 0\.02"):
        run(records, bucket, tiny.config(train=other))
    for _ in range(2):  # a changed setting is added to a list
        run(records, bucket, tiny.config(train={**other, "override_config": True}))
        other["optimizer"] = tiny.CONFIG.train.optimizer
    assert len(files.read(f"{bucket}/overrides.jsonl").splitlines()) == 2
    before = files.read(f"{bucket}/metrics.jsonl")
    with lock.sole_trainer(bucket), pytest.raises(ValueError, match="another run trains in"):
        run(records, bucket)
    assert files.read(f"{bucket}/metrics.jsonl") == before


def test_a_run_that_lost_its_checkpoints_begins_anew_in_a_bucket(run, records, bucket):
    run(records, bucket)
    best = files.read(f"{bucket}/best/metrics.json")
    files.remove_tree(f"{bucket}/checkpoints")
    assert run(records, bucket, tiny.config(train={"train_steps": 4})).step == 4
    assert files.read(f"{bucket}/earlier-1/best/metrics.json") == best
    assert set(files.names(f"{bucket}/earlier-1")) == {"best", "config.json"}
    assert evaluate.evaluate_run(f"{bucket}/earlier-1", records, resamples=0)["step"] == 4
    assert json.loads(files.read(f"{bucket}/best/metrics.json"))["step"] == 4
