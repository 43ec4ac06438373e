"""Shard files -> `Dataset[Batch]`, all in graph mode.

Training order and randomness are functions of (seed, epoch, record) alone. So a run resumes in the middle of an epoch
with no saved iterator state: the records already seen are skipped, still encoded, after the shuffle and before the
decoding.
"""

import itertools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from input import augment, batch_augment, targets, tfrecord, types
from input.config import InputConfig

_AUTOTUNE = tf.data.AUTOTUNE
_READERS = 8  # files read in turn
_CHOICES = 4096  # drawn at a time, of a mixture


class _Shard(NamedTuple):
    path: str
    place: int  # among all files given
    first: int  # index of its first record, over all shards read in order
    count: int


def _open(path, first):
    """Dataset of (record_index i64, serialized) of one shard."""
    return tf.data.TFRecordDataset(path).enumerate(first)


def _draws(seed, first, count):
    """f32 [count, NUM_DRAWS]: all that is random about how the records of a shard are shown in an epoch.

    For all of them at once: an op for each record would take as long as reading it.
    """
    return tf.random.stateless_uniform([count, types.NUM_DRAWS], tf.stack([seed, first]), alg="philox")


def _open_to_train(path, first, count, seed):
    """Dataset of ((record_index, serialized), draws f32 [NUM_DRAWS])."""
    return tf.data.Dataset.zip((_open(path, first), tf.data.Dataset.from_tensor_slices(_draws(seed, first, count))))


def _columns(shards):
    """The fields of the shards, a tensor each."""
    paths, firsts, counts = zip(*((shard.path, shard.first, shard.count) for shard in shards))
    return tf.constant(paths), tf.constant(firsts, tf.int64), tf.constant(counts, tf.int64)


def _read_in_order(shards):
    """Dataset of (record_index, serialized)."""
    files = tf.data.Dataset.from_tensor_slices(_columns(shards))
    return files.flat_map(lambda path, first, count: _open(path, first))


def _read_shuffled(shards, seed, deterministic):
    """Dataset of ((record_index, serialized), draws), the order and draws of one epoch."""
    files = tf.data.Dataset.from_tensor_slices(_columns(shards)).shuffle(len(shards), seed=seed)
    return files.interleave(
        lambda path, first, count: _open_to_train(path, first, count, seed),
        cycle_length=min(_READERS, len(shards)),
        num_parallel_calls=_AUTOTUNE,
        deterministic=deterministic,
    )


def _epoch_seed(config: InputConfig, epoch):
    # Only the low half differs between epochs; the generators mix it well.
    return epoch + (config.seed << 32)


def _training_records(shards, config: InputConfig, first_record, copies=None):
    """Endless dataset of ((record_index, serialized), draws f32 [NUM_DRAWS]), starting after `first_record` records.

    `copies` is `_Copies` where some records are shown several times in an epoch.
    """
    num_records = sum(shard.count for shard in shards)
    if copies is None:
        first_epoch, first_in_epoch = divmod(first_record, num_records)
    else:
        first_epoch, first_in_epoch = copies.locate(first_record)
    # Outside of `one_epoch`, because a cache made inside of it would be another one in each epoch.
    cached = _read_in_order(shards).cache() if config.cache_records else None

    def one_epoch(epoch):
        # Of this function's graph alone, where it would else be the caller's: the order depends on nothing but `seed`.
        tf.random.set_seed(1)
        seed = _epoch_seed(config, epoch)
        if cached is None:
            records = _read_shuffled(shards, seed, config.deterministic_input)
        else:
            draws = tf.concat([_draws(seed, tf.constant(s.first, tf.int64), s.count) for s in shards], axis=0)
            records = tf.data.Dataset.zip((cached, tf.data.Dataset.from_tensor_slices(draws)))
        if copies is not None:
            records = copies.repeat(records, epoch)
        # Cached records are in memory in any case.
        records = records.shuffle(max(config.shuffle_buffer, num_records if config.cache_records else 0), seed=seed)
        return records.skip(tf.where(epoch == first_epoch, tf.constant(first_in_epoch, tf.int64), 0))

    return tf.data.Dataset.counter(first_epoch).flat_map(one_epoch)


class _Copies:
    """Repeat-factor sampling (Gupta et al. 2019, "LVIS", section 5.1).

    A class that a share f of the images shows has the factor max(1, sqrt(t / f)), an image the largest of its classes'.
    Each epoch shows an image that often, the fraction by a draw of that epoch.

    Args:
      shards: those that are read.
      classes: of the objects of each record, over all shards.
      config: t is its `repeat_threshold`.
    """

    def __init__(self, shards, classes, config: InputConfig):
        self._config = config
        own = np.zeros(len(classes), bool)
        for shard in shards:
            own[shard.first : shard.first + shard.count] = True
        images_per_class = np.bincount([index for present in classes for index in set(present)], minlength=1)
        with np.errstate(divide="ignore"):
            factors = np.maximum(1.0, np.sqrt(config.repeat_threshold * len(classes) / images_per_class))
        of_images = [max((factors[index] for index in present), default=1.0) for present in classes]
        self._factors = np.where(own, of_images, 0.0).astype(np.float32)

    def of_epoch(self, epoch):
        """i64 [num_records]."""
        seed = tf.stack([_epoch_seed(self._config, epoch), tf.constant(-1, tf.int64)])
        fractions = tf.random.stateless_uniform([len(self._factors)], seed, alg="philox")
        drawn = tf.floor(self._factors + fractions)
        return tf.cast(tf.where(self._factors > 0, drawn, 0.0), tf.int64)

    def locate(self, first_record) -> tuple[int, int]:
        """The epoch and the place in it that follow after `first_record` records."""
        epoch = 0
        while first_record >= (count := int(tf.reduce_sum(self.of_epoch(tf.constant(epoch, tf.int64))))):
            epoch, first_record = epoch + 1, first_record - count
        return epoch, first_record

    def repeat(self, records, epoch):
        """Each record as often as the epoch shows it, each time by other draws."""
        counts, seed = self.of_epoch(epoch), _epoch_seed(self._config, epoch)

        def copy(record, draws):
            index, _ = record
            # The seeds of shards are below the number of records.
            seeds = index + tf.range(1, counts[index] + 1) * len(self._factors)
            return tf.data.Dataset.from_tensor_slices(seeds).map(lambda number: (record, _draws(seed, number, 1)[0]))

        return records.flat_map(copy)


