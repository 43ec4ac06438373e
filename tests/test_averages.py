"""The averaged weights against the same sums in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from trainer import averages

DECAY = 0.5  # reached by (1 + n) / (10 + n) at n = 8


def make_network():
    network = tf.keras.Sequential([tf.keras.layers.Dense(2), tf.keras.layers.BatchNormalization()])
    network.build((None, 3))
    return network


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("replicas", [1, 2])
def test_averages(in_graph, replicas, two_replicas):
    strategy = two_replicas if replicas == 2 else tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        model, averaged = make_network(), make_network()
    averages.start(averaged, model)
    expected = [variable.numpy() for variable in model.variables]

    def update(num_updates):
        averages.update(strategy, averaged, model, decay=DECAY, num_updates=num_updates)

    update = tf.function(update) if in_graph else update
    for n in range(1, 12):
        for variable in model.variables:
            variable.assign(variable + n)
        update(tf.constant(n, tf.int64))
        share = 1 - min(DECAY, (1 + n) / (10 + n))
        expected = [value + (variable.numpy() - value) * share for value, variable in zip(expected, model.variables)]
    assert len(expected) == 6  # kernel, bias, gamma, beta, mean, variance
    for average, value in zip(averaged.variables, expected):
        np.testing.assert_allclose(average, value, rtol=1e-5)
        for component in strategy.experimental_local_results(average):
            np.testing.assert_allclose(component, value, rtol=1e-5)
