"""The device stage, against TFA, tf.image and plain NumPy; eagerly, in a tf.function and under XLA."""

import contextlib
import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from addons import needs_addons, tfa

from input import batch_augment
from input.config import AugmentConfig
from input.random_numbers import NUM_PER_IMAGE, RandomNumbers
from input.types import Batch

EVERYTHING = AugmentConfig(
    horizontal_flip=0.5,
    vertical_flip=0.5,
    brightness=0.2,
    contrast=0.3,
    saturation=0.3,
    hue=0.1,
    cutout=0.5,
    grayscale=0.2,
)
MIXED = dataclasses.replace(EVERYTHING, mosaic=0.5, cutmix=0.5, mixup=0.5)
RNG = np.random.default_rng(0)
NUMBERS = RNG.random((64, NUM_PER_IMAGE)).astype(np.float32)
IMAGES = RNG.integers(0, 256, (6, 32, 48, 3)).astype(np.uint8)


def make_batch(images=IMAGES, boxes=((4.0, 6.0, 20.0, 30.0),), first=0):
    size, count = len(images), len(boxes)
    return Batch(
        images=tf.constant(images),
        boxes=tf.tile(tf.constant([[*boxes, (0.0, 0.0, 0.0, 0.0)]]), [size, 1, 1]),
        classes=tf.tile(tf.constant([[*range(count), -1]]), [size, 1]),
        difficult=tf.zeros([size, count + 1], tf.bool),
        box_weights=tf.ones([size, count + 1]),
        original_sizes=tf.ones([size, 2], tf.int32),
        transforms=tf.ones([size, 4]),
        valid=tf.ones([size], tf.bool),
        num_dropped=tf.zeros([size], tf.int32),
        record_index=tf.range(size, dtype=tf.int64),
        random_numbers=tf.constant(NUMBERS[first : first + size]),
    )


def denormalize(images):
    return (np.asarray(images) * batch_augment.STDDEV_RGB + batch_augment.MEAN_RGB) * 255


@pytest.mark.parametrize(
    ("preprocessing", "reference"),
    [
        ("caffe", lambda images: tf.keras.applications.resnet50.preprocess_input(images.copy())),
        ("imagenet", lambda images: tf.keras.applications.imagenet_utils.preprocess_input(images.copy(), mode="torch")),
        ("tf_lite", lambda images: (images - 127.0) / 128.0),
    ],
)
def test_preprocessing_equals_that_of_keras(preprocessing, reference):
    images = np.arange(2 * 4 * 5 * 3).reshape(2, 4, 5, 3).astype(np.float32) * 2
    for normalize in (batch_augment.normalize, tf.function(batch_augment.normalize)):
        np.testing.assert_allclose(normalize(tf.constant(images), preprocessing), reference(images), atol=1e-4)
    batch = make_batch(images.astype(np.uint8))
    np.testing.assert_allclose(
        batch_augment.augment(batch, AugmentConfig(), preprocessing).images, reference(images), atol=1e-4
    )


def test_normalize_by_hand():
    """(255 * 0.485 - 255 * 0.485) / ... = 0; white in red: (1 - 0.485) / 0.229 = 2.2489."""
    images = np.array([[[[124, 116, 104], [255, 255, 255], [0, 0, 0]]]], np.uint8)
    normalized = batch_augment.normalize(images).numpy()[0, 0]
    np.testing.assert_allclose(normalized[0], [0.0056, -0.0049, 0.0082], atol=1e-3)
    np.testing.assert_allclose(normalized[1], [2.2489, 2.4286, 2.6400], atol=1e-4)
    np.testing.assert_allclose(normalized[2], [-2.1179, -2.0357, -1.8044], atol=1e-4)
    assert normalized.dtype == np.float32


def test_without_augmentation_images_are_only_normalised():
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
    augmented = batch_augment.augment(make_batch(images), dataclasses.replace(EVERYTHING, cutout=0.0))
    lit = denormalize(augmented.images).mean(axis=-1) > 127
    for mask, boxes in zip(lit, augmented.boxes.numpy()):
        ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        np.testing.assert_array_equal(boxes[0], [ys[0], xs[0], ys[-1] + 1, xs[-1] + 1])


