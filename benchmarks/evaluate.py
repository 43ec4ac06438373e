"""Measures the metrics of a split as large as COCO's, against pycocotools.

    python benchmarks/evaluate.py [--images=5000]

Drawn detections: 100 in each image, of 80 classes. pycocotools computes the numbers of COCO; ours are these, VOC's
and all of them for each class. Both are given the detections as they come from the network, and the largest difference
between their COCO AP and recall is printed. `interval_share` is what 20 bootstrap samples add, as a share of our time.

The last line printed is JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from input.shards import GroundTruth
from trainer import metrics
from trainer.matching import ImageDetections

FLAGS = flags.FLAGS
_NAMES = ["coco_ap", "coco_ap50", "coco_ap75", "coco_ap_small", "coco_ap_medium", "coco_ap_large"]
_NAMES += ["coco_ar1", "coco_ar10", "coco_ar100", "coco_ar_small", "coco_ar_medium", "coco_ar_large"]


def draw_split(num_images: int, num_classes: int) -> tuple[list[GroundTruth], list[ImageDetections]]:
    """7 objects in each image, as in COCO, and 100 detections: each object found twice, the rest elsewhere."""
    random = np.random.default_rng(0)
    truths, detections = [], []
    for image in range(num_images):
        corners, sides = random.uniform(0, 400, (100, 2)), random.lognormal(4.0, 0.8, (100, 2))
        boxes = np.concatenate([corners, corners + sides], axis=1)
        classes = random.integers(0, num_classes, 100)
        difficult = random.random(7) < 0.02
        truths.append(
            GroundTruth(f"{image}", 640, 640, boxes[:7].astype(np.float32), classes[:7].astype(np.int32), difficult)
        )
        boxes[7:14], classes[7:14] = boxes[:7], classes[:7]
        boxes[:14] += random.normal(0, 0.1, (14, 4)) * np.tile(sides[:7], (2, 2))
        scores = random.random(100).astype(np.float32)
        order = np.argsort(-scores)
        detections.append(
            ImageDetections(boxes[order].astype(np.float32), scores[order], classes[order].astype(np.int32))
        )
    return truths, detections


def pycocotools_stats(
    truths: list[GroundTruth], detections: list[ImageDetections], num_classes: int
) -> list[float | None]:
    """The twelve numbers of `COCOeval.summarize`."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, (truth, found) in enumerate(zip(truths, detections)):
        rows = zip(truth.boxes.tolist(), truth.classes.tolist(), truth.difficult.tolist())
        for (ymin, xmin, ymax, xmax), category, difficult in rows:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
                    "area": (xmax - xmin) * (ymax - ymin),
                    "iscrowd": int(difficult),
                }
            )
        for (ymin, xmin, ymax, xmax), category, score in zip(
            found.boxes.tolist(), found.classes.tolist(), found.scores.tolist()
        ):
            box = [xmin, ymin, xmax - xmin, ymax - ymin]
            results.append({"image_id": image, "category_id": category, "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        truth = COCO()
        truth.dataset = {
            "images": [{"id": image} for image in range(len(truths))],
            "categories": [{"id": category} for category in range(num_classes)],
            "annotations": annotations,
        }
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [value if value > -1 else None for value in evaluator.stats.tolist()]


def main(_: list[str]) -> None:
    labels = [f"class {index}" for index in range(FLAGS.classes)]
    truths, detections = draw_split(FLAGS.images, FLAGS.classes)
    started = time.perf_counter()
    ours = metrics.compute_metrics(truths, detections, labels)
    ours_s = time.perf_counter() - started
    print(f"ours: {ours_s:.1f} s")
    started = time.perf_counter()
    metrics.compute_metrics(truths, detections, labels, resamples=20)
    with_intervals_s = time.perf_counter() - started
    print(f"ours with 20 bootstrap samples: {with_intervals_s:.1f} s")
    started = time.perf_counter()
    theirs = pycocotools_stats(truths, detections, FLAGS.classes)
    theirs_s = time.perf_counter() - started
    print(f"pycocotools: {theirs_s:.1f} s")
    differences = [abs(ours[name] - value) for name, value in zip(_NAMES, theirs) if value is not None]
    result = {
        "images": FLAGS.images,
        "classes": FLAGS.classes,
        "ours_s": ours_s,
        "pycocotools_s": theirs_s,
        "speedup": theirs_s / ours_s,
        "speedup_goal": 10,
        "interval_share": with_intervals_s / ours_s - 1,
        "largest_difference": max(differences),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    flags.DEFINE_integer("images", 5000, "Number of images.", lower_bound=1)
    flags.DEFINE_integer("classes", 80, "Number of classes.", lower_bound=1)
    app.run(main)
