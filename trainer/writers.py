"""What a run reports: a progress line, `metrics.jsonl` and TensorBoard."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams
from tqdm import tqdm

from input import files
from trainer import evaluation_page, samples
from trainer.config import flatten
from trainer.events import Hook
from trainer.reporting import log

_PLAIN = (bool, int, float, str)  # what TensorBoard takes as a hyperparameter
_MAX_EVENTS = 1_000_000  # that wait for a flush
_MS_TO_GATHER = 60_000  # events for a remote file


def _numbers(event: dict[str, Any]) -> dict[str, float]:
    """The metrics of an evaluation that are single numbers."""
    return {name: value for name, value in event.items() if isinstance(value, float)}


class Progress(Hook):
    """A line in the log for every report, with the speed and the time left; on a terminal one bar in its place."""

    def on_start(self, event: dict[str, Any]) -> None:
        self._bar = tqdm(
            total=event["train_steps"],
            initial=event["step"],
            bar_format="{percentage:3.0f}%|{bar:8}| {desc}",
            mininterval=0.0,
            disable=None,  # unless standard error is a terminal
            leave=False,
        )

    def on_log(self, event: dict[str, Any]) -> None:
        left = datetime.timedelta(seconds=round(3600 * event["hours_left"]))
        step, loss = f"step {event['step']}/{event['train_steps']}", f"loss {event['loss']:.4f}"
        parts = f"(class {event['class_loss']:.4f}, box {event['box_loss']:.4f})"
        speed = f"{event['images_per_s']:.1f} images/s  waiting for data {100 * event['data_wait']:.0f}%"
        money = "  cost {cost:.2f}, {cost_left:.2f} to come".format(**event) if "cost" in event else ""
        level = logging.INFO if self._bar.disable else logging.DEBUG  # beside a bar, for the log file only
        log.log(level, f"{step}  {loss} {parts}  {speed}  left {left}{money}")
        self._bar.set_description_str(f"{step}  left {left}  {loss}  {speed}{money}", refresh=False)
        self._bar.total = event["train_steps"]  # --max_hours may have changed it
        self._bar.update(event["step"] - self._bar.n)

    def on_evaluate(self, event: dict[str, Any]) -> None:
        shown = (f"{name} {value:.4f}" for name, value in _numbers(event).items() if "_ar" not in name)
        log.info("step %d  evaluation: %s", event["step"], "  ".join(shown))

    def on_end(self, event: dict[str, Any]) -> None:
        self._bar.close()


class MetricsFile(Hook):
    """`RUN/metrics.jsonl`: one JSON object a line, written at once; an evaluation's names begin with `eval/`.

    The lines after a restored step are dropped, so that no step appears twice.
    """

    def on_start(self, event: dict[str, Any]) -> None:
        self._path = os.path.join(event["model_dir"], "metrics.jsonl")
        self._lines = files.LineFile(self._path)
        self.on_rollback(event)

    def on_rollback(self, event: dict[str, Any]) -> None:
        self._lines.flush()
        lines = files.read(self._path).decode().splitlines(keepends=True) if files.exists(self._path) else []
        kept = [line for line in lines if _step_of(line) <= event["step"]]
        if kept != lines:
            files.write_text(self._path, "".join(kept))

    def on_log(self, event: dict[str, Any]) -> None:
        self._lines.add(json.dumps(event))

    def on_evaluate(self, event: dict[str, Any]) -> None:
        self.on_log({"step": event["step"], **{f"eval/{name}": value for name, value in _numbers(event).items()}})
        self._lines.flush()

    def on_save(self, event: dict[str, Any]) -> None:
        """A run that is killed resumes at this step, so the lines before it must not wait."""
        self._lines.flush()

    def on_end(self, event: dict[str, Any]) -> None:
        self._lines.flush()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")  # the line was cut off when the run was killed


class TensorBoard(Hook):
    """`RUN/events/`: the same numbers for TensorBoard, with the settings, AP by class and pictures of detections."""

    def on_start(self, event: dict[str, Any]) -> None:
        self._run, self._is_cut_off = event, False
        self._open()
        with self._writing(event["step"]):
            settings = json.dumps(event["config"], indent=2, ensure_ascii=False)
            tf.summary.text("config", "\n".join(f"    {line}" for line in settings.splitlines()))  # code in Markdown
            named = {name: value for name, value in flatten(event["config"]).items() if name != "labels"}
            hparams.hparams({name: value if isinstance(value, _PLAIN) else str(value) for name, value in named.items()})

    def on_log(self, event: dict[str, Any]) -> None:
        values = {name: value for name, value in event.items() if name != "step"}
        values["positives_per_image"] = event["positives"] / self._run["batch_size"]
        self._write("train", event["step"], values)

    def on_evaluate(self, event: dict[str, Any]) -> None:
        self._write("eval", event["step"], _numbers(event))
        for metric in ("coco_ap", "coco_ap50"):
            by_class = {label: values[metric] for label, values in event["per_class"].items()}
            found = {label: value for label, value in by_class.items() if value is not None}
            self._write(f"eval_{metric}_of_class", event["step"], found)
        read = evaluation_page.record_reader(self._run["val_records"])
        with self._writing(event["step"]):
            for number, sample in enumerate(event["samples"]):
                encoded = read(sample["record"])["image/encoded"]
                pair = np.asarray(samples.draw(sample, encoded, self._run["config"]["labels"]))
                tf.summary.image(f"objects_and_detections/{number}", pair[np.newaxis], description=sample["image_id"])

    def _write(self, group: str, step: int, values: dict[str, float]) -> None:
        with self._writing(step):
            for name, value in values.items():
                tf.summary.scalar(f"{group}/{name}", value)

    def _open(self) -> None:
        folder = os.path.join(self._run["model_dir"], "events")
        self._writer = tf.summary.create_file_writer(folder, max_queue=_MAX_EVENTS, flush_millis=_MS_TO_GATHER)
        if files.is_remote(folder):  # there a flush writes the whole file anew, so only TensorFlow's own timer does it
            self._writer.flush = lambda: None

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        """Takes summaries of this step, and flushes them at the end."""
        try:
            with self._writer.as_default(step=step):
                yield
        except tf.errors.OpError:
            self._is_cut_off = True  # such as by a full disk; readers stop at an event that is not whole
            raise
        if self._is_cut_off:
            self._open()
            self._is_cut_off = False

    def on_end(self, event: dict[str, Any]) -> None:
        self._writer.close()