def test_flips_have_their_probability():
    probability = 0.3
    augmented = batch_augment.augment(
        make_batch(np.zeros((64, 4, 48, 3), np.uint8)), AugmentConfig(horizontal_flip=probability)
    )
    np.testing.assert_array_equal(
        augmented.boxes[:, 0, 1] != 6, RandomNumbers.of(NUMBERS).horizontal_flip < probability
    )


@contextlib.contextmanager
def tfa_without_kernels():
    """Plain TensorFlow instead of TFA's own kernels, which announce their removal with every call."""
    tfa.options.disable_custom_kernel()
    yield
    tfa.options.enable_custom_kernel()


@needs_addons
def test_hue_and_saturation_equal_tfa():
    """TFA turns and scales in YIQ too: delta_hue in radians, the saturation factor on I and Q."""
    random = RandomNumbers(*NUMBERS[:6].T)
    config = AugmentConfig(hue=0.1, saturation=0.4)
    images = 100 + 0.2 * IMAGES.astype(np.float32)  # so that nothing is clipped
    ours = batch_augment.jitter_colour(tf.constant(images), random, config)
    for image, result, hue, saturation in zip(images, ours, random.hue, random.saturation):
        with tfa_without_kernels():
            expected = tfa.image.adjust_hsv_in_yiq(
                image / 255, delta_hue=(2 * hue - 1) * 0.1 * 2 * np.pi, scale_saturation=1 + (2 * saturation - 1) * 0.4
            )
        np.testing.assert_allclose(result, expected * 255, atol=0.2)


def test_contrast_and_brightness_equal_tf_image():
    random = RandomNumbers(*NUMBERS[:6].T)
    images = 100 + 0.2 * IMAGES.astype(np.float32)
    ours = batch_augment.jitter_colour(tf.constant(images), random, AugmentConfig(contrast=0.3, brightness=0.1))
    for image, result, contrast, brightness in zip(images, ours, random.contrast, random.brightness):
        expected = tf.image.adjust_contrast(image, 1 + (2 * contrast - 1) * 0.3)
        np.testing.assert_allclose(result, expected + (2 * brightness - 1) * 0.1 * 255, atol=2e-3)


def test_colour_stays_in_range():
    images = batch_augment.augment_images(make_batch(), AugmentConfig(brightness=0.9, contrast=0.9, saturation=0.9))
    values = denormalize(images)
    assert values.min() > -0.01
    assert values.max() < 255.01


def lit_box(image, channel):
    """The bounding box of the pixels in which `channel` is bright."""
    lit = denormalize(image)[..., channel] > 127
    ys, xs = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    return [ys[0], xs[0], ys[-1] + 1, xs[-1] + 1]


def present(batch, row):
    """The objects of one image, as (class, box, weight), by class."""
    classes = batch.classes[row].numpy()
    kept = np.argsort(classes, kind="stable")[np.sum(classes == -1) :]
    return [(classes[i], batch.boxes[row, i].numpy(), float(batch.box_weights[row, i])) for i in kept]


def two_colours(count=2):
    """Image 0 has a red box of class 0, image 1 a green one of class 1, and so on; 64 x 96, black elsewhere."""
    images = np.zeros((count, 64, 96, 3), np.uint8)
    boxes = np.zeros((count, 5, 4), np.float32)
    classes = np.full((count, 5), -1, np.int32)
    for row, box in zip(range(count), [(8, 10, 40, 50), (30, 44, 60, 90), (2, 2, 20, 30)]):
        images[row, box[0] : box[2], box[1] : box[3], row] = 255
        boxes[row, 0], classes[row, 0] = box, row
    batch = make_batch(images)
    return batch._replace(
        boxes=tf.constant(boxes),
        classes=tf.constant(classes),
        difficult=tf.zeros([count, 5], tf.bool),
        box_weights=tf.ones([count, 5]),
    )


