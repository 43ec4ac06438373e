"""One update, worked by hand: decay, clipping, loss scaling."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from trainer import optimizers
from trainer.config import OptimizerConfig


def update(gradients, steps=1, loss_scaling=False, **settings):
    """Kernel and bias, both (3, 4) at first, after `steps` updates with the same gradients."""
    config = OptimizerConfig(**{"learning_rate": 0.1, "lr_schedule": "constant", "warmup_steps": 0, **settings})
    optimizer = optimizers.make_optimizer(config, train_steps=100, loss_scaling=loss_scaling)
    variables = [tf.Variable([3.0, 4.0], name=name) for name in ("kernel", "bias")]
    for _ in range(steps):
        optimizer.apply_gradients(zip([tf.constant(gradient) for gradient in gradients], variables))
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


def test_gradients_are_clipped_by_their_global_norm():
    """Norm of (6, 0), (0, 8) is 10; clipped to 5 they halve."""
    kernel, bias = update([[6.0, 0.0], [0.0, 8.0]], optimizer="sgd", momentum=0.0, weight_decay=0.0, clip_norm=5.0)
    np.testing.assert_allclose(kernel, [3 - 0.3, 4], rtol=1e-6)
    np.testing.assert_allclose(bias, [3, 4 - 0.4], rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_gradient_that_overflowed_changes_nothing(name):
    kernel, bias = update([[np.inf, 0.0], [1.0, 1.0]], optimizer=name, loss_scaling=True)
    np.testing.assert_array_equal(kernel, [3, 4])
    np.testing.assert_array_equal(bias, [3, 4])
