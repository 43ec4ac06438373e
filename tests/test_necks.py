"""The pyramids against NumPy, with convolutions that only scale and shift; their gradients, compiled and not."""

import numpy as np
import pytest
import tensorflow as tf

from model import backbone, necks
from model.config import ModelConfig
from trainer import optimizers
from trainer.config import OptimizerConfig

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


def expected_fpn(features, fpn, f, p6_from):
    c3, c4, c5 = (np.asarray(c, np.float64) for c in features)
    lateral3, lateral4, lateral5 = (f[conv] for conv in fpn.laterals)
    output3, output4, output5 = (f[conv] for conv in fpn.outputs)
    m5 = lateral5(c5)
    m4 = lateral4(c4) + upsample(m5)
    m3 = lateral3(c3) + upsample(m4)
    p5 = output5(m5)
    p6 = f[fpn.coarse6]({"c5": c5, "p5": p5}[p6_from][:, ::2, ::2])
    p7 = f[fpn.coarse7](relu(p6)[:, ::2, ::2])
    return output3(m3), output4(m4), p5, p6, p7


@pytest.mark.parametrize("p6_from", ["c5", "p5"])
def test_fpn_equals_numpy(features, p6_from):
    fpn = necks.make_neck(ModelConfig(neck="fpn", neck_filters=FILTERS, p6_from=p6_from))
    fpn(features)
    functions = scale_and_shift(fpn)
    assert len(functions) == 8
    maps = fpn(features)
    assert [tuple(p.shape[1:3]) for p in maps] == [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2)]
    for p, expected in zip(maps, expected_fpn(features, fpn, functions, p6_from)):
        np.testing.assert_allclose(p, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("p6_from", ["c5", "p5"])
def test_panet_equals_numpy(features, p6_from):
    panet = necks.make_neck(ModelConfig(neck="panet", neck_filters=FILTERS, p6_from=p6_from))
    panet(features)
    f = scale_and_shift(panet)
    assert len(f) == 8 + 8
    p3, *coarser = expected_fpn(features, panet.fpn, f, p6_from)
    expected = [p3]
    for down, output, p in zip(panet.downs, panet.outputs, coarser):
        expected.append(relu(f[output](relu(f[down](expected[-1][:, ::2, ::2])) + p)))
    for n, e in zip(panet(features), expected):
        np.testing.assert_allclose(n, e, rtol=1e-5, atol=1e-5)


def bifpn_with_functions(**settings):
    """A BiFPN without normalisation whose convolutions scale and shift and whose fusions have weights of their own."""
    bifpn = necks.make_neck(ModelConfig(neck="bifpn", neck_filters=FILTERS, batch_norm_epsilon=1e-12, **settings))
    bifpn([tf.zeros([1, *sides, FILTERS]) for sides in ((12, 20), (6, 10), (3, 5))])
    rng = np.random.default_rng(1)
    fusions = [layer for layer in bifpn.submodules if isinstance(layer, necks.Fusion)]
    for fusion in fusions:
        fusion.gammas.assign(rng.uniform(0.5, 2, fusion.gammas.shape))
    functions = {}
    for conv in bifpn.submodules:
        if isinstance(conv, backbone.Conv2D):
            scale = 1 + 0.1 * len(functions)
            functions[conv] = lambda x, scale=scale: scale * x
            kernel = np.zeros(conv.kernel.shape)
            kernel[kernel.shape[0] // 2, kernel.shape[0] // 2] = scale * np.eye(FILTERS)
            conv.set_weights([kernel])
    return bifpn, fusions, functions


def max_pool(x):
    """3x3 windows around every second cell of [b, h, w, c]; the cells outside do not count."""
    b, h, w, c = x.shape
    out = np.empty([b, (h + 1) // 2, (w + 1) // 2, c])
    for i, j in np.ndindex(*out.shape[1:3]):
        out[:, i, j] = x[:, max(2 * i - 1, 0) : 2 * i + 2, max(2 * j - 1, 0) : 2 * j + 2].max(axis=(1, 2))
    return out


@pytest.mark.parametrize("sides", [(1, 1), (2, 3), (5, 4), (7, 7)])
def test_downsampling_and_its_gradient_are_those_of_a_max_pool_whose_padding_never_wins(sides):
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=[2, *sides, 3]) - 5, tf.float32)  # below 0, so that padding with zeros would win

    def padded_below_every_value(x):
        padded = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=x.dtype.min)
        return tf.nn.max_pool2d(padded, 3, 2, "VALID")

    def value_and_gradient(pool):
        with tf.GradientTape() as tape:
            tape.watch(x)
            pooled = pool(x)
            loss = tf.reduce_sum(pooled**2)
        return pooled, tape.gradient(loss, x)

    found, gradient = value_and_gradient(necks._downsample)
    expected, expected_gradient = value_and_gradient(padded_below_every_value)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, max_pool(x.numpy()))
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6)


def fuse(fusion, f, *inputs):
    weights = relu(np.asarray(fusion.gammas, np.float64))
    weights = weights / (1e-4 + weights.sum())
    assert len(weights) == len(inputs)
    return f[fusion.conv](relu(sum(w * x for w, x in zip(weights, inputs))))


def up_to(x, like):
    return upsample(x)[:, : like.shape[1], : like.shape[2]]


