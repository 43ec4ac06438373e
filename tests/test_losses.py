"""Losses against TensorFlow Addons, Keras, float64 and cases worked by hand."""

import math

import numpy as np
import pytest
import tensorflow as tf
from addons import needs_addons, tfa

from input import boxes as box_ops
from input.types import BACKGROUND, IGNORED, Targets
from model import losses
from model.config import LossConfig
from model.types import Predictions

NO_ANCHORS = tf.zeros([0, 4])  # smooth L1 needs none


def focal_and_gradient(logits, class_targets, alpha, gamma):
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = losses.focal_loss(logits, class_targets, alpha=alpha, gamma=gamma)
    return loss, tape.gradient(loss, logits)


def reference_focal(logits, class_targets, alpha, gamma):
    """Equation 5 of the paper and its derivative in float64, from log p_t and log (1 - p_t)."""
    logits = np.asarray(logits, np.float64)
    y = np.asarray(class_targets)[..., None] == np.arange(logits.shape[-1])
    sign, alpha_t = np.where(y, 1, -1), np.where(y, alpha, 1 - alpha)
    log_p, log_q = -np.logaddexp(0, -sign * logits), -np.logaddexp(0, sign * logits)
    loss = -alpha_t * np.exp(gamma * log_q) * log_p
    gradient = alpha_t * sign * np.exp(gamma * log_q) * (gamma * np.exp(log_p) * log_p - np.exp(log_q))
    return loss.sum(-1), gradient


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    logits = tf.constant(rng.normal(0, 4, [3, 50, 7]), tf.float32)
    return logits, tf.constant(rng.integers(BACKGROUND, 7, [3, 50]), tf.int32)


def test_the_derivative_of_the_reference_equals_finite_differences(case):
    logits, class_targets = (np.asarray(x) for x in case)
    step = 1e-5
    for gamma in (0.0, 0.5, 2.0):
        _, gradient = reference_focal(logits, class_targets, 0.25, gamma)
        for k in range(logits.shape[-1]):
            shift = step * (np.arange(logits.shape[-1]) == k)
            after, before = (reference_focal(logits + s, class_targets, 0.25, gamma)[0] for s in (shift, -shift))
            np.testing.assert_allclose(gradient[..., k], (after - before) / (2 * step), atol=1e-5)


@needs_addons
def test_focal_loss_equals_tensorflow_addons(case):
    logits, class_targets = case
    one_hot = tf.one_hot(class_targets, 7)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        expected = tfa.losses.sigmoid_focal_crossentropy(one_hot, logits, alpha=0.3, gamma=2.0, from_logits=True)
    loss, gradient = focal_and_gradient(logits, class_targets, 0.3, 2.0)
    assert loss.shape == (3, 50)
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient, tape.gradient(expected, logits), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_equals_float64_eagerly_in_a_graph_and_compiled(case, gamma):
    logits, class_targets = case
    expected = reference_focal(logits, class_targets, 0.25, gamma)
    graph = tf.function(focal_and_gradient)
    compiled = tf.function(focal_and_gradient, jit_compile=True)
    for function in (focal_and_gradient, graph, compiled):
        for value, reference in zip(function(logits, class_targets, 0.25, gamma), expected):
            np.testing.assert_allclose(value, reference, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.0])
def test_focal_loss_is_finite_and_right_at_extreme_logits(gamma):
    logits = tf.constant([[-1e4], [-120.0], [-80.0], [-20.0], [0.0], [20.0], [80.0], [120.0], [1e4]])
    for class_target in (0, BACKGROUND):
        class_targets = tf.fill([9], class_target)
        expected = reference_focal(logits, class_targets, 0.25, gamma)
        for value, reference in zip(focal_and_gradient(logits, class_targets, 0.25, gamma), expected):
            assert np.all(np.isfinite(value))
            np.testing.assert_allclose(value, reference, rtol=1e-4, atol=1e-37)  # nothing below is a normal float32


