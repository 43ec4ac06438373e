"""The pyramids against NumPy, with convolutions that only scale and shift; their gradients, compiled and not."""

import numpy as np
import pytest
import tensorflow as tf

from model import backbone, necks
from model.config import ModelConfig

FILTERS = 2


@pytest.fixture
def features():
    """C3, C4, C5 of a 96x160 image: the sides of P6 and P7 are rounded up."""
    rng = np.random.default_rng(0)
    return [tf.constant(rng.normal(size=[2, 3 * s, 5 * s, FILTERS]), tf.float32) for s in (4, 2, 1)]


def scale_and_shift(neck):
    """Makes every convolution multiply by one number and add another, its own; returns these functions by layer."""
    functions = {}
    for conv in neck.submodules:
        if isinstance(conv, backbone.Conv2D):
            scale, shift = 1 + 0.1 * len(functions), 0.01 * len(functions)
            functions[conv] = lambda x, scale=scale, shift=shift: scale * x + shift
            kernel = np.zeros(conv.kernel.shape)
            middle = kernel.shape[0] // 2
            kernel[middle, middle] = scale * np.eye(FILTERS)
            conv.set_weights([kernel, np.full(FILTERS, shift)])
    return functions


def upsample(x):
    return np.kron(x, np.ones([1, 2, 2, 1]))


def relu(x):
    return np.maximum(x, 0)


def expected_fpn(features, fpn, f):
    c3, c4, c5 = (np.asarray(c, np.float64) for c in features)
    lateral3, lateral4, lateral5 = (f[conv] for conv in fpn.laterals)
    output3, output4, output5 = (f[conv] for conv in fpn.outputs)
    m5 = lateral5(c5)
    m4 = lateral4(c4) + upsample(m5)
    m3 = lateral3(c3) + upsample(m4)
    p6 = f[fpn.coarse6](c5[:, ::2, ::2])
    p7 = f[fpn.coarse7](relu(p6)[:, ::2, ::2])
    return output3(m3), output4(m4), output5(m5), p6, p7


def test_fpn_equals_numpy(features):
    fpn = necks.make_neck(ModelConfig(neck="fpn", neck_filters=FILTERS))
    fpn(features)
    functions = scale_and_shift(fpn)
    assert len(functions) == 8
    maps = fpn(features)
    assert [tuple(p.shape[1:3]) for p in maps] == [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2)]
    for p, expected in zip(maps, expected_fpn(features, fpn, functions)):
        np.testing.assert_allclose(p, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("neck", ["fpn", "panet"])
def test_p6_is_made_of_the_map_that_is_asked_for(features, neck):
    layers = {
        source: necks.make_neck(ModelConfig(neck=neck, neck_filters=FILTERS, p6_from=source)) for source in ("c5", "p5")
    }
    for source, layer in layers.items():
        layer(features)
        fpn = layer if neck == "fpn" else layer.fpn
        f = scale_and_shift(layer)
        c5 = np.asarray(features[2], np.float64)
        expected = f[fpn.coarse6]((c5 if source == "c5" else f[fpn.outputs[2]](f[fpn.laterals[2]](c5)))[:, ::2, ::2])
        np.testing.assert_allclose(fpn(features)[3], expected, rtol=1e-5, atol=1e-5)


def test_panet_equals_numpy(features):
    panet = necks.make_neck(ModelConfig(neck="panet", neck_filters=FILTERS))
    panet(features)
    f = scale_and_shift(panet)
    assert len(f) == 8 + 8
    p3, *coarser = expected_fpn(features, panet.fpn, f)
    expected = [p3]
    for down, output, p in zip(panet.downs, panet.outputs, coarser):
        expected.append(relu(f[output](relu(f[down](expected[-1][:, ::2, ::2])) + p)))
    for n, e in zip(panet(features), expected):
        np.testing.assert_allclose(n, e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("neck", ["fpn", "panet"])
def test_compiled_gradients_equal_uncompiled_ones(features, neck):
    layer = necks.make_neck(ModelConfig(neck=neck, neck_filters=FILTERS))
    layer(features)

    def gradients():
        with tf.GradientTape() as tape:
            tape.watch(features)
            loss = tf.add_n([tf.reduce_sum(p**2) for p in layer(features)])
        return tape.gradient(loss, features + layer.trainable_variables)

    eager = gradients()
    assert all(np.any(g != 0) for g in eager[:3])
    for jit_compile in (False, True):
        for gradient, expected in zip(tf.function(gradients, jit_compile=jit_compile)(), eager):
            np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)
