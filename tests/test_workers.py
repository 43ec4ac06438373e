"""Two workers on this machine, each a process with the training command: signals, a kill, and different flags."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import tensorflow as tf
import toy_shards

from trainer import checkpoints, workers

CHECKOUT = pathlib.Path(__file__).parent.parent
FLAGS = (
    "--distribution=multi_worker",
    "--eager",  # quicker than compiling, for so few steps of a small network
    "--image_size=32x64",
    "--anchor_sizes=8,16,32,64,128",
    "--anchor_scales=1",
    "--max_boxes=3",
    "--batch_size=2",
    "--steps_per_loop=1",
    "--warmup_steps=0",
    "--norm=local",  # each worker has statistics of its own
)


class Pair:
    """Two workers that train in the same folder; the address of each is a port that was free."""

    def __init__(self, folder: pathlib.Path, records: pathlib.Path, *flags: str, second: Sequence[str] = ()) -> None:
        self.model_dir = folder / "run"
        with socket.socket() as first_port, socket.socket() as second_port:
            for each in (first_port, second_port):
                each.bind(("127.0.0.1", 0))
            addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (first_port, second_port)]
        self.outputs = [folder / f"output-{index}" for index in range(2)]
        self.processes = []
        for index, output in enumerate(self.outputs):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            command = [sys.executable, str(CHECKOUT / "tests" / "one_worker.py"), *FLAGS, *flags]
            command += [
                f"--train_records={records}/train-*",
                f"--model_dir={self.model_dir}",
                *(second if index else ()),
            ]
            with output.open("w") as file:
                environment = {**os.environ, "TF_CONFIG": json.dumps(task), "PYTHONPATH": str(CHECKOUT)}
                self.processes.append(
                    subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=CHECKOUT)
                )

    def wait_for(self, text: str, worker: int = 1) -> None:
        """Waits until a worker has written this."""
        while text not in self.output(worker):
            assert all(process.poll() is None for process in self.processes), self.output(0) + self.output(1)
            time.sleep(0.1)

    def end(self) -> list[int]:
        """The workers' exit codes."""
        return [process.wait(timeout=600) for process in self.processes]

    def output(self, worker: int) -> str:
        return self.outputs[worker].read_text()


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("records")
    toy_shards.write_shards(folder, 10)
    toy_shards.write_shards(folder, 10, split="val")
    return folder


@pytest.fixture
def start(tmp_path: pathlib.Path, records: pathlib.Path) -> Iterator[object]:
    pairs = []

    def start_pair(*flags: str, second: Sequence[str] = ()) -> Pair:
        pairs.append(Pair(tmp_path, records, *flags, second=second))
        return pairs[-1]

    yield start_pair
    for process in (process for pair in pairs for process in pair.processes):
        process.kill()
        process.wait()


def test_a_signal_to_one_worker_stops_all_at_the_same_step(start):
    pair = start("--train_steps=100000", "--log_every=1", "--eval_every=100000")
    pair.wait_for("step 2/")
    pair.processes[1].send_signal(signal.SIGTERM)
    assert pair.end() == [128 + signal.SIGTERM] * 2, pair.output(0) + pair.output(1)
    step = checkpoints.list_steps(str(pair.model_dir))[0]  # the latest
    for worker in range(2):
        assert f"worker 1 was signalled: all stop at step {step}\n" in pair.output(worker)
        assert "Traceback" not in pair.output(worker)


@pytest.mark.slow
def test_a_signal_during_an_evaluation_stops_all_and_they_resume(start, records):
    flags = (f"--val_records={records}/val-*", "--log_every=1", "--eval_every=1")
    pair = start("--train_steps=100", *flags)
    pair.wait_for("step 2/", worker=0)
    time.sleep(1)  # most of the time is that of evaluations
    pair.processes[0].send_signal(signal.SIGINT)
    assert pair.end() == [128 + signal.SIGINT] * 2, pair.output(0) + pair.output(1)
    step = checkpoints.list_steps(str(pair.model_dir))[0]  # the latest
    pair = start(f"--train_steps={step + 2}", *flags)
    assert pair.end() == [0, 0], pair.output(0) + pair.output(1)
    assert all(f"resuming at step {step} of {step + 2}" in pair.output(worker) for worker in range(2))
    assert checkpoints.list_steps(str(pair.model_dir))[0] == step + 2


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_the_others_say_which_worker_was_killed(start, killed):
    pair = start("--train_steps=100000", "--log_every=1", "--checkpoint_every=2")
    pair.wait_for("step 3/", worker=1 - killed)
    pair.processes[killed].kill()
    codes = pair.end()
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] == 1, pair.output(1 - killed)
    last = pair.output(1 - killed)
    step = checkpoints.list_steps(str(pair.model_dir))[0]
    assert f"error: worker {killed} is lost: its process has ended or its machine does not answer" in last
    assert f"they resume from step {step}." in last
    assert "Traceback" not in last


