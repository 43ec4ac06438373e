"""The training run: strategy, restore, compiled inner loop, log, save, evaluate."""

import contextlib
import os
import signal
import socket
from typing import NamedTuple, Optional

import tensorflow as tf

from input import pipeline, shards, tfrecord
from input.config import InputConfig
from model.types import Losses
from trainer import checkpoints, evaluate, optimizers, reporting, step
from trainer.config import Config, TrainConfig
from trainer.reporting import log


class LoopResult(NamedTuple):
    """Over the steps of one call of the compiled loop."""

    losses: Losses  # f32 scalars, sums of the steps' losses
    num_positives: tf.Tensor  # f32 scalar, sum
    data_wait: tf.Tensor  # f64 scalar, seconds spent waiting for a batch
    bad_records: tf.Tensor  # i64 [b]: this worker's batch of the first non-finite loss; -1 while there is none
    damaged: tf.Tensor  # i64 [b]: at each place of the batch, the last record that could not be decoded; -1: none
    num_damaged: tf.Tensor  # f32 scalar: images that could not be decoded
    num_crowded: tf.Tensor  # f32 scalar: images with more boxes than are kept


def set_up_devices(config: TrainConfig) -> None:
    """Memory growth, visible GPUs, logical CPUs. Call before TensorFlow touches a device."""
    gpus = tf.config.list_physical_devices("GPU")
    if config.num_gpus >= 0:
        if config.num_gpus > len(gpus):
            raise ValueError(f"--num_gpus={config.num_gpus}, but TensorFlow sees {len(gpus)}: check nvidia-smi.")
        gpus = gpus[: config.num_gpus]
        tf.config.set_visible_devices(gpus, "GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if config.logical_cpus > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        parts = [tf.config.LogicalDeviceConfiguration()] * config.logical_cpus
        tf.config.set_logical_device_configuration(cpu, parts)


def is_chief(config: TrainConfig) -> bool:
    """Whether this process is the one of several workers that writes the run's files."""
    if config.distribution != "multi_worker":
        return True
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    chief = "chief" if "chief" in resolver.cluster_spec().jobs else "worker"
    return resolver.task_type in (None, chief) and not resolver.task_id


def make_strategy(config: TrainConfig) -> tf.distribute.Strategy:
    """The strategy of `--distribution`; auto is mirrored over all GPUs, or over the logical CPUs if several.

    A process makes one: a second MirroredStrategy fails in the collectives.
    """
    if config.distribution == "multi_worker":
        if "TF_CONFIG" not in os.environ:
            raise ValueError("--distribution=multi_worker needs TF_CONFIG in the environment: see docs/MULTI_GPU.md.")
        return tf.distribute.MultiWorkerMirroredStrategy()
    gpus = tf.config.list_logical_devices("GPU")
    devices = [device.name for device in gpus or tf.config.list_logical_devices("CPU")]
    if config.distribution == "mirrored" or (config.distribution == "auto" and len(devices) > 1):
        return tf.distribute.MirroredStrategy(devices)
    return tf.distribute.OneDeviceStrategy(devices[0])


def make_train_loop(strategy: tf.distribute.Strategy, train_step, batch_size: int):
    """Compiles many steps into one call, so that Python is out of the way between them.

    Args:
      strategy: runs `train_step` on each replica.
      train_step: as `step.make_train_step` makes it.
      batch_size: global.

    Returns:
      `loop(iterator, num_steps) -> LoopResult`; `num_steps` is an i32 tensor, so that it never compiles anew.
    """

    # Of several workers each sees its own part of the batch.
    local_size = batch_size * len(strategy.extended.worker_devices) // strategy.num_replicas_in_sync

    @tf.function
    def train_loop(iterator, num_steps):
        totals = Losses(0.0, 0.0, 0.0)
        positives, data_wait = 0.0, tf.constant(0.0, tf.float64)
        num_damaged, num_crowded = 0.0, 0.0
        bad_records = damaged = tf.fill([local_size], tf.constant(-1, tf.int64))
        for _ in tf.range(num_steps):
            # The clock is read after the step before, and again once the batch is there.
            with tf.control_dependencies([totals.loss]):
                started = tf.timestamp()
            with tf.control_dependencies([started]):
                arguments = next(iterator)
            record_index, valid, num_dropped = (
                tf.concat(strategy.experimental_local_results(value), axis=0)
                for value in (arguments[0].record_index, arguments[0].valid, arguments[0].num_dropped)
            )
            with tf.control_dependencies([record_index]):
                data_wait += tf.timestamp() - started
            result = strategy.run(train_step, args=arguments)
            result = tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], result)
            totals = Losses(*(total + value for total, value in zip(totals, result.losses)))
            positives += result.num_positives
            first_bad = ~tf.math.is_finite(result.losses.loss) & (bad_records[0] < 0)
            bad_records = tf.where(first_bad, record_index, bad_records)
            damaged = tf.where(valid, damaged, record_index)
            num_damaged += tf.reduce_sum(tf.cast(~valid, tf.float32))
            num_crowded += tf.reduce_sum(tf.cast(num_dropped > 0, tf.float32))
        return LoopResult(totals, positives, data_wait, bad_records, damaged, num_damaged, num_crowded)

    return train_loop


