"""Trains on few photographs from scratch and from ImageNet's weights: what do the weights save?

    nice python benchmarks/transfer.py --voc_dir=BCCD --output_dir=DIR

Both see the same images in the same order, with the same network, optimizer and schedule; only the start and the norm
differ: the weights keep their batch norm's statistics (`--norm=frozen`), which a start from noise cannot. Both are
evaluated on the test images at half of the steps, in the middle of the schedule, and at the end. A run that DIR holds
already is not repeated. The last line printed is JSON: for each run its AP, and for each number of images whether the
weights reached at half of the steps what scratch reached at the end.
"""

from __future__ import annotations

import json
import statistics
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
flags.DEFINE_list("num_images", ["50", "100", "0"], "Numbers of training images; 0 stands for all.")
flags.DEFINE_integer("train_steps", 160, "Steps of each run, of 8 images each.", lower_bound=20)
flags.DEFINE_integer("seeds", 3, "Runs with the first of --num_images; the others have one.", lower_bound=1)


def read_half(run: Path) -> dict[str, float]:
    """The evaluation at half of the steps, from the run's metrics."""
    entries = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return next(entry for entry in entries if "eval/coco_ap" in entry)


def main(_: list[str]) -> None:
    folder, voc_dir = Path(FLAGS.output_dir).resolve(), Path(FLAGS.voc_dir).resolve()
    starts = {"scratch": (), "weights": (f"--backbone_weights={FLAGS.weights}", "--norm=frozen")}
    steps = FLAGS.train_steps
    common = (
        *runs.SMALL_DETECTOR,
        f"--backbone={FLAGS.backbone}",
        f"--train_steps={steps}",
        f"--warmup_steps={steps // 10}",
    )
    results = {}
    for position, num_images in enumerate(map(int, FLAGS.num_images)):
        shards = runs.choose(voc_dir, folder, num_images)
        records = (f"--train_records={shards}/train-*.tfrecord", f"--val_records={shards}/test-*.tfrecord")
        found: dict[str, list[dict[str, float]]] = {"scratch": [], "weights": []}
        for seed in range(FLAGS.seeds if position == 0 else 1):
            for start, switch in starts.items():
                run = folder / f"{num_images}-{start}-{seed}"
                settings = (*common, *records, *switch, f"--seed={seed}", f"--eval_every={steps // 2}")
                end = runs.train_and_evaluate(run, settings, records=f"{shards}/test-*.tfrecord")
                half = read_half(run)
                found[start].append(
                    {
                        **{f"half_{key}": round(half[f"eval/{key}"], 4) for key in ("coco_ap", "coco_ap50")},
                        **{key: round(end[key], 4) for key in ("coco_ap", "coco_ap50", "train_loss")},
                    }
                )
                print(f"{run.name:20} {found[start][-1]}", flush=True)
        gain = [
            statistics.mean(run["half_coco_ap"] for run in found["weights"]),
            statistics.mean(run["coco_ap"] for run in found["scratch"]),
        ]
        results[num_images or "all"] = {**found, "half_the_steps_suffice": gain[0] >= gain[1]}
    print(json.dumps({"train_steps": steps, "backbone": FLAGS.backbone, "num_images": results}))


if __name__ == "__main__":
    app.run(main)
