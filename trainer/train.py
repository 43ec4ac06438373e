"""A training run: restore, then train, report, save and evaluate until the last step."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from input import files, shards
from trainer import (
    averages,
    budget,
    checkpoints,
    data_service,
    distribution,
    evaluate,
    events,
    guards,
    initial_weights,
    lock,
    optimizers,
    profiling,
    reporting,
    resume,
    run_report,
    schedules,
    start_up,
    watch,
    workers,
    writers,
)
from trainer.config import Config
from trainer.loop import (
    LoopResult,
    is_due,
    loss_scale_of,
    make_train_loop,
    mean_values,
    next_stop,
    steps_within,
)
from trainer.reporting import log

_LEAST_PLANNED = 1000  # steps that a run is planned for until it is fitted to `--max_hours`


class RunResult(NamedTuple):
    """How a run ended."""

    step: int
    metrics: dict[str, Any]  # of the last evaluation; empty if there was none
    stopped_by: int | None  # the signal that ended it early


def count_steps(config: Config, num_records: int) -> int:
    """`--train_steps`, or `--epochs` over the records."""
    return config.train.train_steps or max(1, round(config.train.epochs * num_records / config.input.batch_size))


def train_and_evaluate(
    config: Config,
    *,
    train_paths: Sequence[str],
    val_paths: Sequence[str] = (),
    model_dir: str,
    clock: Callable[[], float] = time.monotonic,
) -> RunResult:
    """A whole run: from scratch, or from where `model_dir` stopped.

    Call `distribution.set_up_devices(config.train)` first, in a process that has not used TensorFlow.

    Args:
      config: every setting, with `labels` filled in.
      train_paths: shards to train on.
      val_paths: shards to evaluate on; none: no evaluation, and no best checkpoint.
      model_dir: RUN; the run is resumed where it holds checkpoints.
      clock: gives seconds.

    Raises:
      ValueError: settings that do not fit together, or data without records.
      FloatingPointError: the loss was not a finite number.
      ConnectionError: another worker is lost.
    """
    if config.train.patience and not val_paths:
        raise ValueError(f"--patience={config.train.patience} counts evaluations: give --val_records.")
    try:
        files.make_dirs(model_dir)
    except OSError as error:
        raise ValueError(f"--model_dir={model_dir} cannot be made ({error.strerror}): name another folder.") from error
    is_chief = distribution.is_chief(config.train)
    handler = reporting.log_to(model_dir if is_chief else None)
    try:
        alone = lock.sole_trainer(model_dir) if is_chief else contextlib.nullcontext(lambda: None)
        with watch.StopSignal() as stop, alone as require_alone, workers.naming_lost_worker(model_dir):
            return _Run(config, train_paths, val_paths, model_dir, stop, require_alone, clock).run()
    except Exception as error:
        log.error("%s", error)
        log.debug("where:", exc_info=True)  # goes to the log file only; on a terminal it would bury the message
        raise
    finally:
        reporting.stop_logging(handler)


class _Run:
    """A run: what it consists of, which step it is at, and what happens between two loops."""

    def __init__(
        self,
        config: Config,
        train_paths: Sequence[str],
        val_paths: Sequence[str],
        model_dir: str,
        stop: watch.StopSignal,
        require_alone: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.train_paths, self.val_paths, self.model_dir = train_paths, val_paths, model_dir
        self.stop, self.require_alone, self.clock = stop, require_alone, clock
        self.is_chief = distribution.is_chief(config.train)
        self.profile = profiling.Profile(config.train)
        self.events = events.Events(self._hooks(config))
        self.strategy = _set_up_tensorflow(config, train_paths, val_paths)
        stop.take_signals()
        self.workers = workers.Workers(self.strategy)
        _check_data(config, train_paths, val_paths)
        self.config, self.weights = initial_weights.prepare(config, model_dir)
        self.changes = resume.require_same_run(self.config, train_paths, model_dir, val_paths=val_paths)
        self.has_other_validation = resume.has_other_validation(val_paths, model_dir)
        self.num_images = sum(shards.count_records(train_paths))
        num_steps = self.planned_steps = count_steps(self.config, self.num_images)
        if config.train.max_hours:
            # A plan of few steps would have no warm-up and evaluate all the time; a timed step gives it another length.
            self.planned_steps = max(num_steps, _LEAST_PLANNED, 10 * config.train.optimizer.warmup_steps)
        self._plan(self.planned_steps)
        self.last_step = num_steps
        self.log_every = config.train.log_every or config.train.steps_per_loop
        self.budget = budget.Budget(
            model_dir, evaluation_steps=sum(shards.count_records(val_paths)) / config.input.batch_size, clock=clock
        )
        self._make_network()
        self.data_watch = watch.DataWatch(train_paths, config.input)
        self.alarms = guards.Alarms()
        self.rollbacks = guards.read_rollbacks(model_dir)
        self.step = 0
        self.reported_step, self.reported_time = 0, clock()  # of the last report
        self.metrics: dict[str, Any] = {}  # of the last evaluation
        self.results: list[LoopResult] = []  # of the loops since the last report
        self.loop_steps = 1  # of the next loop
        self.is_compiled = self.is_timed = self.is_fitted = False
        self.step_s: float | None = None  # of the last loop, for each of its steps
        self.stopped_by: int | None = None  # the signal that one of the workers got

    def _hooks(self, config: Config) -> list[events.Hook]:
        if not self.is_chief:
            return [writers.Progress()]
        named = events.load_hooks(config.train.hooks)
        report = run_report.Report(lambda: self.budget.seconds)
        return [writers.Progress(), writers.MetricsFile(), writers.TensorBoard(), report, self.profile, *named]

    def _plan(self, last_step: int) -> None:
        """Ends the run at this step."""
        self.last_step = last_step
        self.eval_every = self.config.train.eval_every or max(1, last_step // 10)
        self.save_every = self.config.train.checkpoint_every or self.eval_every

    def _make_network(self) -> None:
        """Makes the network, its optimizer and its averaged weights, and what saves them."""
        config = distribution.resolve_norm(self.config, self.strategy.num_replicas_in_sync)
        with self.strategy.scope():
            self.model = checkpoints.make_model(config)
            rates = schedules.scale_to_batch(config.train.optimizer, config.input.batch_size)
            if rates != config.train.optimizer:
                log.info("--scale_learning_rate: %g for batch %d", rates.learning_rate, config.input.batch_size)
            self.rate = schedules.Adjustable(rates, self.planned_steps)
            self.optimizer = optimizers.make_optimizer(
                rates,
                train_steps=self.last_step,
                schedule=self.rate,
                loss_scaling=config.train.precision == "mixed_float16",
                backbone=self.model.backbone.name,
            )
            self.optimizer.build(self.model.trainable_variables)
            self.averaged = checkpoints.make_model(config) if config.train.ema_decay else None
        self.saved = checkpoints.Checkpoints(
            self.model_dir,
            self.model,
            self.optimizer,
            self.averaged,
            keep=config.train.keep_checkpoints,
            is_chief=self.is_chief,
            all_workers=self.workers.all,
        )

    def run(self) -> RunResult:
        """Trains from the last checkpoint, or from scratch, until the last step or a signal."""
        error = None
        try:
            with guards.explaining_lack_of_memory(self.config, self.strategy.num_replicas_in_sync):
                self.start()
                while self._goes_on():
                    self.require_alone()
                    try:
                        self.advance()
                    except FloatingPointError as bad_loss:
                        self.roll_back(bad_loss)
                        continue
                    if self._is_due(self.log_every):
                        self.log()
                    if self._is_due(self.save_every) or self.saved.has_failed:
                        self.save()
                    if self._is_due(self.eval_every):
                        self.evaluate()
            self.finish()
        except BaseException as exception:
            error = str(exception) or type(exception).__name__
            raise
        finally:
            result = RunResult(step=self.step, metrics=self.metrics, stopped_by=self.stopped_by)
            self.events.tell("on_end", train_steps=self.last_step, error=error, **result._asdict())
        return result

    def _goes_on(self) -> bool:
        """Whether to train on; workers agree on that, and on the next loop's length."""
        self._leave_room_to_measure()
        rows = self.workers.gather(self.stop.received or 0, self.loop_steps, self._is_stale())
        signals, loop_steps, stale = rows.T.astype(int).tolist()
        self.loop_steps = min(loop_steps)
        self.stopped_by = max(signals) or None
        if self.stopped_by and self.workers.num > 1:
            signalled = [index for index, number in enumerate(signals) if number]
            log.info("worker %s was signalled: all stop at step %d", ", ".join(map(str, signalled)), self.step)
        return self.step < self.last_step and self.stopped_by is None and not any(stale)

    def _leave_room_to_measure(self) -> None:
        """Moves the end by a loop, as long as no step was timed to which `--max_hours` can fit the run."""
        if self.config.train.max_hours and not self.is_fitted and self.step >= self.last_step:
            self.last_step = self.step + self.loop_steps

    def _is_due(self, every: int) -> bool:
        return is_due(self.step, every, self.last_step)

    def _is_stale(self) -> bool:
        """Whether `--patience` evaluations have brought nothing better; the best one's step is in its checkpoint."""
        patience, best = self.config.train.patience, self.saved.best
        return bool(patience and best) and self.step - best["step"] >= patience * self.eval_every

    def start(self) -> None:
        """Restores the run or begins it, and completes an evaluation that a signal or a kill cut off."""
        resumed = self.saved.restore()
        if not resumed:
            initial_weights.start(self.model, self.weights, self.config, num_images=self.num_images)
            if self.averaged is not None:
                averages.start(self.averaged, self.model)
        self.step = int(self.optimizer.iterations.numpy())
        self.workers.require_same_step(self.step, self.model_dir)
        if not resumed:  # all workers have read the folder by now, since each waited for the others
            self._forget_earlier_run()
        elif self.has_other_validation:
            log.warning(
                "the validation records are others: the run is evaluated on them, which counts as the best so far"
            )
            self.saved.forget_best()
        if self.budget.is_measured:
            self.fit()
        self._leave_room_to_measure()
        if self.is_chief:
            resume.write_down(
                self.config,
                self.train_paths,
                self.model_dir,
                val_paths=self.val_paths,
                step=self.step,
                changes=self.changes,
            )
        log.info(
            "%s at step %d of %d: %d images, %s",
            *("resuming" if resumed else "starting", self.step, self.last_step, self.num_images),
            _describe(self.config, self.strategy),
        )
        self.events.tell(
            "on_start",
            model_dir=self.model_dir,
            step=self.step,
            train_steps=self.last_step,
            num_images=self.num_images,
            batch_size=self.config.input.batch_size,
            num_replicas=self.strategy.num_replicas_in_sync,
            train_records=list(self.train_paths),
            val_records=list(self.val_paths),
            config=dataclasses.asdict(self.config),
        )
        self.rate.factor.assign(guards.ROLLBACK_FACTOR ** len(self.rollbacks))
        self.train_loop = make_train_loop(self.strategy, self.model, self.optimizer, self.config, self.averaged)
        self._make_iterator()
        if self.config.train.on_non_finite == "rollback":
            self.save()  # so that there is a step to go back to from the first on
        evaluated = self.model if self.averaged is None else self.averaged
        self.evaluator = (
            evaluate.make_evaluator(
                evaluated, self.config, self.val_paths, strategy=self.strategy, between_batches=self._leave_if_signalled
            )
            if self.val_paths
            else None
        )
        self.reported_step, self.reported_time = self.step, self.clock()
        if self.step >= self.last_step:
            log.info("nothing is left to train; for more, raise --train_steps, --epochs or --max_hours")
        elif not self._is_stale():
            log.info(
                "compiling the step (replicas: %d); on a CPU this takes up to a minute, on a GPU a few",
                self.strategy.num_replicas_in_sync,
            )
        is_evaluated = not self._is_due(self.eval_every) or resume.read_evaluated_step(self.model_dir) >= self.step
        if self.evaluator and self.step and not self.workers.all(is_evaluated and not self.has_other_validation):
            if not self.has_other_validation:
                log.info("the evaluation of step %d was not completed, so it comes first", self.step)
            self.evaluate()

    def _forget_earlier_run(self) -> None:
        """Takes nothing over from a run whose checkpoints are gone, such as a best result that was never this run's."""
        self.saved.best, self.rollbacks = {}, []
        self.budget.forget_earlier()
        if self.is_chief and (folder := resume.set_aside(self.model_dir)):
            log.warning(
                "the best checkpoint and the evaluations of the run before are now in %s, which can be evaluated and "
                "exported as a --model_dir of its own",
                folder,
            )

    def _make_iterator(self) -> None:
        """Begins with the records of this step.

        As long as `--max_hours` may still move the end of the run, and with it the last step that mixes images, mixing
        has no end; `advance` then makes the iterator anew at that step.
        """
        last_mixed_step = self._last_mixed_step()
        may_move = self.config.train.max_hours and self.config.input.augment.mixes
        self.is_mixing_open = bool(may_move) and self.step < last_mixed_step
        self.iterator = distribution.make_iterator(
            self.strategy,
            self.config,
            self.train_paths,
            first_step=self.step,
            last_mixed_step=None if self.is_mixing_open else last_mixed_step,
        )

    def _last_mixed_step(self) -> int:
        """The step after which cutmix, mixup and mosaic are off; until `--max_hours` is fitted, the last one."""
        is_known = self.is_fitted or not self.config.train.max_hours
        share = self.config.input.augment.close_mosaic if is_known else 0.0
        return self.last_step - round(self.last_step * share)

    def advance(self) -> None:
        """Runs the compiled loop up to the next step at which something is due.

        Raises:
          FloatingPointError: the loss was not finite.
        """
        if self.is_mixing_open and self.step >= self._last_mixed_step():
            self._make_iterator()
        cadences = (self.log_every, self.eval_every, self.save_every)
        last = self._last_mixed_step() if self.is_mixing_open else self.last_step
        target = next_stop(self.step, self.loop_steps, cadences, last)
        num_steps = self.profile.limit(self.step, target) - self.step
        self.profile.before_loop(self.step)
        started = self.clock()
        usual_s = None if self.step_s is None else self.step_s * num_steps
        waiting = watch.no_silent_wait(self.config.input.data_service, usual_s)
        with watch.naming_damaged_shard(self.train_paths), waiting:
            result = self.train_loop(self.iterator, tf.constant(num_steps))
        seconds = self.clock() - started
        self.step_s = seconds / num_steps
        if self.is_compiled:
            self.loop_steps = steps_within(self.step_s, self.config.train.steps_per_loop)
        else:
            log.info("compiled, and the first steps done (%d), after %.0f s", num_steps, seconds)
            self.is_compiled = True
        self.step += num_steps
        self.profile.after_loop(self.step)
        self.data_watch.look(result)
        guards.check_finite(result, self.step, self.train_paths)
        self.alarms.look(result, loss_scale=loss_scale_of(self.optimizer))
        self.results.append(result)

    def roll_back(self, bad_loss: FloatingPointError) -> None:
        """Goes back to the last checkpoint with a lower learning rate.

        Raises:
          FloatingPointError: `bad_loss`, where this is not asked for or was done too often.
        """
        if self.config.train.on_non_finite != "rollback" or len(self.rollbacks) >= self.config.train.max_rollbacks:
            raise bad_loss
        bad_step = self.step
        if not self.saved.restore():
            raise bad_loss
        self.step = int(self.optimizer.iterations.numpy())
        self.rollbacks.append({"at": bad_step, "to": self.step})
        if self.is_chief:
            guards.write_rollbacks(self.model_dir, self.rollbacks)
            if resume.read_evaluated_step(self.model_dir) > self.step:  # what comes has not been evaluated
                resume.write_evaluated_step(self.model_dir, self.step)
        factor = guards.ROLLBACK_FACTOR ** len(self.rollbacks)
        self.rate.factor.assign(factor)
        self.results, self.reported_step, self.reported_time = [], self.step, self.clock()
        self._make_iterator()
        log.error("%s", bad_loss)
        log.warning(
            "going back from step %d to step %d with %g of the learning rate (rollback %d of at most %d)",
            *(bad_step, self.step, factor, len(self.rollbacks), self.config.train.max_rollbacks),
        )
        self.events.tell("on_rollback", step=self.step, bad_step=bad_step, rate_factor=factor)

    def log(self) -> None:
        """Reports the means over the steps since the last report, their speed, and the time and money left."""
        now = self.clock()
        steps, seconds = self.step - self.reported_step, max(now - self.reported_time, 1e-9)
        self.reported_step, self.reported_time = self.step, now
        if self.is_timed:
            self.budget.add_steps(steps, seconds)
            self.fit()
            left_s = self.budget.seconds_left(self.step, self.last_step, self.eval_every, self.save_every)
        else:  # the compilation is in the first report, which is therefore no measure
            left_s = (self.last_step - self.step) * seconds / max(steps, 1)
        self.is_timed = True
        values = mean_values(self.results, self.optimizer)
        values["images_per_s"] = steps * self.config.input.batch_size / seconds
        values["data_wait"] = min(1.0, float(sum(result.data_wait for result in self.results)) / seconds)
        values["hours"] = self.budget.seconds / 3600
        values["hours_left"] = left_s / 3600
        if price := self.config.train.price_per_hour:
            values["cost"], values["cost_left"] = values["hours"] * price, values["hours_left"] * price
        self.results = []
        if self.is_chief and not files.is_remote(self.model_dir):  # to a bucket it goes with each checkpoint
            self.budget.write()
        self.events.tell("on_log", step=self.step, train_steps=self.last_step, **values)

    def fit(self) -> None:
        """Fits the end of the run, and of the schedule's decay, to `--max_hours`."""
        hours = self.config.train.max_hours
        if not hours or (self.step >= self.last_step and self.is_fitted):
            return
        last_step = self.budget.last_step_within(hours, self.step, self.eval_every, self.save_every)
        if self.is_fitted:
            self.last_step = last_step
        else:
            self._plan(last_step)
            log.info("--max_hours=%g: about %d steps fit, so the schedule ends there", hours, last_step)
            self.is_fitted = True
        self.rate.train_steps.assign(last_step)

    def save(self) -> None:
        """Saves a checkpoint, unless the disk is full: it is then tried again after the next loop."""
        if self.step == self.saved.saved_step:
            return
        started = self.clock()
        is_saved = self.saved.save(self.step)
        self.budget.set_time("saving", self.clock() - started)
        if is_saved:
            self.events.tell("on_save", step=self.step, path=self.saved.path(self.step), is_best=False)
        if self.is_chief:
            self.budget.write()
        self.reported_time += self.clock() - started  # its time is not that of training

    def finish(self) -> None:
        """Saves the step at which the run ends.

        Raises:
          OSError: this step cannot be saved.
        """
        self.save()
        if self.is_chief:
            self.budget.write()
        if self.saved.saved_step != self.step:
            raise OSError(
                f"step {self.step} of {self.last_step} was reached but could not be saved: free space in "
                f"{self.model_dir}; the same command then resumes from step {max(self.saved.saved_step, 0)}."
            )
        if self.stopped_by and self.step < self.last_step:
            log.info("stopped at step %d of %d; the same command resumes here", self.step, self.last_step)
        elif self.step < self.last_step:
            log.info(
                "stopped at step %d of %d, since %d evaluations brought nothing better; for more, raise --patience",
                *(self.step, self.last_step, self.config.train.patience),
            )

    def evaluate(self) -> None:
        """Evaluates, unless a signal comes: a resumed run then begins with this evaluation."""
        if not self.evaluator:
            return
        started = self.clock()
        found = self.stop.interruptible(self.evaluator, at_once=self.workers.num == 1)
        if found is None:
            return
        self.budget.set_time("evaluation", self.clock() - started)
        self.metrics = {name: value for name, value in found.items() if name != "samples"}
        self.events.tell("on_evaluate", step=self.step, **found)
        # Unlike machines may differ in the last digits, and saving is collective.
        best_metric = self.config.train.best_metric
        self.metrics[best_metric] = self.workers.first(self.metrics[best_metric])
        if self.saved.save_if_best(self.step, self.metrics, best_metric):
            log.info("step %d  best %s so far", self.step, best_metric)
            self.events.tell("on_save", step=self.step, path=self.saved.path(self.step, "best"), is_best=True)
        if self.is_chief:
            resume.write_evaluated_step(self.model_dir, self.step)
            self.budget.write()
        self.reported_time += self.clock() - started  # its time is not that of training

    def _leave_if_signalled(self) -> None:
        """Ends an evaluation in all workers at the same batch, where one was signalled."""
        if self.workers.num > 1 and self.workers.gather(self.stop.received or 0).any():
            raise watch.Interrupted


