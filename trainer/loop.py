"""The compiled training loop, and the steps at which it returns to Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import tensorflow as tf

from model.types import Losses
from trainer import averages, distribution, step
from trainer.config import Config

_SECONDS_PER_LOOP = 5.0  # a preempted machine has 30 seconds, of which most belong to saving


class LoopResult(NamedTuple):
    """What happened in the steps of one call of the loop. b is this worker's part of the batch."""

    num_steps: tf.Tensor  # i32 scalar
    losses: Losses  # f32 scalars: sums over the steps
    num_positives: tf.Tensor  # f32 scalar: sum over the steps
    gradient_norm: tf.Tensor  # f32 scalar: sum over the steps whose gradients were finite
    num_skipped: tf.Tensor  # f32 scalar: steps whose gradients were not finite, so that loss scaling skipped the update
    data_wait: tf.Tensor  # f64 scalar: seconds spent waiting for batches
    bad_records: tf.Tensor  # i64 [b]: record indexes of the first batch with a loss or (unless skipped) gradients that
    # were not finite; -1: there was none
    damaged: tf.Tensor  # i64 [b]: for each row of the batch the last record that could not be decoded; -1: none
    num_damaged: tf.Tensor  # f32 scalar: images that could not be decoded
    num_with_dropped_boxes: tf.Tensor  # f32 scalar: images with more boxes than `max_boxes`


def make_train_loop(
    strategy: tf.distribute.Strategy,
    model: tf.keras.Model,
    optimizer: tf.keras.optimizers.Optimizer,
    config: Config,
    averaged: tf.keras.Model | None = None,
) -> Callable[[Iterator, tf.Tensor], LoopResult]:
    """Compiles many steps into one call, so that Python costs no time between them.

    Args:
      strategy: that of the networks and the optimizer.
      model: the network.
      optimizer: may be a `LossScaleOptimizer`.
      config: all settings.
      averaged: a network of the same form that takes the average of the weights.

    Returns:
      `loop(iterator, num_steps) -> LoopResult`. `num_steps` is an i32 tensor, so another number compiles nothing anew.
    """
    # Sparse assignment has dynamic shapes, which suit a CPU but neither a GPU nor XLA.
    on_gpu = distribution.device_type(strategy) == "GPU"
    method = "dense" if on_gpu or config.train.xla else "sparse"
    compile_stages = on_gpu and config.train.compile_stages
    train_step = step.make_train_step(model, optimizer, config, method=method, compile_stages=compile_stages)
    if config.train.xla:
        train_step = tf.function(train_step, jit_compile=True)
    num_workers = strategy.num_replicas_in_sync // len(strategy.extended.worker_devices)
    local_size = config.input.batch_size // num_workers
    must_be_finite = not isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer)

    @tf.function
    def train_loop(iterator: Iterator, num_steps: tf.Tensor) -> LoopResult:
        losses = Losses(0.0, 0.0, 0.0)
        num_positives, gradient_norm, num_skipped, num_damaged, num_with_dropped_boxes = 0.0, 0.0, 0.0, 0.0, 0.0
        data_wait = tf.constant(0.0, tf.float64)
        bad_records = damaged = tf.fill([local_size], tf.constant(-1, tf.int64))
        for _ in tf.range(num_steps):
            # The dependencies make the clock run from the end of the step before until the batch is there.
            with tf.control_dependencies([losses.loss]):
                started = tf.timestamp()
            with tf.control_dependencies([started]):
                arguments = next(iterator)
            batch = arguments[0]
            record_index, valid, num_dropped = (
                tf.concat(strategy.experimental_local_results(values), axis=0)
                for values in (batch.record_index, batch.valid, batch.num_dropped)
            )
            with tf.control_dependencies([record_index]):
                data_wait += tf.timestamp() - started
            result = strategy.run(train_step, args=arguments)
            if averaged is not None:
                decay = config.train.ema_decay
                averages.update(strategy, averaged, model, decay=decay, num_updates=optimizer.iterations)
            result = tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], result)
            losses = tf.nest.map_structure(tf.add, losses, result.losses)
            num_positives += result.num_positives
            is_finite = tf.math.is_finite(result.gradient_norm)
            gradient_norm += tf.where(is_finite, result.gradient_norm, 0.0)
            num_skipped += tf.cast(~is_finite, tf.float32)
            is_bad = ~tf.math.is_finite(result.losses.loss) | (~is_finite & must_be_finite)
            bad_records = tf.where(is_bad & (bad_records[0] < 0), record_index, bad_records)
            damaged = tf.where(valid, damaged, record_index)
            num_damaged += tf.reduce_sum(tf.cast(~valid, tf.float32))
            num_with_dropped_boxes += tf.reduce_sum(tf.cast(num_dropped > 0, tf.float32))
        return LoopResult(
            num_steps=num_steps,
            losses=losses,
            num_positives=num_positives,
            gradient_norm=gradient_norm,
            num_skipped=num_skipped,
            data_wait=data_wait,
            bad_records=bad_records,
            damaged=damaged,
            num_damaged=num_damaged,
            num_with_dropped_boxes=num_with_dropped_boxes,
        )

    return train_loop


def mean_values(results: Sequence[LoopResult], optimizer: tf.keras.optimizers.Optimizer) -> dict[str, float]:
    """The mean losses of some loops, and further values."""
    num_steps = sum(int(result.num_steps) for result in results)
    means = {
        **{name: float(sum(getattr(result.losses, name) for result in results)) / num_steps for name in Losses._fields},
        "learning_rate": float(optimizer.learning_rate.numpy()),
        "positives": float(sum(result.num_positives for result in results)) / num_steps,
    }
    if num_damaged := sum(int(result.num_damaged) for result in results):
        means["damaged_images"] = num_damaged
    if num_with_dropped_boxes := sum(int(result.num_with_dropped_boxes) for result in results):
        means["images_with_dropped_boxes"] = num_with_dropped_boxes
    num_updates = num_steps - sum(float(result.num_skipped) for result in results)
    means["gradient_norm"] = float(sum(result.gradient_norm for result in results)) / max(num_updates, 1.0)
    if (loss_scale := loss_scale_of(optimizer)) is not None:
        means["loss_scale"] = loss_scale
    return means


def loss_scale_of(optimizer: tf.keras.optimizers.Optimizer) -> float | None:
    """The present loss scale; None where the loss is not scaled."""
    scales = isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer)
    return float(optimizer.loss_scale) if scales else None


def is_due(step: int, every: int, last: int) -> bool:
    """Whether what happens every `every` steps, and at the last one, happens after `step`."""
    return step % every == 0 or step == last


def steps_within(seconds_per_step: float, most: int) -> int:
    """How many steps a loop may have, so that a signal to stop waits for a few seconds only.

    Args:
      seconds_per_step: as measured in the loop before.
      most: `steps_per_loop`.
    """
    return max(1, min(most, int(_SECONDS_PER_LOOP / max(seconds_per_step, 1e-9))))


def next_stop(step: int, steps_per_loop: int, cadences: Iterable[int], last: int) -> int:
    """The step at which a loop that starts at `step` returns.

    Args:
      step: steps done.
      steps_per_loop: at most so many steps in one loop.
      cadences: the loop returns at the next step at which one of them `is_due`.
      last: where the run ends.
    """
    return min(step + steps_per_loop, last, *(step - step % every + every for every in cadences))