def test_focal_loss_by_hand():
    # p = 0.9. Foreground: 0.25 * 0.1**2 * -log 0.9; background: 0.75 * 0.9**2 * -log 0.1.
    logits = tf.fill([2, 1], math.log(0.9 / 0.1))
    loss = losses.focal_loss(logits, tf.constant([0, BACKGROUND]), alpha=0.25, gamma=2.0)
    np.testing.assert_allclose(loss, [0.00026340, 1.39881], rtol=1e-4)


def quality_and_gradient(logits, qualities, gamma):
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = losses.quality_focal_loss(logits, qualities, gamma=gamma)
    return loss, tape.gradient(loss, logits)


def reference_quality(logits, qualities, gamma):
    """Equation 2 of the paper in float64, and its derivative by central differences."""

    def loss(logits):
        p = 1 / (1 + np.exp(-logits))
        log_p, log_q = -np.logaddexp(0, -logits), -np.logaddexp(0, logits)
        return -(np.abs(qualities - p) ** gamma) * ((1 - qualities) * log_q + qualities * log_p)

    logits, qualities = np.asarray(logits, np.float64), np.asarray(qualities, np.float64)
    return loss(logits).sum(-1), (loss(logits + 1e-6) - loss(logits - 1e-6)) / 2e-6


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_quality_focal_loss_equals_float64_eagerly_in_a_graph_and_compiled(gamma):
    rng = np.random.default_rng(0)
    logits = tf.constant(rng.normal(0, 4, [3, 50, 7]), tf.float32)
    qualities = tf.constant(np.where(rng.random([3, 50, 7]) < 0.5, 0.0, rng.random([3, 50, 7])), tf.float32)
    expected = reference_quality(logits, qualities, gamma)
    compiled = tf.function(quality_and_gradient, jit_compile=True)
    for function in (quality_and_gradient, tf.function(quality_and_gradient), compiled):
        for value, reference in zip(function(logits, qualities, gamma), expected):
            np.testing.assert_allclose(value, reference, rtol=1e-4, atol=1e-6)


def test_quality_focal_loss_at_extreme_logits():
    """By hand: a certain mistake costs |logit|, with a slope of 1; what is right costs nothing."""
    logits = tf.constant([[-1e4], [-80.0], [80.0], [1e4]])
    loss, gradient = quality_and_gradient(logits, tf.ones([4, 1]), 2.0)
    np.testing.assert_allclose(loss, [1e4, 80, 0, 0])
    np.testing.assert_allclose(gradient[:, 0], [-1, -1, 0, 0])
    loss, gradient = quality_and_gradient(logits, tf.zeros([4, 1]), 2.0)
    np.testing.assert_allclose(loss, [0, 0, 80, 1e4], atol=1e-30)
    np.testing.assert_allclose(gradient[:, 0], [0, 0, 1, 1], atol=1e-30)


def test_quality_focal_loss_is_least_at_the_quality():
    qualities = tf.constant([[0.3], [0.9]])
    loss, gradient = quality_and_gradient(tf.math.log(qualities / (1 - qualities)), qualities, 2.0)
    np.testing.assert_allclose(loss, [0, 0], atol=1e-10)
    np.testing.assert_allclose(gradient, [[0], [0]], atol=1e-6)


def random_boxes(rng, count):
    low = rng.uniform(0, 60, [count, 2])
    return tf.constant(np.concatenate([low, low + rng.uniform(1, 50, [count, 2])], axis=1), tf.float32)


