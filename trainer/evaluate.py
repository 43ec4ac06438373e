"""Evaluation of a model on the records of a split, and the command that does it for a finished run.

`python -m trainer.evaluate --model_dir=RUN --records='OUT/test-*.tfrecord' [--checkpoint=PATH]`
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from absl import flags as absl_flags

from input import pipeline, shards, types
from model.types import Detections
from trainer import checkpoints, command, inference, metrics
from trainer.config import Config
from trainer.reporting import log


def make_evaluator(
    model: tf.keras.Model,
    config: Config,
    paths: Sequence[str],
    *,
    batch_size: int | None = None,
    strategy: tf.distribute.Strategy | None = None,
) -> Callable[[], dict[str, Any]]:
    """Reads the ground truth once and compiles once, for several evaluations during a run.

    Args:
      model: the network, made in the scope of `strategy`.
      config: every setting; its `labels` must be those of the records.
      paths: shards, in order.
      batch_size: over all replicas, rounded to a multiple of their number; None for `config.input.batch_size`.
      strategy: splits each batch over its replicas; None for the current one. Each of several workers evaluates all
        images, so that each knows the result.

    Returns:
      A function without arguments that evaluates the model's present weights and returns what
      `metrics.compute_metrics` does.

    Raises:
      ValueError: the records were converted with other labels than the run's, or a set of shards is not whole.
    """
    strategy = strategy or tf.distribute.get_strategy()
    labels = shards.read_labels(paths)
    if tuple(labels) != config.labels:
        raise ValueError(
            f"the labels beside {paths[0]} are {', '.join(labels)}, but the model knows {', '.join(config.labels)}: "
            "convert these records with the training set's labels.txt as --labels."
        )
    shards.require_whole_sets(paths)
    ground_truths = shards.read_annotations(paths)
    detect = inference.make_detector(model, config)

    replicas = strategy.num_replicas_in_sync
    batch_size = max((batch_size or config.input.batch_size) // replicas, 1) * replicas
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    dataset = pipeline.make_dataset(paths, config.input, training=False, batch_size=batch_size).with_options(options)
    dataset = strategy.experimental_distribute_dataset(dataset)

    @tf.function
    def detect_batch(batch: types.Batch) -> tuple[Detections, tf.Tensor]:
        def in_replica(batch: types.Batch) -> tuple[Detections, tf.Tensor]:
            found = detect(batch.images, batch.transforms, batch.original_sizes)
            return found, tf.where(batch.valid, batch.record_index, -1)

        return strategy.run(in_replica, args=(batch,))

    def evaluate_now() -> dict[str, Any]:
        detections = {}
        for batch in dataset:
            for result in strategy.experimental_local_results(detect_batch(batch)):
                found, record_index = tf.nest.map_structure(lambda values: values.numpy(), result)
                for row, index in enumerate(record_index.tolist()):
                    if index < 0:
                        continue
                    count = found.num_detections[row]
                    detections[index] = metrics.ImageDetections(
                        boxes=found.boxes[row, :count],
                        scores=found.scores[row, :count],
                        classes=found.classes[row, :count],
                    )
        damaged = sorted(set(range(len(ground_truths))) - detections.keys())
        for name in shards.name_records(paths, damaged):
            log.warning("an image that cannot be decoded is left out of the evaluation: %s", name)
        shown = sorted(detections)
        truths = [ground_truths[index] for index in shown]
        return metrics.compute_metrics(truths, [detections[index] for index in shown], config.labels)

    return evaluate_now


def evaluate_run(
    model_dir: str, patterns: Sequence[str], checkpoint: str | None = None, *, averaged: bool = True, **options: Any
) -> dict[str, Any]:
    """Evaluates a run's checkpoint and writes `RUN/eval/SPLIT.json`.

    Args:
      model_dir: RUN.
      patterns: shards, or glob patterns of them.
      checkpoint: a path; None for the best, else the latest.
      averaged: take the averaged weights where the run keeps them.
      **options: those of `make_evaluator`.

    Returns:
      The metrics, and what was evaluated on what: `checkpoint`, `step` and `records`.

    Raises:
      FileNotFoundError: there is no such run, no such checkpoint, or no shard that matches.
      ValueError: the records were converted with other labels than the run's.
    """
    paths = shards.expand_glob(patterns)
    run = inference.load_for_inference(model_dir, checkpoint, averaged=averaged)
    result = make_evaluator(run.model, run.config, paths, **options)()
    result = {**result, "checkpoint": run.path, "step": run.step, "records": paths}
    split = "+".join(sorted({shards.split_name(path) for path in paths}))
    output = os.path.join(model_dir, "eval", f"{split}.json")
    checkpoints.write_file(output, json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


_COLUMNS = ("voc07_ap50", "voc12_ap50", "coco_ap", "coco_ap50")


def format_table(result: dict[str, Any]) -> str:
    """The metrics as a table: a line for each class, and their means."""
    width = max(len("all classes"), *map(len, result["per_class"]))
    counts = ("num_objects", "num_difficult")
    mean = {**result, **{key: sum(values[key] for values in result["per_class"].values()) for key in counts}}
    lines = [" ".join([f"{'':{width}}", *(f"{key:>11}" for key in _COLUMNS), "   objects", " difficult"])]
    for label, values in [*result["per_class"].items(), ("all classes", mean)]:
        cells = (f"{'-' if values[key] is None else format(values[key], '.4f'):>11}" for key in _COLUMNS)
        lines.append(" ".join([f"{label:{width}}", *cells, *(f"{values[key]:10d}" for key in counts)]))
    return "\n".join(lines)


def main() -> None:
    flags = absl_flags.FLAGS
    result = evaluate_run(
        flags.model_dir, flags.records, flags.checkpoint, averaged=flags.averaged, batch_size=flags.batch_size
    )
    print(f"{result['num_images']} images, {result['checkpoint']}")
    print(format_table(result))


if __name__ == "__main__":
    absl_flags.DEFINE_string("model_dir", None, "The run's folder.", required=True)
    absl_flags.DEFINE_list(
        "records", None, "Shards to evaluate on: patterns such as 'OUT/test-*.tfrecord'.", required=True
    )
    absl_flags.DEFINE_string("checkpoint", None, "The checkpoint to use; default: the best, else the latest.")
    absl_flags.DEFINE_bool("averaged", True, "Take the averaged weights where the run keeps them (--ema_decay).")
    absl_flags.DEFINE_integer("batch_size", None, "Images at a time; default: the run's.", lower_bound=1)
    command.run(main)
