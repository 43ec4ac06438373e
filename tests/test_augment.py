"""The host stage: where boxes and pixels end up, eagerly and inside tf.data."""

import numpy as np
import pytest
import tensorflow as tf
import toy_shards

from input import augment, batch_augment, tfrecord, windows
from input.config import RANDAUGMENT_LIMITS, AugmentConfig, InputConfig
from input.random_numbers import NUM_PER_IMAGE, RandomNumbers, strength
from input.types import IGNORED, PAD_VALUE, Batch

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


def uniform(seed, count=1):
    """Random numbers f32 [count, NUM_PER_IMAGE]."""
    return np.random.default_rng(seed).random((count, NUM_PER_IMAGE), np.float32)


def fixed(count=1, **values):
    """`RandomNumbers` of which those named have the value given; the others are 0.5."""
    return RandomNumbers(*(tf.fill([count], np.float32(values.get(name, 0.5))) for name in RandomNumbers._fields))


def load_batch(serialized, config, numbers=None):
    """`load_and_crop` of several records."""
    count = len(serialized)
    return augment.load_and_crop(
        tfrecord.parse_examples(tf.constant(serialized)),
        config,
        training=True,
        record_index=tf.range(count, dtype=tf.int64),
        valid=tf.ones([count], tf.bool),
        random_numbers=tf.zeros([count, NUM_PER_IMAGE]) if numbers is None else numbers,
    )


def load(serialized, config, numbers=None):
    """`load_and_crop` of one record, eagerly and inside tf.data; both must agree."""
    eager = load_batch([serialized], config, numbers)
    (in_graph,) = tf.data.Dataset.from_tensors(0).map(lambda _: load_batch([serialized], config, numbers))
    for name, one, other in zip(Batch._fields, eager, in_graph):
        np.testing.assert_allclose(one, other, atol=1e-4, err_msg=name)
    return Batch(*(value.numpy()[0] for value in in_graph))


@pytest.mark.parametrize(
    ("height", "width", "resized", "shown"),
    [(64, 96, (64, 96), (64, 96)), (480, 640, (64, 85), (480, 640)), (100, 1000, (10, 96), (104, 1000)),
     (1000, 100, (64, 6), (1000, 104)), (1, 1, (64, 64), (1, 1)), (3, 5000, (1, 96), (4, 5000))],
)  # fmt: skip
def test_letterbox_keeps_the_aspect_ratio(height, width, resized, shown):
    """Golden sizes, by hand: 480 x 640 has scale min(64 / 480, 96 / 640) = 2 / 15, so 64 x 85.3.

    100 x 1000 is first shrunk by 8, to 13 x 125, which shows 104 x 1000.
    """
    pixels = np.full((height, width, 3), 200, np.uint8)
    image, transform = augment.letterbox(tf.constant(pixels), SIZE)
    assert image.shape == (*SIZE, 3)
    assert image.dtype == tf.uint8
    assert np.all(image[: resized[0], : resized[1]] == 200)
    assert np.all(image[resized[0] :] == PAD_VALUE)
    assert np.all(image[:, resized[1] :] == PAD_VALUE)
    np.testing.assert_allclose(transform, [resized[0] / shown[0], resized[1] / shown[1], 0, 0], rtol=1e-6)


def test_letterbox_leaves_an_image_of_the_right_size_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    image, _ = augment.letterbox(tf.constant(pixels), SIZE)
    np.testing.assert_array_equal(image, pixels)


