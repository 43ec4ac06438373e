"""EfficientNet-Lite0 to 2 (Tan & Le 2019, in the variant for edge devices): ReLU6, and no squeeze-and-excitation.

The topology is that of the authors' `efficientnet/lite` and of efficientnet-lite-pytorch, so that their weights fit:
TensorFlow's "same" padding, and a stem and a first and last stage that do not grow with the network. Their stochastic
depth is left out.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from typing import Any

import tensorflow as tf

from model import norm
from model.backbone import TORCH_NORM, Backbone
from model.config import ModelConfig

_SCALES = {  # factors of the numbers of filters and of blocks
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
}
_STAGES = (  # blocks, kernel size, stride, expansion, filters (Tan & Le 2019, table 1)
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_ENDS_OF_MAPS = (2, 3, 5, 7)  # how many stages give maps of strides 4, 8, 16 and 32
_EPSILON = 1e-3  # the weights were trained with it: a smaller one would change channels of little variance
_TORCH_NAME = re.compile(r"(_blocks\.(\d+)\.)?_(conv_stem|expand_conv|depthwise_conv|project_conv|bn[012])\.(\w+)")


def _num_filters(filters: int, scale: float) -> int:
    """Scaled, and rounded to a multiple of 8 that is at least 90% of it."""
    scaled = filters * scale
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


class SameConvNorm(tf.keras.layers.Layer):
    """Convolution, or a depthwise one where `filters` is 0, with "same" padding; normalisation; ReLU6 if `active`."""

    def __init__(
        self, filters: int, kernel_size: int, *, config: ModelConfig, name: str, strides: int = 1, active: bool = True
    ):
        super().__init__(name=name)
        settings: dict[str, Any] = {"padding": "same", "use_bias": False, "name": "conv"}
        self.conv = (
            tf.keras.layers.Conv2D(filters, kernel_size, strides, kernel_initializer="he_normal", **settings)
            if filters
            else tf.keras.layers.DepthwiseConv2D(kernel_size, strides, depthwise_initializer="he_normal", **settings)
        )
        self.norm = norm.make_norm(config, zero_gamma=False, name="norm")
        self._active = active

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        outputs = self.norm(self.conv(inputs), training=training)
        return tf.nn.relu6(outputs) if self._active else outputs


class InvertedBottleneck(tf.keras.layers.Layer):
    """1x1 to `expansion` times the channels, depthwise, 1x1 to `filters` (Sandler et al. 2018, MobileNetV2).

    The inputs are added where their shape allows it.
    """

    def __init__(
        self,
        inputs: int,
        filters: int,
        kernel_size: int,
        *,
        strides: int,
        expansion: int,
        config: ModelConfig,
        name: str,
    ):
        super().__init__(name=name)
        self.expand = SameConvNorm(inputs * expansion, 1, config=config, name="expand") if expansion > 1 else None
        self.depthwise = SameConvNorm(0, kernel_size, strides=strides, config=config, name="depthwise")
        self.project = SameConvNorm(filters, 1, active=False, config=config, name="project")
        self._adds_inputs = strides == 1 and inputs == filters

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        outputs = inputs if self.expand is None else self.expand(inputs, training=training)
        outputs = self.project(self.depthwise(outputs, training=training), training=training)
        return outputs + inputs if self._adds_inputs else outputs


class EfficientNetLite(Backbone):
    """The stem and the blocks, in stages that end with maps of strides 4, 8, 16 and 32."""

    published_preprocessing = "tf_lite"
    published_epsilon = _EPSILON

    def __init__(self, config: ModelConfig):
        config = dataclasses.replace(config, batch_norm_epsilon=max(config.batch_norm_epsilon, _EPSILON))
        super().__init__(config)
        width, depth = _SCALES[config.backbone]
        self.stem = SameConvNorm(32, 3, strides=2, config=config, name="stem")
        blocks: list[list[tf.keras.layers.Layer]] = []
        inputs, number = 32, 0
        for index, (count, kernel_size, strides, expansion, filters) in enumerate(_STAGES):
            outputs = _num_filters(filters, width)
            is_end = index in (0, len(_STAGES) - 1)
            blocks.append([])
            for block in range(count if is_end else math.ceil(count * depth)):
                blocks[-1].append(
                    InvertedBottleneck(
                        inputs,
                        outputs,
                        kernel_size,
                        strides=strides if block == 0 else 1,
                        expansion=expansion,
                        config=config,
                        name=f"block{number}",
                    )
                )
                inputs, number = outputs, number + 1
        bounds = (0, *_ENDS_OF_MAPS)
        self.stages = [list(itertools.chain(*blocks[first:last])) for first, last in zip(bounds, bounds[1:])]

    @classmethod
    def variable_name(cls, published: str) -> str | None:
        match = _TORCH_NAME.fullmatch(published)
        if not match:
            return None
        _, number, layer, variable = match.groups()
        if number is None:
            part = {"conv_stem": "stem", "bn0": "stem"}.get(layer)  # bn1 belongs to the classifier's last convolution
            if part is None:
                return None
        else:
            parts = {"bn0": "expand", "bn1": "depthwise", "bn2": "project"}
            part = f"block{number}/{parts.get(layer, layer.removesuffix('_conv'))}"
        if layer.startswith("bn"):
            return f"{part}/norm/{TORCH_NORM.get(variable, variable)}"
        return f"{part}/conv/{'depthwise_kernel' if layer == 'depthwise_conv' else 'kernel'}"
