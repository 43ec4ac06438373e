"""The log: on the terminal, and in a file for each day."""

from __future__ import annotations

import datetime
import logging
import os

from tqdm import tqdm

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


class _Terminal(logging.StreamHandler):
    """Writes above a progress bar, where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)  # an error, such as a full disk, does not end the run


def log_to(model_dir: str | None) -> logging.Handler:
    """Sends the project's log to the terminal and, unless `model_dir` is None, to `RUN/logs/`.

    Returns:
      The handler to give to `stop_logging`.
    """
    log.setLevel(logging.DEBUG)
    log.propagate = False
    if not log.handlers:
        terminal = _Terminal()
        terminal.setFormatter(_FORMAT)
        terminal.setLevel(logging.INFO)
        log.addHandler(terminal)
    handler = DailyFileHandler(os.path.join(model_dir, "logs")) if model_dir else logging.NullHandler()
    log.addHandler(handler)
    return handler


def stop_logging(handler: logging.Handler) -> None:
    log.removeHandler(handler)
    handler.close()
