"""The random numbers that decide how an image is augmented.

They are drawn on the host and travel with the image. So both stages, `augment` on the host and `batch_augment` on the
device, read the same numbers, and neither the number of replicas nor an image's index in its batch changes them.
Numbers drawn on the device would change: compiled by XLA, TensorFlow's stateless generators give others for the same
seed.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from input.config import MAX_MAGNITUDE, RANDAUGMENT_LIMITS, AugmentConfig


class RandomNumbers(NamedTuple):
    """The columns of `Batch.random_numbers`: one for each decision about an image, uniform in [0, 1); f32 [b] each."""

    # Read by `augment`, on the host.
    scale: tf.Tensor
    offset_y: tf.Tensor
    offset_x: tf.Tensor
    iou_crop: tf.Tensor
    iou_crop_seed: tf.Tensor
    warp: tf.Tensor
    rotate: tf.Tensor
    shear: tf.Tensor
    translate_y: tf.Tensor
    translate_x: tf.Tensor
    # Read by both.
    randaugment_1: tf.Tensor
    randaugment_2: tf.Tensor
    randaugment_3: tf.Tensor
    # Read by `batch_augment`, on the device.
    horizontal_flip: tf.Tensor
    vertical_flip: tf.Tensor
    brightness: tf.Tensor
    contrast: tf.Tensor
    saturation: tf.Tensor
    hue: tf.Tensor
    grayscale: tf.Tensor
    cutout: tf.Tensor
    cutout_y: tf.Tensor
    cutout_x: tf.Tensor
    cutout_size: tf.Tensor
    cutmix: tf.Tensor
    cutmix_y: tf.Tensor
    cutmix_x: tf.Tensor
    cutmix_size: tf.Tensor
    mixup: tf.Tensor
    mixup_radius: tf.Tensor
    mixup_angle: tf.Tensor
    mosaic: tf.Tensor

    @classmethod
    def of(cls, random_numbers: tf.Tensor) -> RandomNumbers:
        """The columns of f32 [b, NUM_PER_IMAGE]."""
        return cls(*tf.unstack(random_numbers, num=NUM_PER_IMAGE, axis=1))


NUM_PER_IMAGE = len(RandomNumbers._fields)


def draw(seed: tf.Tensor, second_seed: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """The random numbers of `count` images, f32 [count, NUM_PER_IMAGE]; the seeds are i64 scalars."""
    seeds = tf.stack([seed, tf.cast(second_seed, tf.int64)])
    return tf.random.stateless_uniform([count, NUM_PER_IMAGE], seeds, alg="philox")


def strength(name: str, value: float | tf.Tensor, random: RandomNumbers, config: AugmentConfig) -> tf.Tensor:
    """How far the operation `name`, a field of `AugmentConfig`, may go in each image, f32 [b].

    This is `value`, f32 scalar or [b]. RandAugment (Cubuk et al. 2020) chooses `config.randaugment` operations for each
    image, with replacement; where it chooses this one, the strength is at least the magnitude's share of the limit.
    """
    value = tf.broadcast_to(tf.cast(value, tf.float32), tf.shape(random.scale))
    choices = [random.randaugment_1, random.randaugment_2, random.randaugment_3][: config.randaugment]
    if not choices or name not in RANDAUGMENT_LIMITS:
        return value
    number = list(RANDAUGMENT_LIMITS).index(name)
    chosen = tf.reduce_any([tf.floor(choice * len(RANDAUGMENT_LIMITS)) == number for choice in choices], axis=0)
    magnitude = RANDAUGMENT_LIMITS[name] * config.randaugment_magnitude / MAX_MAGNITUDE
    return tf.where(chosen, tf.maximum(value, magnitude), value)
