"""What a run reports: a progress line, `metrics.jsonl` and TensorBoard."""

from __future__ import annotations

import datetime
import json
import os
from typing import Any

import tensorflow as tf

from trainer.events import Hook
from trainer.reporting import log


def _numbers(event: dict[str, Any]) -> dict[str, float]:
    """The metrics of an evaluation that are single numbers."""
    return {name: value for name, value in event.items() if isinstance(value, float)}


class Progress(Hook):
    """A line in the log for every report, with the speed and the time left."""

    def on_log(self, event: dict[str, Any]) -> None:
        money = "  cost {cost:.2f}, {cost_left:.2f} to come".format(**event) if "cost" in event else ""
        log.info(
            "step %d/%d  loss %.4f (class %.4f, box %.4f)  %.1f images/s  waiting for data %.0f%%  left %s%s",
            *(event["step"], event["train_steps"], event["loss"], event["class_loss"], event["box_loss"]),
            *(event["images_per_s"], 100 * event["data_wait"]),
            datetime.timedelta(seconds=round(3600 * event["hours_left"])),
            money,
        )

    def on_evaluate(self, event: dict[str, Any]) -> None:
        shown = (f"{name} {value:.4f}" for name, value in _numbers(event).items() if "_ar" not in name)
        log.info("step %d  evaluation: %s", event["step"], "  ".join(shown))


class MetricsFile(Hook):
    """`RUN/metrics.jsonl`: one JSON object a line, written at once; an evaluation's names begin with `eval/`.

    The lines after a restored step are dropped, so that no step appears twice.
    """

    def on_start(self, event: dict[str, Any]) -> None:
        self._path = os.path.join(event["model_dir"], "metrics.jsonl")
        self.on_rollback(event)

    def on_rollback(self, event: dict[str, Any]) -> None:
        kept = []
        if os.path.exists(self._path):
            with open(self._path, encoding="utf-8") as file:
                kept = [line for line in file if _step_of(line) <= event["step"]]
        with open(self._path, "w", encoding="utf-8") as file:
            file.writelines(kept)

    def on_log(self, event: dict[str, Any]) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def on_evaluate(self, event: dict[str, Any]) -> None:
        self.on_log({"step": event["step"], **{f"eval/{name}": value for name, value in _numbers(event).items()}})


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")  # the line was cut off when the run was killed


class TensorBoard(Hook):
    """`RUN/events/`: the same numbers for TensorBoard."""

    def on_start(self, event: dict[str, Any]) -> None:
        self._writer = tf.summary.create_file_writer(os.path.join(event["model_dir"], "events"))

    def on_log(self, event: dict[str, Any]) -> None:
        self._write("train", event["step"], {name: value for name, value in event.items() if name != "step"})

    def on_evaluate(self, event: dict[str, Any]) -> None:
        self._write("eval", event["step"], _numbers(event))

    def _write(self, group: str, step: int, values: dict[str, float]) -> None:
        with self._writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(f"{group}/{name}", value)
        self._writer.flush()

    def on_end(self, event: dict[str, Any]) -> None:
        self._writer.close()
