"""Trains a small detector on photographs with one switch changed at a time: which earn their place?

    nice python benchmarks/ablation.py --voc_dir=BCCD --output_dir=DIR [--only=giou,atss]

All runs see the same images in the same order, and start from ImageNet's weights. Each is compared with the first,
`default`, on the test images by a paired bootstrap, as `trainer.compare` does. That covers the choice of the images but
not the seed: --seeds runs of the default differ in nothing but theirs. A run that DIR holds already is not repeated.
The last line printed is JSON: for each run its AP, how far it is above that of `default`, and the 95% interval of that.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import runs

FLAGS = flags.FLAGS
flags.DEFINE_string("voc_dir", None, "Folder in VOC's layout with the sets trainval and test.", required=True)
flags.DEFINE_string("output_dir", None, "Folder for the shards and the runs.", required=True)
flags.DEFINE_string("weights", "imagenet", "Weights of the backbone, as --backbone_weights takes them.")
flags.DEFINE_string("backbone", "efficientnet_lite0", "The backbone.")
flags.DEFINE_integer("train_steps", 160, "Steps of each run, of 8 images each.", lower_bound=20)
flags.DEFINE_integer("seeds", 2, "Runs of the default.", lower_bound=1)
flags.DEFINE_list("only", [], "Names of switches; default: all.")

SWITCHES = {
    "giou": ("--box_loss=giou",),
    "quality_focal": ("--class_loss=quality_focal",),
    "atss": ("--assignment=atss",),
    "ties_nearest": ("--low_quality_ties=nearest",),
    "ties_all": ("--low_quality_ties=all",),
    "head_norm": ("--head_norm=group",),
    "jitter": ("--augment=default", "--scale_min=0.5", "--scale_max=1.5"),
    "averaged": ("--ema_decay=0.98",),
    "local_norm": ("--norm=local",),
    "bifpn": ("--neck=bifpn", "--neck_repeats=2"),
}


def main(_: list[str]) -> None:
    folder, voc_dir = Path(FLAGS.output_dir).resolve(), Path(FLAGS.voc_dir).resolve()
    if unknown := set(FLAGS.only) - SWITCHES.keys():
        raise ValueError(f"--only={','.join(sorted(unknown))}: choose from {', '.join(SWITCHES)}.")
    shards = runs.choose(voc_dir, folder, 0)
    records, steps = f"{shards}/test-*.tfrecord", FLAGS.train_steps
    common = (
        *runs.SMALL_DETECTOR,
        f"--train_records={shards}/train-*.tfrecord",
        *(f"--backbone={FLAGS.backbone}", f"--backbone_weights={FLAGS.weights}"),
        *(f"--train_steps={steps}", f"--warmup_steps={steps // 10}"),
    )
    switches: dict[str, tuple[str, ...]] = {
        "default": ("--seed=0",),
        **{f"seed_{seed}": (f"--seed={seed}",) for seed in range(1, FLAGS.seeds)},
    }
    switches.update({name: switch for name, switch in SWITCHES.items() if not FLAGS.only or name in FLAGS.only})
    results: dict[str, dict[str, Any]] = {}
    for name, switch in switches.items():
        found = runs.train_and_evaluate(folder / name, (*common, *switch), records=records)
        results[name] = {key: round(found[key], 4) for key in ("coco_ap", "coco_ap50", "train_loss")}
        if name != "default":
            compared = runs.compare(folder / "default", folder / name, records)["coco_ap"]
            results[name]["difference"] = round(compared["difference"], 4)
            results[name]["interval"] = [round(bound, 4) for bound in compared["interval"]]
        print(f"{name:16} {results[name]}", flush=True)
    print(json.dumps({"train_steps": steps, "backbone": FLAGS.backbone, "runs": results}))


if __name__ == "__main__":
    app.run(main)
