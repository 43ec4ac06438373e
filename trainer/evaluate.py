"""Evaluation of a model on the records of a split, and the command that does it for a finished run.

`python -m trainer.evaluate --model_dir=RUN --records='OUT/test-*.tfrecord' [--checkpoint=PATH]`

`RUN/eval/SPLIT.json` holds the metrics. `RUN/eval/SPLIT.html` shows them, the model's mistakes and suspect labels.
`RUN/eval/SPLIT.detections.json` has every detection as COCO's results: a list of `image_id` (that of the record),
`category_id` (the line in labels.txt, from 1), `bbox` [x, y, width, height] in pixels of the original image, `score`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import flags as absl_flags

from input import anchors, files, pipeline, shards, targets, types
from model import losses
from model.types import Detections, Losses, Predictions
from trainer import command, diagnosis, distribution, evaluation_page, formats, guards, inference, metrics, samples
from trainer.config import Config
from trainer.matching import ImageDetections
from trainer.reporting import log

RESAMPLES = 1000  # bootstrap samples for an interval
BATCH_SIZE_HELP = "Images at a time; default: the run's --batch_size divided by its --accumulation_steps."


class Evaluated(NamedTuple):
    """The images of a split that can be decoded, in the order of the records, with what was found in them."""

    record_indexes: list[int]
    ground_truths: list[shards.GroundTruth]
    detections: list[ImageDetections]
    losses: dict[str, float]  # `loss`, `class_loss` and `box_loss`: those of training, over all these images


def check_records(paths: Sequence[str], labels: Sequence[str]) -> None:
    """Refuses records to evaluate on that a model of these labels cannot be judged by.

    Raises:
      ValueError: the records were converted with other labels, or a set of shards is not whole.
    """
    theirs = shards.read_labels(paths)
    if tuple(theirs) != tuple(labels):
        raise ValueError(
            f"the labels beside {paths[0]} are {', '.join(theirs)}, but the model knows {', '.join(labels)}: "
            "convert these records with the training set's labels.txt as --labels."
        )
    shards.require_whole_sets(paths)


def default_batch_size(config: Config) -> int:
    """The images that pass through the network at a time in training, since a whole batch may not fit."""
    return max(1, config.input.batch_size // config.train.accumulation_steps)


def make_finder(
    model: tf.keras.Model,
    config: Config,
    paths: Sequence[str],
    *,
    batch_size: int | None = None,
    strategy: tf.distribute.Strategy | None = None,
    between_batches: Callable[[], None] = lambda: None,
) -> Callable[[], Evaluated]:
    """Reads the ground truth once and compiles once, for several evaluations during a run.

    Args:
      model: the network, made in the scope of `strategy`.
      config: every setting; its `labels` must be those of the records.
      paths: shards, in order.
      batch_size: over all replicas, rounded to a multiple of their number; None for `default_batch_size(config)`.
      strategy: splits each batch over its replicas; None for the current one. Each of several workers evaluates all
        images, so that each knows the result.
      between_batches: called before the first batch and after each; what it raises ends the evaluation.

    Returns:
      A function without arguments that finds what the model's present weights do.

    Raises:
      ValueError: the records were converted with other labels than the run's, or a set of shards is not whole.
    """
    strategy = strategy or tf.distribute.get_strategy()
    check_records(paths, config.labels)
    ground_truths = shards.read_annotations(paths)
    decode = inference.make_decoder(config)
    all_anchors = tf.constant(anchors.make_anchors(config.input.anchor, config.input.image_size))
    on_gpu = bool(tf.config.list_logical_devices("GPU"))

    def measure(predictions: Predictions, batch: types.Batch) -> tuple[Losses, tf.Tensor]:
        """The losses, not yet divided, and the number of positive anchors."""
        assigned = targets.assign(batch, config.input, method="dense" if on_gpu else "sparse")
        values = losses.detection_losses(predictions, assigned, tf.constant(1.0), config.loss, all_anchors)
        return values, losses.count_positives(assigned)

    if on_gpu and config.train.compile_stages:
        measure = tf.function(measure, jit_compile=True)

    replicas = strategy.num_replicas_in_sync
    batch_size = max((batch_size or default_batch_size(config)) // replicas, 1) * replicas
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    dataset = pipeline.make_dataset(paths, config.input, training=False, batch_size=batch_size).with_options(options)
    if replicas > 1:  # for one it would only take time, and a little memory that does not come back, at each evaluation
        dataset = strategy.experimental_distribute_dataset(dataset)

    @tf.function
    def detect_batch(batch: types.Batch) -> tuple[Detections, tf.Tensor, Losses, tf.Tensor]:
        def in_replica(batch: types.Batch) -> tuple[Detections, tf.Tensor, Losses, tf.Tensor]:
            predictions = inference.predict(model, batch.images, config)
            found = decode(predictions, batch.transforms, batch.original_sizes)
            return found, tf.where(batch.valid, batch.record_index, -1), *measure(predictions, batch)

        return strategy.run(in_replica, args=(batch,))

    def find() -> Evaluated:
        detections = {}
        sums, num_positives = np.zeros(len(Losses._fields)), 0.0
        between_batches()
        distribution.average_statistics(strategy, model)
        for batch in dataset:
            for result in strategy.experimental_local_results(detect_batch(batch)):
                found, record_index, values, positives = tf.nest.map_structure(lambda values: values.numpy(), result)
                sums, num_positives = sums + values, num_positives + float(positives)
                for row, index in enumerate(record_index.tolist()):
                    if index < 0:
                        continue
                    count = found.num_detections[row]
                    detections[index] = ImageDetections(
                        boxes=found.boxes[row, :count],
                        scores=found.scores[row, :count],
                        classes=found.classes[row, :count],
                    )
            between_batches()
        damaged = sorted(set(range(len(ground_truths))) - detections.keys())
        for name in shards.name_records(paths, damaged):
            log.warning("an image that cannot be decoded is left out of the evaluation: %s", name)
        shown = sorted(detections)
        return Evaluated(
            record_indexes=shown,
            ground_truths=[ground_truths[index] for index in shown],
            detections=[detections[index] for index in shown],
            losses=dict(zip(Losses._fields, (sums / max(num_positives, 1.0)).tolist())),
        )

    return find


def make_evaluator(
    model: tf.keras.Model, config: Config, paths: Sequence[str], **options: Any
) -> Callable[[], dict[str, Any]]:
    """As `make_finder`, but the function returns the losses and what `metrics.compute_metrics` does.

    Further `samples`, as `samples.choose` gives them, and `evaluation_s`, the time that it took in seconds.
    """
    find = make_finder(model, config, paths, **options)

    def evaluate_now() -> dict[str, Any]:
        started = time.monotonic()
        evaluated = find()
        result = metrics.compute_metrics(evaluated.ground_truths, evaluated.detections, config.labels)
        shown = samples.choose(evaluated.record_indexes, evaluated.ground_truths, evaluated.detections)
        return {**evaluated.losses, **result, "samples": shown, "evaluation_s": time.monotonic() - started}

    return evaluate_now


def evaluate_run(
    model_dir: str,
    patterns: Sequence[str],
    checkpoint: str | None = None,
    *,
    averaged: bool = True,
    ious: Sequence[float] = (),
    resamples: int = RESAMPLES,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Evaluates a run's checkpoint and writes `RUN/eval/SPLIT.json`, `.html` and `.detections.json`.

    Args:
      model_dir: RUN.
      patterns: shards, or glob patterns of them.
      checkpoint: a path; None for the best, else the latest.
      averaged: take the averaged weights where the run keeps them.
      ious, resamples: as `metrics.compute_metrics` takes them.
      batch_size: images at a time; None for `default_batch_size` of the run.

    Returns:
      The losses, the metrics, and what was evaluated on what: `checkpoint`, `step`, `averaged` (whether its averaged
      weights were) and `records`. For each class, too, `best_f1` and the score from which detections give it,
      `best_f1_score`.

    Raises:
      FileNotFoundError: there is no such run, no such checkpoint, or no shard that matches.
      ValueError: the records were converted with other labels than the run's, an IoU is out of range, or a device's
        memory does not suffice.
    """
    metrics.require_ious(ious)  # before what takes long
    paths = shards.expand_glob(patterns)
    run = inference.load_for_inference(model_dir, checkpoint, averaged=averaged)
    batch_size = batch_size or default_batch_size(run.config)
    with guards.explaining_lack_of_memory_to_evaluate(run.config, batch_size):
        evaluated = make_finder(run.model, run.config, paths, batch_size=batch_size)()
    judgement = metrics.judge(evaluated.ground_truths, evaluated.detections, run.config.labels, ious)
    result = metrics.summarize(judgement, resamples=resamples)
    of_what = {"checkpoint": run.path, "step": run.step, "averaged": run.averaged, "records": paths}
    result = {**evaluated.losses, **result, **of_what}
    for index, values in enumerate(result["per_class"].values()):
        best = diagnosis.best_threshold(diagnosis.threshold_curve(judgement, index))
        values["best_f1"], values["best_f1_score"] = best or (None, None)
    split = "+".join(sorted({shards.split_name(path) for path in paths}))
    output = os.path.join(model_dir, "eval", f"{split}.json")
    files.write_text(output, json.dumps(result, indent=2, allow_nan=False) + "\n")
    found = json.dumps(coco_results(evaluated), ensure_ascii=False) + "\n"
    files.write_text(os.path.join(model_dir, "eval", f"{split}.detections.json"), found)
    page = evaluation_page.Evaluation(
        result=result,
        judgement=judgement,
        ground_truths=evaluated.ground_truths,
        record_indexes=evaluated.record_indexes,
        paths=paths,
        split=split,
    )
    with files.create(os.path.join(model_dir, "eval", f"{split}.html")) as file:
        for part in evaluation_page.make_page(page):
            file.write(part.encode())
    return result