def reference_iou_loss(boxes, target_boxes, kind):
    """The papers' definitions in float64."""
    losses = []
    for box, target in zip(np.asarray(boxes, np.float64), np.asarray(target_boxes, np.float64)):
        (y, x), (ty, tx) = ((b[2] - b[0], b[3] - b[1]) for b in (box, target))
        intersection = np.prod(np.maximum(np.minimum(box[2:], target[2:]) - np.maximum(box[:2], target[:2]), 0))
        union = y * x + ty * tx - intersection
        hull = np.maximum(box[2:], target[2:]) - np.minimum(box[:2], target[:2])
        iou = intersection / union
        if kind == "giou":
            losses.append(1 - iou + (hull.prod() - union) / hull.prod())
            continue
        centers = (box[:2] + box[2:]) / 2 - (target[:2] + target[2:]) / 2
        loss = 1 - iou + centers @ centers / (hull @ hull)
        if kind == "ciou":
            v = 4 / np.pi**2 * (np.arctan(tx / ty) - np.arctan(x / y)) ** 2
            loss += v / (1 - iou + v) * v
        losses.append(loss)
    return losses


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_iou_losses_equal_their_definition(kind):
    rng = np.random.default_rng(0)
    boxes, target_boxes = random_boxes(rng, 200), random_boxes(rng, 200)
    expected = reference_iou_loss(boxes, target_boxes, kind)
    compiled = tf.function(losses.iou_loss, jit_compile=True)
    for function in (losses.iou_loss, tf.function(losses.iou_loss), compiled):
        np.testing.assert_allclose(function(boxes, target_boxes, kind=kind), expected, rtol=1e-5)
    np.testing.assert_allclose(losses.iou_loss(boxes, boxes, kind=kind), np.zeros(200), atol=1e-6)


@needs_addons
def test_giou_loss_and_its_gradient_equal_tensorflow_addons():
    rng = np.random.default_rng(1)
    boxes, target_boxes = random_boxes(rng, 50), random_boxes(rng, 50)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(boxes)
        ours = losses.iou_loss(boxes, target_boxes, kind="giou")
        expected = tfa.losses.giou_loss(target_boxes, boxes)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    np.testing.assert_allclose(tape.gradient(ours, boxes), tape.gradient(expected, boxes), rtol=1e-4, atol=1e-7)


IOU_LOSSES = [
    LossConfig(box_loss=kind, class_loss=loss)
    for kind in ("giou", "diou", "ciou")
    for loss in ("focal", "quality_focal")
]


@pytest.mark.parametrize("config", IOU_LOSSES, ids=lambda config: f"{config.box_loss}-{config.class_loss}")
def test_losses_of_decoded_boxes(config):
    """Two positives, one background anchor and an ignored one, whose predictions are extreme; a padded image."""
    anchors = tf.constant([[0.0, 0, 32, 32], [8, 8, 40, 24], [0, 0, 8, 8], [0, 0, 512, 512]])
    boxes = tf.constant([[4.0, 0, 30, 40], [10, 8, 30, 30], [0, 0, 8, 8], [0, 0, 512, 512]])
    predicted = tf.constant([[[0.1, 0.2, -0.3, 0.4], [0.0, 0.3, 0.2, 0.1], [9.0] * 4, [1e4, -1e4, 1e4, -1e4]]] * 2)
    targets = Targets(
        class_targets=tf.constant([[1, 0, BACKGROUND, IGNORED], [IGNORED] * 4]),
        box_targets=tf.stack([box_ops.encode(boxes, anchors)] * 2),
        weights=tf.constant([[1.0, 0.5, 1.0, 1.0]] * 2),
    )
    logits = tf.constant([[[0.3, -0.7], [2.0, 0.1], [-80.0, 1e4], [50.0, -50.0]]] * 2)
    decoded = box_ops.decode(predicted[0, :2], anchors[:2])
    distances = reference_iou_loss(decoded, boxes[:2], config.box_loss)
    iou = np.asarray(box_ops.paired_iou(decoded, boxes[:2]))

    def values_and_gradients(predictions):
        with tf.GradientTape() as tape:
            tape.watch(predictions)
            value = losses.detection_losses(predictions, targets, losses.count_positives(targets), config, anchors)
        return value, tape.gradient(value.loss, predictions)

    compiled = tf.function(values_and_gradients, jit_compile=True)
    for function in (values_and_gradients, tf.function(values_and_gradients), compiled):
        value, gradients = function(Predictions(logits, predicted))
        np.testing.assert_allclose(value.box_loss, 2 * (distances[0] + 0.5 * distances[1]) / 2, rtol=1e-4)
        if config.class_loss == "quality_focal":
            qualities = np.array([[0, iou[0]], [iou[1], 0], [0, 0]])
            terms, _ = reference_quality(logits[0, :3], qualities, 2.0)
            np.testing.assert_allclose(value.class_loss, terms @ [1, 0.5, 1] / 2, rtol=1e-4)
        assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
        assert np.all(np.any(gradients.box_deltas[0, :2] != 0, axis=-1))
        for gradient in gradients:
            np.testing.assert_array_equal(gradient[0, 3], np.zeros(gradient.shape[-1]))
            np.testing.assert_array_equal(gradient[1], np.zeros(gradient.shape[1:]))
        np.testing.assert_array_equal(gradients.box_deltas[0, 2], np.zeros(4))


