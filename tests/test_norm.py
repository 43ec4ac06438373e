"""Normalisation: over replicas against Keras's and against one replica, by groups against Keras's, and frozen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from model import norm
from model.config import ModelConfig

CONFIG = ModelConfig(norm="sync", batch_norm_momentum=0.75)
IMAGES = tf.random.stateless_normal([4, 3, 5, 64], seed=[0, 1], mean=3.0, stddev=2.0)
UPSTREAM = tf.random.stateless_normal(IMAGES.shape, seed=[2, 3])


def randomise(layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
    layer.build(IMAGES.shape)
    for seed, weight in enumerate((layer.gamma, layer.beta)):
        weight.assign(tf.random.stateless_normal(weight.shape, seed=[4, seed], mean=1.0))
    return layer


def outputs_and_gradients(layer: tf.keras.layers.Layer, images: tf.Tensor, upstream: tf.Tensor) -> list[tf.Tensor]:
    """Outputs, and the gradients of images, gamma and beta."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = layer(images, training=True)
    sources = [images, layer.gamma, layer.beta]
    return [outputs, *tape.gradient(outputs, sources, output_gradients=tf.cast(upstream, outputs.dtype))]


def on_two_replicas(strategy: tf.distribute.Strategy, layer: tf.keras.layers.Layer) -> list[np.ndarray]:
    """Outputs and gradients of both replicas together, each replica with half of the images."""
    halves = strategy.experimental_distribute_values_from_function(
        lambda context: tuple(values[2 * context.replica_id_in_sync_group :][:2] for values in (IMAGES, UPSTREAM))
    )

    @tf.function
    def step(values: tuple[tf.Tensor, tf.Tensor]) -> list[tf.Tensor]:
        return strategy.run(outputs_and_gradients, args=(layer, *values))

    results = [strategy.experimental_local_results(values) for values in step(halves)]
    outputs, images_gradient, *weight_gradients = results
    return [
        *(np.concatenate([part.numpy() for part in parts]) for parts in (outputs, images_gradient)),
        *(sum(part.numpy() for part in parts) for parts in weight_gradients),
    ]


@pytest.mark.parametrize(("policy", "atol"), [("float32", 1e-5), ("mixed_float16", 1e-2)])
def test_sync_equals_keras_and_one_replica(two_replicas: tf.distribute.Strategy, policy: str, atol: float) -> None:
    tf.keras.mixed_precision.set_global_policy(policy)
    with two_replicas.scope():
        ours = randomise(norm.make_norm(CONFIG, zero_gamma=False, name="ours"))
        keras = randomise(
            tf.keras.layers.BatchNormalization(momentum=0.75, epsilon=CONFIG.batch_norm_epsilon, synchronized=True)
        )
    alone = randomise(norm.make_norm(CONFIG, zero_gamma=False, name="alone"))
    assert isinstance(ours, norm.SyncBatchNormalization)
    assert not isinstance(alone, norm.SyncBatchNormalization)  # one replica keeps Keras's layer
    found = on_two_replicas(two_replicas, ours)
    assert found[0].dtype == policy.removeprefix("mixed_")
    for expected in (
        on_two_replicas(two_replicas, keras),
        [values.numpy() for values in outputs_and_gradients(alone, IMAGES, UPSTREAM)],
    ):
        for values, others in zip(found, expected):
            np.testing.assert_allclose(values, others, rtol=atol, atol=atol * max(1, np.abs(others).max() / 10))
    # For one replica Keras keeps the unbiased variance.
    for name, other in (("moving_mean", keras), ("moving_variance", keras), ("moving_mean", alone)):
        np.testing.assert_allclose(getattr(ours, name), getattr(other, name), rtol=atol)
    np.testing.assert_allclose(ours(IMAGES), keras(IMAGES), rtol=atol, atol=atol)  # in inference


def test_norms_of_a_batch_have_the_same_variables(two_replicas: tf.distribute.Strategy) -> None:
    """So that a run's checkpoint fits whatever the number of replicas."""
    names = []
    with two_replicas.scope():
        for kind in ("auto", "local", "sync", "frozen"):
            layer = norm.make_norm(dataclasses.replace(CONFIG, norm=kind), zero_gamma=True, name="norm")
            layer.build(IMAGES.shape)
            names.append([(weight.name, weight.shape) for weight in sorted(layer.weights, key=lambda w: w.name)])
            assert not np.any(layer.gamma)
    assert names[0] == names[1] == names[2] == names[3]


def test_frozen_keeps_statistics_and_scale() -> None:
    layer = randomise(norm.make_norm(dataclasses.replace(CONFIG, norm="frozen"), zero_gamma=False, name="frozen"))
    layer.moving_mean.assign(tf.fill([64], 2.0))
    layer.moving_variance.assign(tf.fill([64], 9.0))
    assert not layer.trainable_variables
    outputs, images_gradient, *_ = outputs_and_gradients(layer, IMAGES, UPSTREAM)
    scale = layer.gamma / np.sqrt(9.0 + CONFIG.batch_norm_epsilon)
    np.testing.assert_allclose(outputs, (IMAGES - 2.0) * scale + layer.beta, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(images_gradient, UPSTREAM * scale, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(layer.moving_mean, np.full(64, 2.0))


def test_group_equals_keras() -> None:
    ours = randomise(norm.make_norm(dataclasses.replace(CONFIG, norm="group"), zero_gamma=False, name="group"))
    keras = randomise(tf.keras.layers.GroupNormalization(32, epsilon=CONFIG.batch_norm_epsilon))
    found = outputs_and_gradients(ours, IMAGES, UPSTREAM)
    with tf.GradientTape() as tape:
        tape.watch(IMAGES)
        outputs = keras(IMAGES)
    expected = [outputs, *tape.gradient(outputs, [IMAGES, keras.gamma, keras.beta], output_gradients=UPSTREAM)]
    for values, others in zip(found, expected):
        np.testing.assert_allclose(values, others, rtol=1e-4, atol=1e-4)


def test_group_keeps_large_activations_finite_in_float16() -> None:
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    layer = norm.make_norm(dataclasses.replace(CONFIG, norm="group"), zero_gamma=False, name="group")
    outputs = layer(1000.0 * IMAGES)
    assert outputs.dtype == tf.float16
    np.testing.assert_allclose(np.std(tf.cast(outputs, tf.float32)), 1.0, atol=0.02)


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="--norm=layer: choose one of auto, local, sync, frozen, group"):
        ModelConfig(norm="layer")


@pytest.mark.parametrize(
    ("channels", "groups"), [(256, 32), (64, 32), (160, 16), (88, 4), (32, 16), (16, 8), (3, 1), (1, 1)]
)
def test_groups_divide_the_channels_and_have_at_least_two(channels: int, groups: int) -> None:
    layer = norm.make_norm(ModelConfig(norm="group"), name="norm")
    outputs = layer(tf.random.stateless_normal([2, 4, 4, channels], seed=[0, 0], mean=3.0))
    assert layer.groups == groups
    expected = np.reshape(outputs, [2, 16, groups, -1]).std(axis=(1, 3))
    np.testing.assert_allclose(expected, 1, rtol=1e-3)
