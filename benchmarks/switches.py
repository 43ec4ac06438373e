"""Trains with every neck, norm, loss, assignment and backbone on drawn shapes, so that no switch is a dead one.

    nice python benchmarks/switches.py --output_dir=DIR [--train_steps=200] [--only=neck,box_loss]

Each run differs from the first, `default`, in one switch; all see the same images in the same order. The network and
its images are as small as will do, since there are many runs and a CPU has to get through them. A run's losses are the
means of the first and of the last tenth of its steps, its AP that of its last step on the test images. A run that DIR
holds already is not repeated. The last line printed is JSON: for each run its losses and AP, and the AP as a share of
the default's. The losses of different kinds cannot be compared with each other.
"""

from __future__ import annotations

import json
import pathlib
import sys

from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks import runs
from input.config import ASSIGNMENTS, MatchConfig
from model import config
from trainer import shapes
from trainer.demo import SHAPES, SMALL_NETWORK

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", None, "Folder for the shapes and the runs.", required=True)
flags.DEFINE_integer("train_steps", 200, "Steps of each run.", lower_bound=10)
flags.DEFINE_list("only", [], "Names of switches, such as neck; default: all.")

SMALL_DETECTOR = (
    *(*SMALL_NETWORK, "--image_size=64x96", "--anchor_sizes=20,40,80,160,320", "--aspect_ratios=1"),
    *("--nms=agnostic", "--nms_iou=0.3", "--batch_size=8", "--optimizer=adamw", "--learning_rate=0.001"),
)

# Of each switch every value but the default, and but auto, which stands for one of the others.
CHOICES = {
    "neck": (config.ModelConfig.neck, config.NECKS),
    "p6_from": ("c5", config.P6_SOURCES),
    "head_norm": (config.ModelConfig.head_norm, config.HEAD_NORMS),
    "norm": ("local", config.NORMS),
    "box_loss": (config.LossConfig.box_loss, config.BOX_LOSSES),
    "class_loss": (config.LossConfig.class_loss, config.CLASS_LOSSES),
    "assignment": (MatchConfig.assignment, ASSIGNMENTS),
    "backbone": ("resnet18", config.BACKBONES),
}
# Where a switch does something only together with another flag.
COMPANIONS = {
    "norm=sync": ("--distribution=mirrored", "--logical_cpus=2"),
    "resnet_stride=3x3": ("--backbone=resnet50",),
    "separable_convs=true": ("--neck=bifpn",),
    "neck_repeats=1": ("--neck=bifpn",),
}


def list_runs() -> dict[str, tuple[str, ...]]:
    """The flags of each run."""
    switches = [
        f"{name}={value}"
        for name, (default, values) in CHOICES.items()
        for value in values
        if value not in (default, "auto")
    ]
    switches += ["resnet_stride=3x3", "separable_convs=true", "head_filters=96", "neck_repeats=1"]
    known = {name.split("=")[0] for name in switches}
    if unknown := set(FLAGS.only) - known:
        raise ValueError(f"--only={','.join(sorted(unknown))}: choose from {', '.join(sorted(known))}.")
    chosen = [name for name in switches if not FLAGS.only or name.split("=")[0] in FLAGS.only]
    return {"default": (), **{name: (f"--{name}", *COMPANIONS.get(name, ())) for name in chosen}}


def train(run: pathlib.Path, settings: tuple[str, ...]) -> dict[str, float]:
    """Trains in the folder `run`, unless it holds a finished run; returns its losses and its AP."""
    run.mkdir(parents=True, exist_ok=True)
    metrics = run / "metrics.jsonl"
    if not (metrics.exists() and "eval/coco_ap" in metrics.read_text(encoding="utf-8")):
        runs.call(run / "output.txt", "-m", "trainer.task", *settings, f"--model_dir={run}")
    entries = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    count = max(len(losses) // 10, 1)
    evaluated = next(entry for entry in entries if "eval/coco_ap" in entry)
    values = {"first_loss": sum(losses[:count]) / count, "last_loss": sum(losses[-count:]) / count}
    values.update({key: evaluated[f"eval/{key}"] for key in ("coco_ap", "coco_ap50")})
    return {key: round(value, 4) for key, value in values.items()}


def main(_: list[str]) -> None:
    folder = pathlib.Path(FLAGS.output_dir).resolve()
    if not (folder / "voc").exists():
        shapes.write_shapes(folder / "voc", num_images=SHAPES.num_images)
    for split in ("train", "test"):
        runs.convert(folder / "voc", split, folder / "shards")
    records = [
        f"--{kind}_records={folder}/shards/{split}-*.tfrecord" for kind, split in (("train", "train"), ("val", "test"))
    ]
    last = FLAGS.train_steps
    steps = (f"--train_steps={last}", f"--warmup_steps={last // 10}", "--log_every=10", f"--eval_every={last}")
    results: dict[str, dict[str, float]] = {}
    for name, switch in list_runs().items():
        result = train(folder / name, (*SMALL_DETECTOR, *steps, *records, *switch))
        result["share_of_default"] = round(result["coco_ap"] / max(results.get("default", result)["coco_ap"], 1e-9), 3)
        results[name] = result
        columns = "  ".join(f"{key} {value:.3f}" for key, value in result.items())
        print(f"{name:28} {columns}", flush=True)
    print(json.dumps({"train_steps": FLAGS.train_steps, "runs": results}))


if __name__ == "__main__":
    app.run(main)
