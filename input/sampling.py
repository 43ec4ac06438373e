"""Which record comes when: shards, epochs, repeated records, mixtures, several workers, and evaluation.

The order and the random numbers depend on (seed, epoch, record) alone. So a run resumes in the middle of an epoch
without any saved iterator state: the records already seen are skipped, still encoded, after the shuffle.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from input import random_numbers
from input.config import InputConfig
from input.shards import count_records, read_classes, read_labels

_AUTOTUNE = tf.data.AUTOTUNE
_READERS = 8  # files read in turn
_BLOCK = 4096  # how many records of a mixture are assigned to their groups at once
# The second seed of the generators, by purpose. Images have 0 and up; the blocks of a mixture have -3 and down.
_REPEATS_SEED, _VISITS_SEED, _MIXTURE_SEED = -1, -2, -3


class Shard(NamedTuple):
    """One shard; in a graph its fields are tensors."""

    path: str | tf.Tensor
    file_index: int | tf.Tensor  # among all files given
    first_record: int | tf.Tensor  # index of its first record, counted over all shards read in order
    num_records: int | tf.Tensor


class StoredRecord(NamedTuple):
    """One record of a shard."""

    record_index: tf.Tensor  # i64, counted over all shards read in order
    serialized: tf.Tensor  # string


class SampledRecord(NamedTuple):
    """One record as it is to be shown."""

    stored: StoredRecord
    valid: tf.Tensor  # bool, false for the padding of the last evaluation batch
    random_numbers: tf.Tensor  # f32 [NUM_PER_IMAGE]


def training_records(
    paths: Sequence[str], config: InputConfig, *, first_record: int, num_pipelines: int, pipeline_id: int
) -> tf.data.Dataset:
    """Endless, shuffled dataset of `SampledRecord`.

    Args:
      paths: shard files, in order.
      config: the seed, and which records are shown how often.
      first_record: how many records an earlier run has already consumed, in this pipeline.
      num_pipelines, pipeline_id: of several workers, each reads every `num_pipelines`-th file.

    Raises:
      ValueError: there are no records, or fewer files with records than pipelines.
    """
    shards = _list_shards(paths)
    if len(shards) < num_pipelines:
        raise ValueError(
            f"{len(shards)} shards with records for {num_pipelines} workers: convert again with --num_shards a "
            f"multiple of {num_pipelines}."
        )
    if config.data_service:
        return _served_records(shards, config, first_record * num_pipelines)  # all pipelines take from one job
    own_shards = shards[pipeline_id::num_pipelines]
    if config.mixture:
        return _mixed_records(own_shards, config, first_record)
    if config.repeat_threshold:
        classes = read_classes(paths, len(read_labels(paths)))
        return _shuffled_records(own_shards, config, first_record, RepeatFactors(own_shards, classes, config))
    return _shuffled_records(own_shards, config, first_record)


def evaluation_records(paths: Sequence[str], batch_size: int) -> tf.data.Dataset:
    """Dataset of `SampledRecord`: each record once, in order, and then padding that fills the last batch.

    Raises:
      ValueError: there are no records.
    """
    shards = _list_shards(paths)
    records = _read_in_order(shards)
    padding = records.take(1).repeat(-sum(shard.num_records for shard in shards) % batch_size)
    numbers = tf.data.Dataset.from_tensors(tf.zeros([random_numbers.NUM_PER_IMAGE])).repeat()
    return _sampled(records, numbers).concatenate(_sampled(padding, numbers, valid=False))


def _list_shards(paths: Sequence[str]) -> list[Shard]:
    """The shards that hold records.

    Raises:
      ValueError: none does.
    """
    counts = count_records(paths)
    rows = zip(paths, itertools.count(), itertools.accumulate(counts, initial=0), counts)
    shards = [shard for shard in itertools.starmap(Shard, rows) if shard.num_records]
    if not shards:
        raise ValueError(f"no records in {', '.join(paths) or 'an empty list of files'}: convert the data set again.")
    return shards


# One epoch after the other.


def _epoch_seed(config: InputConfig, epoch: tf.Tensor) -> tf.Tensor:
    # Only the low half differs between epochs; the generators mix it well.
    return epoch + (config.seed << 32)


def _as_tensors(shards: Sequence[Shard]) -> Shard:
    """The fields of several shards, each as one tensor [number of shards]."""
    return Shard(*(tf.constant(np.array(column)) for column in zip(*shards)))


def _read(shard: Shard) -> tf.data.Dataset:
    """Dataset of `StoredRecord`."""
    indexes = tf.data.Dataset.range(shard.first_record, np.iinfo(np.int64).max)
    return tf.data.Dataset.zip(StoredRecord(indexes, tf.data.TFRecordDataset(shard.path)))


def _read_in_order(shards: Sequence[Shard]) -> tf.data.Dataset:
    """Dataset of `StoredRecord`."""
    return tf.data.Dataset.from_tensor_slices(_as_tensors(shards)).flat_map(_read)


def _draw_for(shard: Shard, seed: tf.Tensor) -> tf.Tensor:
    """The random numbers of a shard's records in one epoch."""
    # All at once, because an op for each record would take as long as reading it.
    return random_numbers.draw(seed, shard.first_record, shard.num_records)


