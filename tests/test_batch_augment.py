"""The device's part, against TFA, tf.image and plain NumPy; eagerly, in a tf.function and under XLA."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_addons as tfa

from input import batch_augment, types
from input.config import AugmentConfig

EVERYTHING = AugmentConfig(
    horizontal_flip=0.5, vertical_flip=0.5, brightness=0.2, contrast=0.3, saturation=0.3, hue=0.1
)
RNG = np.random.default_rng(0)
DRAWS = RNG.random((64, batch_augment.NUM_DRAWS)).astype(np.float32)
IMAGES = RNG.integers(0, 256, (6, 32, 48, 3)).astype(np.uint8)


def make_batch(images=IMAGES, boxes=((4.0, 6.0, 20.0, 30.0),), first=0):
    size, count = len(images), len(boxes)
    return types.Batch(
        images=tf.constant(images),
        boxes=tf.tile(tf.constant([[*boxes, (0.0, 0.0, 0.0, 0.0)]]), [size, 1, 1]),
        classes=tf.tile(tf.constant([[*range(count), -1]]), [size, 1]),
        difficult=tf.zeros([size, count + 1], tf.bool),
        box_weights=tf.ones([size, count + 1]),
        original_sizes=tf.ones([size, 2], tf.int32),
        transforms=tf.ones([size, 4]),
        valid=tf.ones([size], tf.bool),
        record_index=tf.range(size, dtype=tf.int64),
        draws=tf.constant(DRAWS[first : first + size]),
    )


def denormalize(images):
    return (np.asarray(images) * batch_augment.STDDEV_RGB + batch_augment.MEAN_RGB) * 255


def test_normalize_by_hand():
    """(255 * 0.485 - 255 * 0.485) / ... = 0; white in red: (1 - 0.485) / 0.229 = 2.2489."""
    images = np.array([[[[124, 116, 104], [255, 255, 255], [0, 0, 0]]]], np.uint8)
    normalized = batch_augment.normalize(images).numpy()[0, 0]
    np.testing.assert_allclose(normalized[0], [0.0056, -0.0049, 0.0082], atol=1e-3)
    np.testing.assert_allclose(normalized[1], [2.2489, 2.4286, 2.6400], atol=1e-4)
    np.testing.assert_allclose(normalized[2], [-2.1179, -2.0357, -1.8044], atol=1e-4)
    assert normalized.dtype == np.float32


def test_without_augmentation_only_normalises():
    batch = make_batch()
    augmented = batch_augment.augment(batch, AugmentConfig())
    np.testing.assert_allclose(denormalize(augmented.images), IMAGES, atol=1e-3)
    np.testing.assert_array_equal(augmented.boxes, batch.boxes)


@pytest.mark.parametrize(("field", "axis"), [("horizontal_flip", 1), ("vertical_flip", 0)])
def test_a_flip_mirrors_pixels_and_boxes(field, axis):
    augmented = batch_augment.augment(make_batch(), AugmentConfig(**{field: 1.0}))
    np.testing.assert_allclose(denormalize(augmented.images), np.flip(IMAGES, axis + 1), atol=1e-3)
    golden = [[4, 48 - 30, 20, 48 - 6], [32 - 20, 6, 32 - 4, 30]][1 - axis]
    np.testing.assert_array_equal(augmented.boxes[:, 0], [golden] * 6)
    np.testing.assert_array_equal(augmented.boxes[:, 1], np.zeros((6, 4)))  # padding stays padding


def test_boxes_follow_the_pixels():
    images = np.zeros((64, 32, 48, 3), np.uint8)
    images[:, 4:20, 6:30] = 255
    augmented = batch_augment.augment(make_batch(images), EVERYTHING)
    lit = denormalize(augmented.images).mean(axis=-1) > 127
    for mask, boxes in zip(lit, augmented.boxes.numpy()):
        ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        np.testing.assert_array_equal(boxes[0], [ys[0], xs[0], ys[-1] + 1, xs[-1] + 1])


def test_flips_happen_as_asked():
    probability = 0.3
    augmented = batch_augment.augment(
        make_batch(np.zeros((64, 4, 48, 3), np.uint8)), AugmentConfig(horizontal_flip=probability)
    )
    np.testing.assert_array_equal(augmented.boxes[:, 0, 1] != 6, DRAWS[:, 0] < probability)


@contextlib.contextmanager
def tfa_without_kernels():
    """Plain TensorFlow instead of TFA's own kernels, which announce their removal with every call."""
    tfa.options.disable_custom_kernel()
    yield
    tfa.options.enable_custom_kernel()


