"""What is in cloud/: the script of a rented machine, rehearsed; the other files as far as they can be checked here."""

from __future__ import annotations

import configparser
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import toy_shards
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
CLOUD = ROOT / "cloud"

# Stands for the trainer: the first start works until SIGTERM and then saves, the second one resumes and ends.
TRAINER = """#!/usr/bin/env bash
echo "$@" >>"$LOG"
for argument; do case "$argument" in --model_dir=*) run=${argument#*=} ;; esac; done
mkdir -p "$run/checkpoints"
echo {} >"$run/config.json"
if [ -e "$run/checkpoints/ckpt-1" ]; then
  mv "$run/checkpoints/ckpt-1" "$run/checkpoints/ckpt-2"
  exit 0
fi
trap 'touch "$run/checkpoints/ckpt-1"; exit 143' TERM
while :; do sleep 0.05; done
"""


class Machine:
    """A rented machine with its disk, and the buckets."""

    def __init__(self, folder: pathlib.Path, scheme: str, python: str = "") -> None:
        self.disk, self.data, self.run = folder / "disk", folder / "buckets/b/data", folder / "buckets/b/run"
        self.log = folder / "log"
        tools = folder / "bin"
        for path in (self.data, self.run, tools):
            path.mkdir(parents=True)
        for name, text in {
            "trainer": TRAINER,
            "gcloud": f"#!{sys.executable}\n{(ROOT / 'tests/fake_bucket.py').read_text()}",
        }.items():
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        shutil.copy(tools / "gcloud", tools / "aws")
        self._environment = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "BUCKETS": str(folder / "buckets"),
            "LOG": str(self.log),
            "DATA_URL": f"{scheme}b/data",
            "RUN_URL": f"{scheme}b/run",
            "WORK_DIR": str(self.disk),
            "UPLOAD_S": "0.1",
            "PYTHON": python or str(tools / "trainer"),
        }
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._started:
            process.terminate()
            process.wait(60)

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([CLOUD / "vm_startup.sh"], env={**self._environment, **environment}, cwd="/")
        self._started.append(process)
        return process


def wait_for(path: pathlib.Path, process: subprocess.Popen[bytes], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None, "the script ended"
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.02)


@pytest.mark.parametrize("scheme", ["gs://", "s3://"])
def test_a_run_goes_on_on_another_machine(tmp_path, scheme):
    with Machine(tmp_path, scheme) as machine:
        (machine.data / "train-00000-of-00001.tfrecord").write_text("records")
        (machine.run / "run.flags").write_text("--seed=1")
        first = machine.start()
        wait_for(machine.run / "config.json", first, 60)  # uploaded while the trainer works
        (machine.run / "run.flags").write_text("--seed=2")
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 143
        assert (machine.run / "checkpoints/ckpt-1").exists()
        assert (machine.run / "run.flags").read_text() == "--seed=2"  # edited in the bucket, and not overwritten

        shutil.rmtree(machine.disk)
        second = machine.start()
        assert second.wait(60) == 0
        assert [path.name for path in (machine.run / "checkpoints").iterdir()] == ["ckpt-2"]  # the old one is gone
        assert (machine.disk / "run/run.flags").read_text() == "--seed=2"
        assert (machine.disk / "data/train-00000-of-00001.tfrecord").read_text() == "records"
        run = machine.disk / "run"
        command = f"-m trainer.task --flagfile={run}/run.flags --model_dir={run}"
        assert machine.log.read_text().splitlines() == [command, command]


@pytest.mark.parametrize("cut_off", ["gs://b/run", "gs://b/data"])
def test_a_download_that_is_cut_off_is_not_taken_for_a_run(tmp_path, cut_off):
    with Machine(tmp_path, "gs://") as machine:
        for folder in (machine.data, machine.run / "checkpoints"):
            folder.mkdir(exist_ok=True)
            for name in ("ckpt-0", "ckpt-1"):
                (folder / name).write_text(name)
        (machine.run / "run.flags").write_text("")
        assert machine.start(CUT_OFF=cut_off).wait(60) != 0
        assert not machine.log.exists()  # nothing was trained
        assert machine.start().wait(60) == 0
        assert sorted(path.name for path in (machine.run / "checkpoints").iterdir()) == ["ckpt-0", "ckpt-2"]


