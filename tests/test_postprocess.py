"""Detections against a plain suppression class by class in NumPy, and against TensorFlow's combined one."""

import numpy as np
import pytest
import tensorflow as tf

from input import anchors as anchor_grid
from input import boxes
from input.config import AnchorConfig
from model import postprocess
from model.config import DetectConfig
from model.types import Detections, Predictions

IMAGE_SIZE = (64, 96)
ANCHOR_CONFIG = AnchorConfig(sizes=(8, 16, 32, 64, 128))
ANCHORS = tf.constant(anchor_grid.make_anchors(ANCHOR_CONFIG, IMAGE_SIZE))
LEVELS = {"num_anchors_by_level": anchor_grid.num_anchors_by_level(ANCHOR_CONFIG, IMAGE_SIZE)}


def random_predictions(num_classes, batch_size=2, seed=0):
    rng = np.random.default_rng(seed)
    shape = [batch_size, ANCHORS.shape[0]]
    return Predictions(
        tf.constant(rng.normal(-4, 2, [*shape, num_classes]), tf.float32),
        tf.constant(rng.normal(0, 0.3, [*shape, 4]), tf.float32),
    )


def reference_iou(box, others):
    corners = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    intersection = np.prod(np.maximum(corners[1] - corners[0], 0), axis=-1)
    areas = [np.prod(b[..., 2:] - b[..., :2], axis=-1) for b in (box, others)]
    return intersection / (areas[0] + areas[1] - intersection)


def reference_detect(logits, deltas, anchors, config, image_size):
    """One image in float64: decode, clip, the best pairs, suppression, the best of all."""
    logits, deltas, anchors = (np.asarray(x, np.float64) for x in (logits, deltas, anchors))
    centers, sizes = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    centers, sizes = centers + deltas[:, :2] * sizes, sizes * np.exp(deltas[:, 2:])
    decoded = np.clip(
        np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=-1), 0, [*image_size, *image_size]
    )

    num_classes = logits.shape[-1]
    found = []
    levels = LEVELS["num_anchors_by_level"] if config.pre_nms == "per_level" else [len(anchors)]
    chosen, first = np.zeros(logits.size, bool), 0
    for count in levels:
        of_level = -logits[first : first + count].reshape(-1)
        chosen[first * num_classes + np.argsort(of_level, kind="stable")[: config.pre_nms_top_k]] = True
        first += count
    pairs = np.argsort(-logits.reshape(-1), kind="stable")
    for pair in pairs[chosen[pairs]]:  # best first
        anchor, class_ = divmod(pair, num_classes)
        score = 1 / (1 + np.exp(-logits[anchor, class_]))
        same_class = np.array([f[0] for f in found if f[2] == class_ or config.nms == "agnostic"]).reshape(-1, 4)
        is_new = np.all(reference_iou(decoded[anchor], same_class) <= config.nms_iou)
        if score > config.score_threshold and np.all(decoded[anchor, 2:] > decoded[anchor, :2]) and is_new:
            found.append((decoded[anchor], score, class_))
    found = found[: config.max_detections]
    padding = [(np.zeros(4), 0, -1)] * (config.max_detections - len(found))
    return Detections(*(np.array(column) for column in zip(*(found + padding))), len(found))


def check(predictions, config):
    """Compares eager and graph detections, the latter with an unknown batch size, with the reference; returns them."""

    def detect(predictions):
        return postprocess.detect(predictions, ANCHORS, config, IMAGE_SIZE, **LEVELS)

    graph = tf.function(
        detect, input_signature=[Predictions(*(tf.TensorSpec([None, *p.shape[1:]]) for p in predictions))]
    )
    assert graph.get_concrete_function().output_shapes.boxes[1:] == [config.max_detections, 4]
    images = [reference_detect(*image, ANCHORS, config, IMAGE_SIZE) for image in zip(*predictions)]
    expected = Detections(*(np.stack(column) for column in zip(*images)))
    for detections in (detect(predictions), graph(predictions)):
        assert [d.dtype for d in detections] == [tf.float32, tf.float32, tf.int32, tf.int32]
        np.testing.assert_array_equal(detections.num_detections, expected.num_detections)
        np.testing.assert_array_equal(detections.classes, expected.classes)
        np.testing.assert_allclose(detections.scores, expected.scores, rtol=1e-5)
        np.testing.assert_allclose(detections.boxes, expected.boxes, atol=1e-3)
    return detections


@pytest.mark.parametrize("num_classes", [1, 3, 20])
def test_equals_numpy(num_classes):
    detections = check(random_predictions(num_classes, batch_size=3), DetectConfig())
    assert np.all(detections.num_detections > 50)
    assert np.all(np.diff(detections.scores) <= 0)


@pytest.mark.parametrize("nms", ["per_class", "agnostic"])
@pytest.mark.parametrize("pre_nms", ["flat", "per_level"])
def test_other_ways_equal_numpy(nms, pre_nms):
    check(random_predictions(3), DetectConfig(nms=nms, pre_nms=pre_nms, pre_nms_top_k=40, nms_iou=0.4))