def test_unaugmented_record():
    box = (10, 30, 50, 90)
    serialized = toy_shards.example("a", painted(96, 192, box), [box], [1], difficult=[1], image_format="png")
    sample = load(serialized, InputConfig(image_size=SIZE, max_boxes=3, augment=AugmentConfig()))
    np.testing.assert_allclose(sample.boxes, [[5, 15, 25, 45], [0] * 4, [0] * 4], atol=1e-4)
    np.testing.assert_array_equal(found_box(sample.images), [5, 15, 25, 45])
    np.testing.assert_array_equal(sample.classes, [1, -1, -1])
    np.testing.assert_array_equal(sample.difficult, [True, False, False])
    np.testing.assert_array_equal(sample.original_sizes, [96, 192])
    np.testing.assert_array_equal(sample.transforms, [0.5, 0.5, 0, 0])


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_boxes_follow_the_pixels_through_the_jitter(image_format):
    """Paint a box, jitter, find the paint: 60 images over a sixteenfold range of scales."""
    config = InputConfig(
        image_size=SIZE, max_boxes=2, augment=AugmentConfig(scale_min=0.5, scale_max=8.0, min_visible=0.0)
    )
    box = (40, 50, 90, 110)
    serialized = toy_shards.example("a", painted(120, 160, box), [box], [0], image_format=image_format)
    batch = tf.function(lambda: load_batch([serialized] * 60, config, uniform(7, 60)))()
    seen = 0
    scales = batch.transforms[:, 0].numpy()
    for image, boxes, classes, transform in zip(*(batch[i].numpy() for i in (0, 1, 2)), batch.transforms.numpy()):
        found = found_box(image)
        if found is None:
            assert classes[0] == -1 or np.min(boxes[0, 2:] - boxes[0, :2]) < 1
            continue
        seen += 1
        # Half a resized original pixel of blur on an edge, and one for rounding.
        np.testing.assert_allclose(boxes[0], found, atol=1 + 0.5 * max(transform[:2]))
    assert seen >= 30
    letterbox_scale = 64 / 120
    assert min(scales) < 0.7 * letterbox_scale
    assert max(scales) > 5 * letterbox_scale


def test_the_scale_is_log_uniform():
    """From 1/2 to 8 every doubling is as likely: a quarter of the images each, within four standard deviations."""
    config = AugmentConfig(scale_min=0.5, scale_max=8.0)
    region = windows.whole_image(tf.constant([[6400, 9600]] * 600))
    window = windows.jitter_window(region, SIZE, RandomNumbers.of(uniform(7, 600)), config)
    scales = windows.transform_of(window)[:, 0] * 100
    shares = np.histogram(np.log2(scales), bins=[-1, 0, 1, 2, 3])[0] / 600
    np.testing.assert_allclose(shares, 0.25, atol=0.07)


def test_equal_random_numbers_give_equal_crops():
    config = InputConfig(image_size=SIZE, augment=AugmentConfig(scale_min=0.5, scale_max=2.0))
    serialized = toy_shards.example("a", *toy_shards.blocks(3))
    first, again, other = (load(serialized, config, uniform(seed)) for seed in (2, 2, 3))
    np.testing.assert_array_equal(first.images, again.images)
    assert not np.array_equal(first.transforms, other.transforms)


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


def test_the_largest_of_too_many_boxes_are_kept_in_their_order():
    boxes = tf.constant([[[0.0, 0, 2, 2], [0, 0, 9, 9], [0, 0, 1, 1], [0, 0, 5, 5]]] * 3)
    classes, difficult = tf.tile([[0, 1, 2, 3]], [3, 1]), tf.tile([[True, False, True, False]], [3, 1])
    keep = tf.constant([[True] * 4, [True, False, True, False], [False] * 3 + [True]])
    kept, classes, difficult, dropped = augment.keep_boxes(boxes, classes, difficult, keep, 2, 2)
    np.testing.assert_array_equal(kept[0], [[0, 0, 9, 9], [0, 0, 5, 5]])
    np.testing.assert_array_equal(kept[1], [[0, 0, 2, 2], [0, 0, 1, 1]])
    np.testing.assert_array_equal(kept[2], [[0, 0, 5, 5], [0, 0, 0, 0]])
    np.testing.assert_array_equal(classes, [[1, 3], [0, 2], [3, -1]])
    np.testing.assert_array_equal(difficult, [[False, False], [True, True], [False, False]])
    np.testing.assert_array_equal(dropped, [2, 0, 0])


@pytest.mark.parametrize("in_graph", [False, True])
def test_objects_beyond_the_largest_become_regions(in_graph):
    """By hand, with places for two objects and two regions: areas 4, 81, 1 and 25, and a region of 100 or of 9."""
    boxes = tf.constant(
        [[[0.0, 0, 2, 2], [0, 0, 9, 9], [0, 0, 10, 10], [0, 0, 1, 1], [0, 0, 5, 5]]] * 2
        + [[[0.0, 0, 2, 2], [0, 0, 9, 9], [0, 0, 3, 3], [0, 0, 1, 1], [0, 0, 5, 5]]]
    )
    classes, difficult = tf.tile([[0, 1, IGNORED, 2, 3]], [3, 1]), tf.tile([[False, True, True, False, False]], [3, 1])
    keep = tf.constant([[True] * 5, [True, False, True, False, False], [True] * 5])
    keep_boxes = tf.function(augment.keep_boxes) if in_graph else augment.keep_boxes
    kept, classes, difficult, dropped = keep_boxes(boxes, classes, difficult, keep, 2, 4)
    np.testing.assert_array_equal(classes, [[IGNORED, 1, IGNORED, 3], [0, IGNORED, -1, -1], [IGNORED, 1, IGNORED, 3]])
    np.testing.assert_array_equal(
        difficult, [[True, True, True, False], [False, True, False, False], [True, True, True, False]]
    )
    np.testing.assert_array_equal(kept[0], [[0, 0, 2, 2], [0, 0, 9, 9], [0, 0, 10, 10], [0, 0, 5, 5]])
    np.testing.assert_array_equal(kept[1], [[0, 0, 2, 2], [0, 0, 10, 10], [0] * 4, [0] * 4])
    np.testing.assert_array_equal(dropped, [2, 0, 2])


