"""ResNet-18 to ResNet-152 (He et al. 2015), which give C3, C4 and C5.

The topology is that of Keras's `tf.keras.applications.ResNet50/101/152` and of torchvision's models, so that their
ImageNet weights fit: every strided convolution and the pool pad symmetrically. They differ in `resnet_stride`: a
bottleneck of Keras strides in its first 1x1 convolution ("v1"), one of torchvision and timm in its 3x3 ("v1.5").
Each convolution is followed by normalisation and has no bias, which would be a useless parameter: a bias `c` has the
same effect as a moving mean that is smaller by `c`.
"""

from __future__ import annotations

import inspect
import os
import re
from typing import Any

import tensorflow as tf

from model.backbone import TORCH_NORM, Backbone, ConvNorm
from model.config import ModelConfig

LAYOUTS = {  # whether blocks are bottlenecks, and how many blocks each stage has
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
    "resnet152": (True, (3, 8, 36, 3)),
}

_KERAS_NAME = re.compile(r"(conv1|conv\d+_block\d+)(?:_(\d))?_(conv|bn)/(\w+)")
_TORCH_NAME = re.compile(r"(?:layer(\d+)\.(\d+)\.)?(conv|bn|downsample\.(?=[01]))(\d)\.(\w+)")


class Stem(ConvNorm):
    """The 7x7 convolution and the pool; together they have stride 4."""

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        outputs = tf.nn.relu(super().call(inputs, training=training))
        padded = tf.pad(outputs, [[0, 0], [1, 1], [1, 1], [0, 0]])  # zeros serve as -inf: no output is negative
        return tf.nn.max_pool2d(padded, 3, 2, "VALID")


class ResidualBlock(tf.keras.layers.Layer):
    """A basic block (3x3, 3x3) or a bottleneck (1x1, 3x3, 1x1 to 4 * filters).

    Its first convolution strides, or, in a bottleneck with `config.resnet_stride` "3x3", its second. The last gamma
    starts at zero, so that an untrained block is the identity (Goyal et al. 2017, section 5.1).
    """

    def __init__(self, filters: int, *, bottleneck: bool, strides: int, project: bool, config: ModelConfig, name: str):
        super().__init__(name=name)
        kernel_sizes = (1, 3, 1) if bottleneck else (3, 3)
        strided = 2 if bottleneck and config.resnet_stride == "3x3" else 1
        last = len(kernel_sizes)
        filters_out = filters * 4 if bottleneck else filters
        self.shortcut = ConvNorm(filters_out, 1, strides=strides, config=config, name=f"{name}_0") if project else None
        self.convs = [
            ConvNorm(
                filters_out if i == last else filters,
                kernel_size,
                strides=strides if i == strided else 1,
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


class ResNet(Backbone):
    """The stem and four stages of residual blocks.

    Every convolution is a `ConvNorm` in `conv_norms`, named as in Keras: "conv1", "conv2_block1_0" (the projection),
    "conv2_block1_1", ...; its `conv` and `norm` correspond to Keras's layers of that name with "_conv" and "_bn" added.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        bottleneck, num_blocks = LAYOUTS[config.backbone]
        self.stem = Stem(64, 7, strides=2, config=config, name="conv1")
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

    @classmethod
    def variable_name(cls, published: str) -> str | None:
        if match := _KERAS_NAME.fullmatch(published):
            block, index, kind, variable = match.groups()
            part = "norm" if kind == "bn" else "conv"
        elif match := _TORCH_NAME.fullmatch(published):
            stage, number, kind, index, variable = match.groups()
            part = "norm" if kind == "bn" or (kind, index) == ("downsample.", "1") else "conv"
            block = f"conv{int(stage) + 1}_block{int(number) + 1}" if stage else "conv1"
            index = ("0" if kind == "downsample." else index) if stage else None
            variable = TORCH_NORM.get(variable, variable) if part == "norm" else variable.replace("weight", "kernel")
        else:
            return None
        return f"{block}/{block}_{index}/{part}/{variable}" if index else f"{block}/{part}/{variable}"

    @classmethod
    def imagenet_weights(cls, name: str) -> str:
        """Keras's file, whose hash is checked."""
        keras: Any = inspect.getmodule(tf.keras.applications.ResNet50)
        if name not in keras.WEIGHTS_HASHES:
            known = ", ".join(backbone for backbone in LAYOUTS if backbone in keras.WEIGHTS_HASHES)
            raise ValueError(
                f"--backbone_weights=imagenet: Keras has weights for {known}, not for {name}: give a file, as "
                "docs/TRANSFER.md explains."
            )
        file = f"{name}_weights_tf_dim_ordering_tf_kernels_notop.h5"
        file_hash = keras.WEIGHTS_HASHES[name][1]  # the first is that of the file with the classifier
        url = keras.BASE_WEIGHTS_PATH + file
        try:
            return str(tf.keras.utils.get_file(file, url, cache_subdir="models", file_hash=file_hash))
        except Exception as error:  # Keras raises no other kind
            raise OSError(
                f"--backbone_weights=imagenet: {url} cannot be downloaded ({error}): download it where there is a "
                f"network, and put it into {os.path.expanduser('~/.keras/models')}."
            ) from error
