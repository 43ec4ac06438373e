"""From shards to batches: no image is lost or shown twice, batches are repeatable, and runs resume exactly."""

import dataclasses
import pathlib
import socket
import time

import numpy as np
import pytest
import tensorflow as tf
import toy_shards
from hypothesis import given, settings
from hypothesis import strategies as st

from input import batch_augment, memory, pipeline, random_numbers, sampling, shards, targets
from input.config import AnchorConfig, AugmentConfig, InputConfig
from input.random_numbers import NUM_PER_IMAGE
from input.types import IGNORED, PAD_VALUE, Batch
from trainer import data_service

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
    return toy_shards.write_shards(tmp_path_factory.mktemp("records"), NUM_IMAGES)


def take(dataset, count):
    """`count` batches as one `Batch` of arrays, joined along the batch."""
    batches = list(dataset.take(count).as_numpy_iterator())
    assert len(batches) == count
    return Batch(*(np.concatenate(values) for values in zip(*batches)))


def training(paths, count, batch_size=5, config=CONFIG, **options):
    return take(pipeline.make_dataset(paths, config, training=True, batch_size=batch_size, **options), count)


def assert_same(one, other):
    for name, ours, theirs in zip(Batch._fields, one, other):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_an_epoch_shows_each_image_once_and_the_next_in_another_order(paths):
    batch = training(paths, 4)
    first, second = np.split(batch.record_index, 2)
    assert sorted(first) == sorted(second) == list(range(NUM_IMAGES))
    assert list(first) != list(second)
    assert list(first) != list(range(NUM_IMAGES))


def test_the_record_index_names_the_image(paths):
    """In order over the shards, as `read_annotations` lists them; and each keeps its own boxes and pixels."""
    ids = [truth.image_id for truth in shards.read_annotations(paths)]
    batch = training(paths, 2, config=dataclasses.replace(CONFIG, augment=AugmentConfig()))
    for row, index in enumerate(batch.record_index):
        number = int(ids[index].split("-")[1])
        pixels, boxes, classes = toy_shards.blocks(number)
        np.testing.assert_array_equal(batch.classes[row, : len(classes)], classes)
        expected = np.array(boxes) * batch.transforms[row, 0]
        np.testing.assert_allclose(batch.boxes[row, : len(classes)], expected, atol=0.5)
        ground = np.median(batch.images[row, :, :43, 0])  # the padding starts at 43
        assert abs(ground - int(np.median(pixels[..., 0]))) <= 3


@pytest.mark.parametrize("max_boxes", [3, 6])
def test_images_are_mixed_where_their_objects_have_room(paths, max_boxes):
    """Four of these images hold 4 to 8 objects, and 3 or 7 find room."""
    config = dataclasses.replace(CONFIG, max_boxes=max_boxes, augment=AugmentConfig(mosaic=1.0))
    dataset = pipeline.make_dataset(paths, config, training=True, batch_size=5)
    batch = take(pipeline.mix_what_fits(dataset, config.augment), 4)
    num_objects = (batch.classes != -1).sum(axis=1).reshape(4, 5)
    together = np.sum([np.roll(num_objects, -shift, axis=1) for shift in range(4)], axis=0)
    mosaic = batch.random_numbers[:, random_numbers.RandomNumbers._fields.index("mosaic")].reshape(4, 5)
    np.testing.assert_array_equal(mosaic == 1, together > config.num_slots)
    assert (mosaic == 1).all() == (max_boxes == 3)


def test_equal_seeds_give_equal_batches_and_different_seeds_different_ones(paths):
    first = training(paths, 4)
    tf.random.set_seed(99)  # the global seed must not matter
    assert_same(first, training(paths, 4))
    other = training(paths, 4, config=dataclasses.replace(CONFIG, seed=1))
    assert not np.array_equal(first.record_index, other.record_index)
    assert not np.array_equal(np.sort(first.random_numbers, axis=0), np.sort(other.random_numbers, axis=0))


def test_an_image_is_augmented_differently_in_each_epoch(paths):
    batch = training(paths, 4)
    numbers = {}
    for index, row in zip(batch.record_index, batch.random_numbers):
        numbers.setdefault(index, []).append(row)
    assert all(not np.array_equal(*pair) for pair in numbers.values())
    assert np.all((batch.random_numbers >= 0) & (batch.random_numbers < 1))