def test_hue_and_saturation_equal_tfa():
    """TFA turns and scales in YIQ too: delta_hue in radians, the saturation factor on I and Q."""
    draws = batch_augment.Draws(*DRAWS[:6].T)
    config = AugmentConfig(hue=0.1, saturation=0.4)
    images = 100 + 0.2 * IMAGES.astype(np.float32)  # so that nothing is clipped
    ours = batch_augment.jitter_colour(tf.constant(images), draws, config)
    for image, result, hue, saturation in zip(images, ours, draws.hue, draws.saturation):
        with tfa_without_kernels():
            expected = tfa.image.adjust_hsv_in_yiq(
                image / 255, delta_hue=(2 * hue - 1) * 0.1 * 2 * np.pi, scale_saturation=1 + (2 * saturation - 1) * 0.4
            )
        np.testing.assert_allclose(result, expected * 255, atol=0.2)


def test_contrast_and_brightness_equal_tf_image():
    draws = batch_augment.Draws(*DRAWS[:6].T)
    images = 100 + 0.2 * IMAGES.astype(np.float32)
    ours = batch_augment.jitter_colour(tf.constant(images), draws, AugmentConfig(contrast=0.3, brightness=0.1))
    for image, result, contrast, brightness in zip(images, ours, draws.contrast, draws.brightness):
        expected = tf.image.adjust_contrast(image, 1 + (2 * contrast - 1) * 0.3)
        np.testing.assert_allclose(result, expected + (2 * brightness - 1) * 0.1 * 255, atol=2e-3)


def test_colour_stays_in_range():
    images = batch_augment.augment_images(make_batch(), AugmentConfig(brightness=0.9, contrast=0.9, saturation=0.9))
    values = denormalize(images)
    assert values.min() > -0.01
    assert values.max() < 255.01


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_graph_gives_what_eager_gives(jit_compile):
    batch = make_batch()
    eager = batch_augment.augment(batch, EVERYTHING)
    compiled = tf.function(lambda batch: batch_augment.augment(batch, EVERYTHING), jit_compile=jit_compile)(batch)
    np.testing.assert_array_equal(compiled.boxes, eager.boxes)
    np.testing.assert_allclose(compiled.images, eager.images, atol=1e-4)


def test_the_place_in_the_batch_does_not_matter():
    """Two halves, as two replicas would see them, equal the whole."""
    whole = batch_augment.augment(make_batch(), EVERYTHING)
    halves = [batch_augment.augment(make_batch(IMAGES[i : i + 3], first=i), EVERYTHING) for i in (0, 3)]
    np.testing.assert_array_equal(whole.boxes, np.concatenate([half.boxes for half in halves]))
    np.testing.assert_allclose(whole.images, np.concatenate([half.images for half in halves]), atol=1e-5)


def test_boxes_alone_and_pixels_alone_make_the_whole():
    whole = batch_augment.augment(make_batch(), EVERYTHING)
    boxes_only = batch_augment.augment_boxes(make_batch(), EVERYTHING)
    np.testing.assert_array_equal(whole.boxes, boxes_only.boxes)
    np.testing.assert_array_equal(whole.images, batch_augment.augment_images(boxes_only, EVERYTHING))
