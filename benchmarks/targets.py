"""Measures the cost of assigning targets on one core, against comparing every box with every anchor.

    python benchmarks/targets.py

Images of 512 x 512 are padded to 100 boxes, of which 15 are real, or all (`_full`); the anchors are the default ones.
`speedup` is against brute force in its usual form, `speedup_over_dense` against the dense method, which does less work.
The methods alternate, and the processor time of one thread is measured, so that other programs disturb it little. The
last line printed is JSON, of medians.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from input import targets
from input.anchors import make_anchors
from input.boxes import area, encode
from input.config import InputConfig
from input.types import BACKGROUND, IGNORED, Batch, Targets

FLAGS = flags.FLAGS
flags.DEFINE_integer("batch_size", 16, "Number of images in a batch.")
flags.DEFINE_integer("boxes", 15, "Number of real boxes in each image, of 100.")
flags.DEFINE_integer("rounds", 5, "Number of turns of each method.")
flags.DEFINE_integer("repeats", 5, "Number of batches in a turn of the sparse method; the others have one.")

MAX_BOXES = 100
CONFIG = InputConfig(image_size=(512, 512))


def make_batch(batch_size: int, num_boxes: int, seed: int = 0) -> Batch:
    """A batch of which only the boxes matter, of 16 to 256 px, like objects in photographs."""
    rng = np.random.default_rng(seed)
    shape = (batch_size, MAX_BOXES)
    sides = np.exp(rng.uniform(np.log(16), np.log(256), (*shape, 1)) + rng.normal(0, 0.3, (*shape, 2)))
    centers = rng.uniform(0, 512, (*shape, 2))
    boxes = np.clip(np.concatenate([centers - sides / 2, centers + sides / 2], axis=-1), 0, 512)
    real = np.arange(MAX_BOXES) < num_boxes
    return Batch(*([tf.zeros([batch_size])] * len(Batch._fields)))._replace(
        boxes=tf.constant(boxes * real[:, np.newaxis], tf.float32),
        classes=tf.constant(np.where(real, rng.integers(0, 20, shape), -1), tf.int32),
        difficult=tf.constant(rng.random(shape) < 0.1),
        box_weights=tf.ones(shape),
        valid=tf.ones([batch_size], tf.bool),
    )


def brute_force(batch: Batch) -> Targets:
    """The usual form: image by image, the matrix of all IoUs, its maxima, and a gather."""
    anchors = tf.constant(make_anchors(CONFIG.anchor, CONFIG.image_size))
    config = CONFIG.match

    def one_image(image: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
        boxes, classes, difficult, box_weights = image
        low = tf.maximum(boxes[:, tf.newaxis, :2], anchors[:, :2])
        high = tf.minimum(boxes[:, tf.newaxis, 2:], anchors[:, 2:])
        sides = tf.maximum(high - low, 0.0)  # [m, a, 2]
        intersections = sides[..., 0] * sides[..., 1]
        unions = area(boxes)[:, tf.newaxis] + area(anchors) - intersections
        all_ious = intersections / tf.maximum(unions, 1e-8)  # [m, a]
        ious = tf.where(((classes < 0) | difficult)[:, tf.newaxis], 0.0, all_ious)
        best_box = tf.argmax(ious, axis=0, output_type=tf.int32)
        best_iou = tf.reduce_max(ious, axis=0)
        best_anchor = tf.argmax(ious, axis=1)
        low_quality = tf.where(tf.reduce_max(ious, axis=1) > 0.0)[:, 0]
        their_anchors = tf.gather(best_anchor, low_quality)[:, tf.newaxis]
        best_box = tf.tensor_scatter_nd_update(best_box, their_anchors, tf.cast(low_quality, tf.int32))
        best_iou = tf.tensor_scatter_nd_update(best_iou, their_anchors, tf.ones(tf.shape(low_quality)))
        positive = best_iou >= config.positive_iou
        ignored = tf.reduce_max(tf.where((classes < 0)[:, tf.newaxis], 0.0, all_ious), axis=0) >= config.negative_iou
        return (
            tf.where(positive, tf.gather(classes, best_box), tf.where(ignored, IGNORED, BACKGROUND)),
            tf.where(positive[:, tf.newaxis], encode(tf.gather(boxes, best_box), anchors), 0.0),
            tf.where(positive, tf.gather(box_weights, best_box), 1.0),
        )

    images = (batch.boxes, batch.classes, batch.difficult, batch.box_weights)
    return Targets(*tf.map_fn(one_image, images, fn_output_signature=(tf.int32, tf.float32, tf.float32)))


def measure(num_boxes: int) -> dict[str, float]:
    """Median ms per image of each method, after checking that all give the same targets."""
    batch = make_batch(FLAGS.batch_size, num_boxes)
    methods = {
        "sparse": tf.function(functools.partial(targets.assign, config=CONFIG, method="sparse")),
        "dense": tf.function(functools.partial(targets.assign, config=CONFIG, method="dense")),
        "brute": tf.function(brute_force),
    }
    classes = {name: run(batch).class_targets.numpy() for name, run in methods.items()}
    differing = np.mean(
        classes["brute"] != classes["dense"]
    )  # it decides ties and shared low-quality matches differently
    if (classes["sparse"] != classes["dense"]).any() or differing > 1e-3:
        raise AssertionError(f"the methods disagree; brute force and dense on the share {differing} of the anchors.")
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(FLAGS.rounds):
        for name, run in methods.items():
            repeats = FLAGS.repeats if name == "sparse" else 1
            start = time.process_time()
            for _ in range(repeats):
                run(batch).weights.numpy()
            times[name].append((time.process_time() - start) / repeats / FLAGS.batch_size * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def main(_: list[str]) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    some, full = measure(FLAGS.boxes), measure(MAX_BOXES)
    print(
        json.dumps(
            {
                "ms_per_image": round(some["sparse"], 3),
                "ms_per_image_full": round(full["sparse"], 3),
                "brute_ms_per_image": round(some["brute"], 1),
                "brute_ms_per_image_full": round(full["brute"], 1),
                "dense_ms_per_image": round(some["dense"], 1),
                "speedup": round(some["brute"] / some["sparse"], 1),
                "speedup_full": round(full["brute"] / full["sparse"], 1),
                "speedup_over_dense": round(some["dense"] / some["sparse"], 1),
                "speedup_over_dense_full": round(full["dense"] / full["sparse"], 1),
            }
        )
    )


if __name__ == "__main__":
    app.run(main)
