"""A network that learns and compiles in a few seconds, in place of RetinaNet, for tests of a run's course."""

from __future__ import annotations

import tensorflow as tf

from input.anchors import make_anchors
from model.types import Predictions
from trainer.config import Config


class SmallNetwork(tf.keras.Model):
    """One layer on the mean colours of the image's parts; `norms` puts batch norm of a replica's images before it."""

    def __init__(self, num_anchors: int, num_classes: int, *, norms: bool) -> None:
        super().__init__(name="small")
        self.backbone = tf.keras.layers.AveragePooling2D(8, name="backbone")
        self.norm = tf.keras.layers.BatchNormalization(name="norm") if norms else None
        self.head = tf.keras.layers.Dense(num_anchors * (num_classes + 4), dtype="float32", name="head")
        self.num_anchors, self.num_classes = num_anchors, num_classes

    def call(self, images: tf.Tensor, training: bool = False) -> Predictions:
        parts = self.backbone(images)
        if self.norm is not None:
            parts = self.norm(parts, training=training)
        values = self.head(tf.reshape(parts, [-1, parts.shape[1] * parts.shape[2] * 3]))
        values = tf.reshape(values, [-1, self.num_anchors, self.num_classes + 4])
        return Predictions(class_logits=values[..., 4:] - 4.0, box_deltas=values[..., :4])


def make_model(config: Config) -> tf.keras.Model:
    """Takes the place of `checkpoints.make_model`."""
    num_anchors = len(make_anchors(config.input.anchor, config.input.image_size))
    model = SmallNetwork(num_anchors, len(config.labels), norms=config.model.norm == "local")
    model(tf.keras.Input((*config.input.image_size, 3)))
    return model