def test_a_folder_is_used_where_it_lies(tmp_path):
    with Machine(tmp_path, "gs://") as machine:
        (machine.run / "checkpoints").mkdir()
        (machine.run / "checkpoints/ckpt-1").touch()
        assert machine.start(DATA_URL=str(machine.data), RUN_URL=str(machine.run)).wait(60) == 0
        assert (machine.run / "checkpoints/ckpt-2").exists()
        assert f"--model_dir={machine.run}" in machine.log.read_text()
        assert os.listdir(machine.disk) == ["cuda-cache"]


@pytest.mark.slow
def test_a_real_run_survives_the_loss_of_its_machine(tmp_path):
    with Machine(tmp_path, "gs://", sys.executable) as machine:
        toy_shards.write_shards(machine.data)
        toy_shards.write_shards(machine.data, num_images=4, split="val")
        flags = f"""
            --train_records={machine.disk}/data --val_records={machine.disk}/data
            --backbone=resnet18 --neck_filters=8 --head_convs=1 --image_size=32x64 --anchor_sizes=8,16,32,64,128
            --batch_size=2 --train_steps=40 --eval_every=20 --steps_per_loop=1
        """
        (machine.run / "run.flags").write_text("\n".join(flags.split()))
        first = machine.start(UPLOAD_S="1")
        wait_for(machine.disk / "run/metrics.jsonl", first, 300)
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 143
        stopped_at = json.loads((machine.run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        assert stopped_at < 40

        shutil.rmtree(machine.disk)
        assert machine.start(UPLOAD_S="1").wait(300) == 0
        lines = [json.loads(line) for line in (machine.run / "metrics.jsonl").read_text().splitlines()]
        steps = [line["step"] for line in lines if "loss" in line]
        assert steps == list(range(1, 41))
        (log,) = (machine.run / "logs").iterdir()
        assert f"resuming at step {stopped_at} of 40" in log.read_text()


def test_each_worker_of_the_kubernetes_job_gets_its_tf_config(tmp_path):
    service, job = yaml.safe_load_all((CLOUD / "kubernetes_job.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (tmp_path / "python").write_text('#!/bin/sh\nprintenv TF_CONFIG\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    workers = [f"retinanet-{index}.retinanet:2222" for index in range(2)]
    for index in range(2):
        environment = {item["name"]: item["value"] for item in container["env"]}
        environment |= {"JOB_COMPLETION_INDEX": str(index), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        command = [*container["command"], *container["args"]]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        tf_config, arguments = result.stdout.splitlines()
        assert json.loads(tf_config) == {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        assert "--distribution=multi_worker" in arguments
        assert "--train_records=/data/trainval-*.tfrecord" in arguments  # the pattern is the trainer's to expand

    # What makes those names known, and what must agree.
    assert (service["kind"], service["spec"]["clusterIP"]) == ("Service", "None")
    assert service["metadata"]["name"] == pod["subdomain"] == job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert (job["apiVersion"], job["spec"]["completionMode"]) == ("batch/v1", "Indexed")
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == len(workers)
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert pod["terminationGracePeriodSeconds"] > 25


def test_the_vertex_job_has_the_required_fields():
    spec = yaml.safe_load((CLOUD / "vertex_job.yaml").read_text())
    (pool,) = spec["workerPoolSpecs"]
    assert {"machineSpec", "replicaCount", "containerSpec"} <= pool.keys()
    assert pool["machineSpec"]["machineType"].endswith(f"-{pool['machineSpec']['acceleratorCount']}g")
    assert pool["containerSpec"]["command"] == ["python", "-m", "trainer.task"]


def test_the_systemd_unit_passes_the_signal_to_the_script_alone():
    unit = configparser.ConfigParser()
    unit.read(CLOUD / "retinanet.service")
    service = unit["Service"]  # the parser compares names without their case
    assert service["KillMode"] == "mixed"
    assert service["Restart"] == "on-failure"
    script = pathlib.PurePath(service["ExecStart"]).relative_to("/opt/retinanet-tf")
    assert os.access(ROOT / script, os.X_OK)


@pytest.mark.parametrize(
    "command",
    [
        ("shellcheck", "cloud/vm_startup.sh"),
        ("hadolint", "Dockerfile"),
        ("kubernetes-validate", "--strict", "cloud/kubernetes_job.yaml"),
    ],
)
def test_checkers_have_no_complaint(command):
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
