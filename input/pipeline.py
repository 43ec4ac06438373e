"""Records to `Dataset[Batch]`, all in graph mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from input import augment, batch_augment, memory, random_numbers, sampling, targets, tfrecord
from input.config import AugmentConfig, InputConfig
from input.sampling import SampledRecord
from input.types import Batch, Targets

_AUTOTUNE = tf.data.AUTOTUNE


def make_dataset(
    paths: Sequence[str],
    config: InputConfig,
    *,
    training: bool,
    batch_size: int,
    first_record: int = 0,
    num_pipelines: int = 1,
    pipeline_id: int = 0,
) -> tf.data.Dataset:
    """Batches of decoded images with their boxes.

    Args:
      paths: shard files, in order.
      config: image size, padding, augmentation and seed; its `batch_size`, the global one, is not read.
      training: endless, shuffled and augmented; otherwise each image once, in order, unaugmented, the last batch padded
        with images that are not `valid`. In both cases a record that cannot be decoded is grey and not `valid`.
      batch_size: images in a batch.
      first_record: training only: how many records an earlier run has already consumed, in this pipeline.
      num_pipelines, pipeline_id: training only: of several workers, each reads every `num_pipelines`-th file.

    Returns:
      `Dataset[Batch]` with static shapes.

    Raises:
      ValueError: there are no files, no records, or fewer files with records than pipelines.
    """

    def load(records: SampledRecord) -> Batch:
        return augment.load_and_crop(
            tfrecord.parse_examples(records.stored.serialized),
            config,
            training=training,
            record_index=records.stored.record_index,
            valid=records.valid,
            random_numbers=records.random_numbers,
        )

    def blank(records: SampledRecord) -> Batch:
        return augment.blank(config, record_index=records.stored.record_index, random_numbers=records.random_numbers)

    if training:
        records = sampling.training_records(
            paths, config, first_record=first_record, num_pipelines=num_pipelines, pipeline_id=pipeline_id
        )
    else:
        records = sampling.evaluation_records(paths, batch_size)

    dataset = records.batch(batch_size, drop_remainder=True).map(
        lambda batch: _load_or_blank(batch, load, blank),
        num_parallel_calls=_AUTOTUNE,
        deterministic=config.deterministic_input or not training,
    )
    if training and config.data_service:
        dataset = dataset.apply(
            tf.data.experimental.service.distribute(
                processing_mode=tf.data.experimental.service.ShardingPolicy.DYNAMIC,
                service=config.data_service,
                # Several workers of the trainer take from one job; a resumed run begins another.
                job_name=f"train-{config.seed}-{first_record}" if num_pipelines > 1 else None,
            )
        )
    options = tf.data.Options()
    options.autotune.ram_budget = memory.limit() // 2  # tf.data's own share, but of what the container may use
    if config.private_threadpool_size:
        options.threading.private_threadpool_size = config.private_threadpool_size
    return dataset.prefetch(_AUTOTUNE).with_options(options)


def only_for_training(batch: Batch) -> Batch:
    """The batch without what an evaluation alone reads, so that it is not sent to the devices."""
    return batch._replace(original_sizes=None, transforms=None)


def mix_what_fits(dataset: tf.data.Dataset, config: AugmentConfig) -> tf.data.Dataset:
    """`Dataset[Batch]`, each a replica's own, in which an image stays unmixed where objects would find no slot."""
    if not config.mixes:
        return dataset
    return dataset.map(lambda batch: batch_augment.mix_what_fits(batch, config), num_parallel_calls=_AUTOTUNE)


def stop_mixing(dataset: tf.data.Dataset, num_batches: int) -> tf.data.Dataset:
    """`Dataset[Batch]` in which the batches after the first `num_batches` have no cutmix, mixup or mosaic."""
    mixing = tf.constant([name in ("cutmix", "mixup", "mosaic") for name in random_numbers.RandomNumbers._fields])

    def stop(index: tf.Tensor, batch: Batch) -> Batch:
        never = tf.where(mixing, 1.0, batch.random_numbers)  # no probability exceeds 1
        return batch._replace(random_numbers=tf.where(index < num_batches, batch.random_numbers, never))

    return dataset.enumerate().map(stop, num_parallel_calls=_AUTOTUNE)


def _load_or_blank(
    records: SampledRecord, load: Callable[[SampledRecord], Batch], blank: Callable[[SampledRecord], Batch]
) -> Batch:
    """`load` of a batch of records, with `blank` in place of the records for which it raises an error.

    The whole batch is loaded at once. Only if that fails, each record is loaded by itself.
    """

    def load_one(record: SampledRecord) -> tf.data.Dataset:
        dataset = tf.data.Dataset.from_tensors(record)
        return _first_without_error(dataset.map(load), dataset.map(blank))

    whole = tf.data.Dataset.from_tensors(records).map(load)
    singles = tf.data.Dataset.from_tensor_slices(records).batch(1, drop_remainder=True).flat_map(load_one)
    singles = singles.unbatch().batch(records.valid.shape[0], drop_remainder=True)
    return _first_without_error(whole, singles).get_single_element()


def _first_without_error(first: tf.data.Dataset, second: tf.data.Dataset) -> tf.data.Dataset:
    """The one element of the first dataset, or of the second if making that raises an error.

    In a graph only a dataset can catch an error. The second element is not made unless it is needed.
    """
    return first.ignore_errors().concatenate(second).take(1)


def assign_on_host(dataset: tf.data.Dataset, config: InputConfig) -> tf.data.Dataset:
    """`Dataset[Batch]` -> `Dataset[(Batch, Targets)]`: augments the boxes and assigns the anchors' targets on the host.

    The images are left for the device to augment, by the same random numbers.
    """

    def augment_and_assign(batch: Batch) -> tuple[Batch, Targets]:
        batch = batch_augment.augment_boxes(batch, config.augment)
        return batch, targets.assign(batch, config, method="sparse")

    return dataset.map(augment_and_assign, num_parallel_calls=_AUTOTUNE, deterministic=True).prefetch(_AUTOTUNE)
