"""Necks: C3, C4, C5 to five maps of equal width, P3-P7 (strides 8 to 128)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from model import backbone
from model.config import ModelConfig


class FPN(tf.keras.layers.Layer):
    """Feature pyramid of Lin et al. 2017 (section 4 and footnote 2 of the RetinaNet paper).

    (C3, C4, C5), each half as high and wide as the one before, to (P3, ..., P7) of `filters` channels. P6 is a strided
    convolution of C5, or of P5 as in torchvision's first RetinaNet, and P7 of relu(P6); each is half as high and wide
    as the map before, rounded up.
    """

    def __init__(self, config: ModelConfig, name: str = "fpn"):
        super().__init__(name=name)
        filters, self._p6_from = config.neck_filters, config.p6_from
        self.laterals = [_conv(filters, 1, name=f"lateral{level}") for level in (3, 4, 5)]
        self.outputs = [_conv(filters, 3, name=f"output{level}") for level in (3, 4, 5)]
        self.coarse6 = _conv(filters, 3, strides=2, name="coarse6")
        self.coarse7 = _conv(filters, 3, strides=2, name="coarse7")

    def call(self, features: Sequence[tf.Tensor]) -> tuple[tf.Tensor, ...]:
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

    def call(self, features: Sequence[tf.Tensor]) -> tuple[tf.Tensor, ...]:
        p3, *coarser = self.fpn(features)
        maps = [p3]
        for down, output, p in zip(self.downs, self.outputs, coarser):
            maps.append(output(down(maps[-1]) + p))
        return tuple(maps)


def make_neck(config: ModelConfig) -> tf.keras.layers.Layer:
    """The neck that `config` names."""
    return {"fpn": FPN, "panet": PANet}[config.neck](config)


def _conv(filters: int, kernel_size: int, **kwargs: Any) -> backbone.Conv2D:
    # Variance 1 / fan_in, uniform: the "Xavier fill" of the FPN authors' own system, Detectron.
    initializer = tf.keras.initializers.VarianceScaling(scale=1.0, mode="fan_in", distribution="uniform")
    return backbone.Conv2D(filters, kernel_size, kernel_initializer=initializer, **kwargs)


def _upsample(x: tf.Tensor) -> tf.Tensor:
    # Nearest neighbour. The gradient of tf.image.resize has no XLA kernel for it, and no deterministic one on a GPU.
    return tf.repeat(tf.repeat(x, 2, axis=1), 2, axis=2)