@pytest.mark.parametrize("config", IOU_LOSSES, ids=lambda config: f"{config.box_loss}-{config.class_loss}")
def test_losses_of_decoded_boxes_without_positives(config):
    targets = Targets(tf.fill([2, 5], BACKGROUND), tf.zeros([2, 5, 4]), tf.ones([2, 5]))
    predictions = Predictions(tf.zeros([2, 5, 3]), tf.ones([2, 5, 4]))
    anchors = tf.constant([[0.0, 0, 16, 16]] * 5)
    value = losses.detection_losses(predictions, targets, tf.constant(1.0), config, anchors)
    assert value.box_loss == 0
    assert 0 < value.class_loss < 100


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_smooth_l1_equals_keras_huber_loss_over_beta(beta):
    rng = np.random.default_rng(0)
    deltas, box_targets = (tf.constant(rng.normal(0, beta, [50, 4]), tf.float32) for _ in range(2))
    huber = tf.keras.losses.Huber(delta=beta, reduction="none")
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(deltas)
        value = losses.smooth_l1(deltas, box_targets, beta=beta)
        expected = 4 * huber(box_targets, deltas) / beta  # Keras takes the mean of the four
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(tape.gradient(value, deltas), tape.gradient(expected, deltas), rtol=1e-5, atol=1e-6)


def test_smooth_l1_by_hand():
    # 0.05**2 / 0.2, 0.1**2 / 0.2 = 0.1 - 0.05, 0.3 - 0.05, 0
    value = losses.smooth_l1(tf.constant([0.05, -0.1, 0.3, 7.0]), tf.constant([0.0, 0.0, 0.0, 7.0]), beta=0.1)
    np.testing.assert_allclose(value, 0.0125 + 0.05 + 0.25, rtol=1e-6)
    deltas = tf.zeros([4])
    with tf.GradientTape() as tape:
        tape.watch(deltas)
        value = losses.smooth_l1(deltas, tf.zeros([4]), beta=0.1)
    np.testing.assert_array_equal(tape.gradient(value, deltas), np.zeros(4))


