"""Devices, the strategy that spreads a run over them, and what each worker reads."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence

import tensorflow as tf

from input import pipeline
from trainer import start_up
from trainer.config import Config, TrainConfig
from trainer.reporting import log

_ENOUGH_IMAGES = 8  # for batch norm's statistics (Wu & He 2018, figure 1: errors rise below 16, steeply below 8)


def set_up_devices(config: TrainConfig) -> None:
    """Sets the visible GPUs and the logical CPUs. Call it before TensorFlow touches a device.

    Raises:
      ValueError: there are fewer GPUs than `num_gpus`.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if config.num_gpus >= 0:
        if config.num_gpus > len(gpus):
            cause = "" if gpus else f" {start_up.why_no_gpu()}."
            raise ValueError(f"--num_gpus={config.num_gpus}, but TensorFlow sees {len(gpus)}: check nvidia-smi.{cause}")
        gpus = gpus[: config.num_gpus]
        tf.config.set_visible_devices(gpus, "GPU")
    if config.logical_cpus > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        parts = [tf.config.LogicalDeviceConfiguration()] * config.logical_cpus
        tf.config.set_logical_device_configuration(cpu, parts)


def is_chief(config: TrainConfig) -> bool:
    """Whether this process writes the run's files; of several workers one does."""
    if config.distribution != "multi_worker":
        return True
    with _naming_tf_config():
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        chief = "chief" if "chief" in resolver.cluster_spec().jobs else "worker"
    return resolver.task_type in (None, chief) and not resolver.task_id


def make_strategy(config: TrainConfig) -> tf.distribute.Strategy:
    """The strategy of `--distribution`; auto is mirrored over all GPUs, or over the logical CPUs if there are several.

    Call it once in a process: a second MirroredStrategy fails in the collectives.

    Raises:
      ValueError: several workers without a TF_CONFIG, or with a wrong one.
    """
    if config.distribution == "multi_worker":
        if "TF_CONFIG" not in os.environ:
            raise ValueError("--distribution=multi_worker needs TF_CONFIG in the environment: see docs/MULTI_GPU.md.")
        communication = config.communication
        if communication == "auto" and tf.config.get_visible_devices("GPU"):
            communication = "nccl"  # left to choose, TensorFlow takes a ring over gRPC
        options = tf.distribute.experimental.CommunicationOptions(
            implementation=tf.distribute.experimental.CommunicationImplementation(communication.upper())
        )
        with _naming_tf_config():
            return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    gpus = tf.config.list_logical_devices("GPU")
    devices = [device.name for device in gpus or tf.config.list_logical_devices("CPU")]
    if config.distribution == "mirrored" or (config.distribution == "auto" and len(devices) > 1):
        return tf.distribute.MirroredStrategy(devices)
    return tf.distribute.OneDeviceStrategy(devices[0])


@contextlib.contextmanager
def _naming_tf_config() -> Iterator[None]:
    """Says where the values are from that TensorFlow does not take."""
    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:
        given = os.environ.get("TF_CONFIG")
        raise ValueError(
            f"TF_CONFIG={given} does not describe this worker ({error}): see docs/MULTI_GPU.md."
        ) from error


def device_type(strategy: tf.distribute.Strategy) -> str:
    """GPU or CPU: what the replicas run on."""
    return tf.DeviceSpec.from_string(strategy.extended.worker_devices[0]).device_type


def check_replicas(config: Config, num_replicas: int) -> None:
    """Refuses settings that so many replicas cannot follow.

    Raises:
      ValueError: naming the flag.
    """
    batch_size = config.input.batch_size
    if batch_size % num_replicas:
        raise ValueError(
            f"--batch_size={batch_size}, the global one, cannot be split over {num_replicas} replicas: "
            f"use a multiple of {num_replicas}."
        )
    if batch_size // num_replicas % config.train.accumulation_steps:
        raise ValueError(
            f"--accumulation_steps={config.train.accumulation_steps} does not divide the {batch_size // num_replicas} "
            f"images that each of {num_replicas} replicas gets of --batch_size={batch_size}."
        )
    if config.input.augment.mixes and batch_size // num_replicas < 4:
        log.warning(
            "mosaic, mixup and cutmix have few images to mix: each replica gets only %d", batch_size // num_replicas
        )
    if config.train.xla and num_replicas > 1:
        raise ValueError("--xla works with one replica only: add --distribution=one_device, or leave --xla out.")


def resolve_norm(config: Config, num_replicas: int) -> Config:
    """The config with what `--norm=auto` means for so many replicas; it logs the choice."""
    if config.model.norm != "auto":
        return config
    images = config.input.batch_size // num_replicas // config.train.accumulation_steps
    norm = "sync" if num_replicas > 1 and images < _ENOUGH_IMAGES else "local"
    reason = (
        "there is one replica" if num_replicas == 1 else f"{num_replicas} replicas have {images} images each at a time"
    )
    log.info("--norm=auto chooses %s, since %s", norm, reason)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, norm=norm))


def average_statistics(strategy: tf.distribute.Strategy, model: tf.keras.Model) -> None:
    """Gives the statistics of batch norm in every replica their mean over all replicas, which is what is saved.

    With `--norm=local` each replica keeps the statistics of its own images, and would otherwise evaluate with them.
    Training does not read them. All workers must call it at the same point of the run.
    """
    if strategy.num_replicas_in_sync > 1:
        for variable in model.non_trainable_variables:
            if variable.synchronization == tf.VariableSynchronization.ON_READ:
                variable.assign(variable.read_value())


def make_iterator(
    strategy: tf.distribute.Strategy,
    config: Config,
    train_paths: Sequence[str],
    *,
    first_step: int,
    last_mixed_step: int | None = None,
) -> Iterator:
    """The arguments of one train step after the other.

    Args:
      first_step: how many steps were done before the first one.
      last_mixed_step: the step after which cutmix, mixup and mosaic are off; None: they stay on.
    """

    def per_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        dataset = pipeline.make_dataset(
            train_paths,
            config.input,
            training=True,
            batch_size=context.get_per_replica_batch_size(config.input.batch_size),
            first_record=first_step * config.input.batch_size // context.num_input_pipelines,
            num_pipelines=context.num_input_pipelines,
            pipeline_id=context.input_pipeline_id,
        )
        dataset = pipeline.mix_what_fits(dataset, config.input.augment)
        if config.input.augment.mixes and config.input.augment.close_mosaic and last_mixed_step is not None:
            # Each of this worker's replicas takes a batch of its own in every step.
            batches_per_step = strategy.num_replicas_in_sync // context.num_input_pipelines
            dataset = pipeline.stop_mixing(dataset, max(last_mixed_step - first_step, 0) * batches_per_step)
        if config.input.target_assignment == "host":
            dataset = pipeline.assign_on_host(dataset, config.input)
            arguments = dataset.map(lambda batch, targets: (pipeline.only_for_training(batch), targets))
        else:
            arguments = dataset.map(lambda batch: (pipeline.only_for_training(batch),))
        # If the end were unknown, several workers would agree in every step whether all still have a batch, by a
        # collective of its own, and the batch's size would not be static.
        return arguments.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))

    return iter(strategy.distribute_datasets_from_function(per_worker))
