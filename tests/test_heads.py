"""The subnets: the order of the anchors, predictions before training, and what is shared."""

import numpy as np
import pytest
import tensorflow as tf

from input import anchors
from input.config import AnchorConfig
from model import heads
from model.config import ModelConfig

CONFIG = ModelConfig(neck_filters=16, head_convs=2)


def test_rows_follow_the_anchors():
    """A head that predicts the position of its cell gives the centres of `make_anchors`."""
    image_size, strides = (96, 160), (8, 16, 32, 64, 128)
    head = heads.Subnet(3, anchors_per_location=9, config=ModelConfig(neck_filters=2, head_convs=0), name="head")
    maps = []
    for stride in strides:
        rows, columns = np.meshgrid(*(np.arange(-(-side // stride)) + 0.5 for side in image_size), indexing="ij")
        maps.append(tf.constant(stride * np.stack([rows, columns], axis=-1)[None], tf.float32))
    head(maps)
    kernel = np.zeros([3, 3, 2, 9, 3])
    kernel[1, 1, 0, :, 0] = kernel[1, 1, 1, :, 1] = 1  # of each anchor: centre y, centre x, number in its location
    bias = np.zeros([9, 3])
    bias[:, 2] = np.arange(9)
    head.output_conv.set_weights([kernel.reshape([3, 3, 2, 27]), bias.reshape(27)])
    y, x, number = np.moveaxis(head(maps).numpy()[0], -1, 0)

    boxes = np.asarray(anchors.make_anchors(AnchorConfig(), image_size))
    np.testing.assert_allclose(y, (boxes[:, 0] + boxes[:, 2]) / 2, atol=1e-4)
    np.testing.assert_allclose(x, (boxes[:, 1] + boxes[:, 3]) / 2, atol=1e-4)
    np.testing.assert_array_equal(number, np.arange(len(boxes)) % 9)


@pytest.mark.parametrize("probability", [0.01, 0.2])
def test_foreground_probability_starts_at_the_prior(probability):
    config = ModelConfig(neck_filters=16, head_convs=2, prior_probability=probability)
    head = heads.make_class_head(config, num_classes=5, anchors_per_location=9)
    maps = [tf.random.stateless_normal([2, size, size, 16], seed=[0, size]) for size in (8, 4)]
    logits = head(maps)
    assert logits.shape == (2, (64 + 16) * 9, 5)
    np.testing.assert_allclose(tf.sigmoid(logits), probability, rtol=0.2)
    np.testing.assert_allclose(np.mean(tf.sigmoid(logits)), probability, rtol=0.01)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_impossible_priors_are_refused(probability):
    with pytest.raises(ValueError, match="--prior_probability must lie between 0 and 1"):
        ModelConfig(prior_probability=probability)


def test_an_untrained_head_predicts_the_anchors():
    head = heads.make_box_head(CONFIG, anchors_per_location=9)
    deltas = head([tf.random.stateless_normal([2, 8, 8, 16], seed=[0, 0])])
    assert deltas.shape == (2, 64 * 9, 4)
    np.testing.assert_allclose(deltas, 0, atol=0.1)


def test_hidden_kernels_start_as_in_the_paper():
    for filters, stddev in ((256, 0.01), (64, 0.02)):  # the same gain over 9 * filters inputs
        head = heads.make_box_head(ModelConfig(neck_filters=filters, head_convs=1), anchors_per_location=1)
        head([tf.zeros([1, 1, 1, filters])])
        assert np.std(head.convs[0].kernel) == pytest.approx(stddev, rel=0.03)
        assert not np.any(head.convs[0].bias)


def test_subnets_are_shared_over_levels_and_not_with_each_other():
    class_head = heads.make_class_head(CONFIG, num_classes=5, anchors_per_location=9)
    box_head = heads.make_box_head(CONFIG, anchors_per_location=9)
    maps = [tf.random.stateless_normal([1, size, size, 16], seed=[0, size]) for size in (8, 4, 2)]
    both = [class_head(maps), box_head(maps)]
    for head, logits in zip((class_head, box_head), both):
        assert len(head.trainable_variables) == 2 * (2 + 1)  # kernel and bias, whatever the number of levels
        alone = tf.concat([head([m]) for m in maps], axis=1)
        np.testing.assert_allclose(logits, alone, atol=1e-6)
    assert not {v.ref() for v in class_head.variables} & {v.ref() for v in box_head.variables}


def test_depth_and_width():
    head = heads.make_box_head(ModelConfig(neck_filters=16, head_convs=3, head_filters=24), anchors_per_location=9)
    head([tf.zeros([1, 2, 2, 16])])
    assert [tuple(conv.kernel.shape) for conv in head.convs] == [(3, 3, 16, 24), (3, 3, 24, 24), (3, 3, 24, 24)]
    assert tuple(head.output_conv.kernel.shape) == (3, 3, 24, 36)


def test_group_norm_is_shared_over_levels_and_equals_the_formula():
    """A level's own statistics over groups of 2 channels; gamma and beta are those of all levels."""
    config = ModelConfig(neck_filters=64, head_convs=1, head_norm="group")
    head = heads.make_box_head(config, anchors_per_location=1)
    maps = [tf.random.stateless_normal([2, size, size, 64], seed=[0, size], stddev=size) for size in (4, 2)]
    head(maps)
    assert len(head.trainable_variables) == 1 + 2 + 2  # kernel; gamma, beta; kernel, bias
    (norms,) = head.norms
    norms[0].gamma.assign(np.linspace(1, 2, 64))
    norms[0].beta.assign(np.linspace(-1, 1, 64))
    expected = []
    for m in maps:
        hidden = np.asarray(head.convs[0](m), np.float64)
        groups = hidden.reshape(2, -1, 32, 2)
        mean, variance = groups.mean(axis=(1, 3), keepdims=True), groups.var(axis=(1, 3), keepdims=True)
        normalised = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(hidden.shape)
        activated = np.maximum(normalised * np.linspace(1, 2, 64) + np.linspace(-1, 1, 64), 0)
        expected.append(head.output_conv(tf.constant(activated, tf.float32)).numpy().reshape(2, -1, 4))
    np.testing.assert_allclose(head(maps), np.concatenate(expected, axis=1), rtol=1e-4, atol=1e-4)


def test_batch_norm_has_the_statistics_of_each_level():
    """Levels of mean 0, 10 and -10: in training and, with the moving averages, afterwards, each is normalised alone."""
    config = ModelConfig(neck_filters=2, head_convs=1, head_norm="batch", norm="local", batch_norm_momentum=0.0)
    head = heads.make_box_head(config, anchors_per_location=1)
    rng = np.random.default_rng(0)
    maps = [tf.constant(rng.normal(mean, 1, [8, 8, 8, 2]), tf.float32) for mean in (0, 10, -10)]
    head(maps)
    kernel = np.zeros([3, 3, 2, 2])
    kernel[1, 1] = np.eye(2)
    head.convs[0].set_weights([kernel])
    (norms,) = head.norms
    assert len(norms) == 5
    trained = tf.function(head)(maps, training=True)
    for layer, m in zip(norms, maps):
        np.testing.assert_allclose(layer.moving_mean, np.mean(m, axis=(0, 1, 2)), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(layer.moving_variance, np.var(m, axis=(0, 1, 2)), rtol=0.01)
    np.testing.assert_allclose(head(maps), trained, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("norm", ["frozen", "group"])
def test_batch_norm_in_the_heads_needs_batch_norm(norm):
    with pytest.raises(ValueError, match=f"--head_norm=batch .* --norm={norm}: use --head_norm=group"):
        ModelConfig(head_norm="batch", norm=norm)


def test_separable_convolutions_start_like_others():
    """The outputs have about the same mean square; the parameters are fewer."""
    maps = [tf.random.stateless_normal([1, 32, 32, 128], seed=[0, 0])]
    found = []
    for separable in (False, True):
        tf.keras.utils.set_random_seed(0)
        head = heads.make_box_head(
            ModelConfig(neck_filters=128, head_convs=1, separable_convs=separable), anchors_per_location=9
        )
        found.append((np.mean(head(maps) ** 2) ** 0.5, sum(v.shape.num_elements() for v in head.trainable_variables)))
    (full, full_size), (separated, separable_size) = found
    assert separated == pytest.approx(full, rel=0.3)
    assert separable_size == 9 * 128 + 128 * 128 + 128 + 9 * 128 + 128 * 36 + 36 < full_size / 8


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_predicts_in_float32_whatever_the_policy(policy):
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        head = heads.make_class_head(CONFIG, num_classes=2, anchors_per_location=3)
        logits = head([tf.zeros([1, 2, 2, 16])])
        assert head.convs[0].compute_dtype == policy.removeprefix("mixed_")
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    assert logits.dtype == tf.float32
    np.testing.assert_allclose(tf.sigmoid(logits), 0.01, rtol=0.01)
