"""Trains a small detector on photographs with one switch changed at a time: which earn their place?

    nice python benchmarks/ablation.py --voc_dir=BCCD --output_dir=DIR [--only=giou,atss]

The default and each switch are run with the seeds 0 to --seeds less one: how far these are apart says which differences
mean something. All runs of one seed see the same images in the same order, and start from ImageNet's weights. What the
choice of the test images makes of it, `trainer.compare` tells for two of the runs. A run that DIR holds already is not
repeated. The last line printed is JSON: for each switch the AP of each class and their mean, one figure for each seed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import runs

FLAGS = flags.FLAGS
flags.DEFINE_string("voc_dir", None, "Folder in VOC's layout with the sets trainval and test.", required=True)
flags.DEFINE_string("output_dir", None, "Folder for the shards and the runs.", required=True)
flags.DEFINE_string("weights", "imagenet", "Weights of the backbone, as --backbone_weights takes them.")
flags.DEFINE_string("backbone", "efficientnet_lite0", "The backbone.")
flags.DEFINE_integer("seeds", 2, "Runs of the default and of each switch.", lower_bound=1)
flags.DEFINE_list("only", [], "Names of switches, or `default`; all of them when empty.")

STEPS = 320  # of 4 images each
SWITCHES: dict[str, tuple[str, ...]] = {
    "default": (),
    "giou": ("--box_loss=giou",),
    "atss": ("--assignment=atss",),
    "quality_focal": ("--class_loss=quality_focal",),
    "ties_all": ("--low_quality_ties=all",),
    "ties_nearest": ("--low_quality_ties=nearest",),
    "no_head_norm": ("--head_norm=none",),
    "batch_8": ("--batch_size=8", f"--train_steps={STEPS // 2}", f"--warmup_steps={STEPS // 20}"),
    "local_norm": ("--norm=local",),
    "augment": ("--augment=default",),
    "bifpn": ("--neck=bifpn", "--neck_repeats=2"),
    "averaged": ("--ema_decay=0.98",),
}


def main(_: list[str]) -> None:
    folder, voc_dir = Path(FLAGS.output_dir).resolve(), Path(FLAGS.voc_dir).resolve()
    if unknown := set(FLAGS.only) - SWITCHES.keys():
        raise ValueError(f"--only={','.join(sorted(unknown))}: choose from {', '.join(SWITCHES)}.")
    shards = runs.choose(voc_dir, folder, 0)
    records = f"{shards}/test-*.tfrecord"
    common = (
        *runs.SMALL_DETECTOR,
        *("--batch_size=4", "--learning_rate=0.001", "--head_norm=group"),
        f"--train_records={shards}/train-*.tfrecord",
        *(f"--backbone={FLAGS.backbone}", f"--backbone_weights={FLAGS.weights}"),
        *(f"--train_steps={STEPS}", f"--warmup_steps={STEPS // 10}"),
    )
    results: dict[str, list[dict[str, float]]] = {}
    for name in FLAGS.only or SWITCHES:
        for seed in range(FLAGS.seeds):
            settings = (*common, *SWITCHES[name], f"--seed={seed}")
            found = runs.train_and_evaluate(folder / f"{name}_{seed}", settings, records=records)
            result = {key: round(found[key], 4) for key in ("coco_ap", "coco_ap50")}
            result.update({label: round(values["coco_ap"], 4) for label, values in found["per_class"].items()})
            print(f"{name:16} seed {seed} {result}", flush=True)
            results.setdefault(name, []).append(result)
    print(json.dumps({"train_steps": STEPS, "backbone": FLAGS.backbone, "runs": results}))


if __name__ == "__main__":
    app.run(main)
