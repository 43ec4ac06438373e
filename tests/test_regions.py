"""Ignored regions from the record to the gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from voc_tree import encoded, picture

from input import augment, regions, targets, tfrecord
from input.anchors import make_anchors
from input.config import AugmentConfig, InputConfig
from input.random_numbers import NUM_PER_IMAGE
from input.types import BACKGROUND, IGNORED, Batch
from model import losses
from model.config import LossConfig
from model.types import Predictions

CONFIG = InputConfig(image_size=(64, 96))
ANCHORS = make_anchors(CONFIG.anchor, CONFIG.image_size)
METHODS = ("dense", "sparse")


def make_batch(boxes: Any, classes: Any) -> Batch:
    boxes, classes = tf.constant(boxes, tf.float32), tf.constant(classes, tf.int32)
    nothing = tf.zeros([0])
    return Batch(*([nothing] * len(Batch._fields)))._replace(
        boxes=boxes,
        classes=classes,
        difficult=classes == IGNORED,
        box_weights=tf.ones_like(boxes[..., 0]),
        valid=tf.ones(tf.shape(boxes)[:1], tf.bool),
    )


# An object, a padding box and two regions; an image with a region alone; an image with neither.
BATCH = make_batch(
    [
        [[8, 8, 40, 40], [0, 0, 0, 0], [0, 48, 64, 96], [30, 0, 64, 20]],
        [[0, 0, 64, 96], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        [[8, 8, 40, 40], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    ],
    [[0, -1, IGNORED, IGNORED], [IGNORED, -1, -1, -1], [0, -1, -1, -1]],
)


def inside_of(box: list[float]) -> np.ndarray:
    """Which anchors have half of their area in the box; by counting quarter pixels, within the image and around it."""
    steps = np.arange(-400, 500, 0.25) + 0.125
    ymin, xmin, ymax, xmax = box
    shares = [
        ((steps > max(low, start)) & (steps < min(high, end))).sum() / ((steps > start) & (steps < end)).sum()
        for low, high, start, end in (
            limits
            for anchor in ANCHORS
            for limits in ((ymin, ymax, anchor[0], anchor[2]), (xmin, xmax, anchor[1], anchor[3]))
        )
    ]
    return np.reshape(shares, (-1, 2)).prod(axis=1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("in_graph", [False, True])
def test_anchors_inside_a_region_are_ignored(method, in_graph):
    assign = tf.function(targets.assign) if in_graph else targets.assign
    found = assign(BATCH, CONFIG, method=method).class_targets.numpy()
    without = assign(
        BATCH._replace(classes=tf.where(BATCH.classes == IGNORED, -1, BATCH.classes)), CONFIG, method=method
    ).class_targets.numpy()
    shares = np.stack(
        [
            np.maximum(inside_of([0, 48, 64, 96]), inside_of([30, 0, 64, 20])),
            inside_of([0, 0, 64, 96]),
            np.zeros(len(ANCHORS)),
        ]
    )
    expected = np.where((shares >= regions.INSIDE) & (without == BACKGROUND), IGNORED, without)
    clear = np.abs(shares - regions.INSIDE) > 0.02
    np.testing.assert_array_equal(found[clear], expected[clear])
    assert (found[0] != without[0]).sum() > 100
    np.testing.assert_array_equal(found[2], without[2])
    assert (found[0] >= 0).sum() == (without[0] >= 0).sum() > 0  # an anchor with an object keeps it


@pytest.mark.parametrize("method", METHODS)
def test_a_region_gives_exactly_no_gradient(method):
    """In the whole of an image that is one region; the same image without it has a gradient everywhere."""
    found = targets.assign(BATCH, CONFIG, method=method)
    inside = inside_of([0, 0, 64, 96]) > regions.INSIDE + 0.02
    logits = tf.Variable(tf.random.stateless_normal([3, len(ANCHORS), 2], [1, 2]))
    deltas = tf.Variable(tf.random.stateless_normal([3, len(ANCHORS), 4], [3, 4]))
    with tf.GradientTape() as tape:
        found_losses = losses.detection_losses(
            Predictions(logits, deltas), found, tf.constant(1.0), LossConfig(), tf.constant(ANCHORS)
        )
        total = found_losses[0] + found_losses[1]
    of_logits, of_deltas = tape.gradient(total, [logits, deltas])
    assert not np.any(of_logits[1].numpy()[inside])
    assert not np.any(of_deltas[1])
    background = found.class_targets[2].numpy() == BACKGROUND
    assert np.all(of_logits[2].numpy()[background] != 0)
    assert inside.sum() > 800


@pytest.mark.parametrize("in_graph", [False, True])
def test_a_region_travels_from_the_record_to_the_batch(in_graph):
    """Scaled and moved like a box; what a crop leaves of one is kept, however little."""
    annotation = tfrecord.Annotation("a", "a.jpg", 128, 192, [(8, 8, 40, 40)], [1], ["cat"], [0], [0], ["Left"])
    annotation = annotation._replace(regions=[tfrecord.Region((0, 0, 128, 192), "ignore", None)])
    serialized = tf.constant([tfrecord.encode_example(annotation, encoded(picture(128, 192)))])

    def load(numbers: tf.Tensor, training: bool) -> Batch:
        config = InputConfig(image_size=(64, 96), max_boxes=3, augment=AugmentConfig(scale_min=4.0, scale_max=4.0))
        return augment.load_and_crop(
            tfrecord.parse_examples(serialized),
            config,
            training=training,
            record_index=tf.zeros([1], tf.int64),
            valid=tf.ones([1], tf.bool),
            random_numbers=numbers,
        )

    load = tf.function(load) if in_graph else load
    batch = load(tf.fill([1, NUM_PER_IMAGE], 0.5), training=False)
    np.testing.assert_array_equal(batch.classes, [[1, IGNORED, -1]])
    np.testing.assert_array_equal(batch.difficult, [[False, True, False]])
    np.testing.assert_allclose(batch.boxes[0], [(4, 4, 20, 20), (0, 0, 64, 96), (0, 0, 0, 0)], atol=1e-4)
    batch = load(tf.fill([1, NUM_PER_IMAGE], 0.99), training=True)  # a corner, four times as large
    np.testing.assert_array_equal(batch.classes[0, :1], [IGNORED])
    np.testing.assert_allclose(batch.boxes[0, 0], (0, 0, 64, 96), atol=1e-4)