def with_numbers(batch, **values):
    """The batch with the random numbers given, the same for all images; the others are 0.5."""
    row = RandomNumbers(*[0.5] * NUM_PER_IMAGE)._replace(**values)
    return batch._replace(random_numbers=tf.constant([row] * len(batch.images)))


def test_mosaic_shows_four_images_at_half_size():
    """Three images: the fourth tile is the first again. The golden boxes are halves, shifted by half the image."""
    augmented = batch_augment.augment(two_colours(3), AugmentConfig(mosaic=1.0))
    golden = {0: (4, 5, 20, 25), 1: (15, 22 + 48, 30, 45 + 48), 2: (1 + 32, 1, 10 + 32, 15)}
    found = present(augmented, 0)
    assert [category for category, _, _ in found] == [0, 0, 1, 2]
    for category, box, weight in found:
        assert weight == 1
        if category:
            np.testing.assert_array_equal(box, golden[category])
            np.testing.assert_array_equal(lit_box(augmented.images[0], category), golden[category])
    np.testing.assert_array_equal(sorted(tuple(box) for category, box, _ in found if not category),
                                  [golden[0], (4 + 32, 5 + 48, 20 + 32, 25 + 48)])  # fmt: skip


def test_mixup_blends_pixels_and_weights():
    """Radius 0.25 at angle 0: the image's own share is 0.5 + 0.5 * 0.5 * 1 = 0.75."""
    batch = with_numbers(two_colours(), mixup=0.0, mixup_radius=0.25, mixup_angle=0.0)
    augmented = batch_augment.augment(batch, AugmentConfig(mixup=1.0))
    (own, own_box, own_weight), (other, other_box, other_weight) = present(augmented, 0)
    assert (own, other) == (0, 1)
    assert (own_weight, other_weight) == pytest.approx((0.75, 0.25))
    np.testing.assert_array_equal(own_box, (8, 10, 40, 50))
    np.testing.assert_array_equal(other_box, (30, 44, 60, 90))
    np.testing.assert_allclose(denormalize(augmented.images[0, 10, 20]), [0.75 * 255, 0, 0], atol=0.1)
    np.testing.assert_allclose(denormalize(augmented.images[0, 50, 80]), [0, 0.25 * 255, 0], atol=0.1)


def test_mixup_shares_have_a_beta_distribution():
    """Beta(1.5, 1.5) has mean 1/2 and variance 1.5**2 / (3**2 * 4) = 1/16."""
    count = 20000
    numbers = np.random.default_rng(1).random((count, NUM_PER_IMAGE)).astype(np.float32)
    batch = make_batch(np.zeros((count, 1, 1, 3), np.uint8))._replace(random_numbers=tf.constant(numbers))
    mixed = batch_augment.augment_boxes(batch, AugmentConfig(mixup=1.0))
    shares = mixed.box_weights.numpy()[:, 0]  # the image's own box comes before the equal one of its partner
    assert shares.mean() == pytest.approx(0.5, abs=0.008)
    assert shares.var() == pytest.approx(1 / 16, rel=0.05)


def test_cutmix_pastes_pixels_and_boxes_of_the_next_image():
    """The right half comes from the next image: the region has the image's size and is centred on its right edge."""
    batch = with_numbers(two_colours(), cutmix=0.0, cutmix_y=0.5, cutmix_x=0.9999999, cutmix_size=0.9999999)
    augmented = batch_augment.augment(batch, AugmentConfig(cutmix=1.0))
    (own, own_box, _), (other, other_box, _) = present(augmented, 0)
    assert (own, other) == (0, 1)
    np.testing.assert_array_equal(own_box, (8, 10, 40, 50))  # 2 of 40 columns are covered: it stays as it is
    np.testing.assert_array_equal(other_box, (30, 48, 60, 90))  # 4 of 46 columns are missing: it is clipped
    np.testing.assert_array_equal(lit_box(augmented.images[0], 0), (8, 10, 40, 48))
    np.testing.assert_array_equal(lit_box(augmented.images[0], 1), (30, 48, 60, 90))
    # The other way round the green box is nearly covered and the red one shows two columns: neither is kept.
    assert present(augmented, 1) == []


