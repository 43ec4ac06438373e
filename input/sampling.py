"""Which record comes when.

Training order and randomness are functions of (seed, epoch, record) alone. So a run resumes in the middle of an epoch
with no saved iterator state: the records already seen are skipped, still encoded, after the shuffle and before the
decoding.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from input import shards as shard_files
from input import types
from input.config import InputConfig

_AUTOTUNE = tf.data.AUTOTUNE
_READERS = 8  # files read in turn
_CHOICES = 4096  # drawn at a time, of a mixture


class Shard(NamedTuple):
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


def training_records(shards, config: InputConfig, first_record, copies=None):
    """Endless dataset of ((record_index, serialized), draws f32 [NUM_DRAWS]), starting after `first_record` records.

    `copies` is `Copies` where some records are shown several times in an epoch.
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


class Copies:
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


def mixed_records(shards, config: InputConfig, first_record):
    """As `training_records`, of several groups of shards at once, each with epochs of its own."""
    ends = np.cumsum([size for _, size in config.mixture])
    groups = [[shard for shard in shards if start <= shard.place < end] for start, end in zip((0, *ends), ends)]
    if not all(groups):
        raise ValueError("--train_weights: a pattern of --train_records has no records, or fewer files than workers.")
    block, in_block = divmod(first_record, _CHOICES)
    consumed = np.zeros(len(groups), np.int64)
    for number in range(block + 1):
        drawn = _choices(config, tf.constant(number, tf.int64)).numpy()
        consumed += np.bincount(drawn[: in_block if number == block else None], minlength=len(groups))
    sources = [training_records(group, config, int(count)) for group, count in zip(groups, consumed)]
    choices = tf.data.Dataset.counter(block).flat_map(
        lambda number: tf.data.Dataset.from_tensor_slices(_choices(config, number))
    )
    return tf.data.Dataset.choose_from_datasets(sources, choices.skip(in_block), stop_on_empty_dataset=False)


def served_records(shards, config: InputConfig, first_record):
    """As `training_records`, for the workers of a tf.data service, which share out the visits to shards.

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


def evaluation_records(shards, batch_size):
    """Dataset of ((record_index, serialized), valid), each record once and in order; the last batch filled up."""
    records = _read_in_order(shards)
    padding = records.take(1).repeat(-sum(shard.count for shard in shards) % batch_size)

    def marked(dataset, valid):
        return tf.data.Dataset.zip((dataset, tf.data.Dataset.from_tensors(valid).repeat()))

    return marked(records, True).concatenate(marked(padding, False))


def list_shards(paths):
    """The shards that hold records.

    Raises:
      ValueError: none does.
    """
    paths = list(paths)
    counts = shard_files.count_records(paths)
    firsts = itertools.accumulate(counts, initial=0)
    shards = [Shard(*shard) for shard in zip(paths, itertools.count(), firsts, counts) if shard[-1]]
    if not shards:
        raise ValueError(f"no records in {', '.join(paths) or 'an empty list of files'}: convert the data set again.")
    return shards
