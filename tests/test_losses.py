"""Losses against TensorFlow Addons, Keras, float64 and cases worked by hand."""

import math

import numpy as np
import pytest
import tensorflow as tf
from addons import needs_addons, tfa

from input.types import BACKGROUND, IGNORED, Targets
from model import losses
from model.config import LossConfig
from model.types import Predictions


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
            value = losses.detection_losses(predictions, targets, losses.count_positives(targets), config)
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


def test_no_op_runs_on_the_host():
    """TensorFlow does arithmetic and comparisons of int32 on the host, even for a GPU."""
    a, k = 50, 7
    specs = (
        Predictions(tf.TensorSpec([2, a, k]), tf.TensorSpec([2, a, 4])),
        Targets(tf.TensorSpec([2, a], tf.int32), tf.TensorSpec([2, a, 4]), tf.TensorSpec([2, a])),
    )

    def gradients(predictions, targets):
        with tf.GradientTape() as tape:
            tape.watch(predictions)
            loss = losses.detection_losses(predictions, targets, losses.count_positives(targets), LossConfig()).loss
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
        )

    whole, first, rest = loss(slice(0, 3)), loss(slice(0, 1)), loss(slice(1, 3))
    np.testing.assert_allclose(np.add(first, rest), whole, rtol=1e-5)


def test_a_batch_without_objects_has_only_a_class_loss():
    targets = Targets(tf.fill([2, 5], BACKGROUND), tf.zeros([2, 5, 4]), tf.ones([2, 5]))
    predictions = Predictions(tf.zeros([2, 5, 3]), tf.ones([2, 5, 4]))
    assert losses.count_positives(targets) == 0
    value = losses.detection_losses(predictions, targets, tf.constant(1.0), LossConfig())
    np.testing.assert_allclose(value.class_loss, 2 * 5 * 3 * 0.75 * 0.25 * math.log(2), rtol=1e-5)
    assert value.box_loss == 0
