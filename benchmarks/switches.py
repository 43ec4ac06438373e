"""Trains with every neck, norm, loss, assignment and backbone on drawn shapes, so that no switch is a dead one.

    nice python benchmarks/switches.py --output_dir=DIR [--train_steps=300] [--only=neck,box_loss]

Each run differs from the first, `default`, in one switch; all see the same images in the same order. A run's loss is
the mean of the last tenth of its steps, its AP that of its last checkpoint on the test images. A run that DIR holds
already is not repeated. The last line printed is JSON: for each run its loss and AP, and the AP as a share of the
default's.
The losses of different kinds cannot be compared with each other.
"""

from __future__ import annotations

import json
import pathlib
import sys

from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks import runs
from input.config import ASSIGNMENTS, LOW_QUALITY_TIES, MatchConfig
from model import config
from trainer import shapes
from trainer.demo import SHAPES

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", None, "Folder for the shapes and the runs.", required=True)
flags.DEFINE_integer("train_steps", 300, "Steps of each run.", lower_bound=10)
flags.DEFINE_list("only", [], "Names of switches, such as neck; default: all.")

# Of each switch every value but the default, and but auto, which stands for one of the others.
CHOICES = {
    "neck": (config.ModelConfig.neck, config.NECKS),
    "p6_from": ("c5", config.P6_SOURCES),
    "head_norm": (config.ModelConfig.head_norm, config.HEAD_NORMS),
    "norm": ("local", config.NORMS),
    "box_loss": (config.LossConfig.box_loss, config.BOX_LOSSES),
    "class_loss": (config.LossConfig.class_loss, config.CLASS_LOSSES),
    "assignment": (MatchConfig.assignment, ASSIGNMENTS),
    "low_quality_ties": (MatchConfig.low_quality_ties, LOW_QUALITY_TIES),
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


def main(_: list[str]) -> None:
    folder = pathlib.Path(FLAGS.output_dir).resolve()
    if not (folder / "voc").exists():
        shapes.write_shapes(folder / "voc", num_images=SHAPES.num_images)
    for split in ("train", "test"):
        runs.convert(folder / "voc", split, folder / "shards")
    train_records = f"--train_records={folder}/shards/train-*.tfrecord"
    steps = (f"--train_steps={FLAGS.train_steps}", f"--warmup_steps={FLAGS.train_steps // 10}", "--log_every=10")
    results: dict[str, dict[str, float]] = {}
    for name, switch in list_runs().items():
        settings = (*SHAPES.train_flags, *steps, train_records, *switch)
        found = runs.train_and_evaluate(folder / name, settings, records=f"{folder}/shards/test-*.tfrecord")
        result = {key: round(found[key], 4) for key in ("train_loss", "coco_ap", "coco_ap50")}
        result["share_of_default"] = round(result["coco_ap"] / max(results.get("default", result)["coco_ap"], 1e-9), 3)
        results[name] = result
        columns = "  ".join(f"{key} {value:.3f}" for key, value in result.items())
        print(f"{name:28} {columns}", flush=True)
    print(json.dumps({"train_steps": FLAGS.train_steps, "runs": results}))


if __name__ == "__main__":
    app.run(main)
