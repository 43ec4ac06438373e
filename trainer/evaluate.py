"""Evaluation of a model on the records of a split, and the command that does it for a finished run.

`python -m trainer.evaluate --model_dir=RUN --records='OUT/test-*.tfrecord' [--checkpoint=PATH]`
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import Callable, Optional

import tensorflow as tf
from absl import app
from absl import flags as absl_flags

from input import batch_augment, boxes, pipeline, shards
from model import postprocess
from model.types import Detections
from trainer import checkpoints, metrics
from trainer.config import Config
from trainer.reporting import log


def make_detector(model: tf.keras.Model, config: Config) -> Callable[..., Detections]:
    """The whole way from letterboxed pixels to detections in the original images.

    Returns:
      `detect(images u8 [b, h, w, 3], transforms f32 [b, 4], original_sizes i32 [b, 2]) -> Detections`, whose boxes are
      in pixels of the original images and clipped to them. What was found in the padding alone is dropped.
    """
    anchors = checkpoints.make_anchors(config)

    def detect(images, transforms, original_sizes) -> Detections:
        predictions = model(batch_augment.normalize(images), training=False)
        found = postprocess.detect(predictions, anchors, config.detect, config.input.image_size)
        original_boxes = boxes.to_original(found.boxes, transforms, original_sizes)
        kept = boxes.area(original_boxes) > 0  # false in the rows without detection too
        order = tf.argsort(tf.cast(~kept, tf.int32), axis=-1, stable=True)
        return Detections(
            boxes=tf.gather(tf.where(kept[..., tf.newaxis], original_boxes, 0.0), order, batch_dims=1),
            scores=tf.gather(tf.where(kept, found.scores, 0.0), order, batch_dims=1),
            classes=tf.gather(tf.where(kept, found.classes, -1), order, batch_dims=1),
            num_detections=tf.reduce_sum(tf.cast(kept, tf.int32), axis=-1),
        )

    return detect


def make_evaluator(
    model: tf.keras.Model,
    config: Config,
    paths: Sequence[str],
    *,
    batch_size: Optional[int] = None,
    strategy: Optional[tf.distribute.Strategy] = None,
) -> Callable[[], dict]:
    """Reads the ground truth once and compiles once, for evaluations again and again during a run.

    Args:
      model: the network, made in the scope of `strategy`.
      config: everything; its `labels` must be those of the records.
      paths: shards, in order.
      batch_size: over all replicas, rounded to a multiple of them; None for `config.input.batch_size`.
      strategy: shares each batch among its replicas; None for the current one. Every worker of several evaluates all
        images by itself, so that each knows the result.

    Returns:
      A function without arguments that evaluates the model's present weights; its result is
      `metrics.compute_metrics`'s.

    Raises:
      ValueError: the records were converted with other labels than the run's.
    """
    strategy = strategy or tf.distribute.get_strategy()
    labels = shards.read_labels(paths)
    if tuple(labels) != config.labels:
        raise ValueError(
            f"the labels beside {paths[0]} are {', '.join(labels)}, but the model knows {', '.join(config.labels)}: "
            "convert these records with the training set's labels.txt as --labels."
        )
    ground_truths = shards.read_annotations(paths)
    detect = make_detector(model, config)

    replicas = strategy.num_replicas_in_sync
    batch_size = max((batch_size or config.input.batch_size) // replicas, 1) * replicas
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    dataset = pipeline.make_dataset(paths, config.input, training=False, batch_size=batch_size).with_options(options)
    dataset = strategy.experimental_distribute_dataset(dataset)

    @tf.function
    def detect_batch(batch):
        def in_replica(batch):
            found = detect(batch.images, batch.transforms, batch.original_sizes)
            return found, tf.where(batch.valid, batch.record_index, -1)

        return strategy.run(in_replica, args=(batch,))

    def evaluate_now() -> dict:
        detections = {}
        for batch in dataset:
            for found, record_index in strategy.experimental_local_results(detect_batch(batch)):
                found = Detections(*(values.numpy() for values in found))
                for row, index in enumerate(record_index.numpy().tolist()):
                    if index < 0:
                        continue
                    count = found.num_detections[row]
                    detections[index] = metrics.ImageDetections(
                        found.boxes[row, :count], found.scores[row, :count], found.classes[row, :count]
                    )
        damaged = sorted(set(range(len(ground_truths))) - detections.keys())
        for name in shards.name_records(paths, damaged):
            log.warning("left out of the evaluation, since it cannot be decoded: %s", name)
        shown = sorted(detections)
        truths = [ground_truths[index] for index in shown]
        return metrics.compute_metrics(truths, [detections[index] for index in shown], config.labels)

    return evaluate_now


def evaluate(model: tf.keras.Model, config: Config, paths: Sequence[str], **options) -> dict:
    """Evaluates once; arguments and errors as `make_evaluator`'s, result as `metrics.compute_metrics`'s."""
    return make_evaluator(model, config, paths, **options)()


def evaluate_run(model_dir: str, patterns: Sequence[str], checkpoint: Optional[str] = None, **options) -> dict:
    """Evaluates a run's checkpoint and writes `RUN/eval/SPLIT.json`.

    Args:
      model_dir: RUN.
      patterns: shards, or glob patterns of them.
      checkpoint: a path; None for the best, else the latest.
      **options: as `make_evaluator`'s.

    Returns:
      The metrics, and `checkpoint`, `step` and `records`: what was evaluated on what.

    Raises:
      FileNotFoundError: no such run, checkpoint or shards.
      ValueError: the records were converted with other labels than the run's.
    """
    paths = shards.expand_glob(patterns)
    config, model, step, path = checkpoints.load_for_inference(model_dir, checkpoint)
    result = {**evaluate(model, config, paths, **options), "checkpoint": path, "step": step, "records": paths}
    split = "+".join(sorted({shards.split_name(path) for path in paths}))
    output = os.path.join(model_dir, "eval", f"{split}.json")
    checkpoints.write_file(output, json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


_COLUMNS = ("voc07_ap50", "voc12_ap50", "coco_ap", "coco_ap50")


def format_table(result: dict) -> str:
    """The metrics as a table: a line for each class, and their means."""
    width = max(len("all classes"), *map(len, result["per_class"]))
    counts = ("num_objects", "num_difficult")
    mean = {**result, **{key: sum(values[key] for values in result["per_class"].values()) for key in counts}}
    lines = [" ".join([f"{'':{width}}", *(f"{key:>11}" for key in _COLUMNS), "   objects", " difficult"])]
    for label, values in [*result["per_class"].items(), ("all classes", mean)]:
        cells = (f"{'-' if values[key] is None else format(values[key], '.4f'):>11}" for key in _COLUMNS)
        lines.append(" ".join([f"{label:{width}}", *cells, *(f"{values[key]:10d}" for key in counts)]))
    return "\n".join(lines)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}; flags are written --name=value.")
    flags = absl_flags.FLAGS
    try:
        result = evaluate_run(flags.model_dir, flags.records, flags.checkpoint, batch_size=flags.batch_size)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{result['num_images']} images, {result['checkpoint']}")
    print(format_table(result))


if __name__ == "__main__":
    absl_flags.DEFINE_string("model_dir", None, "The run's folder.", required=True)
    absl_flags.DEFINE_list(
        "records", None, "Shards to evaluate on: patterns such as 'OUT/test-*.tfrecord'.", required=True
    )
    absl_flags.DEFINE_string("checkpoint", None, "A checkpoint; default: the best, else the latest.")
    absl_flags.DEFINE_integer("batch_size", None, "Images at a time; default: the run's.", lower_bound=1)
    app.run(main)
