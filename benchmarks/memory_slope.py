"""Trains a tiny network for an hour, with more than a hundred evaluations, and asks whether its memory grows.

    python benchmarks/memory_slope.py [--minutes=60 --output_dir=DIR]

The trainer has one thread, and a hook lets it rest after each report, so that the run takes little of the machine. Its
resident memory is read every few seconds from its first report on. The first quarter of the time, in which TensorFlow
compiles the evaluation and fills its pools, is left out. A line is fitted to the means of each twelfth of the time:
single readings resemble the ones before, which would make the error look smaller than it is.

The last line printed is JSON: `mb_per_hour`, the slope of a line fitted by least squares, and its `standard_error`;
`minutes`, `steps` and `evaluations` of the whole run; `samples`, the readings: minutes since the first report, and MB.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import kill_soak
from trainer import events

WARM_UP = 0.25  # of the time
SAMPLE_S = 5.0
REST_S = 3.0
TRAIN_FLAGS = (
    *(*kill_soak.TRAIN_FLAGS, "--train_steps=100000000", "--log_every=50", "--eval_every=50", "--checkpoint_every=50"),
    *("--private_threadpool_size=1", "--hooks=benchmarks.memory_slope:Rest"),
)


class Rest(events.Hook):
    """Waits after each report."""

    def on_log(self, event: dict[str, Any]) -> None:
        time.sleep(REST_S)


def resident_mb(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


def measure(folder: Path, minutes: float) -> dict[str, Any]:
    records, model_dir = folder / "records", folder / "run"
    kill_soak.write_records(records)
    command = [sys.executable, "-m", "trainer.task", f"--model_dir={model_dir}", *TRAIN_FLAGS]
    command += [f"--{split}_records={records}/{split}-*.tfrecord" for split in ("train", "val")]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")
    environment = {**os.environ, **one_thread}
    samples = []
    with (folder / "run.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=kill_soak.CHECKOUT, env=environment, stdout=log, stderr=log)
        while process.poll() is None and not (model_dir / "metrics.jsonl").exists():
            time.sleep(1)  # it compiles
        started = time.monotonic()
        while process.poll() is None and (now := (time.monotonic() - started) / 60) < minutes:
            samples.append((round(now, 3), round(resident_mb(process.pid), 2)))
            time.sleep(SAMPLE_S)
        process.send_signal(signal.SIGTERM)
        if process.wait() != 128 + signal.SIGTERM:
            sys.exit(f"error: the run ended with {process.returncode}:\n{(folder / 'run.log').read_text()}")
    lines = [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    fitted = [(at, mb) for at, mb in samples if at >= WARM_UP * minutes]
    parts = itertools.groupby(fitted, key=lambda sample: sample[0] * 12 // minutes)
    at, mb = np.array([np.mean(list(part), axis=0) for _, part in parts]).T
    (slope, _), covariance = np.polyfit(at / 60, mb, 1, cov=True)
    return {
        **{"mb_per_hour": round(slope, 3), "standard_error": round(float(np.sqrt(covariance[0, 0])), 3)},
        **{"minutes": minutes, "steps": lines[-1]["step"], "evaluations": sum("eval/loss" in line for line in lines)},
        "samples": fitted,
    }


def main(_: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        result = measure(Path(flags.FLAGS.output_dir or temporary), flags.FLAGS.minutes)
    print(json.dumps(result))


if __name__ == "__main__":
    flags.DEFINE_float("minutes", 60.0, "How long to train.", lower_bound=1.0)
    flags.DEFINE_string("output_dir", "", "Folder for the records and the run; by default one that is removed.")
    app.run(main)
