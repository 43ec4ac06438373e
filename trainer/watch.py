"""What is watched while a run trains: signals to stop, the data, and whether the loss is finite."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from types import FrameType

import tensorflow as tf

from input import shards, tfrecord
from input.config import InputConfig
from trainer.loop import LoopResult
from trainer.reporting import log


class StopSignal:
    """Remembers SIGTERM (a preempted machine) and SIGINT, so that the run can save and stop between two loops."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> StopSignal:
        # Only the main thread may set handlers; in others (a test, a notebook) signals keep their effect.
        with contextlib.suppress(ValueError):
            for number in (signal.SIGTERM, signal.SIGINT):
                self._restore.callback(signal.signal, number, signal.signal(number, self._remember))
        return self

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt  # the second signal stops at once
        self.received = number
        log.warning("%s: saving after this loop; send it again to stop at once", signal.Signals(number).name)

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
                "%d images of this loop hold more boxes than --max_boxes=%d, of which the largest are kept; "
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
