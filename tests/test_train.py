"""Whole runs: stopped and resumed, mirrored, diverged, and as a user starts them."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import no_learning
import numpy as np
import pytest
import small_network
import tensorflow as tf
import tiny
import toy_shards

from input import tfrecord
from input.config import AugmentConfig
from input.manifest import MANIFEST_VERSION, Findings, Manifest, ShardInfo
from trainer import checkpoints, evaluate, inference, resume, train, writers

CHECKOUT = pathlib.Path(__file__).parent.parent
RATES = ("images_per_s", "data_wait", "hours", "hours_left", "eval/evaluation_s")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    return {split: toy_shards.write_shards(folder, count, split=split) for split, count in (("train", 10), ("val", 3))}


@pytest.fixture
def small(monkeypatch):
    """The network compiles in a few seconds."""
    monkeypatch.setattr(checkpoints, "make_model", small_network.make_model)


AVERAGING = tiny.config(train={"ema_decay": 0.9})


def run(records, model_dir, config=tiny.CONFIG):
    return train.train_and_evaluate(
        config, train_paths=records["train"], val_paths=records["val"], model_dir=str(model_dir)
    )


def metrics_of(model_dir):
    lines = [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in RATES} for line in lines]


def training_metrics_of(model_dir):
    """The lines without those of evaluations."""
    return [line for line in metrics_of(model_dir) if "loss" in line]


def weights_of(model_dir):
    path = tf.train.latest_checkpoint(str(model_dir / "checkpoints"))
    branches = ("model/", "optimizer/", "averaged/")
    names = [name for name, _ in tf.train.list_variables(path) if name.startswith(branches)]
    return {name: tf.train.load_variable(path, name) for name in names}


@pytest.fixture(scope="module")
def uninterrupted(records, tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("uninterrupted")
    return model_dir, run(records, model_dir, AVERAGING)


def test_the_files_that_a_run_writes(uninterrupted):
    model_dir, result = uninterrupted
    assert (result.step, result.stopped_by) == (6, None)
    assert 0 <= result.metrics["coco_ap"] <= 1
    assert checkpoints.read_config(str(model_dir)) == AVERAGING
    lines = metrics_of(model_dir)
    assert [line["step"] for line in lines] == [2, 4, 4, 6, 6]
    assert ["eval/loss" in line for line in lines] == [False, False, True, False, True]
    assert lines[-1]["eval/coco_ap"] == result.metrics["coco_ap"]
    for line in lines:
        line = {name.replace("eval/", ""): value for name, value in line.items()}
        assert line["loss"] == pytest.approx(line["class_loss"] + line["box_loss"], rel=1e-5)
    assert json.loads((model_dir / "best" / "metrics.json").read_text())["step"] in (4, 6)
    assert {path.stem for path in (model_dir / "checkpoints").glob("*.index")} == {"ckpt-4", "ckpt-6"}
    (log,) = (model_dir / "logs").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d\.log", log.name)
    assert "step 6/6  loss" in log.read_text()
    assert "starting at step 0 of 6: 10 images, 2 classes" in log.read_text()
    assert list((model_dir / "events").iterdir())
    report = (model_dir / "report.html").read_text()
    assert "complete (written" in report
    assert "Average precision after step 6" in report
    assert inference.load_for_inference(str(model_dir)).config == AVERAGING


def test_stopped_and_resumed_equals_uninterrupted(records, uninterrupted, tmp_path, monkeypatch):
    """SIGTERM in the first loop, as a preempted machine gets it; resumed at step 2, in the middle of an epoch."""
    report = writers.Progress.on_log

    def report_and_stop(self, event):
        report(self, event)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(writers.Progress, "on_log", report_and_stop)
        stopped = run(records, tmp_path, AVERAGING)
    assert (stopped.step, stopped.stopped_by) == (2, signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert run(records, tmp_path, AVERAGING).step == 6
    model_dir, _ = uninterrupted
    assert metrics_of(tmp_path) == metrics_of(model_dir)
    ours, theirs = weights_of(tmp_path), weights_of(model_dir)
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("averaged/") for name in ours)
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)


def test_a_run_stopped_in_its_last_evaluation_resumes_with_it(records, tmp_path, monkeypatch, small):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = run(records, whole)
    compute, calls = evaluate.metrics.compute_metrics, []

    def compute_or_stop(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute(*arguments)

    monkeypatch.setattr(evaluate.metrics, "compute_metrics", compute_or_stop)
    stopped = run(records, parts)
    assert (stopped.step, stopped.stopped_by) == (6, signal.SIGTERM)
    assert resume.read_evaluated_step(str(parts)) == 4
    resumed = run(records, parts)
    assert (resumed.step, resumed.stopped_by) == (6, None)
    assert without_time(resumed.metrics) == without_time(result.metrics)
    assert resume.read_evaluated_step(str(parts)) == 6
    ours, theirs = (json.loads((folder / "best" / "metrics.json").read_text()) for folder in (parts, whole))
    assert without_time(ours) == without_time(theirs)


def without_time(metrics):
    return {name: value for name, value in metrics.items() if name != "evaluation_s"}


def test_a_run_goes_on_when_the_disk_is_full_for_a_while(records, tmp_path, monkeypatch, small):
    save, failures = tf.train.CheckpointManager.save, []

    def save_or_fail(manager, *arguments, checkpoint_number):
        if checkpoint_number == 4 and len(failures) < 2:
            failures.append(manager.directory)
            raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")
        return save(manager, *arguments, checkpoint_number=checkpoint_number)

    monkeypatch.setattr(tf.train.CheckpointManager, "save", save_or_fail)
    assert run(records, tmp_path).step == 6
    (log,) = (tmp_path / "logs").iterdir()
    assert "ckpt-4 cannot be saved (No space left on device): is the disk full? The run goes on" in log.read_text()
    assert checkpoints.list_steps(str(tmp_path))[0] == 6

    def fail(*arguments, **options):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.train.CheckpointManager, "save", fail)
    with pytest.raises(OSError, match=r"step 8 of 8 was reached but could not be saved: .* resumes from step 6\."):
        run(records, tmp_path, tiny.config(train={"train_steps": 8}))


def test_averaged_weights_are_evaluated(records, uninterrupted):
    model_dir, result = uninterrupted
    last = str(model_dir / "checkpoints" / "ckpt-6")
    runs = [inference.load_for_inference(str(model_dir), last, averaged=choice) for choice in (True, False)]
    assert [loaded.averaged for loaded in runs] == [True, False]
    averaged, trained = (loaded.model for loaded in runs)
    kernel, other = averaged.trainable_variables[0], trained.trainable_variables[0]
    assert np.abs(kernel - other).max() > 0
    metrics = evaluate.make_evaluator(averaged, AVERAGING, records["val"])()
    assert metrics["loss"] == pytest.approx(result.metrics["loss"], rel=1e-5)
    assert metrics["coco_ap"] == result.metrics["coco_ap"]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_images(records, tmp_path, small):
    settings = dataclasses.replace(tiny.CONFIG.train.optimizer, learning_rate=1e20, clip_norm=0.0)
    config = tiny.config(train={"optimizer": settings, "steps_per_loop": 6, "eval_every": 6})
    with pytest.raises(
        FloatingPointError,
        match=r"between steps \d and \d.*images image-\d \(record \d of [^,]*\), image-\d \(.*\)\. Look at",
    ):
        run(records, tmp_path, config)
    assert not list((tmp_path / "checkpoints").glob("*.index"))
    (log,) = (tmp_path / "logs").iterdir()
    assert "not a finite number" in log.read_text()


def test_damaged_images_and_images_with_dropped_boxes_are_reported(tmp_path, small):
    paths = toy_shards.write_shards(tmp_path / "records", 8, num_shards=1)
    serialized = list(tfrecord.read_records(paths[0]))
    example = tf.train.Example.FromString(serialized[3])
    example.features.feature["image/encoded"].bytes_list.value[0] = b"\xff\xd8\xff no picture"
    with tf.io.TFRecordWriter(paths[0]) as writer:
        for number, record in enumerate(serialized):
            writer.write(example.SerializeToString() if number == 3 else record)
    data = dataclasses.replace(tiny.CONFIG.input, max_boxes=1, augment=AugmentConfig())
    config = tiny.config(train={"train_steps": 4, "steps_per_loop": 4}, input=data)  # 4 steps of 2: one epoch
    run({"train": paths, "val": paths}, tmp_path / "run", config)
    (log,) = (tmp_path / "run" / "logs").iterdir()
    lines = log.read_text().splitlines()
    (skipped,) = [line for line in lines if "skipped" in line]
    assert skipped.endswith(f"skipped an image that cannot be decoded: image-3 (record 3 of {paths[0]})")
    (dropped,) = [line for line in lines if "--max_boxes=1" in line]
    # Those of the first loop. The odd images hold two boxes each; one of the four is damaged.
    assert re.search(r" W [123] images", dropped)
    assert [line for line in lines if "left out of the evaluation" in line]
    (metrics,) = training_metrics_of(tmp_path / "run")
    assert (metrics["damaged_images"], metrics["images_with_dropped_boxes"]) == (1, 3)
    assert np.isfinite(metrics["loss"])

    none = tiny.config(input=dataclasses.replace(data, max_damaged=0))
    with pytest.raises(ValueError, match=r"1 images cannot be decoded, and --max_damaged=0: convert the data again"):
        run({"train": paths, "val": []}, tmp_path / "none", none)


def test_a_damaged_shard_is_named(tmp_path, small):
    paths = toy_shards.write_shards(tmp_path / "records", 8, num_shards=2)
    content = bytearray(pathlib.Path(paths[1]).read_bytes())
    content[len(content) // 2] ^= 1
    # The manifest vouches for the labels and the size is right, so only reading the records shows the damage.
    infos = tuple(
        ShardInfo(name=os.path.basename(path), num_records=4, num_bytes=os.path.getsize(path), sha256="")
        for path in paths
    )
    nothing = Findings(counts={}, files=())
    manifest = Manifest(
        version=MANIFEST_VERSION,
        split="train",
        labels=toy_shards.LABELS,
        shards=infos,
        **dict.fromkeys(
            (
                "num_images",
                "num_boxes",
                "num_negatives",
                "num_difficult",
                "num_truncated",
                "num_ignored",
                "num_resized",
                "source_pixels",
                "source_bytes",
            ),
            0,
        ),
        boxes_per_class={"round": 8},
        **{key: {} for key in ("images_per_class", "settings", "inputs", "digests", "looks")},
        **dict.fromkeys(("refused", "dropped", "repaired", "noted"), nothing),
    )
    (tmp_path / "records" / "train.manifest.json").write_text(manifest.to_json())
    pathlib.Path(paths[1]).write_bytes(content)
    with pytest.raises(
        tfrecord.DamagedShardError, match=r"train-00001-of-00002\.tfrecord: damaged at record \d.*resumes from the last"
    ):
        run({"train": paths, "val": []}, tmp_path / "run")


def test_an_empty_shard_is_refused_before_training(tmp_path):
    paths = toy_shards.write_shards(tmp_path / "records", 8)
    pathlib.Path(paths[1]).write_bytes(b"")
    with pytest.raises(tfrecord.DamagedShardError, match=r"train-00001-of-\d+\.tfrecord: it is empty"):
        run({"train": paths, "val": []}, tmp_path / "run")


def test_a_label_beyond_the_list_is_refused_before_training(tmp_path):
    paths = toy_shards.write_shards(tmp_path / "records", 8)
    with pytest.raises(ValueError, match=r"tfrecord: record \d has the label 2, but labels.txt names 1 classes"):
        run({"train": paths, "val": []}, tmp_path / "run", tiny.config(labels=("round",)))


@pytest.mark.parametrize("address", ["grpc://localhost:1", "localhost:5050", "grpc://localhost"])
def test_a_data_service_that_does_not_answer_is_refused(records, tmp_path, address):
    config = tiny.config(input=dataclasses.replace(tiny.CONFIG.input, data_service=address))
    with pytest.raises(ValueError, match=f"--data_service={address} does not answer .*: write grpc://HOST:PORT"):
        run(records, tmp_path, config)


@pytest.mark.parametrize(
    ("settings", "steps"), [({"train_steps": 7, "epochs": 9}, 7), ({"train_steps": 0, "epochs": 1.5}, 8)]
)
def test_epochs_become_steps(settings, steps):
    """1.5 passes over 10 images at 2 a step are 7.5 steps."""
    assert train.count_steps(tiny.config(train=settings), 10) == steps


# From here on as a user starts it: in a process of its own.

FLAGS = (
    "--backbone=resnet18",
    "--neck_filters=8",
    "--head_convs=1",
    "--image_size=32x64",
    "--anchor_sizes=8,16,32,64,128",
    "--anchor_scales=1",
    "--max_boxes=3",
    "--shuffle_buffer=4",
    "--batch_size=2",
    "--learning_rate=0.01",
    "--warmup_steps=0",
    "--train_steps=6",
    "--steps_per_loop=2",
    "--eval_every=6",
    "--score_threshold=0.005",
)


def task_command(records, model_dir, *flags):
    paths = [f"--train_records={pathlib.Path(records['train'][0]).parent}/train-*", f"--model_dir={model_dir}"]
    return [sys.executable, "-m", "trainer.task", *paths, *FLAGS, *flags]


def task(records, model_dir, *flags, check=True):
    command = task_command(records, model_dir, *flags)
    return subprocess.run(command, capture_output=True, text=True, check=check, cwd=CHECKOUT, timeout=600)


def test_two_logical_cpus_train_as_one_device(records, uninterrupted, tmp_path):
    """The images, their order and their augmentation are the same, so the losses agree to rounding."""
    result = task(records, tmp_path, "--logical_cpus=2")
    assert "batch 2 on 2 x CPU" in result.stderr
    model_dir, _ = uninterrupted
    for ours, theirs in zip(training_metrics_of(tmp_path), training_metrics_of(model_dir)):
        assert ours["positives"] == theirs["positives"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-3)


def test_a_mistake_is_one_clear_line(records, tmp_path):
    for flags, message in (
        (["--image_size=big"], "error: --image_size=big: write N or HxW"),
        (["--val_records=nowhere/*.tfrecord"], "nowhere/*.tfrecord"),
    ):
        result = task(records, tmp_path, *flags, check=False)
        assert result.returncode == 1
        assert message in result.stderr
        assert "Traceback" not in result.stderr


def test_a_folder_that_cannot_be_made_is_refused(records, tmp_path):
    (tmp_path / "file").write_text("...")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=f"--model_dir={path} cannot be made .*: name another folder"):
            run(records, path)


def test_a_run_beyond_its_last_step_says_that_nothing_is_left(records, tmp_path, monkeypatch):
    no_learning.install(monkeypatch)
    for train_steps in (4, 2):
        assert run(records, tmp_path, tiny.config(train={"train_steps": train_steps})).step == 4
    (log,) = (tmp_path / "logs").iterdir()
    assert log.read_text().count("nothing is left to train; for more, raise --train_steps") == 1


def test_a_run_without_its_settings_resumes_with_the_same_flags_only(records, tmp_path, monkeypatch):
    no_learning.install(monkeypatch)
    run(records, tmp_path)
    (tmp_path / "config.json").unlink()
    longer = {"train_steps": 8}
    one_ratio = dataclasses.replace(tiny.CONFIG.input.anchor, aspect_ratios=(1.0,))
    other = tiny.config(train=longer, input=dataclasses.replace(tiny.CONFIG.input, anchor=one_ratio))
    with pytest.raises(ValueError, match="ckpt-6 is of another network or optimizer: use the flags"):
        run(records, tmp_path, other)
    assert run(records, tmp_path, tiny.config(train=longer)).step == 8
    assert checkpoints.read_config(str(tmp_path)).train.train_steps == 8


def test_missing_flags_are_named():
    done = subprocess.run([sys.executable, "-m", "trainer.task"], capture_output=True, text=True, cwd=CHECKOUT)
    assert done.returncode == 1
    for name in ("train_records", "model_dir"):
        assert f"Flag --{name} must have a value" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "flag", ["--eager", "--xla", "--target_assignment=host", "--precision=mixed_bfloat16", "--precision=mixed_float16"]
)
def test_other_ways_to_train_agree(records, uninterrupted, tmp_path, flag):
    task(records, tmp_path, flag)
    model_dir, _ = uninterrupted
    ours, theirs = training_metrics_of(tmp_path)[0], training_metrics_of(model_dir)[0]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.05 if "mixed" in flag else 1e-3)


@pytest.mark.slow
def test_two_workers(records, uninterrupted, tmp_path):
    """Two processes on this machine; only the chief writes."""
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (first, second)]
    cluster = {"worker": addresses}
    processes = []
    for index in range(2):
        environment = {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})}
        processes.append(
            subprocess.Popen(
                task_command(records, tmp_path, "--distribution=multi_worker", "--batch_size=4"),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=CHECKOUT,
                env={**os.environ, **environment},
            )
        )
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [line["step"] for line in training_metrics_of(tmp_path)] == [2, 4, 6]
    assert not list(tmp_path.glob("worker-*"))
    assert inference.find_checkpoint(str(tmp_path)).endswith("ckpt-6")
