"""The assembled network (Lin et al. 2017): backbone, neck, class and box subnets."""

from __future__ import annotations

import tensorflow as tf

from model import efficientnet_lite, heads, necks, resnet
from model.backbone import Backbone
from model.config import ModelConfig
from model.types import Predictions

BACKBONE_FAMILIES: dict[str, type[Backbone]] = {  # by the name without its number
    "resnet": resnet.ResNet,
    "efficientnet_lite": efficientnet_lite.EfficientNetLite,
}


def family_of(backbone: str) -> str:
    """The key of a backbone's name in `BACKBONE_FAMILIES`."""
    return backbone.rstrip("0123456789")


def make_backbone(config: ModelConfig) -> Backbone:
    """The backbone that `config` names."""
    return BACKBONE_FAMILIES[family_of(config.backbone)](config)


class RetinaNet(tf.keras.Model):
    """Images float [b, h, w, 3], normalised, sides multiples of 32, to `Predictions` over the anchors of P3-P7.

    It computes in the global Keras policy and predicts in float32. The names of its parts, `backbone`, `neck`,
    `class_head` and `box_head`, are also those of the branches of a checkpoint.
    """

    def __init__(self, config: ModelConfig, *, num_classes: int, anchors_per_location: int):
        super().__init__(name="retinanet")
        self.backbone = make_backbone(config)
        self.neck = necks.make_neck(config)
        self.class_head = heads.make_class_head(
            config, num_classes=num_classes, anchors_per_location=anchors_per_location
        )
        self.box_head = heads.make_box_head(config, anchors_per_location=anchors_per_location)

    def call(self, images: tf.Tensor, training: bool = False) -> Predictions:
        features = self.neck(self.backbone(images, training=training), training=training)
        return Predictions(
            class_logits=self.class_head(features, training=training),
            box_deltas=self.box_head(features, training=training),
        )


def make_model(
    config: ModelConfig, *, num_classes: int, anchors_per_location: int, image_size: tuple[int, int]
) -> RetinaNet:
    """A `RetinaNet` with its variables; call this in the strategy's scope.

    Args:
      config: the network.
      num_classes: k.
      anchors_per_location: anchors of each cell of a level, as `AnchorConfig.anchors_per_location`.
      image_size: (height, width), multiples of 32.

    Raises:
      ValueError: a side is not a positive multiple of 32, or there is no class.
    """
    if num_classes < 1:
        raise ValueError(f"a detector needs at least one class; got {num_classes}.")
    if min(image_size) <= 0 or any(side % 32 for side in image_size):
        raise ValueError(f"image_size {tuple(image_size)} must be positive multiples of 32.")
    model = RetinaNet(config, num_classes=num_classes, anchors_per_location=anchors_per_location)
    model(tf.keras.Input((*image_size, 3)))
    return model
