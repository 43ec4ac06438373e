"""The class and box subnets. They share no parameters with each other; each shares all of its own over the levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from model import norm
from model.config import ModelConfig

_LEVELS = (3, 4, 5, 6, 7)


class Subnet(tf.keras.layers.Layer):
    """Convolutions applied to every level (Lin et al. 2017, section 4).

    A sequence of maps [b, h, w, c] to float32 [b, a, num_outputs], where a runs over levels, rows, columns and the
    anchors of a location, in this order. h and w are static.

    With group norm all levels share one layer, as in torchvision's second RetinaNet. With batch norm each level has its
    own, as in EfficientDet: the levels' statistics differ, and one moving average over all of them would fit none.

    Args:
      num_outputs: numbers for each anchor.
      anchors_per_location: anchors of each cell of a map.
      config: width, number, kind and normalisation of the convolutions.
      bias: initial bias of the outputs.
    """

    def __init__(
        self, num_outputs: int, *, anchors_per_location: int, config: ModelConfig, name: str, bias: float = 0.0
    ):
        super().__init__(name=name)
        self._num_outputs = num_outputs
        width = config.head_filters or config.neck_filters
        use_bias = config.head_norm == "none"  # a norm has its own
        self.convs = [
            _conv3x3(width, config, _hidden_initializer(), use_bias=use_bias, name=f"conv{i}")
            for i in range(config.head_convs)
        ]
        self.norms = [_make_norms(config, name=f"norm{i}") for i in range(config.head_convs)]
        # Over the 1x1 inputs of a separable convolution, 3 * 0.01 has the gain that 0.01 has over 3x3.
        self.output_conv = _conv3x3(
            num_outputs * anchors_per_location,
            config,
            tf.keras.initializers.RandomNormal(stddev=0.03 if config.separable_convs else 0.01),
            bias_initializer=tf.keras.initializers.Constant(bias),
            name="output",
        )

    def call(self, features: Sequence[tf.Tensor], training: bool = False) -> tf.Tensor:
        levels = []
        for level, outputs in enumerate(features):
            for conv, norms in zip(self.convs, self.norms):
                outputs = conv(outputs)
                if norms:
                    outputs = norms[level % len(norms)](outputs, training=training)
                outputs = tf.nn.relu(outputs)
            outputs = self.output_conv(outputs)
            _, height, width, channels = outputs.shape
            levels.append(tf.reshape(outputs, [-1, height * width * channels // self._num_outputs, self._num_outputs]))
        return tf.cast(tf.concat(levels, axis=1), tf.float32)


def _hidden_initializer() -> tf.keras.initializers.Initializer:
    # At 256 filters this is the paper's normal(0.01); at any other width it has the same gain.
    return tf.keras.initializers.VarianceScaling(0.01**2 * 9 * 256, mode="fan_in", distribution="untruncated_normal")


def _conv3x3(
    filters: int, config: ModelConfig, initializer: tf.keras.initializers.Initializer, **kwargs: Any
) -> tf.keras.layers.Layer:
    if not config.separable_convs:
        return tf.keras.layers.Conv2D(filters, 3, padding="same", kernel_initializer=initializer, **kwargs)
    return tf.keras.layers.SeparableConv2D(
        filters,
        3,
        padding="same",
        depthwise_initializer=tf.keras.initializers.RandomNormal(stddev=1 / 3),  # keeps the variance
        pointwise_initializer=initializer,
        **kwargs,
    )


def _make_norms(config: ModelConfig, *, name: str) -> list[tf.keras.layers.Layer]:
    """The norms after one convolution: none, one for all levels, or one for each."""
    if config.head_norm == "none":
        return []
    if config.head_norm == "group":
        return [norm.make_norm(config, kind="group", name=name)]
    return [norm.make_norm(config, name=f"{name}_p{level}") for level in _LEVELS]


def make_class_head(config: ModelConfig, *, num_classes: int, anchors_per_location: int) -> Subnet:
    """Class logits [b, a, num_classes], whose sigmoid starts at `config.prior_probability` (section 4.1)."""
    p = config.prior_probability
    return Subnet(
        num_classes,
        anchors_per_location=anchors_per_location,
        config=config,
        bias=-math.log((1 - p) / p),
        name="class_head",
    )


def make_box_head(config: ModelConfig, *, anchors_per_location: int) -> Subnet:
    """Box deltas [b, a, 4], the same for every class."""
    return Subnet(4, anchors_per_location=anchors_per_location, config=config, name="box_head")
