"""A training run: restore, then train, report, save and evaluate until the last step."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from input import shards
from model.types import Losses
from trainer import (
    averages,
    checkpoints,
    data_service,
    distribution,
    evaluate,
    initial_weights,
    optimizers,
    reporting,
    resume,
    schedules,
    start_up,
    watch,
)
from trainer.config import Config
from trainer.loop import LoopResult, is_due, make_train_loop, next_stop, steps_within
from trainer.reporting import log


class RunResult(NamedTuple):
    """How a run ended."""

    step: int
    metrics: dict[str, Any]  # of the last evaluation; empty if there was none
    stopped_by: int | None  # the signal that ended it early


def count_steps(config: Config, num_records: int) -> int:
    """`--train_steps`, or `--epochs` over the records."""
    return config.train.train_steps or max(1, round(config.train.epochs * num_records / config.input.batch_size))


def train_and_evaluate(
    config: Config, *, train_paths: Sequence[str], val_paths: Sequence[str] = (), model_dir: str
) -> RunResult:
    """A whole run: from scratch, or from where `model_dir` stopped.

    Call `distribution.set_up_devices(config.train)` first, in a process that has not used TensorFlow.

    Args:
      config: every setting, with `labels` filled in.
      train_paths: shards to train on.
      val_paths: shards to evaluate on; none: no evaluation, and no best checkpoint.
      model_dir: RUN; the run is resumed where it holds checkpoints.

    Raises:
      ValueError: settings that do not fit together, or data without records.
      FloatingPointError: the loss was not a finite number.
    """
    os.makedirs(model_dir, exist_ok=True)
    handler = reporting.log_to(model_dir if distribution.is_chief(config.train) else None)
    try:
        alone = resume.sole_trainer(model_dir) if distribution.is_chief(config.train) else contextlib.nullcontext()
        with watch.StopSignal() as stop, alone:
            return _run(config, train_paths, val_paths, model_dir, stop)
    except Exception as error:
        log.error("%s", error)
        log.debug("where:", exc_info=True)  # goes to the log file only; on a terminal it would bury the message
        raise
    finally:
        reporting.stop_logging(handler)


def _run(
    config: Config, train_paths: Sequence[str], val_paths: Sequence[str], model_dir: str, stop: watch.StopSignal
) -> RunResult:
    strategy = _set_up_tensorflow(config)
    is_chief = distribution.is_chief(config.train)
    shards.require_whole_sets(train_paths)
    shards.check_classes(train_paths, len(config.labels))
    if config.input.data_service:
        data_service.require_running(config.input.data_service)
    config, weights = initial_weights.prepare(config, model_dir)
    changes = resume.require_same_run(config, train_paths, model_dir)
    num_records = sum(shards.count_records(train_paths))
    last = count_steps(config, num_records)

    run_config = distribution.resolve_norm(config, strategy.num_replicas_in_sync)
    with strategy.scope():
        model = checkpoints.make_model(run_config)
        rates = schedules.scale_to_batch(config.train.optimizer, config.input.batch_size)
        if rates != config.train.optimizer:
            log.info("--scale_learning_rate: %g for batch %d", rates.learning_rate, config.input.batch_size)
        optimizer = optimizers.make_optimizer(
            rates,
            train_steps=last,
            loss_scaling=config.train.precision == "mixed_float16",
            backbone=model.backbone.name,
        )
        optimizer.build(model.trainable_variables)
        averaged = checkpoints.make_model(run_config) if config.train.ema_decay else None
    saved = checkpoints.Checkpoints(
        model_dir, model, optimizer, averaged, keep=config.train.keep_checkpoints, is_chief=is_chief
    )
    start = "resuming" if saved.restore() else "starting"
    if start == "starting":
        initial_weights.start(model, weights, config, num_images=num_records)
        if averaged is not None:
            averages.start(averaged, model)
    current = int(optimizer.iterations.numpy())
    if is_chief:
        resume.write_down(config, train_paths, model_dir, step=current, changes=changes)
    log.info("%s at step %d of %d: %d images, %s", start, current, last, num_records, _describe(config, strategy))

    train_loop = make_train_loop(strategy, model, optimizer, config, averaged)
    iterator = distribution.make_iterator(strategy, config, train_paths, first_step=current, train_steps=last)
    evaluated = model if averaged is None else averaged
    evaluator = evaluate.make_evaluator(evaluated, config, val_paths, strategy=strategy) if val_paths else None
    reporter = reporting.Reporter(
        model_dir if is_chief else None, step=current, train_steps=last, batch_size=config.input.batch_size
    )
    data_watch = watch.DataWatch(train_paths, config.input)
    eval_every = config.train.eval_every or max(1, last // 10)
    save_every = config.train.checkpoint_every or eval_every
    log_every = config.train.log_every or config.train.steps_per_loop
    cadences = (log_every, eval_every, save_every)
    loop_steps = 1  # of the next loop
    is_saved = True
    metrics: dict[str, Any] = {}
    unreported: list[LoopResult] = []

    def evaluate_now(evaluator: Callable[[], dict[str, Any]]) -> None:
        found = stop.interruptible(evaluator)
        if found is None:  # a resumed run begins with this evaluation
            return
        metrics.update(found)
        reporter.evaluation(current, metrics)
        if saved.save_if_best(current, metrics, config.train.best_metric):
            log.info("step %d  best %s so far", current, config.train.best_metric)
        if is_chief:
            resume.write_evaluated_step(model_dir, current)

    if current < last:
        replicas = strategy.num_replicas_in_sync
        log.info("compiling the step (replicas: %d); on a CPU this takes up to a minute, on a GPU a few", replicas)
        started: float | None = time.monotonic()
    else:
        log.info("nothing is left to train; for more, raise --train_steps or --epochs")
    is_evaluated = not is_due(current, eval_every, last) or resume.read_evaluated_step(model_dir) == current
    if evaluator and current and not is_evaluated:
        log.info("the evaluation of step %d was not completed, so it comes first", current)
        evaluate_now(evaluator)
    while current < last and stop.received is None:
        target = next_stop(current, loop_steps, cadences, last)
        loop_started = time.monotonic()
        with watch.naming_damaged_shard(train_paths):
            result = train_loop(iterator, tf.constant(target - current))
        if started is not None:
            steps, seconds = int(result.num_steps), time.monotonic() - started
            log.info("compiled, and the first steps done (%d), after %.0f s", steps, seconds)
            started = None
        else:
            loop_steps = steps_within(
                (time.monotonic() - loop_started) / (target - current), config.train.steps_per_loop
            )
        current = target
        data_watch.look(result)
        watch.check_finite(result, current, train_paths)
        unreported.append(result)
        if is_due(current, log_every, last):
            _report(reporter, current, unreported, optimizer)
            unreported = []
        if is_due(current, save_every, last) or not is_saved:
            is_saved = saved.save(current)
        if evaluator and is_due(current, eval_every, last):
            evaluate_now(evaluator)
    reporter.close()
    if not saved.save(current):
        raise OSError(
            f"step {current} of {last} was reached but could not be saved: free space in {model_dir}; the same command "
            f"then resumes from step {max(saved.saved_step, 0)}."
        )
    if stop.received is not None and current < last:
        log.info("stopped at step %d of %d; the same command resumes here", current, last)
    return RunResult(step=current, metrics=metrics, stopped_by=stop.received)


def _set_up_tensorflow(config: Config) -> tf.distribute.Strategy:
    """Makes the strategy and applies the settings that TensorFlow keeps for the whole process."""
    strategy = distribution.make_strategy(config.train)
    distribution.check_replicas(config, strategy.num_replicas_in_sync)
    start_up.log_devices(strategy)
    if strategy.num_replicas_in_sync > 1:
        start_up.check_all_reduce(strategy)
    tf.config.run_functions_eagerly(config.train.eager)
    tf.keras.mixed_precision.set_global_policy(config.train.precision)
    tf.keras.utils.set_random_seed(config.input.seed)
    return strategy


def _describe(config: Config, strategy: tf.distribute.Strategy) -> str:
    """What is trained on what, for the log."""
    height, width = config.input.image_size
    return (
        f"{len(config.labels)} classes, {config.model.backbone}-{config.model.neck} {height}x{width}, "
        f"batch {config.input.batch_size} on {strategy.num_replicas_in_sync} x {distribution.device_type(strategy)}, "
        f"{config.train.precision}"
    )


def _report(
    reporter: reporting.Reporter,
    current: int,
    results: Sequence[LoopResult],
    optimizer: tf.keras.optimizers.Optimizer,
) -> None:
    """Reports the means over the loops since the last report."""
    num_steps = sum(int(result.num_steps) for result in results)
    means = {
        name: float(sum(getattr(result.losses, name) for result in results)) / num_steps for name in Losses._fields
    }
    extra = {
        "learning_rate": float(optimizer.learning_rate.numpy()),
        "positives": float(sum(result.num_positives for result in results)) / num_steps,
    }
    if num_damaged := sum(int(result.num_damaged) for result in results):
        extra["damaged_images"] = num_damaged
    if num_with_dropped_boxes := sum(int(result.num_with_dropped_boxes) for result in results):
        extra["images_with_dropped_boxes"] = num_with_dropped_boxes
    if isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer):
        extra["loss_scale"] = float(optimizer.loss_scale)
        if extra["loss_scale"] <= 1.0:
            log.warning("the loss scale fell to %g: float16 overflows; try mixed_bfloat16", extra["loss_scale"])
    reporter.training(current, means, data_wait_s=float(sum(result.data_wait for result in results)), extra=extra)