def test_soft_nms_by_hand():
    """Three boxes, of which the second overlaps the first by a third, and one of another class."""
    anchors = tf.constant([[0.0, 0, 32, 32], [0, 16, 32, 48], [0, 64, 32, 96], [0, 0, 32, 32]])
    scores = np.array([[0.9, 0.0], [0.8, 0.0], [0.5, 0.0], [0.0, 0.7]])
    logits = np.clip(np.log(np.maximum(scores, 1e-9) / (1 - scores)), -20, None)[np.newaxis]
    predictions = Predictions(tf.constant(logits, tf.float32), tf.zeros([1, 4, 4]))
    config = DetectConfig(soft_nms_sigma=0.5, max_detections=5)
    lowered = 0.8 * np.exp(-((1 / 3) ** 2) / (2 * 0.5))
    found = postprocess.detect(predictions, anchors, config, IMAGE_SIZE, num_anchors_by_level=[4])
    np.testing.assert_allclose(found.scores[0], [0.9, lowered, 0.7, 0.5, 0], rtol=1e-5)
    np.testing.assert_array_equal(found.classes[0], [0, 0, 1, 0, -1])
    agnostic = DetectConfig(soft_nms_sigma=0.5, max_detections=5, nms="agnostic")
    found = postprocess.detect(predictions, anchors, agnostic, IMAGE_SIZE, num_anchors_by_level=[4])
    # The box of the other class equals the first, and overlaps the second by a third.
    other = 0.7 * np.exp(-1) * np.exp(-((1 / 3) ** 2))
    np.testing.assert_allclose(found.scores[0], [0.9, lowered, 0.5, other, 0], rtol=1e-5)


def test_equal_scores_keep_the_order_of_anchors_and_classes():
    predictions = random_predictions(3)
    rounded = tf.round(predictions.class_logits)
    detections = check(predictions._replace(class_logits=rounded), DetectConfig(pre_nms_top_k=200))
    assert np.sum(np.diff(detections.scores) == 0) > 50


def test_fewer_candidates_than_pre_nms_top_k():
    config = DetectConfig(pre_nms_top_k=10**6, max_detections=4000, nms_iou=0.9)
    detections = check(random_predictions(3, batch_size=1), config)
    assert 100 < detections.num_detections[0] < 4000


def test_without_detections_all_is_padding():
    detections = check(random_predictions(3), DetectConfig(score_threshold=0.9999))
    np.testing.assert_array_equal(detections.num_detections, [0, 0])
    np.testing.assert_array_equal(detections.classes, np.full([2, 100], -1))
    assert not np.any(detections.boxes)


def test_images_of_a_batch_do_not_influence_each_other():
    config = DetectConfig()
    several = random_predictions(3, batch_size=3)
    together = postprocess.detect(several, ANCHORS, config, IMAGE_SIZE, **LEVELS)
    for i in range(3):
        alone = postprocess.detect(Predictions(*(p[i : i + 1] for p in several)), ANCHORS, config, IMAGE_SIZE, **LEVELS)
        for a, b in zip(alone, together):
            np.testing.assert_array_equal(a[0], b[i])


def test_classes_do_not_suppress_each_other_and_boxes_outside_are_dropped():
    """Three equal anchors, the first two of one class, and one whose box is moved out of the image."""
    anchors = tf.constant([[0.0, 0, 32, 32]] * 4)
    logits = np.full([1, 4, 2], -20.0)
    logits[0, 0, 0], logits[0, 1, 0], logits[0, 2, 1], logits[0, 3, 1] = 2.0, 1.0, 0.0, 3.0
    deltas = np.zeros([1, 4, 4])
    deltas[0, 3] = [-2, 0, 0, 0]
    predictions = Predictions(tf.constant(logits, tf.float32), tf.constant(deltas, tf.float32))
    detections = postprocess.detect(
        predictions, anchors, DetectConfig(score_threshold=0.0, max_detections=5), IMAGE_SIZE, num_anchors_by_level=[4]
    )
    np.testing.assert_array_equal(detections.num_detections, [2])
    np.testing.assert_allclose(detections.scores[0], [0.8807971, 0.5, 0, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(detections.classes[0], [0, 1, -1, -1, -1])
    np.testing.assert_array_equal(detections.boxes[0], [[0, 0, 32, 32]] * 2 + [[0] * 4] * 3)


def test_equals_combined_non_max_suppression():
    predictions = random_predictions(80)
    detections = postprocess.detect(predictions, ANCHORS, DetectConfig(pre_nms_top_k=10**6), IMAGE_SIZE, **LEVELS)
    decoded = boxes.clip(boxes.decode(predictions.box_deltas, ANCHORS), IMAGE_SIZE)
    expected = tf.image.combined_non_max_suppression(
        decoded[:, :, tf.newaxis],
        tf.sigmoid(predictions.class_logits),
        max_output_size_per_class=100,
        max_total_size=100,
        iou_threshold=0.5,
        score_threshold=0.05,
        clip_boxes=False,
    )
    np.testing.assert_array_equal(detections.num_detections, expected.valid_detections)
    np.testing.assert_array_equal(detections.scores, expected.nmsed_scores)
    np.testing.assert_array_equal(detections.classes, expected.nmsed_classes)
    np.testing.assert_array_equal(detections.boxes, expected.nmsed_boxes)