def test_an_image_without_objects():
    serialized = toy_shards.example("a", painted(32, 32, (0, 0, 1, 1)), [], [])
    sample = load(serialized, InputConfig(image_size=SIZE, max_boxes=2), uniform(0))
    np.testing.assert_array_equal(sample.classes, [-1, -1])
    np.testing.assert_array_equal(sample.boxes, np.zeros((2, 4)))


def test_grayscale_becomes_three_channels():
    gray = np.tile(np.arange(64, dtype=np.uint8)[:, None, None], (1, 96, 1))
    sample = load(toy_shards.example("a", gray, [], []), InputConfig(image_size=SIZE))
    assert sample.images.shape == (*SIZE, 3)
    np.testing.assert_array_equal(sample.images[..., 0], sample.images[..., 2])


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
def test_boxes_follow_a_large_jpeg_that_is_decoded_smaller(ratio):
    """Of a size that is no multiple of the ratio. The paint has edges on whole pixels of the smallest image."""
    height, width = 64 * ratio + 5, 80 * ratio + 3
    box = (16 * ratio, 24 * ratio, 40 * ratio, 64 * ratio)
    sample = load(
        toy_shards.example("a", painted(height, width, box), [box], [0]),
        InputConfig(image_size=SIZE, max_boxes=1, augment=AugmentConfig()),
    )
    window = windows.fit_window(windows.whole_image(tf.constant([height, width])), SIZE)
    assert windows.jpeg_ratio(window) == ratio
    np.testing.assert_allclose(sample.boxes[0], found_box(sample.images), atol=1)
    np.testing.assert_array_equal(sample.original_sizes, [height, width])


def test_jpeg_ratio_and_aligned_window():
    """By hand: the decoded image is never smaller than the size asked for, unless the file itself is."""
    sizes, resized = tf.constant([[50, 70], [128, 200], [255, 400], [256, 384], [5000, 7000]]), tf.constant([[64, 96]])
    window = windows.Window(tf.zeros_like(sizes), sizes, tf.repeat(resized, 5, axis=0))
    np.testing.assert_array_equal(windows.jpeg_ratio(window), [1, 2, 2, 4, 8])
    aligned = windows.align_window(
        windows.Window(*(tf.constant([v]) for v in ([5, 9], [10, 22], [2, 5]))), tf.constant([4])
    )
    np.testing.assert_array_equal(aligned.offset, [[4, 8]])
    np.testing.assert_array_equal(aligned.size, [[12, 24]])


def test_a_jpeg_decoded_smaller_has_the_means_of_its_pixels():
    """Against a float64 mean of squares of the whole image, to the precision of the inverse DCT."""
    rng = np.random.default_rng(0)
    smooth = np.asarray(tf.image.resize(rng.integers(0, 256, (8, 12, 3)), (256, 384), "bicubic"))
    encoded = tf.io.encode_jpeg(np.clip(smooth, 0, 255).astype(np.uint8), quality=98)
    image, transform, size = augment.load_and_letterbox(encoded, SIZE)
    whole = tf.io.decode_jpeg(encoded).numpy().astype(np.float64)
    assert np.abs(image.numpy() - whole.reshape(64, 4, 96, 4, 3).mean(axis=(1, 3))).mean() < 1.5
    np.testing.assert_array_equal(transform, [0.25, 0.25, 0, 0])
    np.testing.assert_array_equal(size, [256, 384])


