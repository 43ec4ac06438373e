"""Learning rates at steps worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from trainer import schedules
from trainer.config import OptimizerConfig

RATE, STEPS, WARMUP = 0.8, 1000, 100


def schedule(name, **settings):
    config = OptimizerConfig(learning_rate=RATE, lr_schedule=name, warmup_steps=WARMUP, **settings)
    return schedules.make_schedule(config, STEPS)


@pytest.mark.parametrize("name", ["constant", "cosine", "step", "polynomial", "exponential"])
def test_each_warms_up_linearly_to_the_full_rate(name):
    rate = schedule(name)
    np.testing.assert_allclose([rate(0), rate(49), rate(99), rate(100)], [0.008, 0.4, 0.8, 0.8], rtol=1e-6)


# Half-way through the 900 steps after the warm-up is step 550.
@pytest.mark.parametrize(
    ("name", "settings", "step", "expected"),
    [
        ("constant", {}, 999, 0.8),
        ("cosine", {}, 550, 0.4),
        ("cosine", {}, 1000, 0.0),
        ("cosine", {"lr_end": 0.1}, 1000, 0.08),
        ("step", {}, 670, 0.8),
        ("step", {}, 671, 0.08),
        ("step", {}, 891, 0.008),
        ("polynomial", {"lr_power": 2.0}, 550, 0.2),  # 0.8 * (1 - 1 / 2)**2
        ("exponential", {}, 550, 0.08),  # 0.8 * 0.01**(1 / 2)
        ("exponential", {}, 1000, 0.008),
    ],
)
def test_rates_worked_by_hand(name, settings, step, expected):
    np.testing.assert_allclose(schedule(name, **settings)(step), expected, rtol=1e-5, atol=1e-7)


def test_one_cycle():
    """Up from 1/25 by half a cosine until step 300, down by another to a tenth; half-way down is step 650."""
    rate = schedule("one_cycle", lr_end=0.1)
    steps = [0, 150, 300, 650, 1000, 1001]
    expected = [0.032, 0.416, 0.8, 0.44, 0.08, 0.08]
    np.testing.assert_allclose([rate(step) for step in steps], expected, rtol=1e-5)


def test_the_rate_follows_the_batch_size_if_asked():
    config = OptimizerConfig(learning_rate=0.01)
    assert schedules.scale_to_batch(config, 64) == config
    scaled = schedules.scale_to_batch(OptimizerConfig(learning_rate=0.01, scale_learning_rate=True), 64)
    np.testing.assert_allclose(scaled.learning_rate, 0.04)


def test_a_graph_gives_the_rates_of_eager_execution():
    for name in ("cosine", "step", "one_cycle"):
        rate = schedule(name)
        steps = tf.range(0, STEPS, 37)
        in_graph = tf.function(lambda steps, rate=rate: tf.map_fn(rate, steps, fn_output_signature=tf.float32))(steps)
        np.testing.assert_allclose(in_graph, [rate(step) for step in steps], rtol=1e-6)


def test_a_short_run_shortens_the_warm_up():
    config = OptimizerConfig(learning_rate=RATE, lr_schedule="constant", warmup_steps=500)
    rate = schedules.make_schedule(config, 50)
    np.testing.assert_allclose([rate(0), rate(4), rate(5)], [0.16, 0.8, 0.8], rtol=1e-6)
    np.testing.assert_allclose(schedules.make_schedule(config, 1)(0), RATE)
