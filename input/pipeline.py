"""Shard files -> `Dataset[Batch]`, all in graph mode."""

from __future__ import annotations

import tensorflow as tf

from input import augment, batch_augment, sampling, shards, targets, tfrecord, types
from input.config import InputConfig

_AUTOTUNE = tf.data.AUTOTUNE


def _or_blank(load, blank):
    """A function of a batch of records that calls `load`; where that fails, on one record after the other.

    Args:
      load: a function of tensors [b, ...] for `Dataset.map`.
      blank: likewise; stands in for `load` where a record cannot be loaded.
    """

    def first_of(*datasets):
        first = datasets[0].ignore_errors()
        for dataset in datasets[1:]:
            first = first.concatenate(dataset)
        return first.take(1)  # so the later ones are made only where the first gives nothing

    def load_or_blank(*records):
        batch_size = records[0].shape[0]
        batch = tf.data.Dataset.from_tensors(records)
        singles = tf.data.Dataset.from_tensor_slices(records).batch(1, drop_remainder=True)
        singles = singles.flat_map(
            lambda *record: first_of(*(tf.data.Dataset.from_tensors(record).map(make) for make in (load, blank)))
        )
        singles = singles.unbatch().batch(batch_size, drop_remainder=True)
        return first_of(batch.map(load), singles).get_single_element()

    return load_or_blank


def make_dataset(
    paths,
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
      config: image size, padding, augmentation and seed; `config.batch_size`, the global one, is not read.
      training: endless, shuffled and augmented; otherwise each image once, in order, unaugmented, the last batch
        padded with images marked not `valid`. A record that cannot be decoded is grey and marked so in either case.
      batch_size: images in a batch.
      first_record: training only: how many records an earlier run has already consumed, in this pipeline.
      num_pipelines, pipeline_id: training only: of several workers, each reads every `num_pipelines`-th file.

    Returns:
      `Dataset[Batch]` with static shapes.

    Raises:
      ValueError: there are no files, no records, or fewer files with records than pipelines.
    """
    found = sampling.list_shards(paths)
    if len(found) < num_pipelines:
        raise ValueError(
            f"{len(found)} shards with records for {num_pipelines} workers: convert again with --num_shards a "
            f"multiple of {num_pipelines}."
        )

    def load(index, serialized, valid, draws):
        records = tfrecord.parse_examples(serialized)
        return augment.load_and_crop(records, index, valid, draws, config, training=training)

    def blank(index, serialized, valid, draws):
        return augment.blank(index, draws, config)

    load_or_blank = _or_blank(load, blank)

    if training:
        own_shards = found[pipeline_id::num_pipelines]
        if config.data_service:
            records = sampling.served_records(found, config, first_record * num_pipelines)  # all take from one job
        elif config.mixture:
            records = sampling.mixed_records(own_shards, config, first_record)
        elif config.repeat_threshold:
            classes = shards.read_classes(paths, len(shards.read_labels(paths)))
            records = sampling.training_records(
                own_shards, config, first_record, sampling.Copies(own_shards, classes, config)
            )
        else:
            records = sampling.training_records(own_shards, config, first_record)

        def load_batch(record, draws):
            return load_or_blank(*record, tf.ones([batch_size], tf.bool), draws)
    else:
        records = sampling.evaluation_records(found, batch_size)

        def load_batch(record, valid):
            return load_or_blank(*record, valid, tf.zeros([batch_size, types.NUM_DRAWS]))

    deterministic = config.deterministic_input or not training
    dataset = records.batch(batch_size, drop_remainder=True)
    dataset = dataset.map(load_batch, num_parallel_calls=_AUTOTUNE, deterministic=deterministic)
    if training and config.data_service:
        dataset = dataset.apply(
            tf.data.experimental.service.distribute(
                processing_mode=tf.data.experimental.service.ShardingPolicy.DYNAMIC,
                service=config.data_service,
                # Several workers of the trainer take from one job; a resumed run begins another.
                job_name=f"train-{config.seed}-{first_record}" if num_pipelines > 1 else None,
            )
        )
    return dataset.prefetch(_AUTOTUNE)


def assign(batch: types.Batch, config: InputConfig, *, method: str) -> types.Targets:
    """The targets of a batch's boxes, all ignored where an image is not valid.

    `method` is that of `targets.assign_targets`.
    """
    assigned = targets.assign_targets(
        batch.boxes,
        batch.classes,
        batch.difficult,
        batch.box_weights,
        anchor_config=config.anchor,
        match_config=config.match,
        image_size=config.image_size,
        method=method,
    )
    ignored = tf.constant(types.IGNORED, assigned.class_targets.dtype)
    return assigned._replace(class_targets=tf.where(batch.valid[:, tf.newaxis], assigned.class_targets, ignored))


def assign_on_host(dataset: tf.data.Dataset, config: InputConfig) -> tf.data.Dataset:
    """`Dataset[Batch]` -> `Dataset[(Batch, Targets)]`: flips the boxes and assigns the anchors' targets on the host.

    The images are left for the device to augment by the same draws.
    """

    def augment_and_assign(batch: types.Batch):
        batch = batch_augment.augment_boxes(batch, config.augment)
        return batch, assign(batch, config, method="sparse")

    return dataset.map(augment_and_assign, num_parallel_calls=_AUTOTUNE, deterministic=True).prefetch(_AUTOTUNE)