def next_stop(step: int, steps_per_loop: int, cadences) -> int:
    """The step at which the loop returns: after `steps_per_loop`, or earlier at a multiple of one of `cadences`."""
    return min(step + steps_per_loop, *(step - step % every + every for every in cadences))


class StopSignal:
    """Remembers SIGTERM (a preempted machine) and SIGINT, to stop between two loops with everything saved."""

    def __init__(self):
        self.received: Optional[int] = None

    def __enter__(self):
        self._before = {}
        # Only the main thread may set handlers; elsewhere (a test, a notebook's thread) signals stay as they are.
        with contextlib.suppress(ValueError):
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def _remember(self, number, frame):
        if self.received is not None:
            raise KeyboardInterrupt  # the second time: at once
        self.received = number
        log.warning("%s: saving after this loop; once more to stop at once", signal.Signals(number).name)

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)


class RunResult(NamedTuple):
    """How a run ended."""

    step: int
    metrics: dict  # of the last evaluation; empty if there was none
    stopped_by: Optional[int]  # the signal that ended it early


def _make_iterator(strategy, config: Config, train_paths, first_step: int):
    def per_pipeline(context: tf.distribute.InputContext):
        consumed = first_step * config.input.batch_size // context.num_input_pipelines
        dataset = pipeline.make_dataset(
            train_paths,
            config.input,
            training=True,
            batch_size=context.get_per_replica_batch_size(config.input.batch_size),
            first_record=consumed,
            num_pipelines=context.num_input_pipelines,
            pipeline_id=context.input_pipeline_id,
        )
        if config.input.target_assignment == "host":
            return pipeline.assign_on_host(dataset, config.input)
        return dataset.map(lambda batch: (batch,))  # the arguments of a train step

    return iter(strategy.distribute_datasets_from_function(per_pipeline))


def _check_finite(result: LoopResult, first_step: int, last_step: int, train_paths) -> None:
    """Stops the run on a loss that is not a number, with the names of the images.

    Raises:
      FloatingPointError: nothing has been saved since the loop began.
    """
    bad = [int(index) for index in result.bad_records.numpy() if index >= 0]
    if bad:
        names = shards.name_records(train_paths, bad)
        raise FloatingPointError(
            f"the loss was not a finite number between steps {first_step + 1} and {last_step}, first for the batch of "
            f"images {', '.join(names)}. Look at these; or lower --learning_rate, lengthen "
            "--warmup_steps, or use --precision=float32. The last checkpoint is from before: the same command goes on."
        )