def _sampled(records: tf.data.Dataset, numbers: tf.data.Dataset, valid: bool = True) -> tf.data.Dataset:
    """Dataset of `SampledRecord` from those of its parts."""
    return tf.data.Dataset.zip(SampledRecord(records, tf.data.Dataset.from_tensors(valid).repeat(), numbers))


def _sample_shard(shard: Shard, seed: tf.Tensor) -> tf.data.Dataset:
    """Dataset of `SampledRecord`: the records of a shard in one epoch."""
    return _sampled(_read(shard), tf.data.Dataset.from_tensor_slices(_draw_for(shard, seed)))


def _shuffled_records(
    shards: Sequence[Shard], config: InputConfig, first_record: int, factors: RepeatFactors | None = None
) -> tf.data.Dataset:
    """Endless dataset of `SampledRecord`: each epoch shows each record once, or as often as its repeat factor says."""
    num_records = sum(shard.num_records for shard in shards)
    first_epoch, first_in_epoch = divmod(first_record, num_records) if factors is None else factors.locate(first_record)
    # Outside `one_epoch`, which would make another cache in each epoch.
    cached = _read_in_order(shards).cache() if config.cache_records else None

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        # Seeds this function's graph only; otherwise the caller's global seed would change the order.
        tf.random.set_seed(1)
        seed = _epoch_seed(config, epoch)
        if cached is None:
            files = tf.data.Dataset.from_tensor_slices(_as_tensors(shards)).shuffle(len(shards), seed=seed)
            records = files.interleave(
                lambda shard: _sample_shard(shard, seed),
                cycle_length=min(_READERS, len(shards)),
                num_parallel_calls=_AUTOTUNE,
                deterministic=config.deterministic_input,
            )
            buffer_size = config.shuffle_buffer
        else:
            numbers = tf.concat([_draw_for(shard, seed) for shard in shards], axis=0)
            records = _sampled(cached, tf.data.Dataset.from_tensor_slices(numbers))
            buffer_size = max(config.shuffle_buffer, num_records)  # the records are in memory in any case
        if factors is not None:
            records = factors.repeat(records, epoch)
        records = records.shuffle(buffer_size, seed=seed)
        return records.skip(tf.where(epoch == first_epoch, tf.constant(first_in_epoch, tf.int64), 0))

    return tf.data.Dataset.counter(first_epoch).flat_map(one_epoch)


class RepeatFactors:
    """Repeat-factor sampling (Gupta et al. 2019, "LVIS", section 5.1).

    A class that a share f of the images shows has the factor max(1, sqrt(t / f)); an image has the largest factor of
    its classes. Each epoch shows an image that many times; a fraction is the probability of one time more.

    Args:
      shards: the shards that are read.
      classes: of the objects of each record, over all shards.
      config: t is its `repeat_threshold`.
    """

    def __init__(self, shards: Sequence[Shard], classes: Sequence[Sequence[int]], config: InputConfig):
        self._config = config
        own = np.zeros(len(classes), bool)
        for shard in shards:
            own[shard.first_record : shard.first_record + shard.num_records] = True
        images_per_class = np.bincount([index for present in classes for index in set(present)], minlength=1)
        with np.errstate(divide="ignore"):
            of_classes = np.maximum(1.0, np.sqrt(config.repeat_threshold * len(classes) / images_per_class))
        of_images = [max((of_classes[index] for index in present), default=1.0) for present in classes]
        self._factors = np.where(own, of_images, 0.0).astype(np.float32)

    def count(self, epoch: tf.Tensor) -> tf.Tensor:
        """How often the epoch shows each record, i64 [number of records]."""
        seed = tf.stack([_epoch_seed(self._config, epoch), tf.constant(_REPEATS_SEED, tf.int64)])
        fractions = tf.random.stateless_uniform([len(self._factors)], seed, alg="philox")
        counts = tf.floor(self._factors + fractions)
        return tf.cast(tf.where(self._factors > 0, counts, 0.0), tf.int64)

    def locate(self, first_record: int) -> tuple[int, int]:
        """The epoch, and the index in it, of the record that follows after `first_record` records."""
        epoch = 0
        while first_record >= (count := int(tf.reduce_sum(self.count(tf.constant(epoch, tf.int64))))):
            epoch, first_record = epoch + 1, first_record - count
        return epoch, first_record

    def repeat(self, records: tf.data.Dataset, epoch: tf.Tensor) -> tf.data.Dataset:
        """Shows each `SampledRecord` as often as the epoch does, each time with other random numbers."""
        counts, seed = self.count(epoch), _epoch_seed(self._config, epoch)

        def copy(record: SampledRecord) -> tf.data.Dataset:
            index = record.stored.record_index
            # These seeds are above those used for shards, which are indexes of records.
            seeds = tf.data.Dataset.from_tensor_slices(index + tf.range(1, counts[index] + 1) * len(self._factors))
            return seeds.map(lambda second: record._replace(random_numbers=random_numbers.draw(seed, second, 1)[0]))

        return records.flat_map(copy)


