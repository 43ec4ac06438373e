"""What a run tells: a log file a day, `metrics.jsonl`, TensorBoard and a progress line."""

import datetime
import json
import logging
import os
import time
from typing import Optional

import tensorflow as tf

log = logging.getLogger("retinanet")

_FORMAT = logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%Y-%m-%d %H:%M:%S")


class DailyFileHandler(logging.Handler):
    """Appends each record to `FOLDER/YYYY-MM-DD.log`, by the day of the record."""

    def __init__(self, folder: str):
        super().__init__()
        self._folder = folder
        os.makedirs(folder, exist_ok=True)
        self.setFormatter(_FORMAT)

    def emit(self, record):
        try:
            day = datetime.date.fromtimestamp(record.created).isoformat()
            # Opened anew each time: lines are seconds apart, and nothing is lost however the run ends.
            with open(os.path.join(self._folder, f"{day}.log"), "a", encoding="utf-8") as file:
                file.write(self.format(record) + "\n")
        except OSError:
            self.handleError(record)


def log_to(model_dir: Optional[str]) -> logging.Handler:
    """Sends the project's log to the terminal and, unless None, to `RUN/logs/`; give the result to `stop_logging`."""
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
    """`RUN/metrics.jsonl`: one flushed JSON object a line.

    On a resume the lines after the restored step are dropped, so that each step stands there once.
    """

    def __init__(self, model_dir: str, step: int):
        self._path = os.path.join(model_dir, "metrics.jsonl")
        kept = []
        if os.path.exists(self._path):
            with open(self._path, encoding="utf-8") as file:
                kept = [line for line in file if _step_of(line) <= step]
        with open(self._path, "w", encoding="utf-8") as file:
            file.writelines(kept)

    def write(self, values: dict) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")  # cut off by a kill


class Reporter:
    """Writes each logged step everywhere, with speed and time left.

    Args:
      model_dir: RUN; None: only the terminal is told.
      step: the step that the run starts from.
      train_steps: where it ends.
      batch_size: images a step.
    """

    def __init__(self, model_dir: Optional[str], *, step: int, train_steps: int, batch_size: int):
        self._metrics = MetricsFile(model_dir, step) if model_dir else None
        events = os.path.join(model_dir, "events") if model_dir else None
        self._writer = tf.summary.create_file_writer(events) if events else tf.summary.create_noop_writer()
        self._train_steps = train_steps
        self._batch_size = batch_size
        self._step = step
        self._time = time.monotonic()

    def training(self, step: int, values: dict, *, data_wait_s: float, extra: dict) -> None:
        """Reports the mean losses of the steps since the last call.

        Args:
          step: steps done.
          values: loss, class_loss, box_loss.
          data_wait_s: seconds of that time that the step waited for its batch.
          extra: learning rate, loss scale and the like.
        """
        now = time.monotonic()
        steps, seconds = step - self._step, max(now - self._time, 1e-9)
        speed, wait = steps * self._batch_size / seconds, min(1.0, data_wait_s / seconds)
        self._step, self._time = step, now
        left = datetime.timedelta(seconds=round((self._train_steps - step) * seconds / max(steps, 1)))
        log.info(
            "step %d/%d  loss %.4f (class %.4f, box %.4f)  %.1f images/s  waiting for data %.0f%%  left %s",
            *(step, self._train_steps, values["loss"], values["class_loss"], values["box_loss"], speed),
            *(100 * wait, left),
        )
        line = {**values, **extra, "images_per_s": speed, "data_wait": wait}
        if self._metrics:
            self._metrics.write({"step": step, **line})
        self._summaries("train", step, line)

    def evaluation(self, step: int, metrics: dict) -> None:
        """Reports an evaluation; its time does not count as training."""
        numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
        log.info("step %d  evaluation: %s", step, "  ".join(f"{name} {value:.4f}" for name, value in numbers.items()))
        self._summaries("eval", step, numbers)
        self._time = time.monotonic()

    def _summaries(self, group: str, step: int, values: dict) -> None:
        with self._writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(f"{group}/{name}", value)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
