"""One update, worked by hand: decay, rates, loss scaling."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from addons import needs_addons, tfa

from trainer import optimizers
from trainer.config import OptimizerConfig


def update(gradients, steps=1, loss_scaling=False, in_graph=False, **settings):
    """Kernel and bias, both (3, 4) at first, after `steps` updates with the same gradients."""
    config = OptimizerConfig(**{"learning_rate": 0.1, "lr_schedule": "constant", "warmup_steps": 0, **settings})
    optimizer = optimizers.make_optimizer(config, train_steps=100, loss_scaling=loss_scaling)
    variables = [tf.Variable([3.0, 4.0], name=name) for name in ("net/backbone/kernel", "net/head/bias")]
    apply = tf.function(optimizer.apply_gradients) if in_graph else optimizer.apply_gradients
    optimizer.build(variables)
    for _ in range(steps):
        apply(list(zip([tf.constant(gradient) for gradient in gradients], variables)))
    return [variable.numpy() for variable in variables]


def test_sgd_decays_kernels_as_an_l2_term_would_and_leaves_biases():
    """Momentum m sums an L2 gradient up to 1 / (1 - m) times: 3 - 0.1 * (0.02 / (1 - 0.5)) * 3 = 2.988."""
    kernel, bias = update([[0.0, 0.0], [0.0, 0.0]], optimizer="sgd", momentum=0.5, weight_decay=0.02)
    np.testing.assert_allclose(kernel, [2.988, 3.984], rtol=1e-6)
    np.testing.assert_array_equal(bias, [3, 4])


def test_sgd_with_momentum():
    """v1 = -0.1, w1 = 2.9; v2 = 0.9 * -0.1 - 0.1 = -0.19, w2 = 2.71."""
    kernel, _ = update([[1.0, 0.0], [0.0, 0.0]], steps=2, optimizer="sgd", weight_decay=0.0)
    np.testing.assert_allclose(kernel, [2.71, 4.0], rtol=1e-6)


def test_adamw_first_step():
    """Adam's first step is the rate in the gradient's direction; before it 0.1 * 0.05 of the kernel decays."""
    kernel, bias = update([[1.0, -1.0], [2.0, 0.0]], optimizer="adamw", weight_decay=0.05)
    np.testing.assert_allclose(kernel, [3 * 0.995 - 0.1, 4 * 0.995 + 0.1], rtol=1e-5)
    np.testing.assert_allclose(bias, [2.9, 4.0], rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "make_reference"),
    [
        ({"optimizer": "sgd"}, lambda: tf.keras.optimizers.SGD(0.1, momentum=0.9)),
        ({"optimizer": "sgd", "nesterov": True}, lambda: tf.keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)),
        ({"optimizer": "adamw"}, lambda: tf.keras.optimizers.Adam(0.1)),
    ],
)
@pytest.mark.parametrize("in_graph", [False, True])
def test_updates_equal_keras(settings, make_reference, in_graph):
    """In float32 the rounding error of Adam's 1 - 0.999 is 1e-5 of it; Keras computes it in float64."""
    gradients = [[1.0, -2.0], [2.0, 0.5]]
    updated = update(gradients, steps=5, weight_decay=0.0, in_graph=in_graph, **settings)
    reference = make_reference()
    variables = [tf.Variable([3.0, 4.0]) for _ in gradients]
    for _ in range(5):
        reference.apply_gradients(zip([tf.constant(gradient) for gradient in gradients], variables))
    np.testing.assert_allclose(updated, variables, rtol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
@pytest.mark.parametrize("loss_scaling", [False, True])
def test_every_replica_is_updated(name, loss_scaling, two_replicas):
    gradients = [[1.0, -2.0], [2.0, 0.5]]
    expected = update(gradients, steps=3, optimizer=name)
    config = OptimizerConfig(optimizer=name, learning_rate=0.1, lr_schedule="constant", warmup_steps=0)
    with two_replicas.scope():
        optimizer = optimizers.make_optimizer(config, train_steps=100, loss_scaling=loss_scaling)
        variables = [tf.Variable([3.0, 4.0], name=name) for name in ("net/backbone/kernel", "net/head/bias")]
        optimizer.build(variables)

    @tf.function
    def run():
        pairs = zip([tf.constant(gradient) for gradient in gradients], variables)
        two_replicas.run(optimizer.apply_gradients, [list(pairs)], {"skip_gradients_aggregation": True})

    for _ in range(3):
        run()
    for variable, value in zip(variables, expected):
        for replica in two_replicas.experimental_local_results(variable):
            np.testing.assert_allclose(replica, value, rtol=1e-6)


def test_nesterov():
    """v1 = -0.1, and the step is 0.9 * v1 - 0.1 = -0.19; v2 = -0.19, and the step is 0.9 * v2 - 0.1 = -0.271."""
    settings = {"optimizer": "sgd", "weight_decay": 0.0, "nesterov": True}
    kernel, _ = update([[1.0, 0.0], [0.0, 0.0]], steps=2, **settings)
    np.testing.assert_allclose(kernel, [3 - 0.19 - 0.271, 4.0], rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
@pytest.mark.parametrize("in_graph", [False, True])
def test_the_backbone_has_a_rate_of_its_own(name, in_graph):
    """A step is linear in the rate, decay included, so that a quarter of the rate gives a quarter of the way."""
    settings = {"optimizer": name, "weight_decay": 0.05, "steps": 3, "in_graph": in_graph, "momentum": 0.5}
    gradients = [[1.0, -2.0], [2.0, 0.5]]
    slow = update(gradients, learning_rate=0.1, backbone_rate=0.01, **settings)
    slow_alone = update(gradients, learning_rate=0.001, **settings)
    fast_alone = update(gradients, learning_rate=0.1, **settings)
    np.testing.assert_allclose(slow[0], slow_alone[0], rtol=1e-6)
    np.testing.assert_allclose(slow[1], fast_alone[1], rtol=1e-6)
    assert abs(slow[0] - fast_alone[0]).max() > 0.01


@needs_addons
@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("decay", [0.05, 0.0])
def test_lamb_equals_tensorflow_addons(decay, in_graph):
    gradients = [[1.0, -2.0], [2.0, 0.5]]
    updated = update(gradients, steps=4, optimizer="lamb", weight_decay=decay, in_graph=in_graph)
    reference = tfa.optimizers.LAMB(0.1, weight_decay=decay, epsilon=1e-6, exclude_from_weight_decay=["bias"])
    variables = [tf.Variable([3.0, 4.0], name=name) for name in ("kernel", "bias")]
    for _ in range(4):
        reference.apply_gradients(zip([tf.constant(gradient) for gradient in gradients], variables))
    np.testing.assert_allclose(updated, variables, rtol=1e-5)


def test_lamb_trains_a_kernel_that_is_zero():
    optimizer = optimizers.make_optimizer(
        OptimizerConfig(optimizer="lamb", learning_rate=0.1, lr_schedule="constant"), train_steps=10, loss_scaling=False
    )
    kernel = tf.Variable([0.0, 0.0], name="kernel")
    optimizer.apply_gradients([(tf.constant([1.0, -1.0]), kernel)])
    assert kernel[0] < 0 < kernel[1]


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_a_gradient_that_overflowed_changes_nothing(name):
    kernel, bias = update([[np.inf, 0.0], [1.0, 1.0]], optimizer=name, loss_scaling=True)
    np.testing.assert_array_equal(kernel, [3, 4])
    np.testing.assert_array_equal(bias, [3, 4])
