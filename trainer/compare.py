"""Says whether one run detects better than another, or whether the difference may be chance.

`python -m trainer.compare RUN_A RUN_B --records='OUT/test-*.tfrecord'`

Both runs are evaluated on the same images. Samples of these images are drawn with replacement, and both runs are
measured on each (a paired bootstrap). A difference is called real if 0 lies outside the interval that holds 95% of the
samples. This covers the choice of the images alone: two runs that differ in nothing but --seed also differ, on VOC by
up to about 0.4 points of AP50.
The last line printed is JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags as absl_flags

from input import shards
from trainer import command, evaluate, guards, inference, metrics


def compare_runs(
    model_dirs: Sequence[str],
    patterns: Sequence[str],
    *,
    ious: Sequence[float] = (),
    resamples: int = evaluate.RESAMPLES,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Evaluates two runs, each with its best checkpoint, else its latest, on the same records.

    Args:
      model_dirs: the two runs.
      patterns: shards, or glob patterns of them.
      ious: further IoUs at which average precision is compared.
      resamples: the number of bootstrap samples, at least 1.
      batch_size: images at a time; None for `evaluate.default_batch_size` of each run.

    Returns:
      What `metrics.compare` does.

    Raises:
      FileNotFoundError: there is no such run, or no shard that matches.
      ValueError: the records or the runs have different labels, or a device's memory does not suffice.
    """
    metrics.require_ious(ious)
    paths = shards.expand_glob(patterns)
    # Whatever is wrong with one of the runs is found before the other is evaluated.
    runs = [inference.load_for_inference(model_dir) for model_dir in model_dirs]
    sizes = [batch_size or evaluate.default_batch_size(run.config) for run in runs]
    finders = [evaluate.make_finder(run.model, run.config, paths, batch_size=size) for run, size in zip(runs, sizes)]

    def judge(run: inference.TrainedRun, find: Callable[[], evaluate.Evaluated], size: int) -> metrics.Judgement:
        with guards.explaining_lack_of_memory_to_evaluate(run.config, size):
            evaluated = find()
        return metrics.judge(evaluated.ground_truths, evaluated.detections, runs[0].config.labels, ious)

    first, second = map(judge, runs, finders, sizes)
    return metrics.compare(first, second, resamples)


def format_table(result: dict[str, dict[str, Any]]) -> str:
    """A line for each average precision that has a value."""
    width = max(map(len, result))
    lines = [f"{'':{width}}        A        B      B - A      95% interval"]
    for name, row in result.items():
        if row["interval"] is None:
            continue
        verdict = "may be chance"
        if row["real"]:
            verdict = "B is better" if row["difference"] > 0 else "A is better"
        low, high = row["interval"]
        lines.append(
            f"{name:{width}} {row['first']:8.4f} {row['second']:8.4f} {row['difference']:+10.4f} "
            f"{low:+8.4f}..{high:+.4f}  {verdict}"
        )
    return "\n".join(lines)


def main(model_dirs: Sequence[str]) -> None:
    flags = absl_flags.FLAGS
    result = compare_runs(
        model_dirs,
        flags.records,
        ious=evaluate.numbers(flags.ious),
        resamples=flags.resamples,
        batch_size=flags.batch_size,
    )
    print(format_table(result))
    print(json.dumps(result))


if __name__ == "__main__":
    absl_flags.DEFINE_list(
        "records", None, "Shards to evaluate on: patterns such as 'OUT/test-*.tfrecord'.", required=True
    )
    absl_flags.DEFINE_integer("batch_size", None, evaluate.BATCH_SIZE_HELP, lower_bound=1)
    absl_flags.DEFINE_list("ious", [], "Further IoUs at which to compare average precision, such as 0.3,0.6.")
    absl_flags.DEFINE_integer("resamples", evaluate.RESAMPLES, "Bootstrap samples of the images.", lower_bound=1)
    command.run(main, arguments=("RUN_A", "RUN_B"))
