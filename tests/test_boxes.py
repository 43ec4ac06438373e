"""Geometry of boxes against pycocotools, float64 NumPy and arithmetic done by hand."""

import numpy as np
import pytest
import tensorflow as tf
from pycocotools import mask as coco_mask

from input import boxes


@pytest.fixture(params=["eager", "graph"])
def run(request):
    """Calls a function of boxes eagerly or inside a tf.function."""
    return (lambda f, *args: f(*args)) if request.param == "eager" else (lambda f, *args: tf.function(f)(*args))


def random_boxes(rng, *shape, extent=512.0):
    corners = np.sort(rng.uniform(0, extent, (*shape, 2, 2)), axis=-2)
    return corners.reshape(*shape, 4).astype(np.float32)


def test_area_by_hand(run):
    cases = np.array([[1, 2, 4, 7], [5, 5, 5, 9], [4, 1, 2, 3], [9, 9, 1, 1]], np.float32)
    np.testing.assert_array_equal(run(boxes.area, cases), [15, 0, 0, 0])


def test_area_of_half_precision_boxes_does_not_overflow(run):
    assert run(boxes.area, tf.constant([0, 0, 512, 512], tf.float16)) == 512.0**2


def test_iou_by_hand(run):
    a = np.array([[0, 0, 2, 4], [0, 0, 0, 5], [10, 10, 12, 12]], np.float32)
    b = np.array([[1, 2, 3, 6], [0, 0, 2, 4], [12, 10, 14, 12], [7, 7, 3, 3]], np.float32)
    # First row: overlap 1 x 2 of areas 8 + 8; the same box; apart; an inverted box is empty.
    np.testing.assert_allclose(run(boxes.iou, a, b), [[2 / 14, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], rtol=1e-6)


def test_iou_of_empty_boxes_with_themselves_is_zero(run):
    empty = np.array([[0, 0, 0, 0], [3, 3, 3, 8], [8, 8, 3, 3]], np.float32)
    np.testing.assert_array_equal(run(boxes.iou, empty, empty), np.zeros((3, 3)))


def test_iou_equals_pycocotools(run):
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 3, 40), random_boxes(rng, 3, 50)
    ours = run(boxes.iou, a, b)
    assert ours.shape == (3, 40, 50)

    def xywh(x):
        return np.stack([x[:, 1], x[:, 0], x[:, 3] - x[:, 1], x[:, 2] - x[:, 0]], axis=-1).astype(np.float64)

    for i in range(3):
        theirs = coco_mask.iou(xywh(a[i]), xywh(b[i]), [False] * 50)
        np.testing.assert_allclose(ours[i], theirs, atol=1e-6)


def test_clip(run):
    image_boxes = np.array([[-3, 5, 200, 7], [1, 2, 3, 4], [150, -9, 160, -2]], np.float32)
    expected = [[0, 5, 100, 7], [1, 2, 3, 4], [100, 0, 100, 0]]
    np.testing.assert_array_equal(run(lambda x: boxes.clip(x, (100, 50)), image_boxes), expected)
    sizes = np.array([[100, 50], [2, 3], [200, 50]])
    expected = [[0, 5, 100, 7], [1, 2, 2, 3], [150, 0, 160, 0]]
    np.testing.assert_array_equal(run(boxes.clip, image_boxes, sizes), expected)


def test_encode_by_hand(run):
    anchor = np.array([10, 20, 30, 60], np.float32)  # centre (20, 40), 20 high, 40 wide
    box = np.array([20, 10, 30, 90], np.float32)  # centre (25, 50), 10 high, 80 wide
    np.testing.assert_allclose(run(boxes.encode, box, anchor), [0.25, 0.25, np.log(0.5), np.log(2)], rtol=1e-6)
    np.testing.assert_array_equal(run(boxes.encode, anchor, anchor), [0, 0, 0, 0])


