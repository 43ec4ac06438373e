"""What the benchmarks that train several detectors share: each runs the project's own commands, as a user would."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# A detector that trains on a CPU in minutes, for photographs such as those of BCCD.
SMALL_DETECTOR = (
    *("--neck_filters=64", "--head_convs=2", "--image_size=192x256", "--anchor_sizes=12,24,48,96,192"),
    *("--batch_size=8", "--augment=paper", "--optimizer=adamw", "--learning_rate=0.0005", "--weight_decay=0.01"),
    *("--lr_schedule=cosine", "--log_every=10", "--steps_per_loop=10"),
)


def call(log_path: Path, *arguments: str | Path) -> None:
    """Runs a command of the project; raises RuntimeError with its last lines if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open(log_path, "a", encoding="utf-8") as log:
        code = subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        ).returncode
    if code:
        tail = "\n".join(log_path.read_text(encoding="utf-8").splitlines()[-5:])
        raise RuntimeError(f"{' '.join(map(str, arguments))} failed; the end of {log_path}:\n{tail}")


def convert(voc_dir: Path, image_set: str, shards: Path, *settings: str) -> None:
    """Converts a split of a VOC folder, unless the folder holds it already."""
    if (shards / f"{image_set}.manifest.json").exists():
        return
    shards.mkdir(parents=True, exist_ok=True)
    files = (f"--voc_dir={voc_dir}", f"--image_set={image_set}", f"--output_dir={shards}")
    call(shards / "convert.log", "prepare_tfrecords.py", *files, *settings)


def choose(voc_dir: Path, folder: Path, num_images: int) -> str:
    """Writes the shards of a random choice of the training images; returns their pattern."""
    chosen = folder / f"voc{num_images}"
    if not chosen.exists():
        sets = chosen / "ImageSets" / "Main"
        sets.mkdir(parents=True)
        for name in ("Annotations", "JPEGImages"):
            (chosen / name).symlink_to(voc_dir / name)
        names = (voc_dir / "ImageSets" / "Main" / "trainval.txt").read_text(encoding="utf-8").split()
        random.Random(0).shuffle(names)
        (sets / "train.txt").write_text("\n".join(names[: num_images or None]) + "\n", encoding="utf-8")
        (sets / "test.txt").write_bytes((voc_dir / "ImageSets" / "Main" / "test.txt").read_bytes())
    for split in ("train", "test"):
        convert(chosen, split, folder / f"shards{num_images}")
    return f"{folder}/shards{num_images}"


def train_and_evaluate(run: Path, settings: tuple[str, ...], *, records: str) -> dict[str, Any]:
    """Trains in the folder `run` and evaluates the last checkpoint on `records`; a run that is there is only read.

    Returns:
      What the evaluation wrote, and `train_loss`, the mean of the last tenth of the logged losses.
    """
    run.mkdir(parents=True, exist_ok=True)
    split = Path(records).name.split("-")[0]
    result_path = run / "eval" / f"{split}.json"
    if not result_path.exists():
        call(run / "output.txt", "-m", "trainer.task", *settings, f"--model_dir={run}")
        evaluation = (f"--model_dir={run}", f"--records={records}", f"--checkpoint={run / 'checkpoints'}")
        call(run / "output.txt", "-m", "trainer.evaluate", *evaluation)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
    last = losses[-max(len(losses) // 10, 1) :]
    return {**json.loads(result_path.read_text(encoding="utf-8")), "train_loss": sum(last) / len(last)}


def compare(first: Path, second: Path, records: str) -> dict[str, Any]:
    """What `trainer.compare` prints of two runs."""
    command = [sys.executable, "-m", "trainer.compare", str(first), str(second), f"--records={records}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