class DataWatch:
    """Names what is wrong with the records that a run reads, each image once.

    Args:
      paths: the training shards.
      config: `max_damaged` and `max_boxes`.
    """

    def __init__(self, paths, config: InputConfig):
        self._paths, self._config = paths, config
        self._damaged: set[int] = set()
        self._crowded = False

    def look(self, result: LoopResult) -> None:
        """Logs what a loop has found.

        Raises:
          ValueError: more damaged images than `max_damaged`.
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
        if result.num_crowded and not self._crowded:
            self._crowded = True
            log.warning(
                "%d images of this loop hold more boxes than --max_boxes=%d, of which the largest are kept; "
                "metrics.jsonl goes on counting them",
                *(int(result.num_crowded), self._config.max_boxes),
            )


def _name_damage(paths, error: Exception) -> Exception:
    """What to raise where TensorFlow found a shard damaged: its message names no file."""
    for path in paths:
        try:
            for _ in tfrecord.read_records(path):
                pass
        except tfrecord.DamagedShardError as damage:
            return tfrecord.DamagedShardError(f"{damage} The same command then goes on from the last checkpoint.")
    return error


def _require_service(address: str) -> None:
    """TensorFlow itself would wait for the service without end and without a word.

    Raises:
      ValueError: nothing answers there.
    """
    host, _, port = address.partition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--data_service={address} does not answer ({error}): write grpc://HOST:PORT, as the dispatcher prints it."
        ) from error


def count_steps(config: Config, num_records: int) -> int:
    """`--train_steps`, or `--epochs` over the records."""
    return config.train.train_steps or max(1, round(config.train.epochs * num_records / config.input.batch_size))


def train_and_evaluate(config: Config, *, train_paths, val_paths=(), model_dir: str) -> RunResult:
    """A whole run: from scratch, or from where `model_dir` stopped.

    Call `set_up_devices(config.train)` first, in a process that has not used TensorFlow.

    Args:
      config: everything; `labels` filled in.
      train_paths: shards to train on.
      val_paths: shards to evaluate on; none: no evaluation, and no best checkpoint.
      model_dir: RUN; resumed where it holds checkpoints.

    Raises:
      ValueError: settings that do not fit together, or data without records.
      FloatingPointError: the loss was not a finite number.
    """
    os.makedirs(model_dir, exist_ok=True)
    handler = reporting.log_to(model_dir if is_chief(config.train) else None)
    try:
        with StopSignal() as stop:
            return _run(config, train_paths, val_paths, model_dir, stop)
    except Exception as error:
        log.error("%s", error)
        log.debug("where:", exc_info=True)  # for the log file; on a terminal it would bury the sentence
        raise
    finally:
        reporting.stop_logging(handler)


def _run(config: Config, train_paths, val_paths, model_dir, stop: StopSignal) -> RunResult:
    strategy = make_strategy(config.train)
    replicas = strategy.num_replicas_in_sync
    if config.input.batch_size % replicas:
        raise ValueError(
            f"--batch_size={config.input.batch_size} (the global one) cannot be shared by {replicas} replicas: "
            f"use a multiple of {replicas}."
        )
    if config.input.augment.mixes and config.input.batch_size // replicas < 4:
        log.warning(
            "mosaic, mixup and cutmix have few partners: only %d images a replica", config.input.batch_size // replicas
        )
    if config.train.xla and replicas > 1:
        raise ValueError("--xla works with one replica: add --distribution=one_device, or leave it out.")
    writes = is_chief(config.train)
    tf.config.run_functions_eagerly(config.train.eager)
    tf.keras.mixed_precision.set_global_policy(config.train.precision)
    tf.keras.utils.set_random_seed(config.input.seed)

    shards.check_classes(train_paths, len(config.labels))
    if config.input.data_service:
        _require_service(config.input.data_service)
    num_records = sum(shards.count_records(train_paths))
    train_steps = count_steps(config, num_records)
    checkpoints.require_same_run(config, model_dir)
    with strategy.scope():
        model = checkpoints.make_model(config)
        optimizer = optimizers.make_optimizer(
            config.train.optimizer,
            train_steps=train_steps,
            loss_scaling=config.train.precision == "mixed_float16",
        )
        optimizer.build(model.trainable_variables)
    saved = checkpoints.Checkpoints(model_dir, model, optimizer, keep=config.train.keep_checkpoints, is_chief=writes)
    resumed = saved.restore()
    if writes:
        checkpoints.save_config(config, model_dir)
    current = int(optimizer.iterations.numpy())
    devices = f"{replicas} x {strategy.extended.worker_devices[0].rsplit(':', 2)[-2]}"
    log.info(
        "%s at step %d of %d: %d images, %d classes, %s-%s %dx%d, batch %d on %s, %s",
        *("resuming" if resumed else "starting", current, train_steps, num_records, len(config.labels)),
        *(config.model.backbone, config.model.neck, *config.input.image_size, config.input.batch_size, devices),
        config.train.precision,
    )

    on_cpu = "GPU" not in strategy.extended.worker_devices[0]
    # Sparse assignment has dynamic shapes: right for a CPU, not for XLA or a GPU.
    method = "sparse" if on_cpu and not config.train.xla else "dense"
    train_step = step.make_train_step(model, optimizer, config, method=method)
    if config.train.xla:
        train_step = tf.function(train_step, jit_compile=True)
    train_loop = make_train_loop(strategy, train_step, config.input.batch_size)
    iterator = _make_iterator(strategy, config, train_paths, current)
    evaluator = evaluate.make_evaluator(model, config, val_paths, strategy=strategy) if val_paths else None

    log_every = config.train.log_every
    eval_every = config.train.eval_every or max(1, train_steps // 10)
    save_every = config.train.checkpoint_every or eval_every
    cadences = [every for every in (log_every, eval_every, save_every, train_steps) if every]
    reporter = reporting.Reporter(
        model_dir if writes else None, step=current, train_steps=train_steps, batch_size=config.input.batch_size
    )
    if current >= train_steps:
        log.info("nothing left to train; for more, raise --train_steps or --epochs")
    watch = DataWatch(train_paths, config.input)
    metrics, since_log = {}, []
    while current < train_steps and stop.received is None:
        target = next_stop(current, config.train.steps_per_loop, cadences)
        try:
            result = train_loop(iterator, tf.constant(target - current))
        except tf.errors.DataLossError as error:
            raise _name_damage(train_paths, error) from error
        watch.look(result)
        _check_finite(result, current, target, train_paths)
        since_log.append((target - current, result))
        current = target
        if not log_every or current % log_every == 0 or current == train_steps:
            _report(reporter, current, since_log, optimizer)
            since_log = []
        if current % save_every == 0 or current == train_steps:
            saved.save(current)
        if evaluator and (current % eval_every == 0 or current == train_steps):
            metrics = evaluator()
            reporter.evaluation(current, metrics)
            if saved.save_if_best(current, metrics, config.train.best_metric):
                log.info("step %d  best %s so far", current, config.train.best_metric)
    reporter.close()
    if stop.received is not None and current < train_steps:
        saved.save(current)
        log.info("stopped at step %d of %d; the same command resumes here", current, train_steps)
    return RunResult(step=current, metrics=metrics, stopped_by=stop.received)


def _report(reporter, current, since_log, optimizer):
    """Logs the means over the loops since the last report."""
    steps = sum(count for count, _ in since_log)
    results = [result for _, result in since_log]
    means = {name: float(sum(getattr(result.losses, name) for result in results)) / steps for name in Losses._fields}
    extra = {
        "learning_rate": float(optimizer.learning_rate.numpy()),
        "positives": float(sum(result.num_positives for result in results)) / steps,
    }
    for name in ("damaged", "crowded"):
        if count := sum(int(getattr(result, f"num_{name}")) for result in results):
            extra[f"{name}_images"] = count
    if isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer):
        extra["loss_scale"] = float(optimizer.loss_scale)
        if extra["loss_scale"] <= 1.0:
            log.warning("the loss scale fell to %g: float16 overflows; try mixed_bfloat16", extra["loss_scale"])
    reporter.training(current, means, data_wait_s=float(sum(result.data_wait for result in results)), extra=extra)