def test_decode_inverts_encode(run):
    rng = np.random.default_rng(1)
    anchors = random_boxes(rng, 500) * [1, 1, 1.01, 1.01] + [0, 0, 20, 20]
    wanted = random_boxes(rng, 4, 500) + np.float32([0, 0, 8, 8])
    deltas = run(boxes.encode, wanted, anchors)
    np.testing.assert_allclose(run(boxes.decode, deltas, anchors), wanted, atol=1e-3)


def test_decode_equals_float64(run):
    rng = np.random.default_rng(2)
    anchors = random_boxes(rng, 200)
    deltas = rng.normal(size=(200, 4)).astype(np.float32)
    low, high = np.split(anchors.astype(np.float64), 2, axis=-1)
    centers = (low + high) / 2 + deltas[:, :2] * (high - low)
    sizes = (high - low) * np.exp(deltas[:, 2:].astype(np.float64))
    expected = np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=-1)
    np.testing.assert_allclose(run(boxes.decode, deltas, anchors), expected, rtol=1e-4, atol=1e-3)


def test_decode_limits_sizes(run):
    decoded = run(boxes.decode, np.float32([0, 0, 1000, -1000]), np.float32([0, 0, 32, 32]))
    np.testing.assert_allclose(decoded, [16 - 1000, 16, 16 + 1000, 16], rtol=1e-5)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_is_only_the_inputs(run, dtype):
    deltas = tf.cast([[0.1, -0.2, 0.3, 4.0]], dtype)
    anchors = tf.cast([[8.0, 8.0, 520.0, 264.0]], dtype)
    decoded = run(boxes.decode, deltas, anchors)
    assert decoded.dtype == tf.float32
    expected = boxes.decode(tf.cast(deltas, tf.float32), tf.cast(anchors, tf.float32))
    np.testing.assert_array_equal(decoded, expected)
    assert run(boxes.encode, anchors, anchors).dtype == run(boxes.iou, anchors, anchors).dtype == tf.float32


@pytest.mark.parametrize("size", [(480, 640), (3000, 200), (100, 4000), (7, 5)], ids=["photo", "tall", "wide", "tiny"])
def test_to_original_undoes_a_letterbox(run, size):
    """The image is resized to fit 256 x 320 and centred."""
    rng = np.random.default_rng(3)
    original = random_boxes(rng, 2, 30, extent=1.0) * np.float32([*size, *size])
    scale = min(256 / size[0], 320 / size[1])
    transform = [scale, scale, (256 - scale * size[0]) / 2, (320 - scale * size[1]) / 2]
    transforms = np.array([transform, [1, 1, 0, 0]], np.float32)  # the second image is taken as it is
    in_input = original * np.tile(transforms[:, :2], 2)[:, np.newaxis] + np.tile(transforms[:, 2:], 2)[:, np.newaxis]
    back = run(boxes.to_original, in_input, transforms, np.array([size, size], np.int32))
    np.testing.assert_allclose(back, original, rtol=1e-5, atol=1e-5 * max(size))


def test_to_original_clips_to_each_image(run):
    inside_input = np.array([[[0, 0, 100, 100]], [[0, 0, 100, 100]]], np.float32)
    transforms = np.array([[2, 4, 10, 20], [1, 1, 0, 0]], np.float32)
    sizes = np.array([[40, 15], [100, 60]], np.int32)
    # ((0 - 10) / 2, (0 - 20) / 4, (100 - 10) / 2, (100 - 20) / 4) = (-5, -5, 45, 20), then cut to 40 x 15.
    expected = [[[0, 0, 40, 15]], [[0, 0, 100, 60]]]
    np.testing.assert_array_equal(run(boxes.to_original, inside_input, transforms, sizes), expected)


def test_still_shown(run):
    """By hand, boxes of 4 x 4 px, a quarter: enough area, the centre alone, neither, and nothing visible."""
    whole = np.tile(np.float32([0, 0, 4, 4]), (4, 1))
    visible_area, center_visible = np.float32([4, 1, 3.9, 0]), np.array([False, True, False, True])
    shown = run(lambda *args: boxes.still_shown(*args, 0.25), whole, visible_area, center_visible)
    np.testing.assert_array_equal(shown, [True, True, False, False])