def test_detection_losses_by_hand():
    """Anchors: a positive one, one of half weight, one of the background, and an ignored one with wrong predictions."""
    targets = Targets(
        class_targets=tf.constant([[1, 0, BACKGROUND, IGNORED]]),
        box_targets=tf.zeros([1, 4, 4]),
        weights=tf.constant([[1.0, 0.5, 1.0, 1.0]]),
    )
    predictions = Predictions(
        class_logits=tf.constant([[[0.0, 0.0]] * 3 + [[50.0, -50.0]]]),
        box_deltas=tf.constant([[[2.0, 0, 0, 0], [0, 0, 0, -4.0], [9.0] * 4, [9.0] * 4]]),
    )
    assert losses.count_positives(targets) == 2
    config = LossConfig(focal_alpha=0.25, focal_gamma=2.0, smooth_l1_beta=1.0, box_loss_weight=3.0)
    # At p = 0.5 a foreground term is 0.25 * 0.25 * log 2, a background term three times that.
    unit = 0.0625 * math.log(2)
    class_loss = ((1 + 3) + 0.5 * (1 + 3) + (3 + 3)) * unit / 2
    box_loss = 3.0 * (1.5 + 0.5 * 3.5) / 2

    def values_and_gradients(predictions):
        with tf.GradientTape() as tape:
            tape.watch(predictions)
            value = losses.detection_losses(predictions, targets, losses.count_positives(targets), config, NO_ANCHORS)
        return value, tape.gradient(value.loss, predictions)

    for function in (values_and_gradients, tf.function(values_and_gradients)):
        value, gradients = function(predictions)
        np.testing.assert_allclose(value.class_loss, class_loss, rtol=1e-5)
        np.testing.assert_allclose(value.box_loss, box_loss, rtol=1e-6)
        np.testing.assert_allclose(value.loss, class_loss + box_loss, rtol=1e-6)
        assert {v.dtype for v in value} == {tf.float32}
        np.testing.assert_array_equal(gradients.class_logits[0, 3], [0, 0])
        np.testing.assert_allclose(
            gradients.box_deltas[0], [[1.5, 0, 0, 0], [0, 0, 0, -0.75], [0] * 4, [0] * 4], rtol=1e-6
        )


@pytest.mark.parametrize("config", [LossConfig(), LossConfig(class_loss="quality_focal", box_loss="ciou")])
def test_no_op_runs_on_the_host(config):
    """TensorFlow does arithmetic and comparisons of int32 on the host, even for a GPU."""
    a, k = 50, 7
    specs = (
        Predictions(tf.TensorSpec([2, a, k]), tf.TensorSpec([2, a, 4])),
        Targets(tf.TensorSpec([2, a], tf.int32), tf.TensorSpec([2, a, 4]), tf.TensorSpec([2, a])),
    )

    def gradients(predictions, targets):
        with tf.GradientTape() as tape:
            tape.watch(predictions)
            num_positives = losses.count_positives(targets)
            loss = losses.detection_losses(predictions, targets, num_positives, config, tf.ones([a, 4])).loss
        return tape.gradient(loss, predictions)

    graph = tf.function(gradients).get_concrete_function(*specs).graph
    readers = {op.type for op in graph.get_operations() for x in op.inputs if x.dtype == tf.int32 and x.shape == [2, a]}
    assert readers == {"OneHot", "Cast"}


def test_losses_of_the_parts_of_a_batch_add_up_to_that_of_the_whole(case):
    logits, class_targets = case
    rng = np.random.default_rng(1)
    deltas, box_targets = (tf.constant(rng.normal(size=[3, 50, 4]), tf.float32) for _ in range(2))
    targets = Targets(class_targets, box_targets, tf.constant(rng.uniform(size=[3, 50]), tf.float32))
    num_positives = losses.count_positives(targets)
    assert num_positives == np.sum(class_targets >= 0)

    def loss(images):
        return losses.detection_losses(
            Predictions(logits[images], deltas[images]),
            Targets(*(t[images] for t in targets)),
            num_positives,
            LossConfig(),
            NO_ANCHORS,
        )

    whole, first, rest = loss(slice(0, 3)), loss(slice(0, 1)), loss(slice(1, 3))
    np.testing.assert_allclose(np.add(first, rest), whole, rtol=1e-5)


def test_a_batch_without_objects_has_only_a_class_loss():
    targets = Targets(tf.fill([2, 5], BACKGROUND), tf.zeros([2, 5, 4]), tf.ones([2, 5]))
    predictions = Predictions(tf.zeros([2, 5, 3]), tf.ones([2, 5, 4]))
    assert losses.count_positives(targets) == 0
    value = losses.detection_losses(predictions, targets, tf.constant(1.0), LossConfig(), NO_ANCHORS)
    np.testing.assert_allclose(value.class_loss, 2 * 5 * 3 * 0.75 * 0.25 * math.log(2), rtol=1e-5)
    assert value.box_loss == 0