def coco_results(evaluated: Evaluated) -> list[dict[str, Any]]:
    """Every detection in COCO's format of results."""
    return [
        formats.coco_row(truth.image_id, category, box, score)
        for truth, found in zip(evaluated.ground_truths, evaluated.detections)
        for box, score, category in zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist())
    ]


_COLUMNS = ("voc07_ap50", "voc12_ap50", "coco_ap", "coco_ap50")


def format_table(result: dict[str, Any]) -> str:
    """The metrics as a table: a line for each class, and their means with their intervals."""
    columns = [*_COLUMNS, *(name for name in result if name.startswith("voc12_ap@"))]
    width = max(len("95% interval"), *map(len, result["per_class"]))
    counts = ("num_objects", "num_difficult")
    mean = {**result, **{key: sum(values[key] for values in result["per_class"].values()) for key in counts}}
    lines = [" ".join([f"{'':{width}}", *(f"{key:>13}" for key in columns), "   objects", " difficult"])]
    for label, values in [*result["per_class"].items(), ("all classes", mean)]:
        cells = (f"{'-' if values[key] is None else format(values[key], '.4f'):>13}" for key in columns)
        lines.append(" ".join([f"{label:{width}}", *cells, *(f"{values[key]:10d}" for key in counts)]))
    if "intervals" in result:
        bounds = (result["intervals"][key] for key in columns)
        cells = (f"{'-' if bound is None else '{:.3f}..{:.3f}'.format(*bound):>13}" for bound in bounds)
        lines.append(" ".join([f"{'95% interval':{width}}", *cells]))
    return "\n".join(lines)