@pytest.mark.parametrize(("p6_from", "repeats"), [("c5", 1), ("p5", 2)])
def test_bifpn_equals_numpy(features, p6_from, repeats):
    """Figure 2d and the formulas of section 3.3 of the paper, written out level by level."""
    bifpn, fusions, f = bifpn_with_functions(p6_from=p6_from, neck_repeats=repeats)
    assert len(fusions) == 8 * repeats
    assert len(f) == (4 if p6_from == "c5" else 3) + 8 * repeats
    p3, p4, p5 = (f[conv](np.asarray(c, np.float64)) for conv, c in zip(bifpn.laterals, features))
    p6 = max_pool(f[bifpn.laterals[3]](np.asarray(features[2], np.float64)) if p6_from == "c5" else p5)
    p7 = max_pool(p6)
    for one_pass in bifpn.passes:
        down6, down5, down4, down3 = one_pass.downs
        up4, up5, up6, up7 = one_pass.ups
        d6 = fuse(down6, f, p6, up_to(p7, p6))
        d5 = fuse(down5, f, p5, up_to(d6, p5))
        d4 = fuse(down4, f, p4, up_to(d5, p4))
        p3 = fuse(down3, f, p3, up_to(d4, p3))
        p4 = fuse(up4, f, p4, d4, max_pool(p3))
        p5 = fuse(up5, f, p5, d5, max_pool(p4))
        p6 = fuse(up6, f, p6, d6, max_pool(p5))
        p7 = fuse(up7, f, p7, max_pool(p6))
    for graph in (bifpn, tf.function(bifpn)):
        maps = graph(features)
        assert [tuple(p.shape[1:3]) for p in maps] == [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2)]
        for p, expected in zip(maps, (p3, p4, p5, p6, p7)):
            np.testing.assert_allclose(p, expected, rtol=1e-4, atol=1e-5)


def test_a_negative_weight_takes_no_part_in_a_fusion():
    fusion = necks.Fusion(ModelConfig(neck_filters=FILTERS, batch_norm_epsilon=1e-12), name="fusion")
    images = tf.random.stateless_normal([2, 1, 3, 3, FILTERS], seed=[0, 0])
    fusion(list(images))
    fusion.gammas.assign([3.0, -1.0])
    first_only = fusion(list(images))
    np.testing.assert_array_equal(first_only, fusion([images[0], 100 + images[1]]))
    np.testing.assert_allclose(first_only, fusion.conv(tf.nn.relu(images[0])) * 3 / (3 + 1e-4), rtol=1e-5, atol=1e-6)


def test_the_first_weights_take_the_mean_and_do_not_decay():
    bifpn = necks.make_neck(ModelConfig(neck="bifpn", neck_filters=FILTERS, neck_repeats=1))
    bifpn([tf.zeros([1, size, size, FILTERS]) for size in (4, 2, 1)])
    fusions = [layer for layer in bifpn.submodules if isinstance(layer, necks.Fusion)]
    assert sorted(fusion.gammas.shape[0] for fusion in fusions) == [2, 2, 2, 2, 2, 3, 3, 3]
    optimizer = optimizers.make_optimizer(OptimizerConfig(), train_steps=1, loss_scaling=False)
    for fusion in fusions:
        np.testing.assert_array_equal(fusion.gammas, np.ones(fusion.gammas.shape))
        assert not optimizer.is_decayed(fusion.gammas)


@pytest.mark.parametrize(
    ("policy", "separable"), [("float32", False), ("mixed_float16", True), ("mixed_bfloat16", False)]
)
def test_bifpn_trains_in_every_precision(policy, separable):
    """Maps of different widths, as backbones have; every variable gets a finite gradient."""
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        config = ModelConfig(neck="bifpn", neck_filters=8, neck_repeats=1, separable_convs=separable)
        bifpn = necks.make_neck(config)
        sides = ((12, 20), (6, 10), (3, 5))
        features = [
            tf.random.stateless_normal([2, *s, width], seed=[0, width]) for s, width in zip(sides, (40, 112, 320))
        ]

        @tf.function
        def gradients():
            with tf.GradientTape() as tape:
                maps = bifpn(features, training=True)
                loss = tf.add_n([tf.reduce_sum(tf.cast(p, tf.float32) ** 2 / 100) for p in maps])
            return maps, tape.gradient(loss, bifpn.trainable_variables)

        maps, found = gradients()
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    assert {p.dtype.name for p in maps} == {policy.removeprefix("mixed_")}
    assert {v.dtype for v in bifpn.trainable_variables} == {tf.float32}
    for variable, gradient in zip(bifpn.trainable_variables, found):
        assert np.all(np.isfinite(gradient)), variable.name
    assert any(np.any(g != 0) for v, g in zip(bifpn.trainable_variables, found) if "gammas" in v.name)
    assert any("depthwise" in v.name for v in bifpn.variables) == separable


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("frozen", "GroupNormalization"), ("group", "GroupNormalization"), ("local", "BatchNormalization")],
)
def test_the_norms_of_a_bifpn(norm, kind):
    """It has no statistics that `--norm=frozen` could freeze."""
    bifpn = necks.make_neck(ModelConfig(neck="bifpn", neck_filters=8, norm=norm))
    assert {type(layer).__name__ for layer in bifpn.submodules if "norm" in layer.name and layer is not bifpn} == {kind}


@pytest.mark.parametrize("neck", ["fpn", "panet", "bifpn"])
def test_compiled_gradients_equal_uncompiled_ones(features, neck):
    layer = necks.make_neck(ModelConfig(neck=neck, neck_filters=FILTERS, neck_repeats=1))
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
