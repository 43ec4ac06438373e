"""What is watched while a run trains: signals to stop, the data, and whether the loss is finite."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TypeVar

import tensorflow as tf

from input import shards, tfrecord
from input.config import InputConfig
from trainer.loop import LoopResult
from trainer.reporting import log

Result = TypeVar("Result")

_STOPPING = (signal.SIGTERM, signal.SIGINT)


class _Interrupted(BaseException):
    """Not an Exception, so that nothing on its way up takes it for an error."""


class StopSignal:
    """Remembers SIGTERM (a preempted machine) and SIGINT, so that the run can save and stop between two loops.

    Python itself would look at a signal only when the compiled loop returns, so a thread waits for it: the log answers
    at once, and a second signal ends the process at once, with the exit code 128 + its number.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._interruptible = False
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
            self._restore.callback(signal.signal, number, signal.signal(number, self._interrupt))
        thread.start()
        return self

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
            name = signal.Signals(number).name
            log.warning("%s: saving after this loop; send it again to stop at once, without saving", name)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        if self._interruptible:
            self._interruptible = False
            raise _Interrupted

    def interruptible(self, function: Callable[[], Result]) -> Result | None:
        """What `function` returns; None where a signal has ended it, or came before."""
        self._interruptible = True
        try:
            return None if self.received is not None else function()
        except _Interrupted:
            return None
        finally:
            self._interruptible = False

    def __exit__(self, *exception: object) -> None:
        self._restore.close()


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


def check_finite(result: LoopResult, last_step: int, train_paths: Sequence[str]) -> None:
    """Stops the run where the loss was not finite, and names the images. Call it before the weights are saved.

    Args:
      result: of the loop that ended at `last_step`.

    Raises:
      FloatingPointError: the loss was not finite.
    """
    bad = [int(index) for index in result.bad_records.numpy() if index >= 0]
    if bad:
        names = map(str, shards.name_records(train_paths, bad))
        raise FloatingPointError(
            f"the loss was not a finite number between steps {last_step - int(result.num_steps) + 1} and {last_step}, "
            f"first for the batch of images {', '.join(names)}. Look at these images; or "
            "lower --learning_rate, lengthen --warmup_steps, or use --precision=float32. "
            "The same command resumes from the last checkpoint, which was saved before."
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
