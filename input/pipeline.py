"""Shard files -> `Dataset[Batch]`, all in graph mode.

Training order and randomness are functions of (seed, epoch, record) alone. So a run resumes in the middle of an epoch
with no saved iterator state: the records already seen are skipped, still encoded, after the shuffle and before the
decoding.
"""

from typing import NamedTuple

import tensorflow as tf

from input import augment, batch_augment, targets, tfrecord, types
from input.config import InputConfig

_AUTOTUNE = tf.data.AUTOTUNE
_READERS = 8  # files read in turn


class _Shard(NamedTuple):
    path: str
    first: int  # index of its first record, over all shards read in order
    count: int


def _read(shards, files_shuffle_seed=None):
    """Dataset of (record_index i64, serialized)."""
    paths, firsts, _ = zip(*shards)
    files = tf.data.Dataset.from_tensor_slices((list(paths), tf.constant(firsts, tf.int64)))
    if files_shuffle_seed is None:
        return files.flat_map(lambda path, first: tf.data.TFRecordDataset(path).enumerate(first))
    files = files.shuffle(len(paths), seed=files_shuffle_seed)
    return files.interleave(
        lambda path, first: tf.data.TFRecordDataset(path).enumerate(first),
        cycle_length=min(_READERS, len(paths)),
        num_parallel_calls=_AUTOTUNE,
        deterministic=True,
    )


def _training_records(shards, config: InputConfig, first_record):
    """Endless dataset of (record_index, serialized, seed i32 [2]), starting after `first_record` records."""
    first_epoch, first_in_epoch = divmod(first_record, sum(shard.count for shard in shards))

    def one_epoch(epoch):
        # Of this function's graph alone, where it would else be the caller's: the order depends on nothing but `seed`.
        tf.random.set_seed(1)
        # Only the low half differs between epochs; the generators mix it well.
        seed = epoch + (config.seed << 32)
        records = _read(shards, seed)
        records = records.shuffle(config.shuffle_buffer, seed=seed)
        records = records.skip(tf.where(epoch == first_epoch, tf.constant(first_in_epoch, tf.int64), 0))
        return records.map(lambda index, serialized: (index, serialized, _seed(config.seed, epoch, index)))

    return tf.data.Dataset.counter(first_epoch).flat_map(one_epoch)


def _seed(seed, epoch, index):
    """i32 [2]: the stateless seed of one record in one epoch."""
    epoch_seed = tf.stack([tf.constant(seed, tf.int64), epoch])
    return tf.cast(tf.random.experimental.stateless_fold_in(epoch_seed, index) % (2**31), tf.int32)


def _to_batch(sample: types.Sample, valid, record_index, draws) -> types.Batch:
    return types.Batch(
        images=sample.image,
        boxes=sample.boxes,
        classes=sample.classes,
        difficult=sample.difficult,
        box_weights=sample.box_weights,
        original_sizes=sample.original_size,
        transforms=sample.transform,
        valid=valid,
        record_index=record_index,
        draws=draws,
    )


def _shards(paths):
    """The shards that hold records.

    Raises:
      ValueError: none does.
    """
    paths = list(paths)
    counts = tfrecord.count_records(paths)
    shards = [_Shard(path, sum(counts[:i]), count) for i, (path, count) in enumerate(zip(paths, counts)) if count]
    if not shards:
        raise ValueError(f"no records in {', '.join(paths) or 'an empty list of files'}: convert the data set again.")
    return shards


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
        padded with images marked not `valid`.
      batch_size: images in a batch.
      first_record: training only: how many records an earlier run has already consumed, in this pipeline.
      num_pipelines, pipeline_id: training only: of several workers, each reads every `num_pipelines`-th file.

    Returns:
      `Dataset[Batch]` with static shapes.

    Raises:
      ValueError: there are no files, no records, or fewer files with records than pipelines.
    """
    shards = _shards(paths)
    if len(shards) < num_pipelines:
        raise ValueError(
            f"{len(shards)} shards with records for {num_pipelines} workers: convert again with --num_shards a "
            f"multiple of {num_pipelines}."
        )

    if training:

        def load(index, serialized, seed):
            host_seed, device_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
            sample = augment.load_and_crop(tfrecord.parse_example(serialized), config, host_seed)
            draws = tf.random.stateless_uniform([batch_augment.NUM_DRAWS], device_seed, alg="philox")
            return _to_batch(sample, True, index, draws)

        records = _training_records(shards[pipeline_id::num_pipelines], config, first_record)
    else:

        def load(index, serialized, valid):
            sample = augment.load_and_crop(tfrecord.parse_example(serialized), config)
            return _to_batch(sample, valid, index, tf.zeros([batch_augment.NUM_DRAWS]))

        records = _read(shards)
        padding = records.take(1).repeat(-sum(shard.count for shard in shards) % batch_size)
        records = tf.data.Dataset.zip((records, tf.data.Dataset.from_tensors(True).repeat())).concatenate(
            tf.data.Dataset.zip((padding, tf.data.Dataset.from_tensors(False).repeat()))
        )
        records = records.map(lambda record, valid: (*record, valid))

    return (
        records.map(load, num_parallel_calls=_AUTOTUNE, deterministic=True)
        .batch(batch_size, drop_remainder=True)
        .prefetch(_AUTOTUNE)
    )


def assign(batch: types.Batch, config: InputConfig, *, method: str) -> types.Targets:
    """The targets of a batch's boxes; `method` as in `targets.assign_targets`."""
    return targets.assign_targets(
        batch.boxes,
        batch.classes,
        batch.difficult,
        batch.box_weights,
        anchor_config=config.anchor,
        match_config=config.match,
        image_size=config.image_size,
        method=method,
    )


def assign_on_host(dataset: tf.data.Dataset, config: InputConfig) -> tf.data.Dataset:
    """`Dataset[Batch]` -> `Dataset[(Batch, Targets)]`: flips the boxes and assigns the anchors' targets on the host.

    The images are left for the device to augment by the same draws.
    """

    def augment_and_assign(batch: types.Batch):
        batch = batch_augment.augment_boxes(batch, config.augment)
        return batch, assign(batch, config, method="sparse")

    return dataset.map(augment_and_assign, num_parallel_calls=_AUTOTUNE, deterministic=True).prefetch(_AUTOTUNE)
