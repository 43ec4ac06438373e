"""ResNets against published numbers of parameters; batch normalisation as configured. Keras's: test_pretrained.py."""

import numpy as np
import pytest
import tensorflow as tf

from model import backbone, resnet
from model.config import ModelConfig


@pytest.mark.parametrize("name", resnet.LAYOUTS)
def test_has_the_depth_in_its_name(name):
    conv_norms = resnet.ResNet(ModelConfig(backbone=name)).conv_norms
    counted = [layer for layer in conv_norms if not layer.name.endswith("_0")]  # without the projections
    assert len(counted) + 1 == int(name.removeprefix("resnet"))  # and the classifier, which a detector lacks


@pytest.mark.parametrize(("name", "published"), [("resnet18", 11_689_512), ("resnet34", 21_797_672)])
def test_has_the_published_number_of_parameters(name, published):
    network = resnet.ResNet(ModelConfig(backbone=name))
    features = network(tf.zeros([1, 64, 96, 3]))
    assert [tuple(f.shape) for f in features] == [(1, 8, 12, 128), (1, 4, 6, 256), (1, 2, 3, 512)]
    classifier = 512 * 1000 + 1000
    assert sum(int(tf.size(v)) for v in network.trainable_variables) + classifier == published


def test_a_strided_convolution_is_centred_on_even_and_odd_sides():
    conv = backbone.Conv2D(1, 3, 2, kernel_initializer="ones")
    rows, columns = np.meshgrid(np.arange(4), np.arange(5), indexing="ij")
    image = tf.constant((10 * rows + columns)[None, ..., None], tf.float32)
    # Windows around rows 0 and 2, columns 0, 2 and 4; outside there are zeros.
    #   rows 0-1, columns 0-1: 0 + 1 + 10 + 11; columns 1-3: 1 + 2 + 3 + 11 + 12 + 13; columns 3-4: 3 + 4 + 13 + 14
    #   rows 1-3, columns 0-1: 10 + 11 + 20 + 21 + 30 + 31; columns 1-3: 9 * 22; columns 3-4: 13 + 14 + 23 + 24 + ...
    np.testing.assert_array_equal(conv(image)[0, ..., 0], [[22, 42, 34], [123, 198, 141]])


def test_an_untrained_block_is_the_identity():
    block = resnet.ResidualBlock(8, bottleneck=False, strides=1, project=False, config=ModelConfig(), name="block")
    inputs = tf.random.stateless_uniform([2, 6, 6, 8], seed=[0, 0])
    np.testing.assert_array_equal(block(inputs, training=True), inputs)


def test_batch_norm_is_as_configured():
    config = ModelConfig(batch_norm_momentum=0.75, batch_norm_epsilon=0.5)
    layer = backbone.ConvNorm(1, 1, config=config, name="layer")
    images = tf.constant([0.0, 4.0], shape=[1, 1, 2, 1])
    layer(images)
    layer.conv.set_weights([np.ones([1, 1, 1, 1])])
    np.testing.assert_allclose(layer(images, training=True)[0, 0, :, 0], np.array([-2, 2]) / np.sqrt(4.5), rtol=1e-6)
    np.testing.assert_allclose(layer.norm.moving_mean, [0.25 * 2])


@pytest.mark.parametrize("synchronized", [True, False])
def test_sync_batch_norm_takes_its_statistics_over_all_replicas(two_replicas, synchronized):
    images = tf.constant([0.0, 4.0, 6.0, 10.0], shape=[2, 1, 2, 1])
    config = ModelConfig(norm="sync" if synchronized else "local", batch_norm_epsilon=5.0)
    with two_replicas.scope():
        replicated = backbone.ConvNorm(1, 1, config=config, name="replicated")
        replicated(images)
    alone = backbone.ConvNorm(1, 1, config=config, name="alone")
    alone(images)

    def outputs_and_gradient(layer, images):
        with tf.GradientTape() as tape:
            outputs = layer(images, training=True)
            loss = tf.reduce_sum(outputs**4)
        return outputs, tape.gradient(loss, layer.conv.kernel)

    @tf.function
    def step(images):
        return two_replicas.run(outputs_and_gradient, args=(replicated, images))

    for layer in (replicated, alone):
        layer.conv.set_weights([np.ones([1, 1, 1, 1])])
    halves = two_replicas.experimental_distribute_values_from_function(
        lambda context: images[context.replica_id_in_sync_group][tf.newaxis]
    )
    outputs, gradients = (two_replicas.experimental_local_results(v) for v in step(halves))
    if synchronized:  # mean 5, variance (25 + 1 + 1 + 25) / 4
        expected = np.array([-5, -1, 1, 5]) / np.sqrt(13 + 5)
        np.testing.assert_allclose(sum(gradients), outputs_and_gradient(alone, images)[1], rtol=1e-4)
    else:  # means 2 and 8, variance 4
        expected = np.array([-2, 2, -2, 2]) / np.sqrt(4 + 5)
    np.testing.assert_allclose(tf.reshape(tf.concat(outputs, axis=0), [-1]), expected, rtol=1e-5)


@pytest.mark.parametrize(("resnet_stride", "strided"), [("auto", 1), ("1x1", 1), ("3x3", 2)])
def test_a_bottleneck_strides_where_it_is_told_to(resnet_stride, strided):
    network = resnet.ResNet(ModelConfig(resnet_stride=resnet_stride))
    block = network.stages[1][0]
    assert [conv.conv.strides[0] for conv in block.convs] == [2 if i == strided else 1 for i in (1, 2, 3)]
    assert block.shortcut.conv.strides[0] == 2
    basic = resnet.ResNet(ModelConfig(backbone="resnet18", resnet_stride=resnet_stride)).stages[1][0]
    assert [conv.conv.strides[0] for conv in basic.convs] == [2, 1]


@pytest.mark.parametrize("norm", ["local", "group"])
@pytest.mark.parametrize("wrap", [lambda function: function, tf.function], ids=["eager", "graph"])
def test_frozen_stages_keep_weights_and_statistics(norm, wrap):
    network = resnet.ResNet(ModelConfig(backbone="resnet18", freeze_stages=2, norm=norm))
    images = tf.random.stateless_normal([2, 32, 64, 3], seed=[0, 0])
    wrap(network)(images, training=True)
    frozen = [network.stem, *network.stages[0]]
    assert all(not layer.trainable_variables for layer in frozen)
    assert all(layer.trainable_variables for layer in network.stages[1])
    if norm == "local":
        assert not any(np.any(layer.norm.moving_mean) for layer in frozen if hasattr(layer, "norm"))
        assert not any(np.any(conv.norm.moving_mean) for block in network.stages[0] for conv in block.convs)
        assert np.any(network.stages[1][0].convs[0].norm.moving_mean)