def test_cutout_erases_a_square_and_the_boxes_under_it():
    """The side is 0.25 of 64 px, 16, around (24, 30): rows 16-32, columns 22-38."""
    batch = with_numbers(two_colours(), cutout=0.0, cutout_y=24 / 64, cutout_x=30 / 96)
    small = tf.constant([[[18.0, 24, 30, 36]] + [[0.0] * 4] * 4] * 2)
    augmented = batch_augment.augment(batch._replace(boxes=small), AugmentConfig(cutout=1.0))
    assert present(augmented, 0) == []
    grey = np.all(np.abs(denormalize(augmented.images[0]) - 114) < 0.1, axis=-1)
    assert grey.sum() == 16 * 16
    assert grey[16:32, 22:38].all()
    kept = batch_augment.augment(batch, AugmentConfig(cutout=1.0))  # the large box shows 4 / 5 of itself
    np.testing.assert_array_equal(present(kept, 0)[0][1], (8, 10, 40, 50))


def test_grayscale():
    batch = with_numbers(make_batch(), grayscale=0.0)
    images = denormalize(batch_augment.augment_images(batch, AugmentConfig(grayscale=1.0)))
    np.testing.assert_allclose(images, np.repeat(IMAGES @ [[0.299], [0.587], [0.114]], 3, axis=-1), atol=0.5)


@pytest.mark.parametrize("field", ["mosaic", "mixup", "cutmix", "cutout", "grayscale"])
def test_operations_have_their_probability(field):
    """They change exactly the images whose random number is below it."""
    config = AugmentConfig(**{field: 0.4})
    images = np.tile(IMAGES, (4, 1, 1, 1))
    augmented = denormalize(batch_augment.augment_images(make_batch(images), config))
    changed = np.any(np.abs(augmented - images) > 0.1, axis=(1, 2, 3))
    np.testing.assert_array_equal(changed, getattr(RandomNumbers(*NUMBERS[:24].T), field) < 0.4)


def test_the_largest_of_too_many_mixed_boxes_are_kept():
    batch = two_colours(3)
    few = batch._replace(
        **{name: getattr(batch, name)[:, :2] for name in ("boxes", "classes", "difficult", "box_weights")}
    )
    augmented = batch_augment.augment(few, AugmentConfig(mosaic=1.0))
    assert augmented.boxes.shape == (3, 2, 4)
    areas = [np.prod(box[2:] - box[:2]) for _, box, _ in present(augmented, 0)]
    assert sorted(areas) == [320, 345]  # 16 x 20 and 15 x 23; 9 x 14 and the other 16 x 20 are dropped


@pytest.mark.parametrize(
    ("counts", "probabilities", "unmixed"),
    [
        ([2, 3, 2, 3, 1], {"mosaic": 1.0}, {"mosaic": [1, 1, 0, 1, 0]}),  # 10, 9, 8, 9 and 8 objects, of which 8 fit
        ([5, 4, 4, 0, 3], {"mixup": 1.0}, {"mixup": [1, 0, 0, 0, 0]}),
        ([5, 4, 4, 0, 3], {"cutmix": 1.0}, {"cutmix": [1, 0, 0, 0, 0]}),
        ([2, 2, 2, 2, 1], {"mosaic": 1.0, "mixup": 1.0}, {"mosaic": [0] * 5, "mixup": [1] * 5}),  # no two mosaics fit
        ([2, 2, 2, 2, 1], {"mixup": 1.0}, {"mosaic": [0] * 5, "mixup": [0] * 5}),  # there are no mosaics
    ],
)
def test_an_image_stays_unmixed_where_objects_would_have_no_slot(counts, probabilities, unmixed):
    classes = np.where(np.arange(8) < np.array(counts)[:, np.newaxis], 0, -1).astype(np.int32)
    batch = with_numbers(make_batch(np.zeros((5, 8, 8, 3), np.uint8)), mosaic=0.0, mixup=0.0, cutmix=0.0)
    batch = batch._replace(
        boxes=tf.tile(tf.constant([[[0.0, 0, 4, 4]]]), [5, 8, 1]),
        classes=tf.constant(classes),
        difficult=tf.zeros([5, 8], tf.bool),
        box_weights=tf.ones([5, 8]),
    )
    config = AugmentConfig(**probabilities)
    fitting = batch_augment.mix_what_fits(batch, config)
    random = RandomNumbers.of(fitting.random_numbers)
    for name, expected in unmixed.items():
        np.testing.assert_array_equal(getattr(random, name), expected)
    if len(probabilities) == 1 and "cutmix" not in probabilities:  # cutmix hides some
        ((name, _),) = probabilities.items()
        num_mixed = 4 if name == "mosaic" else 2
        totals = [
            count if left else sum(counts[(index + shift) % 5] for shift in range(num_mixed))
            for index, (count, left) in enumerate(zip(counts, unmixed[name]))
        ]
        found = batch_augment.augment_boxes(fitting, config).classes.numpy()
        np.testing.assert_array_equal((found != -1).sum(axis=1), totals)