def test_shrinking_takes_the_means_of_blocks():
    """By hand; the blocks at the right and at the bottom have fewer pixels."""
    image = tf.constant([[0, 2, 9], [4, 6, 8], [1, 2, 200]], tf.uint8)[..., tf.newaxis] + tf.zeros([3], tf.uint8)
    shrunk = tf.function(augment.shrink)(image, tf.constant(2))
    np.testing.assert_array_equal(shrunk[..., 0], [[3, 8], [2, 200]])  # 8.5 and 1.5 are rounded to even numbers
    np.testing.assert_array_equal(augment.shrink(image, tf.constant(1)), image)


@pytest.mark.parametrize("size", [(150, 200), (300, 450), (901, 1203)])
def test_noise_reaches_the_network_alike_in_every_format(size):
    """At ratios of 2, 4 and 8. Bilinear resizing alone would keep the noise: the images would differ by 16 and more."""
    grey = np.random.default_rng(0).normal(127, 40, (*size, 1)).clip(0, 255).astype(np.uint8)
    pixels = tf.constant(grey.repeat(3, axis=2))
    jpeg = tf.io.encode_jpeg(pixels, quality=100, chroma_downsampling=False)
    expected, expected_transform, _ = augment.load_and_letterbox(jpeg, SIZE)
    for image, transform, *_ in (
        augment.load_and_letterbox(tf.io.encode_png(pixels), SIZE),
        tf.function(augment.letterbox)(pixels, SIZE),
    ):
        np.testing.assert_array_equal(transform, expected_transform)
        assert np.abs(image.numpy().astype(int) - expected.numpy()).mean() < 0.3


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
@pytest.mark.parametrize("in_graph", [False, True])
def test_a_served_image_equals_that_of_evaluation(image_format, in_graph):
    pixels = np.random.default_rng(0).integers(0, 256, (301, 403, 3)).astype(np.uint8)
    serialized = toy_shards.example("a", pixels, [], [], image_format=image_format)
    sample = load(serialized, InputConfig(image_size=SIZE, augment=AugmentConfig()))
    serve = tf.function(augment.load_and_letterbox) if in_graph else augment.load_and_letterbox
    encoded = tfrecord.decode_example(serialized, frozenset(["image/encoded"]))["image/encoded"][0]
    image, transform, size = serve(tf.constant(encoded), SIZE)
    np.testing.assert_array_equal(image, sample.images)
    np.testing.assert_allclose(transform, sample.transforms)
    np.testing.assert_array_equal(size, [301, 403])


def iou_crops(boxes, classes, count, probability=1.0):
    sizes = tf.constant([[100, 200]] * count)
    rows = [tf.repeat(tf.constant([values]), count, axis=0) for values in (boxes, classes)]
    return windows.iou_crop_region(
        sizes, *rows, RandomNumbers.of(uniform(5, count)), AugmentConfig(iou_crop=probability)
    )


@pytest.mark.parametrize("in_graph", [False, True])
def test_an_iou_crop_contains_the_centre_of_an_object_and_reaches_an_iou(in_graph):
    """Computed with NumPy from the regions: low and high IoUs occur; areas and aspect ratios keep to their limits."""
    box = np.array([30.0, 40, 80, 120])

    def crop():
        return iou_crops([box.tolist()], [0], 200)

    offset, size = (values.numpy() for values in (tf.function(crop) if in_graph else crop)())
    cropped = ~np.all(size == (100, 200), axis=1)
    assert cropped.mean() > 0.6  # an IoU of 0.9 is seldom met by chance, and then the image stays whole
    assert np.all(offset >= 0)
    assert np.all(offset + size <= (100, 200))
    centre = (box[:2] + box[2:]) / 2
    assert np.all((offset <= centre) & (centre < offset + size))
    shares = size / (100, 200)
    assert np.all(np.prod(shares, axis=1)[cropped] >= 0.09)
    ratio = shares[:, 1] / shares[:, 0]
    assert np.all((ratio > 0.45) & (ratio < 2.2))
    sides = np.minimum(offset + size, box[2:]) - np.maximum(offset, box[:2])
    common = np.prod(np.maximum(sides, 0), axis=1)
    iou = common / (np.prod(size, axis=1) + 50 * 80 - common)
    assert np.max(iou) > 0.5
    assert np.min(iou[cropped]) < 0.3


