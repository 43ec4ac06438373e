"""Images with one painted rectangle each, and a stand-in for a network that finds it.

With these a coordinate can be followed through every stage, from pixels to detection, without any training.
"""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from input import anchors, boxes, shards, tfrecord
from input.config import AnchorConfig, InputConfig
from model.config import DetectConfig, ModelConfig
from model.types import Predictions
from trainer.config import Config

LABELS = ("red", "yellow")
COLOURS = ((255, 0, 0), (255, 255, 0))
IMAGE_SIZE = (64, 96)

CONFIG = Config(
    labels=LABELS,
    input=InputConfig(image_size=IMAGE_SIZE, batch_size=2, max_boxes=5, anchor=AnchorConfig(scales=(1.0,))),
    model=ModelConfig(backbone="resnet18", neck_filters=16, head_convs=1),
    detect=DetectConfig(max_detections=10),
)


class Painting(NamedTuple):
    height: int
    width: int
    box: tuple[int, int, int, int] | None  # ymin xmin ymax xmax, px
    category: int = 0

    @property
    def pixels(self):
        """u8 [height, width, 3], black outside the box."""
        image = np.zeros((self.height, self.width, 3), np.uint8)
        if self.box:
            ymin, xmin, ymax, xmax = self.box
            image[ymin:ymax, xmin:xmax] = COLOURS[self.category]
        return image

    @property
    def tolerance(self):
        """How many pixels an edge may be off: one of the network's input."""
        return 1.01 * max(self.height / IMAGE_SIZE[0], self.width / IMAGE_SIZE[1])


WIDE = Painting(60, 400, (10, 300, 50, 390), 1)
TALL = Painting(500, 100, (400, 20, 480, 95), 0)
TINY = Painting(7, 5, (2, 1, 6, 4), 1)
LARGER = Painting(256, 384, (100, 5, 200, 300), 0)
EMPTY = Painting(50, 80, None)
PAINTINGS = (WIDE, TALL, TINY, LARGER, EMPTY)


class PaintFinder(tf.Module):
    """Predicts the box of the bright red pixels, at the first anchor; green in them means the second class."""

    def __init__(self, config=CONFIG):
        super().__init__()
        self._anchors = tf.constant(anchors.make_anchors(config.input.anchor, config.input.image_size))
        self.logit = tf.Variable(3.0)
        self.num_traces = 0

    def __call__(self, images, training=False):
        self.num_traces += 1
        painted = images[..., 0] > 0.1
        found = tf.reduce_any(painted, axis=[1, 2])
        ymin, ymax = _extent(tf.reduce_any(painted, axis=2))
        xmin, xmax = _extent(tf.reduce_any(painted, axis=1))
        box = tf.cast(tf.stack([ymin, xmin, ymax, xmax], axis=-1), tf.float32)
        box = tf.where(found[:, tf.newaxis], box, self._anchors[0])
        is_yellow = tf.reduce_any(painted & (images[..., 1] > 0.1), axis=[1, 2])
        category = tf.one_hot(tf.cast(is_yellow, tf.int32), 2) * tf.cast(found, tf.float32)[:, tf.newaxis]
        missing = [[0, 0], [0, len(self._anchors) - 1], [0, 0]]
        return Predictions(
            class_logits=tf.pad((20 * category - 20)[:, tf.newaxis], missing, constant_values=-20) + self.logit,
            box_deltas=tf.pad(boxes.encode(box, self._anchors[0])[:, tf.newaxis], missing),
        )


def _extent(mask):
    """The first true index, and the one after the last, of bool [b, n]."""
    length = mask.shape[1]
    positions = tf.range(length)
    first = tf.reduce_min(tf.where(mask, positions, length), axis=1)
    return first, tf.reduce_max(tf.where(mask, positions + 1, 0), axis=1)


def write_shard(path: pathlib.Path, paintings, labels=LABELS) -> str:
    """Writes one shard of lossless images, and labels.txt beside it; returns the shard's path."""
    with open(path, "wb") as file:
        for number, painting in enumerate(paintings):
            objects = [painting.box] if painting.box else []
            annotation = tfrecord.Annotation(
                image_id=f"{number}",
                filename=f"{number}.png",
                height=painting.height,
                width=painting.width,
                boxes=objects,
                classes=[painting.category] * len(objects),
                class_names=[LABELS[painting.category]] * len(objects),
                difficult=[0] * len(objects),
                truncated=[0] * len(objects),
                poses=["Unspecified"] * len(objects),
            )
            png = tf.io.encode_png(painting.pixels).numpy()
            file.write(tfrecord.frame_record(tfrecord.encode_example(annotation, png)))
    (path.parent / shards.LABELS).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    return str(path)