def test_what_is_seen_of_an_ignored_region_stays_one():
    """A corner of the next image, which is all one region, is pasted; a square of 16 px hides the middle of another."""
    batch = two_colours()._replace(classes=tf.constant([[0, -1, -1, -1, -1], [-2, -1, -1, -1, -1]]))
    batch = batch._replace(
        boxes=tf.constant([[[8.0, 10, 40, 50]] + [[0.0] * 4] * 4, [[0.0, 0, 64, 96]] + [[0.0] * 4] * 4])
    )
    corner = with_numbers(batch, cutmix=0.0, cutmix_y=1.0, cutmix_x=1.0, cutmix_size=0.25)
    found = batch_augment.augment_boxes(corner, AugmentConfig(cutmix=1.0, min_visible=0.5))
    np.testing.assert_array_equal(found.boxes[0, :2], [(8, 10, 40, 50), (48, 72, 64, 96)])
    np.testing.assert_array_equal(found.classes[0, :3], [0, -2, -1])
    around = batch._replace(boxes=tf.constant([[[15.0, 39, 33, 57]] + [[0.0] * 4] * 4] * 2))
    around = with_numbers(around, cutout=0.0, cutout_y=24 / 64, cutout_x=48 / 96)
    found = batch_augment.augment_boxes(around, AugmentConfig(cutout=1.0, min_visible=0.5))
    np.testing.assert_array_equal(found.classes[:, 0], [-1, -2])  # 18 px less 16 px: a rim of 1 px


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_graph_gives_what_eager_gives(jit_compile):
    batch = make_batch()
    eager = batch_augment.augment(batch, MIXED)
    compiled = tf.function(lambda batch: batch_augment.augment(batch, MIXED), jit_compile=jit_compile)(batch)
    np.testing.assert_array_equal(compiled.boxes, eager.boxes)
    np.testing.assert_allclose(compiled.images, eager.images, atol=1e-4)


def test_the_index_in_the_batch_does_not_matter():
    """Two halves, as two replicas would see them, equal the whole."""
    whole = batch_augment.augment(make_batch(), EVERYTHING)
    halves = [batch_augment.augment(make_batch(IMAGES[i : i + 3], first=i), EVERYTHING) for i in (0, 3)]
    np.testing.assert_array_equal(whole.boxes, np.concatenate([half.boxes for half in halves]))
    np.testing.assert_allclose(whole.images, np.concatenate([half.images for half in halves]), atol=1e-5)


def test_boxes_alone_and_pixels_alone_equal_both_together():
    whole = batch_augment.augment(make_batch(), MIXED)
    boxes_only = batch_augment.augment_boxes(make_batch(), MIXED)
    np.testing.assert_array_equal(whole.boxes, boxes_only.boxes)
    np.testing.assert_array_equal(whole.images, batch_augment.augment_images(boxes_only, MIXED))