@pytest.mark.parametrize("consumed", [3, 10, 17])
def test_a_resumed_run_continues_with_the_next_image(paths, consumed):
    whole = training(paths, 40, batch_size=1)
    rest = training(paths, 3, first_record=consumed)
    assert_same(Batch(*(values[consumed : consumed + 15] for values in whole)), rest)


def test_two_replicas_receive_the_images_of_one(paths):
    """Two batches of two images are one batch of four."""
    assert_same(training(paths, 3, batch_size=4), training(paths, 6, batch_size=2))


def test_two_workers_read_different_files_and_together_every_image(paths):
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
        assert spec.random_numbers == tf.TensorSpec([4, NUM_PER_IMAGE], tf.float32)


def test_host_and_device_assign_the_same_targets(paths):
    dataset = pipeline.make_dataset(paths, CONFIG, training=True, batch_size=5)
    (_, on_host), *_ = pipeline.assign_on_host(dataset, CONFIG).take(1)
    (batch,) = dataset.take(1)
    augmented = batch_augment.augment(batch, CONFIG.augment)
    on_device = targets.assign(augmented, CONFIG, method="dense")
    assert np.sum(on_device.class_targets >= 0) >= 5
    np.testing.assert_array_equal(on_host.class_targets, on_device.class_targets)
    np.testing.assert_allclose(on_host.box_targets, on_device.box_targets, atol=1e-5)
    np.testing.assert_array_equal(on_host.weights, on_device.weights)


def test_an_empty_shard_is_skipped(tmp_path):
    paths = toy_shards.write_shards(tmp_path, num_images=2, num_shards=3)
    batch = take(pipeline.make_dataset(paths, CONFIG, training=False, batch_size=2), 1)
    np.testing.assert_array_equal(batch.record_index, [0, 1])


def test_no_records_and_too_few_files_are_refused(tmp_path, paths):
    empty = toy_shards.write_shards(tmp_path, num_images=0, num_shards=1)
    with pytest.raises(ValueError, match=r"no records in .*train-00000-of-00001.tfrecord.*convert"):
        pipeline.make_dataset(empty, CONFIG, training=True, batch_size=2)
    with pytest.raises(ValueError, match=r"3 shards with records for 4 workers.*--num_shards a multiple of 4"):
        pipeline.make_dataset(paths, CONFIG, training=True, batch_size=2, num_pipelines=4)


