"""The host's part: where boxes and pixels land, eagerly and inside tf.data."""

import numpy as np
import pytest
import shards
import tensorflow as tf

from input import augment, tfrecord, types
from input.config import AugmentConfig, InputConfig

SIZE = (64, 96)
RED = (255, 0, 0)


def painted(height, width, box):
    pixels = np.zeros((height, width, 3), np.uint8)
    ymin, xmin, ymax, xmax = box
    pixels[ymin:ymax, xmin:xmax] = RED
    return pixels


def found_box(image):
    """The bounding box of what is red, [4]; None where nothing is."""
    red = (image[..., 0] > 127) & (image[..., 1] < 60)
    if not red.any():
        return None
    ys, xs = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    return np.array([ys[0], xs[0], ys[-1] + 1, xs[-1] + 1])


def load(serialized, config, seed=None):
    """`load_and_crop`, eagerly and inside tf.data; both must agree."""
    eager = augment.load_and_crop(tfrecord.parse_example(serialized), config, seed)
    dataset = tf.data.Dataset.from_tensors(serialized).map(
        lambda item: augment.load_and_crop(tfrecord.parse_example(item), config, seed)
    )
    (in_graph,) = dataset
    for name, one, other in zip(types.Sample._fields, eager, in_graph):
        np.testing.assert_allclose(one, other, atol=1e-4, err_msg=name)
    return types.Sample(*(value.numpy() for value in in_graph))


@pytest.mark.parametrize(
    ("height", "width", "resized"),
    [(64, 96, (64, 96)), (480, 640, (64, 85)), (100, 1000, (10, 96)), (1000, 100, (64, 6)), (1, 1, (64, 64)),
     (3, 5000, (1, 96))],
)  # fmt: skip
def test_letterbox_keeps_the_aspect_ratio(height, width, resized):
    """Golden sizes, by hand: 480 x 640 has scale min(64 / 480, 96 / 640) = 2 / 15, so 64 x 85.3."""
    pixels = np.full((height, width, 3), 200, np.uint8)
    image, transform = augment.letterbox(tf.constant(pixels), SIZE)
    assert image.shape == (*SIZE, 3)
    assert image.dtype == tf.uint8
    assert np.all(image[: resized[0], : resized[1]] == 200)
    assert np.all(image[resized[0] :] == augment.PAD_VALUE)
    assert np.all(image[:, resized[1] :] == augment.PAD_VALUE)
    np.testing.assert_allclose(transform, [resized[0] / height, resized[1] / width, 0, 0], rtol=1e-6)


def test_an_image_of_the_right_size_is_left_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    image, _ = augment.letterbox(tf.constant(pixels), SIZE)
    np.testing.assert_array_equal(image, pixels)


def test_unaugmented_record():
    box = (10, 30, 50, 90)
    serialized = shards.example("a", painted(96, 192, box), [box], [1], difficult=[1], image_format="png")
    sample = load(serialized, InputConfig(image_size=SIZE, max_boxes=3))
    np.testing.assert_allclose(sample.boxes, [[5, 15, 25, 45], [0] * 4, [0] * 4], atol=1e-4)
    np.testing.assert_array_equal(found_box(sample.image), [5, 15, 25, 45])
    np.testing.assert_array_equal(sample.classes, [1, -1, -1])
    np.testing.assert_array_equal(sample.difficult, [True, False, False])
    np.testing.assert_array_equal(sample.original_size, [96, 192])
    np.testing.assert_array_equal(sample.transform, [0.5, 0.5, 0, 0])


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_boxes_follow_the_pixels_through_the_jitter(image_format):
    """Paint a box, jitter, find the paint: 60 draws over a sixteenfold range of scales."""
    config = InputConfig(
        image_size=SIZE, max_boxes=2, augment=AugmentConfig(scale_min=0.5, scale_max=8.0, min_visible=0.0)
    )
    box = (40, 50, 90, 110)
    record = tfrecord.parse_example(shards.example("a", painted(120, 160, box), [box], [0], image_format=image_format))
    jitter = tf.function(lambda seed: augment.load_and_crop(record, config, seed))
    seen = 0
    scales = []
    for number in range(60):
        sample = jitter(tf.constant([7, number]))
        found = found_box(sample.image.numpy())
        scales.append(float(sample.transform[0]))
        if found is None:
            assert sample.classes[0] == -1 or np.min(sample.boxes[0, 2:] - sample.boxes[0, :2]) < 1
            continue
        seen += 1
        # Half a resized original pixel of blur on an edge, and one for rounding.
        np.testing.assert_allclose(sample.boxes[0], found, atol=1 + 0.5 * max(sample.transform[:2]))
    assert seen >= 30
    letterbox_scale = 64 / 120
    assert min(scales) < 0.7 * letterbox_scale
    assert max(scales) > 5 * letterbox_scale


