"""Kills a small training run at random moments and asks whether it ends as one that nobody killed.

    python benchmarks/kill_soak.py [--kills=50 --seed=0 --output_dir=DIR]

The run learns drawn shapes, and saves and evaluates every few steps. It is killed by SIGKILL and SIGTERM in turn: at
any moment after its start, while it saves, and while it evaluates. Each time the same command starts it again. At its
end its weights and its optimizer's state must be those of an uninterrupted run, bit for bit. This is repeated in a new
folder until there were enough kills.

The last line printed is JSON: `kills`, in all and by signal and moment; `runs` that came to their end; `equal`;
`longest_exit_s`, the longest time from SIGTERM to the exit, in seconds.
"""

from __future__ import annotations

import collections
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from trainer import shapes

CHECKOUT = Path(__file__).resolve().parents[1]
FLAGS = flags.FLAGS

MOMENTS = ("any", "saving", "evaluating")
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
MAX_EXIT_S = 25.0
TRAIN_FLAGS = (
    *("--backbone=resnet18", "--neck_filters=16", "--head_convs=1", "--image_size=64", "--batch_size=4"),
    *("--train_steps=60", "--steps_per_loop=5", "--eval_every=10", "--checkpoint_every=5", "--ema_decay=0.9"),
    *("--warmup_steps=5", "--distribution=one_device"),
)


def write_records(folder: Path) -> None:
    shapes.write_shapes(str(folder / "voc"), num_images=24)
    for split in ("train", "val"):
        command = [sys.executable, "prepare_tfrecords.py", f"--voc_dir={folder / 'voc'}", f"--output_dir={folder}"]
        subprocess.run([*command, f"--image_set={split}"], cwd=CHECKOUT, check=True, capture_output=True)


class Run:
    """A training command in a folder, started as often as it is killed."""

    def __init__(self, folder: Path, records: Path) -> None:
        self.folder = folder
        self.command = [sys.executable, "-m", "trainer.task", f"--model_dir={folder}", *TRAIN_FLAGS]
        self.command += [f"--{split}_records={records}/{split}-*.tfrecord" for split in ("train", "val")]

    def start(self) -> subprocess.Popen:
        """The process, once it has said at which step it begins, or has ended."""
        output = self.folder.with_suffix(".log")
        begins = output.stat().st_size if output.exists() else 0
        with output.open("ab") as file:
            process = subprocess.Popen(self.command, cwd=CHECKOUT, stdout=file, stderr=file)
        while process.poll() is None and b" at step " not in output.read_bytes()[begins:]:
            time.sleep(0.05)
        return process

    def saved(self) -> set[str]:
        """The names of what is in the folder of checkpoints."""
        folder = self.folder / "checkpoints"
        return set(os.listdir(folder)) if folder.exists() else set()

    def weights(self) -> dict[str, np.ndarray]:
        path = tf.train.latest_checkpoint(str(self.folder / "checkpoints"))
        names = [name for name, _ in tf.train.list_variables(path)]
        branches = ("model/", "optimizer/", "averaged/")
        return {name: tf.train.load_variable(path, name) for name in names if name.startswith(branches)}


def wait(process: subprocess.Popen, is_so: Callable[[], bool]) -> bool:
    """Whether it became so before the process ended."""
    while process.poll() is None:
        if is_so():
            return True
        time.sleep(0.002)
    return False


def processor_s(process: subprocess.Popen) -> float:
    """The processor time that it has taken."""
    fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_for(
    moment: str, run: Run, process: subprocess.Popen, rng: random.Random, run_s: float, evaluation_s: float
) -> bool:
    """Waits for a moment in which to kill; false where the run ended before.

    Any moment is one of `run_s`, a whole run's processor time, which other work on the machine changes little.
    """
    before = run.saved()
    if moment == "saving":
        return wait(process, lambda: any("temp" in name for name in run.saved() - before))
    if moment == "evaluating":  # an evaluation follows every other checkpoint
        if not wait(process, lambda: any(name.endswith("0.index") for name in run.saved() - before)):
            return False
        until = time.monotonic() + rng.uniform(0, evaluation_s)
        return wait(process, lambda: time.monotonic() >= until)
    enough = rng.uniform(processor_s(process), run_s)
    return wait(process, lambda: processor_s(process) >= enough)


def must_succeed(run: Run, returncode: int) -> None:
    if returncode:
        sys.exit(
            f"error: the run in {run.folder} ended with {returncode}:\n{run.folder.with_suffix('.log').read_text()}"
        )


def soak(folder: Path) -> dict[str, object]:
    records = folder / "records"
    write_records(records)
    reference = Run(folder / "reference", records)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    must_succeed(reference, reference.start().wait())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    run_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    lines = [json.loads(line) for line in (reference.folder / "metrics.jsonl").read_text().splitlines()]
    evaluation_s = min(line["eval/evaluation_s"] for line in lines if "eval/evaluation_s" in line)
    expected = reference.weights()

    rng, kills, exits = random.Random(FLAGS.seed), collections.Counter[str](), [0.0]
    num_kills = num_runs = 0
    is_equal = True
    while num_kills < FLAGS.kills:
        run = Run(folder / f"run-{num_runs}", records)
        while True:
            process = run.start()
            moment, number = MOMENTS[num_kills % len(MOMENTS)], SIGNALS[num_kills // len(MOMENTS) % len(SIGNALS)]
            is_enough = num_kills == FLAGS.kills  # then the run may come to its end
            if is_enough or not wait_for(moment, run, process, rng, run_s, evaluation_s):
                must_succeed(run, process.wait())
                break
            process.send_signal(number)
            sent = time.monotonic()
            returncode = process.wait()
            if returncode == 0:  # the signal came too late
                break
            num_kills += 1
            kills[f"{number.name} {moment}"] += 1
            if number == signal.SIGTERM:
                exits.append(time.monotonic() - sent)
            if returncode not in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM):
                must_succeed(run, returncode)
            print(f"kill {num_kills}: {number.name}, {moment}, exit after {time.monotonic() - sent:.1f} s", flush=True)
        num_runs += 1
        found = run.weights()
        is_equal &= found.keys() == expected.keys()
        is_equal &= all(np.array_equal(found[name], values) for name, values in expected.items() if name in found)
    return {
        **{"kills": num_kills, "kills_by_moment": dict(sorted(kills.items())), "runs": num_runs, "equal": is_equal},
        "longest_exit_s": round(max(exits), 2),
    }


def main(_: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        result = soak(Path(FLAGS.output_dir or temporary))
    print(json.dumps(result))
    if not result["equal"]:
        sys.exit("error: a killed run ended with other weights or another optimizer state than the uninterrupted one.")
    if float(str(result["longest_exit_s"])) > MAX_EXIT_S:
        sys.exit(f"error: {result['longest_exit_s']} s from signal to exit; at most {MAX_EXIT_S} are allowed.")


if __name__ == "__main__":
    flags.DEFINE_integer("kills", 50, "Number of kills.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the moments.")
    flags.DEFINE_string("output_dir", "", "Folder for the records and the runs; by default one that is removed.")
    app.run(main)