def damaged_shards(folder, image=b"\xff\xd8\xff\xe0 and no more"):
    """Ten records, of which 2 is no image, 5 lacks its second half, and 7 is no tf.Example."""
    folder.mkdir(exist_ok=True)
    (folder / "labels.txt").write_text("round\nsquare\n")
    path = str(folder / "train-00000-of-00001.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for number in range(NUM_IMAGES):
            serialized = toy_shards.example(f"image-{number}", *toy_shards.blocks(number))
            example = tf.train.Example.FromString(serialized)
            values = example.features.feature["image/encoded"].bytes_list.value
            if number == 2:
                values[0] = image
            if number == 5:
                values[0] = values[0][: len(values[0]) // 2]
            writer.write(b"something else" if number == 7 else example.SerializeToString())
    return [path]


@pytest.mark.parametrize("training_", [True, False])
def test_a_damaged_image_is_grey_and_not_valid_and_changes_no_other(tmp_path, training_):
    config = dataclasses.replace(CONFIG, augment=AugmentConfig.preset("strong"))
    sound = toy_shards.write_shards(tmp_path / "sound", NUM_IMAGES, num_shards=1)
    ours, theirs = (
        take(pipeline.make_dataset(paths, config, training=training_, batch_size=5), 2)
        for paths in (damaged_shards(tmp_path / "damaged"), sound)
    )
    bad = np.isin(ours.record_index, [2, 5, 7])
    np.testing.assert_array_equal(ours.valid, ~bad)
    for name, values, sound_values in zip(Batch._fields, ours, theirs):
        np.testing.assert_array_equal(values[~bad], sound_values[~bad], err_msg=name)
    np.testing.assert_array_equal(ours.record_index, theirs.record_index)
    assert np.all(ours.images[bad] == PAD_VALUE)
    assert np.all(ours.classes[bad] == -1)


def test_all_anchors_of_a_damaged_image_are_ignored(tmp_path):
    (batch,) = pipeline.make_dataset(damaged_shards(tmp_path), CONFIG, training=False, batch_size=10).take(1)
    assigned = targets.assign(batch, CONFIG, method="dense")
    ignored = np.all(assigned.class_targets == IGNORED, axis=1)
    np.testing.assert_array_equal(ignored, ~batch.valid.numpy())


def test_dropped_boxes_are_counted(paths):
    config = dataclasses.replace(CONFIG, max_boxes=1, augment=AugmentConfig())
    batch = training(paths, 2, config=config)
    plain = training(paths, 2, config=dataclasses.replace(CONFIG, augment=AugmentConfig()))
    np.testing.assert_array_equal(batch.num_dropped, np.sum(plain.classes >= 0, axis=1) - 1)
    assert batch.num_dropped.max() == 1


EVERY_HOST_STEP = AugmentConfig(
    iou_crop=0.5, scale_min=0.5, scale_max=2.0, warp=0.5, rotate=20.0, randaugment=2, horizontal_flip=0.5
)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    threads=st.integers(1, 4),
    step=st.integers(0, 25),
    batch_size=st.sampled_from([1, 2, 3]),
    augment=st.sampled_from([AugmentConfig.preset("strong"), EVERY_HOST_STEP]),
)
def test_a_batch_depends_on_seed_and_step_alone(paths, seed, threads, step, batch_size, augment):
    """It does not depend on the number of threads, on where the run was resumed, or on how the batch is split."""
    config = dataclasses.replace(CONFIG, seed=seed, augment=augment)
    whole = training(paths, 10, batch_size=6, config=config)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.autotune.enabled = threads % 2 == 0
    dataset = pipeline.make_dataset(paths, config, training=True, batch_size=batch_size, first_record=step)
    part = take(dataset.with_options(options), 6 // batch_size)
    assert_same(Batch(*(values[step : step + 6] for values in whole)), part)


def as_shown(batch):
    """(record, random numbers) of each image; in each epoch a record has other random numbers."""
    return [(index, row.tobytes()) for index, row in zip(batch.record_index, batch.random_numbers)]


def test_without_determinism_only_the_order_changes(paths):
    """No image is shown twice in an epoch. Batches may overtake each other, even those of different epochs."""
    shown = as_shown(training(paths, 8, config=dataclasses.replace(CONFIG, deterministic_input=False)))
    assert len(set(shown)) == len(shown) == 40
    assert set(shown) <= set(as_shown(training(paths, 40)))


def test_cached_records_are_read_from_the_files_once(tmp_path):
    paths = toy_shards.write_shards(tmp_path, NUM_IMAGES)
    config = dataclasses.replace(CONFIG, cache_records=True)
    whole = training(paths, 6, config=config)
    assert_same(Batch(*(values[17:27] for values in whole)), training(paths, 2, config=config, first_record=17))
    batches = pipeline.make_dataset(paths, config, training=True, batch_size=5).as_numpy_iterator()
    first = [next(batches) for _ in range(2)]
    for path in paths:
        pathlib.Path(path).unlink()
    rest = [next(batches) for _ in range(4)]
    again = Batch(*(np.concatenate(values) for values in zip(*first, *rest)))
    assert_same(whole, again)
    for epoch in np.split(again.record_index, 3):
        assert sorted(epoch) == list(range(NUM_IMAGES))


def test_a_mixture_shows_its_groups_by_weight_and_resumes_exactly(tmp_path):
    groups = [toy_shards.write_shards(tmp_path / name, 4, num_shards=2) for name in "ab"]
    paths = [*groups[0], *groups[1]]
    config = dataclasses.replace(CONFIG, mixture=((3.0, 2), (1.0, 2)))
    whole = training(paths, 80, batch_size=5, config=config)
    first = whole.record_index < 4
    assert abs(first.mean() - 0.75) < 0.087  # four standard deviations
    for own in (first, ~first):  # each group has epochs of its own
        shown = whole.record_index[own]
        for epoch in range(len(shown) // 4):
            assert len(set(shown[4 * epoch : 4 * epoch + 4])) == 4
    rest = training(paths, 3, batch_size=5, config=config, first_record=37)
    assert_same(Batch(*(values[37:52] for values in whole)), rest)
    alone = dataclasses.replace(config, mixture=((3.0, 4), (1.0, 0)))
    with pytest.raises(ValueError, match="--train_weights: a pattern"):
        pipeline.make_dataset(paths, alone, training=True, batch_size=5)


def test_rare_classes_are_repeated_by_their_factor(tmp_path):
    """By hand: 1 of 16 images shows class 1, so at t = 1/4 its factor is sqrt(1/4 / (1/16)) = 2; all show class 0."""
    (tmp_path / "labels.txt").write_text("round\nsquare\n")
    path = str(tmp_path / "train-00000-of-00001.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for number in range(16):
            pixels, (box, *_), _ = toy_shards.blocks(number)
            classes = [0, 1] if number == 5 else [0]
            writer.write(toy_shards.example(f"image-{number}", pixels, [box] * len(classes), classes))
    config = dataclasses.replace(CONFIG, repeat_threshold=0.25)
    whole = training([path], 17, batch_size=4, config=config)  # four epochs of 17
    for epoch in range(4):
        shown = whole.record_index[17 * epoch : 17 * epoch + 17]
        assert sorted(shown) == sorted([*range(16), 5])
    twins = whole.random_numbers[:17][whole.record_index[:17] == 5]
    assert not np.array_equal(*twins)
    rest = training([path], 3, batch_size=4, config=config, first_record=30)
    assert_same(Batch(*(values[30:42] for values in whole)), rest)


def test_a_fraction_of_a_repeat_factor_is_its_probability(tmp_path):
    """At t = 0.14 the factor is sqrt(0.14 * 16) = 1.4966."""
    factors = sampling.RepeatFactors(
        [sampling.Shard("", file_index=0, first_record=0, num_records=16)],
        [[0, 1] if number == 5 else [0] for number in range(16)],
        dataclasses.replace(CONFIG, repeat_threshold=0.14),
    )
    counts = np.array([factors.count(tf.constant(epoch, tf.int64)) for epoch in range(400)])
    assert set(np.unique(counts[:, 5])) == {1, 2}
    assert abs(counts[:, 5].mean() - 1.4966) < 0.1  # four standard deviations
    assert np.all(np.delete(counts, 5, axis=1) == 1)


def test_data_service_workers_show_each_image_once_an_epoch(paths):
    dispatcher = data_service.start("dispatcher")
    address = dispatcher.target.partition("://")[2]
    workers = [data_service.start("worker", dispatcher=name) for name in (address, dispatcher.target)]
    config = dataclasses.replace(CONFIG, data_service=dispatcher.target, shuffle_buffer=1)
    batch = training(paths, 24, batch_size=5, config=config)  # twelve epochs; workers run ahead of each other
    counts = np.bincount(batch.record_index, minlength=NUM_IMAGES)
    assert counts.min() >= 8
    shown = as_shown(batch)
    assert len(set(shown)) == len(shown)  # no image twice in an epoch
    assert set(shown) <= set(as_shown(training(paths, 40)))  # and every image is shown as without the service
    assert batch.valid.all()
    del workers


def test_a_data_service_worker_needs_a_dispatcher():
    with pytest.raises(ValueError, match="--dispatcher=HOST:PORT"):
        data_service.start("worker")


@pytest.mark.parametrize("dispatcher", ["localhost", "localhost:port", "http://localhost:5050"])
def test_a_dispatcher_without_an_address_is_refused(dispatcher):
    with pytest.raises(ValueError, match=f"--dispatcher={dispatcher} does not answer .*no host and port.*HOST:PORT"):
        data_service.start("worker", dispatcher=dispatcher)


def test_a_data_service_worker_waits_for_its_dispatcher(monkeypatch, caplog):
    """For some time, since it may start later; and not without a word."""
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        port = unused.getsockname()[1]
    monkeypatch.setattr(data_service, "_SECONDS_TO_WAIT", 1.5)
    with pytest.raises(ValueError, match=f"--dispatcher=localhost:{port} does not answer .*refused"):
        data_service.start("worker", dispatcher=f"grpc://localhost:{port}")
    assert f"waiting for --dispatcher=localhost:{port}" in caplog.text
    dispatchers = []
    monkeypatch.setattr(time, "sleep", lambda _: dispatchers.append(data_service.start("dispatcher", port=port)))
    worker = data_service.start("worker", dispatcher=f"localhost:{port}")
    assert len(dispatchers) == 1
    del worker


def test_sources_that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match="cannot be combined"):
        dataclasses.replace(CONFIG, repeat_threshold=0.1, data_service="grpc://x:1")


@pytest.mark.parametrize("threads", [0, 3])
def test_tf_data_has_its_own_threads_and_half_of_the_memory(paths, threads):
    config = dataclasses.replace(CONFIG, private_threadpool_size=threads)
    dataset = pipeline.assign_on_host(pipeline.make_dataset(paths, config, training=True, batch_size=2), config)
    assert dataset.options().autotune.ram_budget == memory.limit() // 2
    assert dataset.options().threading.private_threadpool_size == (threads or None)