@pytest.mark.slow
def test_workers_with_other_flags_are_refused_by_name(start, records):
    other = ["--batch_size=4", "--logical_cpus=2", f"--val_records={records}/val-*"]
    pair = start("--train_steps=4", second=other)
    assert pair.end() == [1, 1]
    for worker in range(2):
        assert (
            "error: not all workers were started as worker 0 was: input.batch_size on worker 1, train.logical_cpus on "
            "worker 1, validation records on worker 1. Give them the same command"
        ) in pair.output(worker)


@pytest.mark.slow
def test_a_lost_decoder_slows_a_run_and_a_lost_dispatcher_ends_it(tmp_path, records):
    """Decoders are the workers of a tf.data service."""
    servers = []

    def serve(*flags: str) -> str:
        command = [sys.executable, "-m", "trainer.data_service", *flags]
        servers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT))
        return servers[-1].stdout.readline() if "--role=dispatcher" in flags else ""

    port = re.search(r":(\d+),", serve("--role=dispatcher"))[1]
    for _ in range(2):
        serve("--role=worker", f"--dispatcher=localhost:{port}")
    flags = [flag for flag in FLAGS if "multi_worker" not in flag]
    flags += [
        f"--train_records={records}/train-*",
        f"--model_dir={tmp_path}",
        f"--data_service=grpc://localhost:{port}",
    ]
    command = [sys.executable, str(CHECKOUT / "tests" / "one_worker.py"), *flags, "--train_steps=100000"]
    run = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=CHECKOUT, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}
    )
    try:
        lines = iter(run.stderr)
        next(line for line in lines if "step 3/" in line)
        servers[1].kill()
        killed_at = time.monotonic()
        next(line for line in lines if "images/s" in line and time.monotonic() - killed_at > 15)
        servers[0].kill()
        assert "is lost: it has not answered for" in next(line for line in lines if "--data_service=" in line)
        assert run.wait(timeout=60) == 1
    finally:
        for process in (run, *servers):
            process.kill()
            process.communicate()


def test_one_worker_agrees_with_itself(two_replicas):
    group = workers.Workers(two_replicas)
    assert group.num == 1
    assert group.gather(3, 2.5).tolist() == [[3, 2.5]]
    assert (group.all(True), group.all(False)) == (True, False)


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("Additional GRPC error information from remote target /job:worker/replica:0/task:1 while calling RecvBuf", 1),
        ("Error reported from /job:worker/task:2: Task /job:worker/replica:0/task:2 heartbeat timeout", 2),
        ("out of memory on /job:worker/replica:0/task:0/device:GPU:0", None),  # this worker's own
        ("/job:localhost/replica:0/task:0/device:CPU:0", None),
    ],
)
def test_which_worker_is_lost(monkeypatch, tmp_path, text, lost):
    cluster = {"worker": ["a:1", "b:1", "c:1"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 0}}))
    expected = tf.errors.InternalError if lost is None else ConnectionError
    message = f"worker {lost} is lost: .* resume from step 0" if lost else "replica:0/task:0"
    with pytest.raises(expected, match=message), workers.naming_lost_worker(str(tmp_path)):
        raise tf.errors.InternalError(None, None, text)


def test_workers_that_restored_other_steps_are_refused(two_replicas, monkeypatch):
    group = workers.Workers(two_replicas)
    group.require_same_step(40, "RUN")
    monkeypatch.setattr(group, "gather", lambda step: np.array([[step], [0.0]]))
    with pytest.raises(
        ValueError, match="worker 0 resumes at step 40, but worker 1 at step 0: --model_dir=RUN must be"
    ):
        group.require_same_step(40, "RUN")