def test_iou_crops_have_their_probability_without_objects_too():
    offset, size = iou_crops([[0.0, 0, 0, 0]], [-1], 1000, probability=0.3)
    cropped = ~np.all(size == (100, 200), axis=1)
    assert abs(cropped.mean() - 0.3) < 0.06  # four standard deviations
    np.testing.assert_array_equal(offset[~cropped], 0)


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_boxes_follow_the_pixels_through_iou_crops(image_format):
    config = InputConfig(image_size=SIZE, max_boxes=1, augment=AugmentConfig(iou_crop=1.0, scale_max=2.0))
    box = (40, 50, 90, 110)
    serialized = toy_shards.example("a", painted(120, 160, box), [box], [0], image_format=image_format)
    batch = load_batch([serialized] * 40, config, uniform(3, 40))
    seen = 0
    for image, boxes, classes, transform in zip(*(values.numpy() for values in batch[:3]), batch.transforms.numpy()):
        if classes[0] == 0:
            seen += 1
            np.testing.assert_allclose(boxes[0], found_box(image), atol=1 + 0.5 * max(transform[:2]))
    assert seen > 25
    assert len(np.unique(batch.transforms[:, 0])) > 20


def test_warp_matrices_by_hand():
    """A quarter turn about the centre (48, 32): the point (58, 32), 10 right of it, comes to 10 below it."""
    config = AugmentConfig(warp=1.0, rotate=90.0, shear=0.0, translate=0.0)
    matrices, moves = augment.warp_matrices(fixed(rotate=1.0), config, SIZE)
    np.testing.assert_allclose(matrices[0] @ np.array([[58.0], [32], [1]], np.float32), [[48], [42]], atol=1e-4)
    assert moves.numpy().tolist() == [True]
    config = AugmentConfig(warp=1.0, rotate=0.0, shear=0.5, translate=0.25)
    matrices, _ = augment.warp_matrices(fixed(shear=1.0, translate_x=1.0, translate_y=0.0), config, SIZE)
    # 10 below the centre: 5 to the right by the shear, 24 by the shift; and 16 up.
    np.testing.assert_allclose(matrices[0] @ np.array([[48.0], [42], [1]], np.float32), [[77], [26]], atol=1e-4)
    matrices, moves = augment.warp_matrices(fixed(count=1, warp=0.7), AugmentConfig(warp=0.5), SIZE)
    np.testing.assert_allclose(matrices[0], [[1, 0, 0], [0, 1, 0]], atol=1e-6)
    assert moves.numpy().tolist() == [False]


def test_warps_have_their_probability():
    config = AugmentConfig(warp=0.3)
    _, moves = augment.warp_matrices(RandomNumbers.of(uniform(1, 2000)), config, SIZE)
    assert abs(moves.numpy().mean() - 0.3) < 0.041  # four standard deviations


def test_warps_are_the_same_eagerly_and_in_batches_of_any_size():
    """To the last bit, whatever Grappler does with their factors."""
    numbers, config = uniform(3, 60), AugmentConfig(warp=0.7, rotate=20.0)

    def matrices(numbers):
        return augment.warp_matrices(RandomNumbers.of(numbers), config, SIZE)[0]

    for batch_size in (1, 6):
        batches = tf.data.Dataset.from_tensor_slices(numbers).batch(batch_size, drop_remainder=True).map(matrices)
        np.testing.assert_array_equal(np.concatenate(list(batches)), matrices(numbers))


def test_a_warp_by_whole_pixels_moves_each_pixel():
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    moved = augment.warp_image(tf.constant(image), tf.constant([[1.0, 0, 7], [0, 1, -3]])).numpy()
    np.testing.assert_array_equal(moved[:-3, 7:], image[3:, :-7])
    assert np.all(moved[-3:] == PAD_VALUE)
    assert np.all(moved[:, :7] == PAD_VALUE)


def test_boxes_follow_the_pixels_through_the_warp():
    """The paint is a rectangle, whose corners touch the sides of its box; a warped disc would not touch them."""
    config = InputConfig(
        image_size=SIZE,
        max_boxes=1,
        augment=AugmentConfig(warp=0.7, rotate=30.0, shear=0.3, translate=0.3, min_visible=0.0),
    )
    box = (30, 40, 70, 90)
    serialized = toy_shards.example("a", painted(100, 150, box), [box], [0], image_format="png")
    batch = load_batch([serialized] * 60, config, uniform(9, 60))
    _, moves = augment.warp_matrices(RandomNumbers.of(uniform(9, 60)), config.augment, SIZE)
    assert 30 < np.count_nonzero(moves) < 55
    inside = 0
    for image, boxes, classes in zip(*(values.numpy() for values in batch[:3])):
        found = found_box(image)
        touches = found is None or min(found[:2]) <= 0 or found[2] >= SIZE[0] or found[3] >= SIZE[1]
        if classes[0] == 0 and not touches:  # at the border a cut corner no longer decides the hull
            inside += 1
            np.testing.assert_allclose(boxes[0], found, atol=2)
    assert inside > 30


