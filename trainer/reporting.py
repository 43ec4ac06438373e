"""The log: on the terminal, and in a file for each day."""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Callable

from tqdm import tqdm

from input import files

log = logging.getLogger("retinanet")

_FORMAT = logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%Y-%m-%d %H:%M:%S")


class DailyFileHandler(logging.Handler):
    """Appends each log record to `FOLDER/YYYY-MM-DD.log`, by the day of the record."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder, self._day = folder, ""
        self._has_failed = False
        files.make_dirs(folder)
        self.setFormatter(_FORMAT)

    def emit(self, record: logging.LogRecord) -> None:
        day = datetime.date.fromtimestamp(record.created).isoformat()
        if day != self._day:
            self.flush()
            self._day, self._lines = day, files.LineFile(os.path.join(self._folder, f"{day}.log"))
        self._try(lambda: self._lines.add(self.format(record)))

    def flush(self) -> None:
        if self._day:
            self._try(self._lines.flush)

    def close(self) -> None:
        self.flush()
        super().close()

    def _try(self, write: Callable[[], None]) -> None:
        """Calls `write`; an error, such as a full disk, does not end the run, and is said on the terminal once."""
        try:
            write()
            self._has_failed = False
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                log.error("the log file cannot be written, so its lines wait (%s)", error)


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


_unwritten: set[str] = set()  # what `write_or_say` could not write when it last tried


def write_or_say(path: str, text: str) -> None:
    """Writes one of a run's small files, whole. An error, as on a full disk, does not end the run and is said once."""
    try:
        files.write_text(path, text)
        _unwritten.discard(path)
    except OSError as error:
        if path not in _unwritten:
            log.error("%s cannot be written (%s); the run goes on", path, error.strerror)
        _unwritten.add(path)


def stop_logging(handler: logging.Handler) -> None:
    log.removeHandler(handler)
    handler.close()
