"""From shards to batches: nothing lost, nothing twice, the same again, and from the middle."""

import dataclasses

import numpy as np
import pytest
import shards
import tensorflow as tf

from input import batch_augment, pipeline, tfrecord, types
from input.config import AnchorConfig, AugmentConfig, InputConfig

CONFIG = InputConfig(
    image_size=(32, 64),
    max_boxes=3,
    shuffle_buffer=4,
    anchor=AnchorConfig(sizes=(8.0, 16.0, 32.0, 64.0, 128.0), scales=(1.0,)),
    augment=AugmentConfig.preset("default"),
)
NUM_IMAGES = 10


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return shards.write_shards(tmp_path_factory.mktemp("records"), NUM_IMAGES)


def take(dataset, count):
    """`count` batches as one `Batch` of arrays, joined along the batch."""
    batches = list(dataset.take(count).as_numpy_iterator())
    assert len(batches) == count
    return types.Batch(*(np.concatenate(values) for values in zip(*batches)))


def training(paths, count, batch_size=5, config=CONFIG, **options):
    return take(pipeline.make_dataset(paths, config, training=True, batch_size=batch_size, **options), count)


def assert_same(one, other):
    for name, ours, theirs in zip(types.Batch._fields, one, other):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_an_epoch_shows_each_image_once_and_the_next_in_another_order(paths):
    batch = training(paths, 4)
    first, second = np.split(batch.record_index, 2)
    assert sorted(first) == sorted(second) == list(range(NUM_IMAGES))
    assert list(first) != list(second)
    assert list(first) != list(range(NUM_IMAGES))


def test_the_record_index_names_the_image(paths):
    """In order over the shards, as `read_annotations` lists them; and each keeps its own boxes and pixels."""
    ids = [truth.image_id for truth in tfrecord.read_annotations(paths)]
    batch = training(paths, 2, config=dataclasses.replace(CONFIG, augment=AugmentConfig()))
    for row, index in enumerate(batch.record_index):
        number = int(ids[index].split("-")[1])
        pixels, boxes, classes = shards.blocks(number)
        np.testing.assert_array_equal(batch.classes[row, : len(classes)], classes)
        expected = np.array(boxes) * batch.transforms[row, 0]
        np.testing.assert_allclose(batch.boxes[row, : len(classes)], expected, atol=0.5)
        ground = np.median(batch.images[row, :, :43, 0])  # the padding starts at 43
        assert abs(ground - int(np.median(pixels[..., 0]))) <= 3


def test_same_seed_same_batches_other_seed_others(paths):
    first = training(paths, 4)
    tf.random.set_seed(99)  # somebody else's seed must not matter
    assert_same(first, training(paths, 4))
    other = training(paths, 4, config=dataclasses.replace(CONFIG, seed=1))
    assert not np.array_equal(first.record_index, other.record_index)
    assert not np.array_equal(np.sort(first.draws, axis=0), np.sort(other.draws, axis=0))


def test_an_image_is_augmented_anew_each_epoch(paths):
    batch = training(paths, 4)
    draws = {}
    for index, values in zip(batch.record_index, batch.draws):
        draws.setdefault(index, []).append(values)
    assert all(not np.array_equal(*pair) for pair in draws.values())
    assert np.all((batch.draws >= 0) & (batch.draws < 1))


@pytest.mark.parametrize("consumed", [0, 3, 10, 17, 25])
def test_a_resumed_run_goes_on_at_the_exact_image(paths, consumed):
    whole = training(paths, 40, batch_size=1)
    rest = training(paths, 3, first_record=consumed)
    assert_same(types.Batch(*(values[consumed : consumed + 15] for values in whole)), rest)


def test_replicas_share_the_batches_of_one(paths):
    """Two replicas with two images each take, in turn, what one takes with four."""
    assert_same(training(paths, 3, batch_size=4), training(paths, 6, batch_size=2))


def test_two_workers_read_different_files_and_every_image(paths):
    batches = [training(paths, 1, batch_size=n, num_pipelines=2, pipeline_id=i) for i, n in ((0, 7), (1, 3))]
    indexes = [set(batch.record_index.tolist()) for batch in batches]
    assert indexes[0] | indexes[1] == set(range(NUM_IMAGES))
    assert not indexes[0] & indexes[1]


def test_evaluation_shows_each_image_once_in_order_and_marks_the_padding(paths):
    dataset = pipeline.make_dataset(paths, CONFIG, training=False, batch_size=4)
    batch = take(dataset, 3)
    assert len(list(dataset)) == 3
    np.testing.assert_array_equal(batch.valid, [True] * 10 + [False] * 2)
    np.testing.assert_array_equal(batch.record_index[:10], np.arange(10))
    np.testing.assert_array_equal(batch.original_sizes, [[48, 64]] * 12)
    np.testing.assert_allclose(batch.transforms, [[32 / 48, 43 / 64, 0, 0]] * 12, rtol=1e-6)


def test_shapes_and_types_are_static(paths):
    for training_ in (True, False):
        spec = pipeline.make_dataset(paths, CONFIG, training=training_, batch_size=4).element_spec
        assert spec.images == tf.TensorSpec([4, 32, 64, 3], tf.uint8)
        assert spec.boxes == tf.TensorSpec([4, 3, 4], tf.float32)
        assert spec.classes == tf.TensorSpec([4, 3], tf.int32)
        assert spec.record_index == tf.TensorSpec([4], tf.int64)
        assert spec.draws == tf.TensorSpec([4, batch_augment.NUM_DRAWS], tf.float32)


def test_host_and_device_assign_the_same_targets(paths):
    dataset = pipeline.make_dataset(paths, CONFIG, training=True, batch_size=5)
    (_, on_host), *_ = pipeline.assign_on_host(dataset, CONFIG).take(1)
    (batch,) = dataset.take(1)
    augmented = batch_augment.augment(batch, CONFIG.augment)
    on_device = pipeline.assign(augmented, CONFIG, method="dense")
    assert np.sum(on_device.class_targets >= 0) >= 5
    np.testing.assert_array_equal(on_host.class_targets, on_device.class_targets)
    np.testing.assert_allclose(on_host.box_targets, on_device.box_targets, atol=1e-5)
    np.testing.assert_array_equal(on_host.weights, on_device.weights)


def test_an_empty_shard_is_passed_over(tmp_path):
    paths = shards.write_shards(tmp_path, num_images=2, num_shards=3)
    batch = take(pipeline.make_dataset(paths, CONFIG, training=False, batch_size=2), 1)
    np.testing.assert_array_equal(batch.record_index, [0, 1])


def test_no_records_and_too_few_files_are_refused(tmp_path, paths):
    empty = shards.write_shards(tmp_path, num_images=0, num_shards=1)
    with pytest.raises(ValueError, match=r"no records in .*train-00000-of-00001.tfrecord.*convert"):
        pipeline.make_dataset(empty, CONFIG, training=True, batch_size=2)
    with pytest.raises(ValueError, match=r"3 shards with records for 4 workers.*--num_shards a multiple of 4"):
        pipeline.make_dataset(paths, CONFIG, training=True, batch_size=2, num_pipelines=4)