def test_randaugment_chooses_each_operation_equally_often():
    """Two of nine operations, with replacement: each in 1 - (8/9)^2 of the images, at half its limit."""
    random = RandomNumbers.of(uniform(2, 4000))
    config = AugmentConfig(randaugment=2, randaugment_magnitude=5.0, hue=0.01)
    chosen = []
    for name in ("brightness", "contrast", "saturation", "hue", "grayscale", "cutout"):
        base = np.float32(getattr(config, name))
        strengths = strength(name, base, random, config).numpy()
        assert set(np.unique(strengths)) == {base, np.float32(RANDAUGMENT_LIMITS[name] / 2)}
        chosen.append(np.mean(strengths > base))
    np.testing.assert_allclose(chosen, 1 - (8 / 9) ** 2, atol=0.026)  # four standard deviations
    _, moves = augment.warp_matrices(random, config, SIZE)
    np.testing.assert_allclose(moves.numpy().mean(), 1 - (6 / 9) ** 2, atol=0.032)


def test_randaugment_acts_on_the_device_too():
    """An image for which only cutout is chosen gets a grey square, and nothing else changes."""
    number = list(RANDAUGMENT_LIMITS).index("cutout")
    choice = (number + 0.5) / len(RANDAUGMENT_LIMITS)
    batch = load_batch([toy_shards.example("a", *toy_shards.blocks(1))], InputConfig(image_size=SIZE))
    batch = batch._replace(random_numbers=tf.stack(fixed(randaugment_1=choice, cutout_size=1.0), axis=1))
    config = AugmentConfig(randaugment=1, randaugment_magnitude=10.0)
    changed = batch_augment.augment_images(batch, config)
    plain = batch_augment.augment_images(batch, AugmentConfig())
    erased = np.any(np.abs(changed - plain) > 1e-4, axis=-1)
    assert 0.05 < erased.mean() < 0.2
    padding = batch_augment.normalize(tf.fill([1, 1, 1, 3], PAD_VALUE))
    np.testing.assert_allclose(changed.numpy()[erased], np.broadcast_to(padding[0, 0], (erased.sum(), 3)), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "flag"),
    [({"warp": 1.5}, "warp"), ({"randaugment": 4}, "randaugment"), ({"randaugment_magnitude": 11}, "magnitude")],
)
def test_settings_out_of_range_are_refused(settings, flag):
    with pytest.raises(ValueError, match=flag):
        AugmentConfig(**settings)


def test_all_host_steps_together_are_the_same_eagerly_and_in_tf_data():
    augment_config = AugmentConfig(iou_crop=1.0, scale_min=0.5, scale_max=2.0, warp=1.0, randaugment=3)
    serialized = toy_shards.example("a", *toy_shards.blocks(3))
    sample = load(serialized, InputConfig(image_size=SIZE, augment=augment_config), uniform(4))
    assert not np.array_equal(sample.transforms, load(serialized, InputConfig(image_size=SIZE)).transforms)


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_boxes_follow_the_pixels_through_crops_of_large_images(image_format):
    """They are cropped and decoded smaller at once: windows start at whole pixels of the smaller image."""
    config = InputConfig(
        image_size=SIZE, max_boxes=1, augment=AugmentConfig(scale_min=1.0, scale_max=4.0, min_visible=0.0)
    )
    box = (301, 405, 499, 803)
    serialized = toy_shards.example("a", painted(803, 1205, box), [box], [0], image_format=image_format)
    numbers = uniform(11, 40)
    batch = load_batch([serialized] * 40, config, numbers)
    window = windows.jitter_window(
        windows.whole_image(tf.constant([[803, 1205]] * 40)), SIZE, RandomNumbers.of(numbers), config.augment
    )
    ratios = windows.jpeg_ratio(window).numpy()
    assert set(ratios) == {2, 4, 8}
    assert np.count_nonzero(np.any(window.offset.numpy() % ratios[:, np.newaxis], axis=1)) > 20
    seen = 0
    for image, boxes, classes in zip(*(values.numpy() for values in batch[:3])):
        found = found_box(image)
        if classes[0] == 0 and found is not None:
            seen += 1
            np.testing.assert_allclose(boxes[0], found, atol=1.5)
    assert seen > 30