def _set_up_tensorflow(config: Config, train_paths: Sequence[str], val_paths: Sequence[str]) -> tf.distribute.Strategy:
    """Makes the strategy and applies the settings that TensorFlow keeps for the whole process."""
    strategy = distribution.make_strategy(config.train)
    workers.require_same_command(config, train_paths, val_paths)
    distribution.check_replicas(config, strategy.num_replicas_in_sync)
    start_up.log_devices(strategy)
    start_up.warn_of_slow_precision(strategy, config.train.precision)
    if strategy.num_replicas_in_sync > 1:
        start_up.check_all_reduce(strategy)
    tf.config.run_functions_eagerly(config.train.eager)
    tf.config.experimental.enable_tensor_float_32_execution(config.train.tf32)
    tf.keras.mixed_precision.set_global_policy(config.train.precision)
    tf.keras.utils.set_random_seed(config.input.seed)
    return strategy


def _check_data(config: Config, train_paths: Sequence[str], val_paths: Sequence[str]) -> None:
    shards.require_whole_sets(train_paths)
    if val_paths:
        evaluate.check_records(val_paths, config.labels)
    guards.check_objects(train_paths, config.labels, config.input)
    if config.input.data_service:
        data_service.require_running(config.input.data_service)


def _describe(config: Config, strategy: tf.distribute.Strategy) -> str:
    """What is trained on what, for the log."""
    height, width = config.input.image_size
    return (
        f"{len(config.labels)} classes, {config.model.backbone}-{config.model.neck} {height}x{width}, "
        f"batch {config.input.batch_size} on {strategy.num_replicas_in_sync} x {distribution.device_type(strategy)}, "
        f"{config.train.precision}"
    )
