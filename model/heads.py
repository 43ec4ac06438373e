"""The class and box subnets. They share no parameters with each other; each shares all of its own over the levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from model.config import ModelConfig


class Subnet(tf.keras.layers.Layer):
    """Convolutions applied to every level (Lin et al. 2017, section 4).

    A sequence of maps [b, h, w, c] to float32 [b, a, num_outputs], where a runs over levels, rows, columns and the
    anchors of a location, in this order. h and w are static.

    Args:
      num_outputs: numbers for each anchor.
      anchors_per_location: anchors of each cell of a map.
      config: width and number of the hidden convolutions.
      bias: initial bias of the outputs.
    """

    def __init__(
        self, num_outputs: int, *, anchors_per_location: int, config: ModelConfig, name: str, bias: float = 0.0
    ):
        super().__init__(name=name)
        self._num_outputs = num_outputs
        self.convs = [
            tf.keras.layers.Conv2D(
                config.neck_filters,
                3,
                padding="same",
                activation="relu",
                # At 256 filters this is the paper's normal(0.01); at any other width it has the same gain.
                kernel_initializer=tf.keras.initializers.VarianceScaling(
                    0.01**2 * 9 * 256, mode="fan_in", distribution="untruncated_normal"
                ),
                name=f"conv{i}",
            )
            for i in range(config.head_convs)
        ]
        self.output_conv = tf.keras.layers.Conv2D(
            num_outputs * anchors_per_location,
            3,
            padding="same",
            kernel_initializer=tf.keras.initializers.RandomNormal(stddev=0.01),
            bias_initializer=tf.keras.initializers.Constant(bias),
            name="output",
        )

    def call(self, features: Sequence[tf.Tensor]) -> tf.Tensor:
        levels = []
        for outputs in features:
            for conv in self.convs:
                outputs = conv(outputs)
            outputs = self.output_conv(outputs)
            _, height, width, channels = outputs.shape
            levels.append(tf.reshape(outputs, [-1, height * width * channels // self._num_outputs, self._num_outputs]))
        return tf.cast(tf.concat(levels, axis=1), tf.float32)


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
