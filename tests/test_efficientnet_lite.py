"""EfficientNet-Lite against efficientnet-lite-pytorch: features with the same weights, and numbers of parameters."""

import numpy as np
import published
import pytest
import tensorflow as tf

from model import pretrained, retinanet
from model.config import ModelConfig

# What efficientnet-lite-pytorch 0.1 makes of `published.IMAGES`: each 20th channel in the lower right corner of C3, C4
# and C5 (python tests/published.py).
FEATURES = (
    [-0.15377, -0.03285],
    [0.45413, 1.55295, -0.7089, 1.23514, -0.0724, -2.49493],
    [-0.25481, -0.39542, 0.26044, -0.45233, 0.15353, 0.6595, -1.00417, 0.12608, 0.51783, -1.04558, -0.43995, 0.68953,
     0.0254, 0.13102, 0.25918, 0.2731],
)  # fmt: skip


def assign(backbone, arrays):
    for variable in backbone.variables:
        variable.assign(arrays["backbone/" + variable.name.removesuffix(":0").split("/", 1)[1]])


def test_features_equal_the_reference():
    weights, skipped, changed = pretrained.translate(published.random_tensors(published.lite0_shapes()), "lite0")
    assert not skipped
    assert not changed
    origin = weights.origin
    assert (origin.backbone, origin.preprocessing, origin.batch_norm_epsilon) == ("efficientnet_lite0", "tf_lite", 1e-3)
    backbone = retinanet.make_backbone(ModelConfig(backbone="efficientnet_lite0"))
    assert backbone.epsilon == 1e-3
    backbone(published.IMAGES)
    assign(backbone, weights.arrays)
    for call in (backbone, tf.function(backbone)):
        for feature, expected in zip(call(published.IMAGES), FEATURES):
            np.testing.assert_allclose(feature[0, -1, -1, ::20], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "published_size", "width"),
    [
        ("efficientnet_lite0", 4_652_008, 320),
        ("efficientnet_lite1", 5_416_680, 320),
        ("efficientnet_lite2", 6_092_072, 352),
    ],
)
def test_has_the_published_number_of_parameters(name, published_size, width):
    with tf.Graph().as_default():
        backbone = retinanet.make_backbone(ModelConfig(backbone=name))
        features = backbone(tf.keras.Input((64, 96, 3)))
    assert [tuple(f.shape[1:3]) for f in features] == [(8, 12), (4, 6), (2, 3)]
    assert features[2].shape[3] == width
    classifier = width * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    assert sum(v.shape.num_elements() for v in backbone.trainable_variables) + classifier == published_size


def test_frozen_stages_have_no_trainable_variables():
    with tf.Graph().as_default():
        backbone = retinanet.make_backbone(ModelConfig(backbone="efficientnet_lite0", freeze_stages=3))
        backbone(tf.keras.Input((64, 64, 3)))
    blocks = {v.name.split("/")[1] for v in backbone.trainable_variables}
    assert blocks == {f"block{i}" for i in range(5, 16)}
