"""EfficientNet-Lite against its reference implementation, `efficientnet-lite-pytorch`, and published numbers."""

import numpy as np
import pytest
import tensorflow as tf

from model import retinanet
from model.config import ModelConfig

# Channels :3 of the first and the last cell of C3, C4 and C5, in float64: printed by
# `benchmarks/parity_efficientnet_lite.py --write`, whose random weights and images are drawn here again.
GOLDEN = {
    "efficientnet_lite0": [
        [[-0.644306, 5.174874, 4.481917], [-2.734578, -0.747782, 2.647754]],
        [[-1.562287, -1.260722, 4.640862], [-0.350053, 3.756537, 0.416916]],
        [[0.614402, 1.666858, -3.525741], [-3.353435, 2.72394, -0.855661]],
    ],
    "efficientnet_lite1": [
        [[-10.538184, 2.627297, -4.379909], [-8.593259, 3.030474, -4.98288]],
        [[-1.068841, 0.31486, -2.842058], [3.856233, 8.909836, 3.110038]],
        [[4.567626, 0.588978, -1.370377], [-9.598986, -0.727502, -1.161042]],
    ],
    "efficientnet_lite2": [
        [[-7.167222, 7.244806, -4.943452], [-7.866674, 5.745657, -5.758625]],
        [[-6.216543, -6.619037, 1.367087], [-1.117671, -3.713259, -4.585446]],
        [[-3.950283, -1.840802, -1.675973], [0.083529, 0.218182, -2.510869]],
    ],
}
PUBLISHED = {"efficientnet_lite0": 4_652_008, "efficientnet_lite1": 5_416_680, "efficientnet_lite2": 6_092_072}


@pytest.fixture(autouse=True)
def restored_policy():
    yield
    tf.keras.mixed_precision.set_global_policy("float32")


def make_network(name, **settings):
    network = retinanet.make_backbone(ModelConfig(backbone=name, **settings))
    network(tf.zeros([1, 64, 96, 3]))
    return network


def set_random_weights(network):
    rng = np.random.default_rng(1)
    for layer in network.conv_norms:
        height, width, *channels = layer.conv.get_weights()[0].shape
        channels_in, channels_out = channels if channels[1] > 1 else (1, channels[0])
        shape = (channels_out, channels_in, height, width)  # as in PyTorch
        kernel = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).transpose(2, 3, 1, 0)
        layer.conv.set_weights([kernel.reshape(height, width, *channels)])
        gamma, beta = rng.uniform(0.5, 1.5, channels_out), rng.normal(0, 0.3, channels_out)
        mean, variance = rng.normal(0, 0.3, channels_out), rng.uniform(0.5, 1.5, channels_out)
        layer.norm.set_weights([gamma, beta, mean, variance])


@pytest.mark.parametrize("name", GOLDEN)
def test_equals_the_reference(name):
    tf.keras.mixed_precision.set_global_policy("float64")
    network = make_network(name)
    set_random_weights(network)
    images = np.random.default_rng(0).normal(0, 1, (1, 64, 96, 3))
    calls = [network, tf.function(network)] if name == "efficientnet_lite0" else [network]
    for features in (call(images) for call in calls):
        corners = [feature.numpy()[0, [0, -1], [0, -1], :3] for feature in features]
        np.testing.assert_allclose(corners, GOLDEN[name], atol=2e-6)


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_has_the_published_number_of_parameters(name, published):
    network = make_network(name)
    features = network(tf.zeros([1, 64, 96, 3]))
    assert [tuple(feature.shape[1:3]) for feature in features] == [(8, 12), (4, 6), (2, 3)]
    head = features[-1].shape[-1] * 1280 + 2 * 1280
    classifier = 1280 * 1000 + 1000
    assert sum(int(tf.size(v)) for v in network.trainable_variables) + head + classifier == published


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_every_variable_has_a_finite_gradient(precision):
    tf.keras.mixed_precision.set_global_policy(precision)
    network = make_network("efficientnet_lite0")
    images = tf.random.stateless_normal([2, 64, 64, 3], seed=[0, 0])
    with tf.GradientTape() as tape:
        loss = sum(tf.reduce_mean(tf.cast(feature, tf.float32) ** 2) for feature in network(images, training=True))
    for variable, gradient in zip(network.trainable_variables, tape.gradient(loss, network.trainable_variables)):
        assert np.isfinite(gradient).all(), variable.name
        assert np.any(gradient), variable.name


def test_frozen_stages_are_not_trained():
    network = make_network("efficientnet_lite0", freeze_stages=3)
    trained = {variable.name.split("/")[1] for variable in network.trainable_variables}
    assert {name.split("_")[0] for name in trained} == {f"block{index}" for index in range(5, 16)}
    before = [layer.norm.moving_mean.numpy() for layer in network.conv_norms]
    network(tf.random.stateless_normal([2, 64, 96, 3], seed=[0, 0]), training=True)
    for layer, mean in zip(network.conv_norms, before):
        is_frozen = layer.name == "stem" or int(layer.name.split("_")[0].removeprefix("block")) < 5
        assert np.array_equal(layer.norm.moving_mean, mean) == is_frozen, layer.name


def test_checkpoints_hold_it(tmp_path):
    saved, restored = make_network("efficientnet_lite0"), make_network("efficientnet_lite0")
    path = tf.train.Checkpoint(network=saved).save(str(tmp_path / "ckpt"))
    tf.train.Checkpoint(network=restored).restore(path).assert_existing_objects_matched()
    for one, other in zip(saved.variables, restored.variables):
        np.testing.assert_array_equal(one, other)


def test_group_norm_is_refused():
    """Its 32 groups do not divide 16, 24, 40 or 112 channels."""
    with pytest.raises(ValueError, match="--norm=group does not fit --backbone=efficientnet_lite0"):
        ModelConfig(backbone="efficientnet_lite0", norm="group")


def test_batch_norm_has_the_published_epsilon_at_least():
    assert make_network("efficientnet_lite0").conv_norms[0].norm.epsilon == 1e-3
    assert make_network("efficientnet_lite0", batch_norm_epsilon=0.01).conv_norms[-1].norm.epsilon == 0.01
