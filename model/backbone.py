"""ResNet-18 to ResNet-152 (He et al. 2015), which give C3, C4 and C5.

The topology is Keras's `tf.keras.applications.ResNet50/101/152`, so that its ImageNet weights fit: a bottleneck strides
in its first 1x1 convolution ("v1"; torchvision's "v1.5" strides in the 3x3), and every strided convolution and the pool
pad symmetrically. Each convolution is followed by batch normalisation and has no bias, which would be a useless
parameter: a bias `c` of other weights has the same effect as a moving mean that is smaller by `c`.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from model import norm
from model.config import ModelConfig

_LAYOUTS = {  # whether blocks are bottlenecks, and how many blocks each stage has
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
    "resnet152": (True, (3, 8, 36, 3)),
}


class Conv2D(tf.keras.layers.Conv2D):
    """Keras's convolution with half the kernel as padding on every side: an output's side is ceil(side / strides).

    The "same" padding of Keras would pad a strided convolution of an even side at its end only, so the grid would shift
    by a pixel between even and odd sides. Kernel sizes are odd.
    """

    def __init__(self, filters: int, kernel_size: int, strides: int = 1, **kwargs: Any):
        super().__init__(filters, kernel_size, strides, padding="same", **kwargs)

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        if self.strides == (1, 1) or self.kernel_size == (1, 1):  # oneDNN's kernels take no explicit padding
            return super().convolution_op(inputs, kernel)
        half = self.kernel_size[0] // 2
        return tf.nn.conv2d(inputs, kernel, self.strides, [[0, 0], [half, half], [half, half], [0, 0]])


class ConvNorm(tf.keras.layers.Layer):
    """Convolution and normalisation; [b, h, w, c] to [b, ceil(h / strides), ceil(w / strides), filters]."""

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        *,
        config: ModelConfig,
        name: str,
        strides: int = 1,
        zero_gamma: bool = False,
    ):
        super().__init__(name=name)
        self.conv = Conv2D(filters, kernel_size, strides, use_bias=False, kernel_initializer="he_normal", name="conv")
        self.norm = norm.make_norm(config, zero_gamma=zero_gamma, name="norm")

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self.norm(self.conv(inputs), training=training)


class ResidualBlock(tf.keras.layers.Layer):
    """A basic block (3x3, 3x3) or a bottleneck (1x1, 3x3, 1x1 to 4 * filters); its first convolution strides.

    The last gamma starts at zero, so that an untrained block is the identity (Goyal et al. 2017, section 5.1).
    """

    def __init__(self, filters: int, *, bottleneck: bool, strides: int, project: bool, config: ModelConfig, name: str):
        super().__init__(name=name)
        kernel_sizes = (1, 3, 1) if bottleneck else (3, 3)
        last = len(kernel_sizes)
        filters_out = filters * 4 if bottleneck else filters
        self.shortcut = ConvNorm(filters_out, 1, strides=strides, config=config, name=f"{name}_0") if project else None
        self.convs = [
            ConvNorm(
                filters_out if i == last else filters,
                kernel_size,
                strides=strides if i == 1 else 1,
                zero_gamma=i == last,
                config=config,
                name=f"{name}_{i}",
            )
            for i, kernel_size in enumerate(kernel_sizes, start=1)
        ]

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        shortcut = inputs if self.shortcut is None else self.shortcut(inputs, training=training)
        outputs = self.convs[0](inputs, training=training)
        for conv in self.convs[1:]:
            outputs = conv(tf.nn.relu(outputs), training=training)
        return tf.nn.relu(outputs + shortcut)


class ResNet(tf.keras.layers.Layer):
    """Images float [b, h, w, 3], normalised, to (C3, C4, C5) of strides 8, 16 and 32.

    Every convolution is a `ConvNorm` in `conv_norms`, named as in Keras: "conv1", "conv2_block1_0" (the projection),
    "conv2_block1_1", ...; its `conv` and `norm` correspond to Keras's layers of that name with "_conv" and "_bn" added.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(name=config.backbone)
        bottleneck, num_blocks = _LAYOUTS[config.backbone]
        self.stem = ConvNorm(64, 7, strides=2, config=config, name="conv1")
        self.pool_pad = tf.keras.layers.ZeroPadding2D(1)
        self.pool = tf.keras.layers.MaxPooling2D(3, 2)
        self.stages = [
            [
                ResidualBlock(
                    64 * 2**stage,
                    bottleneck=bottleneck,
                    strides=2 if stage > 0 and block == 0 else 1,
                    project=block == 0 and (bottleneck or stage > 0),
                    config=config,
                    name=f"conv{stage + 2}_block{block + 1}",
                )
                for block in range(num_blocks[stage])
            ]
            for stage in range(4)
        ]

    @property
    def conv_norms(self) -> list[ConvNorm]:
        """Every `ConvNorm`, from the stem on."""
        found = [self.stem]
        for stage in self.stages:
            for block in stage:
                found += block.convs if block.shortcut is None else [block.shortcut, *block.convs]
        return found

    def call(self, inputs: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        outputs = tf.nn.relu(self.stem(inputs, training=training))
        outputs = self.pool(self.pool_pad(outputs))  # zeros serve as well as -inf, since no output is negative
        features = []
        for stage in self.stages:
            for block in stage:
                outputs = block(outputs, training=training)
            features.append(outputs)
        _, c3, c4, c5 = features
        return c3, c4, c5
