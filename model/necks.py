"""Necks: C3, C4, C5 to five maps of equal width, P3-P7 (strides 8 to 128)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from model import backbone, norm
from model.config import ModelConfig

_EPSILON = 1e-4  # of fast normalised fusion (Tan et al. 2020, section 3.3)


class FPN(tf.keras.layers.Layer):
    """Feature pyramid of Lin et al. 2017 (section 4 and footnote 2 of the RetinaNet paper).

    (C3, C4, C5), each half as high and wide as the one before, to (P3, ..., P7) of `neck_filters` channels. P6 is a
    strided convolution of C5 or of P5 (`p6_from`), and P7 of relu(P6); each is half as high and wide as the map before,
    rounded up.
    """

    def __init__(self, config: ModelConfig, name: str = "fpn"):
        super().__init__(name=name)
        filters, self._p6_from = config.neck_filters, config.p6_from
        self.laterals = [_conv(filters, 1, name=f"lateral{level}") for level in (3, 4, 5)]
        self.outputs = [_conv(filters, 3, name=f"output{level}") for level in (3, 4, 5)]
        self.coarse6 = _conv(filters, 3, strides=2, name="coarse6")
        self.coarse7 = _conv(filters, 3, strides=2, name="coarse7")

    def call(self, features: Sequence[tf.Tensor], training: bool = False) -> tuple[tf.Tensor, ...]:
        c3, c4, c5 = features
        m5 = self.laterals[2](c5)
        m4 = self.laterals[1](c4) + _upsample(m5)
        m3 = self.laterals[0](c3) + _upsample(m4)
        p3, p4, p5 = (conv(m) for conv, m in zip(self.outputs, (m3, m4, m5)))
        p6 = self.coarse6(p5 if self._p6_from == "p5" else c5)
        p7 = self.coarse7(tf.nn.relu(p6))
        return p3, p4, p5, p6, p7


class PANet(tf.keras.layers.Layer):
    """FPN and a bottom-up path over its maps (Liu et al. 2018, section 3.1).

    N3 = P3, and N(i+1) = relu(conv3x3(relu(conv3x3 stride 2 (N(i))) + P(i+1))); here up to P7.
    """

    def __init__(self, config: ModelConfig, name: str = "panet"):
        super().__init__(name=name)
        self.fpn = FPN(config)
        filters = config.neck_filters
        self.downs = [_conv(filters, 3, strides=2, activation="relu", name=f"down{level}") for level in (4, 5, 6, 7)]
        self.outputs = [_conv(filters, 3, activation="relu", name=f"output{level}") for level in (4, 5, 6, 7)]

    def call(self, features: Sequence[tf.Tensor], training: bool = False) -> tuple[tf.Tensor, ...]:
        p3, *coarser = self.fpn(features)
        maps = [p3]
        for down, output, p in zip(self.downs, self.outputs, coarser):
            maps.append(output(down(maps[-1]) + p))
        return tuple(maps)


class BiFPN(tf.keras.layers.Layer):
    """`neck_repeats` passes down and up the pyramid (Tan et al. 2020, EfficientDet, section 3).

    A 1x1 convolution takes each of C3, C4 and C5 to `neck_filters` channels. P6 is a max pool of another one of C5, or
    of P5 (`p6_from`), and P7 of P6. As in EfficientDet's code every convolution is normalised, and maps are resampled
    by nearest neighbour and by a 3x3 max pool. Unlike there, the activation is ReLU, as everywhere in this network, and
    C4 and C5 enter the first pass through one convolution each instead of two.
    """

    def __init__(self, config: ModelConfig, name: str = "bifpn"):
        super().__init__(name=name)
        names = ["lateral3", "lateral4", "lateral5", *([] if config.p6_from == "p5" else ["lateral6"])]
        self.laterals = [_conv(config.neck_filters, 1, use_bias=False, name=name) for name in names]
        self.norms = [_make_norm(config, name=f"{name}_norm") for name in names]
        self.passes = [BiFPNPass(config, name=f"pass{i}") for i in range(config.neck_repeats)]

    def call(self, features: Sequence[tf.Tensor], training: bool = False) -> tuple[tf.Tensor, ...]:
        sources = [*features, features[-1]]  # zip drops the second C5 if P6 comes from P5
        maps = [layer(conv(c), training=training) for conv, layer, c in zip(self.laterals, self.norms, sources)]
        p3, p4, p5 = maps[:3]
        p6 = _downsample(maps[-1])
        outputs = (p3, p4, p5, p6, _downsample(p6))
        for bifpn_pass in self.passes:
            outputs = bifpn_pass(outputs, training=training)
        return outputs


class BiFPNPass(tf.keras.layers.Layer):
    """One pass (Tan et al. 2020, figure 2d and section 3.3): (P3, ..., P7) to maps of the same shapes.

    Down: D7 = P7, D(i) = fusion(P(i), up(D(i+1))). Up: N3 = D3, N(i) = fusion(P(i), D(i), down(N(i-1))), and
    N7 = fusion(P7, down(N6)).
    """

    def __init__(self, config: ModelConfig, name: str):
        super().__init__(name=name)
        self.downs = [Fusion(config, name=f"down{level}") for level in (6, 5, 4, 3)]
        self.ups = [Fusion(config, name=f"up{level}") for level in (4, 5, 6, 7)]

    def call(self, maps: Sequence[tf.Tensor], training: bool = False) -> tuple[tf.Tensor, ...]:
        *finer, p7 = maps
        downs = [p7]  # D7, D6, ..., D3
        for fusion, p in zip(self.downs, reversed(finer)):
            downs.append(fusion([p, _upsample(downs[-1], like=p)], training=training))
        outputs = [downs.pop()]
        for fusion, p, d in zip(self.ups, maps[1:], reversed(downs)):
            skips = [p] if p is p7 else [p, d]
            outputs.append(fusion([*skips, _downsample(outputs[-1])], training=training))
        return tuple(outputs)


class Fusion(tf.keras.layers.Layer):
    """norm(conv3x3(relu(sum of w(i) * input(i)))) of maps of one shape, with fast normalised fusion.

    w(i) = relu(v(i)) / (1e-4 + sum of relu(v(j))), where the v are learnt and start at 1.
    """

    def __init__(self, config: ModelConfig, name: str):
        super().__init__(name=name)
        if config.separable_convs:
            self.conv = tf.keras.layers.SeparableConv2D(
                config.neck_filters,
                3,
                padding="same",
                use_bias=False,
                # Over 3x3 inputs this keeps the variance, as does the 1x1 convolution.
                depthwise_initializer=tf.keras.initializers.RandomNormal(stddev=1 / 3),
                pointwise_initializer=_initializer(),
                name="conv",
            )
        else:
            self.conv = _conv(config.neck_filters, 3, use_bias=False, name="conv")
        self.norm = _make_norm(config, name="norm")

    def build(self, input_shapes: Sequence[tf.TensorShape]) -> None:
        # Made here and not in __init__, where its name would lack those of the layers around it. In float32, whatever
        # the precision. The name has "gamma" in it because it should not decay, like other scales.
        self.gammas = self.add_weight(
            "fusion_gammas", [len(input_shapes)], initializer="ones", dtype=tf.float32, experimental_autocast=False
        )
        super().build(input_shapes)

    def call(self, inputs: Sequence[tf.Tensor], training: bool = False) -> tf.Tensor:
        gammas = tf.nn.relu(self.gammas)
        weights = gammas / (_EPSILON + tf.reduce_sum(gammas))
        # A weight is repeated for each channel, so that in float16 its gradient is summed over one channel at most.
        weights = tf.cast(weights[:, tf.newaxis] * tf.ones(inputs[0].shape[-1:]), inputs[0].dtype)
        fused = tf.add_n([weight * x for weight, x in zip(tf.unstack(weights), inputs)])
        return self.norm(self.conv(tf.nn.relu(fused)), training=training)


def make_neck(config: ModelConfig) -> tf.keras.layers.Layer:
    """The neck that `config` names."""
    return {"fpn": FPN, "panet": PANet, "bifpn": BiFPN}[config.neck](config)


def _initializer() -> tf.keras.initializers.Initializer:
    # Variance 1 / fan_in, uniform: the "Xavier fill" of the FPN authors' own system, Detectron.
    return tf.keras.initializers.VarianceScaling(scale=1.0, mode="fan_in", distribution="uniform")


def _conv(filters: int, kernel_size: int, **kwargs: Any) -> backbone.Conv2D:
    return backbone.Conv2D(filters, kernel_size, kernel_initializer=_initializer(), **kwargs)


def _make_norm(config: ModelConfig, *, name: str) -> tf.keras.layers.Layer:
    # A new layer has no statistics that could be frozen.
    return norm.make_norm(config, kind="group" if config.norm == "frozen" else config.norm, name=name)


def _upsample(x: tf.Tensor, like: tf.Tensor | None = None) -> tf.Tensor:
    """Twice as high and wide, or as `like`, whose sides are twice those of x or one less."""
    # Nearest neighbour. The gradient of tf.image.resize has no XLA kernel for it, and no deterministic one on a GPU.
    _, height, width, channels = x.shape
    x = tf.reshape(tf.concat([x, x], axis=3), [-1, height, 2 * width, channels])
    x = tf.reshape(tf.concat([x, x], axis=2), [-1, 2 * height, 2 * width, channels])
    if like is None or x.shape[1:3] == like.shape[1:3]:
        return x
    return x[:, : like.shape[1], : like.shape[2]]


def _downsample(x: tf.Tensor) -> tf.Tensor:
    """Half as high and wide, rounded up: a 3x3 max pool, padded on every side like the strided convolutions."""
    # A repeated edge is in its window already, so it changes no maximum. A constant below every value would do as well,
    # but the int8 export would take it for a part of the tensor's range; and mirrored padding is rare in ONNX.
    # The last window of an even side ends at its edge.
    height, width = x.shape[1:3]
    x = tf.concat([x[:, :1], x, *([x[:, -1:]] if height % 2 else [])], axis=1)
    x = tf.concat([x[:, :, :1], x, *([x[:, :, -1:]] if width % 2 else [])], axis=2)
    return tf.nn.max_pool2d(x, 3, 2, "VALID")
