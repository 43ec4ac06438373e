"""Guards of a run that nobody watches: the loss is not finite, nothing is learnt, memory does not suffice."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence

import tensorflow as tf

from input import files, shards
from input.config import InputConfig
from trainer import reporting
from trainer.config import Config
from trainer.loop import LoopResult
from trainer.reporting import log

ROLLBACK_FACTOR = 0.5  # of the learning rate, at each rollback
_MANY_SKIPPED = 10  # steps in a row; a loss scale that begins too high skips a few
_MANY_WITHOUT_POSITIVES = 100  # steps in a row


def check_finite(result: LoopResult, last_step: int, train_paths: Sequence[str]) -> None:
    """Refuses a loop whose loss or gradients were not finite, and names the images. Call it before weights are saved.

    Args:
      result: of the loop that ended at `last_step`.

    Raises:
      FloatingPointError: the loss was not finite, or the gradients were not and no loss scaling skipped the step.
    """
    bad = [int(index) for index in result.bad_records.numpy() if index >= 0]
    if bad:
        names = map(str, shards.name_records(train_paths, bad))
        raise FloatingPointError(
            f"the loss was not a finite number between steps {last_step - int(result.num_steps) + 1} and {last_step}, "
            f"first for the batch of images {', '.join(names)}. Look at these images; or "
            "lower --learning_rate, lengthen --warmup_steps, or use --precision=float32. "
            "The same command resumes from the last checkpoint, which was saved before; with "
            "--on_non_finite=rollback a run goes back by itself and halves its learning rate."
        )


class Alarms:
    """Logs what does not end a run but spoils it, with the remedy: one line each time that it begins."""

    def __init__(self) -> None:
        self._steps_in_a_row: dict[str, int] = {}

    def look(self, result: LoopResult, loss_scale: float | None = None) -> None:
        """Logs what a loop shows.

        Args:
          result: of the loop.
          loss_scale: after the loop, of float16.
        """
        steps = int(result.num_steps)
        self._count(loss_scale is not None and loss_scale <= 1, steps, 1, _COLLAPSED_SCALE)
        self._count(int(result.num_skipped) == steps, steps, _MANY_SKIPPED, _SKIPPED)
        self._count(int(result.num_positives) == 0, steps, _MANY_WITHOUT_POSITIVES, _WITHOUT_POSITIVES)

    def _count(self, is_so: bool, steps: int, limit: int, message: str) -> None:
        """Logs the message when `is_so` has held for `limit` steps in a row."""
        before = self._steps_in_a_row.get(message, 0)
        self._steps_in_a_row[message] = before + steps if is_so else 0
        if before < limit <= self._steps_in_a_row[message]:
            log.warning(message, self._steps_in_a_row[message])


_COLLAPSED_SCALE = (
    "the loss scale fell to 1, its lowest value, in the last %d steps: float16 overflows at any scale of the loss; use "
    "--precision=mixed_bfloat16 on Ampere GPUs and later, otherwise float32, or lower --learning_rate"
)
_SKIPPED = (
    "%d steps in a row were skipped, since float16 overflowed in their gradients: nothing is learnt; lower "
    "--learning_rate, or use --precision=mixed_bfloat16 or float32"
)
_WITHOUT_POSITIVES = (
    "no anchor matched an object in %d steps: nothing is learnt of any class; compare the objects' sizes with "
    "--anchor_sizes and --image_size (python -m trainer.preview shows both), or use --force_match"
)


def check_objects(train_paths: Sequence[str], labels: Sequence[str], config: InputConfig) -> None:
    """Names the classes of which the training records hold no object, since the network cannot learn them.

    It also warns where most images have too many objects to be mixed.

    Raises:
      ValueError: there is no object at all, or a label is beyond the list.
      DamagedShardError: a shard is damaged, or its records are no detection records.
    """
    counts = shards.count_objects(train_paths, labels)
    if not any(counts.values()):
        raise ValueError(
            f"the training records hold no object: check --train_records ({os.path.dirname(train_paths[0])}), and the "
            "report that the converter wrote there."
        )
    if missing := [label for label in labels if not counts[label]]:
        log.warning(
            "the training records hold no object of %s (%d of %d classes), so the detector cannot learn them: remove "
            "them from labels.txt and convert again, or add images that show them",
            *(", ".join(missing[:10]) + (", ..." if missing[10:] else ""), len(missing), len(labels)),
        )
    num_mixed = 4 if config.augment.mosaic else 2 if config.augment.mixes else 0
    together = num_mixed * sum(counts.values()) / sum(shards.count_records(train_paths))
    if together > config.num_slots:
        log.warning(
            "%d images, as --%s mixes them, hold %d objects on average, and no image may hold more than %d: most stay "
            "unmixed; give --max_boxes=%d",
            *(num_mixed, "mosaic" if num_mixed == 4 else "mixup or --cutmix", together, config.num_slots),
            math.ceil(together / 10) * 10,
        )


def _rollbacks_path(model_dir: str) -> str:
    return os.path.join(model_dir, "rollbacks.json")


def read_rollbacks(model_dir: str) -> list[dict[str, int]]:
    """The rollbacks of a run: each with the step `at` which the loss was not finite, and the step that it went `to`."""
    path = _rollbacks_path(model_dir)
    if not files.exists(path):
        return []
    try:
        return json.loads(files.read(path))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it, and the learning rate is that of the flags."
        ) from error


def write_rollbacks(model_dir: str, rollbacks: list[dict[str, int]]) -> None:
    reporting.write_or_say(_rollbacks_path(model_dir), json.dumps(rollbacks) + "\n")


@contextlib.contextmanager
def explaining_lack_of_memory(config: Config, num_replicas: int) -> Iterator[None]:
    """Says what to lower when a device's memory does not suffice.

    Raises:
      ValueError: in place of TensorFlow's `ResourceExhaustedError`, whose text is a table of allocations.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        height, width = config.input.image_size
        parts = config.train.accumulation_steps
        images = config.input.batch_size // num_replicas
        remedies = [f"--image_size={max(32, height // 64 * 32)}x{max(32, width // 64 * 32)}"]
        if config.train.precision == "float32":
            remedies.insert(0, "--precision=mixed_bfloat16 or mixed_float16, about half the memory")
        if images > 1:
            remedies.insert(0, f"--batch_size={images // 2 * num_replicas}, with --learning_rate lowered in proportion")
        if images % (2 * parts) == 0:
            remedies.insert(0, f"--accumulation_steps={2 * parts}, the same batch in smaller parts")
        raise ValueError(
            f"{_lack_of_memory(error, config, images // parts, config.train.precision)} "
            f"Try one of: {'; '.join(remedies)}. "
            "--print_model with the same flags says which batch fits into which GPU."
        ) from error


@contextlib.contextmanager
def explaining_lack_of_memory_to_evaluate(config: Config, batch_size: int) -> Iterator[None]:
    """As `explaining_lack_of_memory`, for the commands that evaluate a finished run, with so many images at a time."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        remedy = (
            f"Give --batch_size={batch_size // 2} or less."
            if batch_size > 1
            else "CUDA_VISIBLE_DEVICES=-1 takes the CPU."
        )
        raise ValueError(f"{_lack_of_memory(error, config, batch_size, 'float32')} {remedy}") from error


def _lack_of_memory(error: tf.errors.ResourceExhaustedError, config: Config, num_images: int, precision: str) -> str:
    """What did not fit, as a sentence."""
    height, width = config.input.image_size
    images = "1 image" if num_images == 1 else f"{num_images} images"
    return (
        f"a device's memory does not suffice for {images} of {height}x{width} at a time in {precision} "
        f"({config.model.backbone}-{config.model.neck}, {error.message.partition(chr(10))[0]})."
    )
