"""What a run reports: a log file for each day, `metrics.jsonl`, TensorBoard and a progress line."""

from __future__ import annotations

import datetime
import json
import logging
import os
import time
from typing import Any

import tensorflow as tf

log = logging.getLogger("retinanet")

_FORMAT = logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%Y-%m-%d %H:%M:%S")


class DailyFileHandler(logging.Handler):
    """Appends each log record to `FOLDER/YYYY-MM-DD.log`, by the day of the record."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder
        os.makedirs(folder, exist_ok=True)
        self.setFormatter(_FORMAT)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            day = datetime.date.fromtimestamp(record.created).isoformat()
            # The file is opened for each line: lines are seconds apart, and no line is lost however the run ends.
            with open(os.path.join(self._folder, f"{day}.log"), "a", encoding="utf-8") as file:
                file.write(self.format(record) + "\n")
        except OSError:
            self.handleError(record)


def log_to(model_dir: str | None) -> logging.Handler:
    """Sends the project's log to the terminal and, unless `model_dir` is None, to `RUN/logs/`.

    Returns:
      The handler to give to `stop_logging`.
    """
    log.setLevel(logging.DEBUG)
    log.propagate = False
    if not log.handlers:
        terminal = logging.StreamHandler()
        terminal.setFormatter(_FORMAT)
        terminal.setLevel(logging.INFO)
        log.addHandler(terminal)
    handler = DailyFileHandler(os.path.join(model_dir, "logs")) if model_dir else logging.NullHandler()
    log.addHandler(handler)
    return handler


def stop_logging(handler: logging.Handler) -> None:
    log.removeHandler(handler)
    handler.close()


class MetricsFile:
    """`RUN/metrics.jsonl`: one JSON object a line, written at once.

    A resumed run drops the lines after the restored step, so that no step appears twice.
    """

    def __init__(self, model_dir: str, step: int) -> None:
        self._path = os.path.join(model_dir, "metrics.jsonl")
        kept = []
        if os.path.exists(self._path):
            with open(self._path, encoding="utf-8") as file:
                kept = [line for line in file if _step_of(line) <= step]
        with open(self._path, "w", encoding="utf-8") as file:
            file.writelines(kept)

    def write(self, values: dict[str, Any]) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")  # the line was cut off when the run was killed


class Reporter:
    """Reports to the log, `metrics.jsonl` and TensorBoard, with the speed and the time left.

    Args:
      model_dir: RUN; None: only the log is written.
      step: the step at which the run starts.
      train_steps: the step at which it ends.
      batch_size: images in a step.
    """

    def __init__(self, model_dir: str | None, *, step: int, train_steps: int, batch_size: int) -> None:
        self._metrics = MetricsFile(model_dir, step) if model_dir else None
        events = os.path.join(model_dir, "events") if model_dir else None
        self._writer = tf.summary.create_file_writer(events) if events else tf.summary.create_noop_writer()
        self._train_steps = train_steps
        self._batch_size = batch_size
        self._step = step
        self._time = time.monotonic()

    def training(self, step: int, losses: dict[str, float], *, data_wait_s: float, extra: dict[str, float]) -> None:
        """Reports the mean losses of the steps since the last call.

        Args:
          step: steps done.
          losses: `loss`, `class_loss` and `box_loss`.
          data_wait_s: seconds of that time spent waiting for batches.
          extra: further values, such as the learning rate.
        """
        now = time.monotonic()
        steps, seconds = step - self._step, max(now - self._time, 1e-9)
        speed, wait = steps * self._batch_size / seconds, min(1.0, data_wait_s / seconds)
        self._step, self._time = step, now
        left = datetime.timedelta(seconds=round((self._train_steps - step) * seconds / max(steps, 1)))
        log.info(
            "step %d/%d  loss %.4f (class %.4f, box %.4f)  %.1f images/s  waiting for data %.0f%%  left %s",
            *(step, self._train_steps, losses["loss"], losses["class_loss"], losses["box_loss"], speed),
            *(100 * wait, left),
        )
        line = {**losses, **extra, "images_per_s": speed, "data_wait": wait}
        if self._metrics:
            self._metrics.write({"step": step, **line})
        self._summaries("train", step, line)

    def evaluation(self, step: int, metrics: dict[str, Any]) -> None:
        """Reports an evaluation, in `metrics.jsonl` as `eval/NAME`. Its time does not count as training time."""
        numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
        shown = (f"{name} {value:.4f}" for name, value in numbers.items() if "_ar" not in name)
        log.info("step %d  evaluation: %s", step, "  ".join(shown))
        if self._metrics:
            self._metrics.write({"step": step, **{f"eval/{name}": value for name, value in numbers.items()}})
        self._summaries("eval", step, numbers)
        self._time = time.monotonic()

    def _summaries(self, group: str, step: int, values: dict[str, float]) -> None:
        with self._writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(f"{group}/{name}", value)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