# Several groups of shards at once.


def _choices(config: InputConfig, block: tf.Tensor) -> tf.Tensor:
    """The group of the mixture that each record of a block comes from, i64 [_BLOCK]."""
    weights = np.array([weight for weight, _ in config.mixture])
    bounds = tf.constant(np.cumsum(weights / weights.sum())[:-1], tf.float32)
    seed = tf.stack([_epoch_seed(config, tf.constant(0, tf.int64)), _MIXTURE_SEED - block])
    numbers = tf.random.stateless_uniform([_BLOCK], seed, alg="philox")
    return tf.searchsorted(bounds, numbers, side="right", out_type=tf.int64)


def _mixed_records(shards: Sequence[Shard], config: InputConfig, first_record: int) -> tf.data.Dataset:
    """As `_shuffled_records`, but from several groups of shards, each with epochs of its own."""
    ends = np.cumsum([size for _, size in config.mixture])
    groups = [[shard for shard in shards if start <= shard.file_index < end] for start, end in zip((0, *ends), ends)]
    if not all(groups):
        raise ValueError("--train_weights: a pattern of --train_records has no records, or fewer files than workers.")
    block, in_block = divmod(first_record, _BLOCK)
    consumed = np.zeros(len(groups), np.int64)
    for number in range(block + 1):
        earlier = _choices(config, tf.constant(number, tf.int64)).numpy()
        consumed += np.bincount(earlier[: in_block if number == block else None], minlength=len(groups))
    sources = [_shuffled_records(group, config, int(count)) for group, count in zip(groups, consumed)]
    choices = tf.data.Dataset.counter(block).flat_map(
        lambda number: tf.data.Dataset.from_tensor_slices(_choices(config, number))
    )
    return tf.data.Dataset.choose_from_datasets(sources, choices.skip(in_block), stop_on_empty_dataset=False)


# A tf.data service.


def _served_records(shards: Sequence[Shard], config: InputConfig, first_record: int) -> tf.data.Dataset:
    """As `_shuffled_records`, for a tf.data service, whose workers divide the visits to shards among themselves.

    An epoch visits each shard once, but the end of one epoch overlaps with the beginning of the next. A resumed run
    starts with the shard that holds the record after the first `first_record` ones.
    """
    tensors = _as_tensors(shards)
    first_epoch, left = divmod(first_record, sum(shard.num_records for shard in shards))

    def order(epoch: tf.Tensor) -> tf.Tensor:
        seed = tf.stack([_epoch_seed(config, epoch), tf.constant(_VISITS_SEED, tf.int64)])
        return tf.random.experimental.stateless_shuffle(tf.range(len(shards)), seed)

    def visit(number: tf.Tensor) -> tf.data.Dataset:
        epoch = number // len(shards)
        index = order(epoch)[number % len(shards)]
        shard = tf.nest.map_structure(lambda values: values[index], tensors)
        return _sample_shard(shard, _epoch_seed(config, epoch))

    first_visit = first_epoch * len(shards)
    for index in order(tf.constant(first_epoch, tf.int64)).numpy():
        if left < shards[index].num_records:
            break
        left, first_visit = left - shards[index].num_records, first_visit + 1
    visits = tf.data.Dataset.range(first_visit, np.iinfo(np.int64).max)
    records = visits.interleave(
        visit, cycle_length=min(_READERS, len(shards)), num_parallel_calls=_AUTOTUNE, deterministic=False
    )
    return records.shuffle(config.shuffle_buffer, seed=config.seed)