def numbers(texts: Sequence[str]) -> list[float]:
    """The numbers of --ious."""
    try:
        return [float(text) for text in texts]
    except ValueError:
        raise ValueError(f"--ious={','.join(texts)}: write numbers with commas between them.") from None


def main() -> None:
    flags = absl_flags.FLAGS
    result = evaluate_run(
        flags.model_dir,
        flags.records,
        flags.checkpoint,
        averaged=flags.averaged,
        ious=numbers(flags.ious),
        resamples=flags.resamples,
        batch_size=flags.batch_size,
    )
    print(f"{result['num_images']} images, {result['checkpoint']}")
    print("loss {loss:.4f} (class {class_loss:.4f}, box {box_loss:.4f})".format(**result))
    print(format_table(result))


if __name__ == "__main__":
    absl_flags.DEFINE_string("model_dir", None, "The run's folder.", required=True)
    absl_flags.DEFINE_list(
        "records", None, "Shards to evaluate on: patterns such as 'OUT/test-*.tfrecord'.", required=True
    )
    absl_flags.DEFINE_string("checkpoint", None, "The checkpoint to use; default: the best, else the latest.")
    absl_flags.DEFINE_bool("averaged", True, "Take the averaged weights where the run keeps them (--ema_decay).")
    absl_flags.DEFINE_integer("batch_size", None, BATCH_SIZE_HELP, lower_bound=1)
    absl_flags.DEFINE_list("ious", [], "Further IoUs at which to compute average precision, such as 0.3,0.6.")
    absl_flags.DEFINE_integer(
        "resamples", RESAMPLES, "Bootstrap samples for the 95% intervals. 0: no intervals.", lower_bound=0
    )
    command.run(main)
