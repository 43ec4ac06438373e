"""What is watched while a run trains: signals to stop, and damage in the data."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TypeVar

import tensorflow as tf

from input import shards, tfrecord
from input.config import InputConfig
from trainer import data_service
from trainer.loop import LoopResult
from trainer.reporting import log

Result = TypeVar("Result")

_STOPPING = (signal.SIGTERM, signal.SIGINT)
_SECONDS_TO_STOP = 22.0  # a preempted machine has 30 seconds; at most 25 pass until this process has ended
_SECONDS_TO_LOG = 2.0
_SECONDS_TO_LOOK = 10.0  # how often a loop that has not returned is looked at
_SECONDS_TO_LOSE = 30.0  # without an answer, and the dispatcher of a tf.data service counts as lost
_SECONDS_TO_SAY = 60.0  # how often a wait is mentioned


class Interrupted(BaseException):
    """A signal ends an evaluation. Not an Exception, so that nothing on its way up takes it for an error."""


class StopSignal:
    """Remembers SIGTERM (a preempted machine) and SIGINT, so that the run can save and stop between two loops.

    Python itself would look at a signal only when the compiled loop returns, so a thread waits for it: the log answers
    at once, and a second signal ends the process at once, with the exit code 128 + its number. So does the thread where
    the run does not end in time, since the loop may wait for a machine that is gone.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._interruptible = False
        self._timer: threading.Timer | None = None
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may set handlers; in others (a notebook) signals keep their effect
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        thread = threading.Thread(target=self._listen, args=(reading,), daemon=True)
        self._restore.callback(os.close, reading)
        self._restore.callback(thread.join)
        self._restore.callback(os.close, writing)  # ends the thread
        self._restore.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writing, warn_on_full_buffer=False))
        for number in _STOPPING:
            self._restore.callback(signal.signal, number, signal.getsignal(number))
        self.take_signals()
        thread.start()
        return self

    def take_signals(self) -> None:
        """Sets the handlers; again once TensorFlow has started the server of several workers, which takes SIGTERM."""
        if threading.current_thread() is threading.main_thread():
            for number in _STOPPING:
                signal.signal(number, self._interrupt)

    def _listen(self, pipe: int) -> None:
        is_first = True
        while numbers := os.read(pipe, 1):
            number = numbers[0]
            if number not in _STOPPING:
                continue
            if not is_first:
                os._exit(128 + number)
            is_first = False
            self.received = number
            self._timer = threading.Timer(_SECONDS_TO_STOP, self._give_up, [number])
            self._timer.daemon = True
            self._timer.start()
            name = signal.Signals(number).name
            log.warning("%s: saving after this loop; send it again to stop at once, without saving", name)

    def _give_up(self, number: int) -> None:
        last = threading.Timer(_SECONDS_TO_LOG, os._exit, [128 + number])  # the log may be what does not answer
        last.daemon = True
        last.start()
        log.error(
            "%s came %d s ago, and this step or its checkpoint is still not done: ending without it. The same command "
            "resumes from the last checkpoint",
            *(signal.Signals(number).name, _SECONDS_TO_STOP),
        )
        os._exit(128 + number)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        if self._interruptible:
            self._interruptible = False
            raise Interrupted

    def interruptible(self, function: Callable[[], Result], *, at_once: bool = True) -> Result | None:
        """What `function` returns; None where it was interrupted.

        Args:
          function: what to call.
          at_once: interrupt it when a signal comes, or has come before. Otherwise it raises `Interrupted` by itself.
        """
        try:
            self._interruptible = at_once
            return None if at_once and self.received is not None else function()
        except Interrupted:
            return None
        except Exception:
            if at_once and not self._interruptible:  # TensorFlow's own code was interrupted, and raised this instead
                return None
            raise
        finally:
            self._interruptible = False

    def __exit__(self, *exception: object) -> None:
        self._restore.close()
        if self._timer:
            self._timer.cancel()


class DataWatch:
    """Logs what is wrong with the records that a run reads; each image is named once.

    Args:
      paths: the training shards.
      config: `max_damaged` and `max_boxes`.
    """

    def __init__(self, paths: Sequence[str], config: InputConfig) -> None:
        self._paths, self._config = paths, config
        self._damaged: set[int] = set()
        self._warned_of_dropped_boxes = False

    def look(self, result: LoopResult) -> None:
        """Logs what a loop has found.

        Raises:
          ValueError: more images are damaged than `max_damaged`.
        """
        found = {int(index) for index in result.damaged.numpy() if index >= 0} - self._damaged
        for name in shards.name_records(self._paths, found):
            log.warning("skipped an image that cannot be decoded: %s", name)
        self._damaged |= found
        if len(self._damaged) > self._config.max_damaged:
            raise ValueError(
                f"{len(self._damaged)} images cannot be decoded, and --max_damaged={self._config.max_damaged}: convert "
                "the data again; the log names them."
            )
        if result.num_with_dropped_boxes and not self._warned_of_dropped_boxes:
            self._warned_of_dropped_boxes = True
            log.warning(
                "%d images of this loop hold more boxes than --max_boxes=%d, of which the smallest are not learnt; "
                "metrics.jsonl counts such images from here on",
                int(result.num_with_dropped_boxes),
                self._config.max_boxes,
            )


@contextlib.contextmanager
def naming_damaged_shard(paths: Sequence[str]) -> Iterator[None]:
    """Names the shard in which TensorFlow found damage, since TensorFlow's own error names no file.

    Raises:
      DamagedShardError: names the file and the record.
    """
    try:
        yield
    except tf.errors.DataLossError as error:
        for path in paths:
            try:
                for _ in tfrecord.read_records(path):
                    pass
            except tfrecord.DamagedShardError as damage:
                message = f"{damage} The same training command then resumes from the last checkpoint."
                raise tfrecord.DamagedShardError(message) from error
        raise


@contextlib.contextmanager
def no_silent_wait(service: str, usual_s: float | None) -> Iterator[None]:
    """Looks after a loop that does not return, from a thread, since TensorFlow waits for lost machines forever.

    The process ends where the dispatcher is lost; the loop cannot be left otherwise. Every other wait is logged: the
    workers of a service may come back.

    Args:
      service: the address of the tf.data service, or "".
      usual_s: how long such a loop takes, in seconds, as the one before it says; None where none was measured. A loop
        that has to be compiled first takes minutes, and large steps on a slow machine do so always.
    """
    has_returned = threading.Event()

    def look() -> None:
        started = answered = said = time.monotonic()
        while not has_returned.wait(_SECONDS_TO_LOOK):
            now = time.monotonic()
            if not service or data_service.answers(service):
                answered = now
            elif now - answered >= _SECONDS_TO_LOSE:
                log.error(
                    "the dispatcher of --data_service=%s is lost: it has not answered for %d s. Start the service and "
                    "then this command again, which resumes from the last checkpoint",
                    *(service, now - answered),
                )
                os._exit(1)
            if usual_s is not None and now - started >= 2 * usual_s and now - said >= _SECONDS_TO_SAY:
                said = now
                log.warning(
                    "no step has been done for %d s: the run waits for data%s",
                    *(now - started, "; do the workers of --data_service run?" if service else " or another worker"),
                )

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        has_returned.set()