def _choices(config: InputConfig, block):
    """i64 [_CHOICES]: which group of the mixture each of the records of a block comes from."""
    weights = np.array([weight for weight, _ in config.mixture])
    bounds = tf.constant(np.cumsum(weights / weights.sum())[:-1], tf.float32)
    seed = tf.stack([_epoch_seed(config, tf.constant(0, tf.int64)), -3 - block])
    draws = tf.random.stateless_uniform([_CHOICES], seed, alg="philox")
    return tf.searchsorted(bounds, draws, side="right", out_type=tf.int64)


def _mixed_records(shards, config: InputConfig, first_record):
    """As `_training_records`, of several groups of shards at once, each with epochs of its own."""
    ends = np.cumsum([size for _, size in config.mixture])
    groups = [[shard for shard in shards if start <= shard.place < end] for start, end in zip((0, *ends), ends)]
    if not all(groups):
        raise ValueError("--train_weights: a pattern of --train_records has no records, or fewer files than workers.")
    block, in_block = divmod(first_record, _CHOICES)
    consumed = np.zeros(len(groups), np.int64)
    for number in range(block + 1):
        drawn = _choices(config, tf.constant(number, tf.int64)).numpy()
        consumed += np.bincount(drawn[: in_block if number == block else None], minlength=len(groups))
    sources = [_training_records(group, config, int(count)) for group, count in zip(groups, consumed)]
    choices = tf.data.Dataset.counter(block).flat_map(
        lambda number: tf.data.Dataset.from_tensor_slices(_choices(config, number))
    )
    return tf.data.Dataset.choose_from_datasets(sources, choices.skip(in_block), stop_on_empty_dataset=False)


def _served_records(shards, config: InputConfig, first_record):
    """As `_training_records`, for the workers of a tf.data service, which share out the visits to shards.

    An epoch shows each record once, but workers mix the end of one with the beginning of the next. After `first_record`
    records the visits go on at the shard that holds that place.
    """
    paths, firsts, counts = _columns(shards)
    first_epoch, left = divmod(first_record, sum(shard.count for shard in shards))
    order = tf.random.experimental.stateless_shuffle
    numbers = tf.range(len(shards))

    def visit(number):
        seed = _epoch_seed(config, number // len(shards))
        shard = order(numbers, tf.stack([seed, tf.constant(-2, tf.int64)]))[number % len(shards)]
        return _open_to_train(paths[shard], firsts[shard], counts[shard], seed)

    place = 0
    for shard in order(numbers, tf.stack([_epoch_seed(config, tf.constant(first_epoch, tf.int64)), -2])).numpy():
        if left < shards[shard].count:
            break
        left, place = left - shards[shard].count, place + 1
    visits = tf.data.Dataset.range(first_epoch * len(shards) + place, np.iinfo(np.int64).max)
    records = visits.interleave(
        visit, cycle_length=min(_READERS, len(shards)), num_parallel_calls=_AUTOTUNE, deterministic=False
    )
    return records.shuffle(config.shuffle_buffer, seed=config.seed)


def _evaluation_records(shards, batch_size):
    """Dataset of ((record_index, serialized), valid), each record once and in order; the last batch filled up."""
    records = _read_in_order(shards)
    padding = records.take(1).repeat(-sum(shard.count for shard in shards) % batch_size)

    def marked(dataset, valid):
        return tf.data.Dataset.zip((dataset, tf.data.Dataset.from_tensors(valid).repeat()))

    return marked(records, True).concatenate(marked(padding, False))


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


def _shards(paths):
    """The shards that hold records.

    Raises:
      ValueError: none does.
    """
    paths = list(paths)
    counts = tfrecord.count_records(paths)
    firsts = itertools.accumulate(counts, initial=0)
    shards = [_Shard(*shard) for shard in zip(paths, itertools.count(), firsts, counts) if shard[-1]]
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
        padded with images marked not `valid`. A record that cannot be decoded is grey and marked so in either case.
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

    def load(index, serialized, valid, draws):
        records = tfrecord.parse_examples(serialized)
        return augment.load_and_crop(records, index, valid, draws, config, training=training)

    def blank(index, serialized, valid, draws):
        return augment.blank(index, draws, config)

    load_or_blank = _or_blank(load, blank)

    if training:
        own_shards = shards[pipeline_id::num_pipelines]
        if config.data_service:
            records = _served_records(shards, config, first_record * num_pipelines)  # all take from one job
        elif config.mixture:
            records = _mixed_records(own_shards, config, first_record)
        elif config.repeat_threshold:
            classes = tfrecord.read_classes(paths, len(tfrecord.read_labels(paths)))
            records = _training_records(own_shards, config, first_record, _Copies(own_shards, classes, config))
        else:
            records = _training_records(own_shards, config, first_record)

        def load_batch(record, draws):
            return load_or_blank(*record, tf.ones([batch_size], tf.bool), draws)
    else:
        records = _evaluation_records(shards, batch_size)

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
