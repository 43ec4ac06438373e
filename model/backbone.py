"""What every backbone is, and the convolutions that necks and ResNets are made of.

A new backbone is a file with a subclass of `Backbone`, like `model/resnet.py`, a line in `model/config.py` for its
names, and a line in `model/retinanet.py`.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from model import norm
from model.config import ModelConfig

_LEAST_EPSILON = 1.001e-5  # TensorFlow's fused batch norm takes this where it is given less

# PyTorch's names of batch norm's variables, and Keras's.
TORCH_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


class Backbone(tf.keras.layers.Layer):
    """Images float [b, h, w, 3], normalised, to (C3, C4, C5) of strides 8, 16 and 32.

    A subclass sets `stem`, a layer, and `stages`, lists of layers which are applied one after the other. The outputs of
    the last three stages are C3, C4 and C5. The first `config.freeze_stages` of the stem and the stages are not
    trained, and their batch norm keeps its statistics.
    """

    published_preprocessing = "imagenet"  # of the weights that PyTorch's users publish, and their batch norm's epsilon
    published_epsilon = 1e-5
    stem: tf.keras.layers.Layer
    stages: list[list[tf.keras.layers.Layer]]

    @classmethod
    def variable_name(cls, published: str) -> str | None:
        """The variable, named from the backbone down, which a tensor of published weights becomes; None for others.

        A name that ends in conv/bias is a convolution's bias, which becomes part of the moving mean.
        """
        raise NotImplementedError

    @classmethod
    def imagenet_weights(cls, name: str) -> str:
        """The file with ImageNet weights of the backbone `name`: of an installed package, cached or downloaded.

        Raises:
          ValueError: there are none.
          FileNotFoundError: the package is not installed.
        """
        raise NotImplementedError

    def __init__(self, config: ModelConfig):
        super().__init__(name=config.backbone)
        self.epsilon = max(config.batch_norm_epsilon, _LEAST_EPSILON)  # what batch norm really adds to the variance
        self._num_frozen = config.freeze_stages

    def build(self, input_shape: tf.TensorShape) -> None:
        for part in [[self.stem], *self.stages][: self._num_frozen]:
            for layer in part:
                layer.trainable = False
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, ...]:
        outputs, features = inputs, []
        for number, part in enumerate([[self.stem], *self.stages], start=1):
            for layer in part:
                outputs = layer(outputs, training=training and number > self._num_frozen)
            features.append(outputs)
        return tuple(features[-3:])


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