def test_the_scale_is_log_uniform():
    """From 1/2 to 8 every doubling is as likely: a quarter of the draws each, within four standard deviations."""
    config = AugmentConfig(scale_min=0.5, scale_max=8.0)

    def scale(number):
        window = augment.jitter_window(tf.constant([6400, 9600]), SIZE, config, tf.stack([7, number]))
        return augment.transform_of(window)[0] * 100

    scales = tf.map_fn(scale, tf.range(600), fn_output_signature=tf.float32)
    shares = np.histogram(np.log2(scales), bins=[-1, 0, 1, 2, 3])[0] / 600
    np.testing.assert_allclose(shares, 0.25, atol=0.07)


def test_same_seed_same_crop_other_seed_another():
    config = InputConfig(image_size=SIZE, augment=AugmentConfig(scale_min=0.5, scale_max=2.0))
    serialized = shards.example("a", *shards.blocks(3))
    first, again, other = (load(serialized, config, tf.constant(seed)) for seed in ([1, 2], [1, 2], [1, 3]))
    np.testing.assert_array_equal(first.image, again.image)
    assert not np.array_equal(first.transform, other.transform)


def test_box_rules_after_a_crop():
    """By hand, in an image of 10 x 20 with at least a quarter visible."""
    boxes = tf.constant(
        [
            [2.0, 2, 6, 6],  # inside: kept as it is
            [-4, 0, 5, 4],  # centre inside: clipped
            [-6, 0, 2, 4],  # centre outside, a quarter visible: kept
            [-7, 0, 2, 4],  # centre outside, 2 / 9 visible: dropped
            [12, 0, 15, 4],  # wholly outside
            [3, 3, 3, 8],  # no area
        ]
    )
    clipped, keep = augment.crop_boxes(boxes, tf.constant([10, 20]), 0.25)
    np.testing.assert_array_equal(keep, [True, True, True, False, False, False])
    np.testing.assert_array_equal(clipped[:3], [[2, 2, 6, 6], [0, 0, 5, 4], [0, 0, 2, 4]])


def test_of_too_many_boxes_the_largest_stay_in_order():
    boxes = tf.constant([[0.0, 0, 2, 2], [0, 0, 9, 9], [0, 0, 1, 1], [0, 0, 5, 5]])
    kept, classes, difficult = augment.pad_boxes(boxes, tf.range(4), tf.constant([True, False, True, False]), 2)
    np.testing.assert_array_equal(kept, [[0, 0, 9, 9], [0, 0, 5, 5]])
    np.testing.assert_array_equal(classes, [1, 3])
    np.testing.assert_array_equal(difficult, [False, False])


def test_an_image_without_objects():
    serialized = shards.example("a", painted(32, 32, (0, 0, 1, 1)), [], [])
    sample = load(serialized, InputConfig(image_size=SIZE, max_boxes=2), tf.constant([0, 0]))
    np.testing.assert_array_equal(sample.classes, [-1, -1])
    np.testing.assert_array_equal(sample.boxes, np.zeros((2, 4)))


def test_grayscale_becomes_three_channels():
    gray = np.tile(np.arange(64, dtype=np.uint8)[:, None, None], (1, 96, 1))
    sample = load(shards.example("a", gray, [], []), InputConfig(image_size=SIZE))
    assert sample.image.shape == (*SIZE, 3)
    np.testing.assert_array_equal(sample.image[..., 0], sample.image[..., 2])
