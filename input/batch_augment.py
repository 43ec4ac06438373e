"""What happens to a batch on the device: flips, colour, normalising. Static shapes, compiles under XLA.

Every random number comes with the image, drawn on the host from its own seed, so neither the number of replicas nor
the place of an image in its batch changes what happens to it. (Drawn on the device they would depend on it: compiled
by XLA, TensorFlow's stateless generators give other numbers for the same seed.) Boxes and pixels are handled apart,
from the same draws: with host target assignment the host needs the augmented boxes, while the device still has to
augment the pixels.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from input import types
from input.config import AugmentConfig

# Mean and standard deviation of ImageNet's colours (R, G, B in 0..1), as torchvision and TF Model Garden use them.
MEAN_RGB = (0.485, 0.456, 0.406)
STDDEV_RGB = (0.229, 0.224, 0.225)

# RGB -> YIQ (NTSC, FCC 1953): a rotation of the IQ plane is a change of hue, its scale the saturation.
_YIQ_FROM_RGB = np.array(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], dtype=np.float32
)
_RGB_FROM_YIQ = np.linalg.inv(_YIQ_FROM_RGB).astype(np.float32)


class Draws(NamedTuple):
    """The columns of `Batch.draws`: a uniform number in [0, 1) an image and decision; f32 [b] each."""

    horizontal_flip: tf.Tensor
    vertical_flip: tf.Tensor
    brightness: tf.Tensor
    contrast: tf.Tensor
    saturation: tf.Tensor
    hue: tf.Tensor


NUM_DRAWS = len(Draws._fields)


def _draws(batch: types.Batch) -> Draws:
    return Draws(*tf.unstack(batch.draws, axis=1))


def normalize(images):
    """u8 or float [b, h, w, 3] in 0..255 -> f32, minus ImageNet's mean, over its standard deviation."""
    images = tf.cast(images, tf.float32)
    scale = tf.constant([1 / (255 * deviation) for deviation in STDDEV_RGB])
    shift = tf.constant([-mean / deviation for mean, deviation in zip(MEAN_RGB, STDDEV_RGB)])
    return images * scale + shift


def colour_matrices(draws: Draws, config: AugmentConfig):
    """Hue, saturation and contrast as one linear map of RGB an image.

    Returns:
      f32 [b, 3, 3], to be multiplied from the left with a column (R, G, B).
    """
    angle = (2 * draws.hue - 1) * config.hue * 2 * np.pi
    saturation = 1 + (2 * draws.saturation - 1) * config.saturation
    contrast = 1 + (2 * draws.contrast - 1) * config.contrast
    cos, sin = saturation * tf.cos(angle), saturation * tf.sin(angle)
    zero, one = tf.zeros_like(cos), tf.ones_like(cos)
    turn = tf.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], axis=1)
    in_rgb = _RGB_FROM_YIQ @ tf.reshape(turn, [-1, 3, 3]) @ _YIQ_FROM_RGB
    return contrast[:, tf.newaxis, tf.newaxis] * in_rgb


def jitter_colour(images, draws: Draws, config: AugmentConfig):
    """Brightness, contrast, saturation and hue in one pass over the pixels.

    Contrast pulls towards the image's mean colour, as `tf.image.adjust_contrast` does.

    Args:
      images: f32 [b, h, w, 3] in 0..255.

    Returns:
      f32 [b, h, w, 3], clipped to 0..255.
    """
    matrices = colour_matrices(draws, config)
    mean = tf.reduce_mean(images, axis=[1, 2])[:, tf.newaxis]
    contrast = (1 + (2 * draws.contrast - 1) * config.contrast)[:, tf.newaxis, tf.newaxis]
    brightness = ((2 * draws.brightness - 1) * config.brightness * 255)[:, tf.newaxis, tf.newaxis]
    # The mean keeps its place under contrast alone: it moves by hue and saturation, but not by contrast.
    turned_mean = tf.matmul(mean, matrices, transpose_b=True)
    shift = turned_mean / contrast - turned_mean + brightness
    shape = tf.shape(images)
    pixels = tf.reshape(images, [shape[0], -1, 3])
    pixels = tf.matmul(pixels, matrices, transpose_b=True) + shift
    return tf.reshape(tf.clip_by_value(pixels, 0.0, 255.0), shape)


def augment_boxes(batch: types.Batch, config: AugmentConfig) -> types.Batch:
    """The batch with its boxes where `augment_images` puts the pixels."""
    draws = _draws(batch)
    height, width = batch.images.shape[1:3]
    ymin, xmin, ymax, xmax = tf.unstack(batch.boxes, axis=2)
    present = (batch.classes != types.BACKGROUND)[..., tf.newaxis]
    mirrored = (draws.horizontal_flip < config.horizontal_flip)[:, tf.newaxis]
    xmin, xmax = tf.where(mirrored, width - xmax, xmin), tf.where(mirrored, width - xmin, xmax)
    upended = (draws.vertical_flip < config.vertical_flip)[:, tf.newaxis]
    ymin, ymax = tf.where(upended, height - ymax, ymin), tf.where(upended, height - ymin, ymax)
    boxes = tf.stack([ymin, xmin, ymax, xmax], axis=2)
    return batch._replace(boxes=tf.where(present, boxes, 0.0))


def augment_images(batch: types.Batch, config: AugmentConfig):
    """f32 [b, h, w, 3]: the batch's images, flipped, coloured and normalised."""
    draws = _draws(batch)
    images = batch.images
    for probability, values, axis in (
        (config.horizontal_flip, draws.horizontal_flip, 2),
        (config.vertical_flip, draws.vertical_flip, 1),
    ):
        if probability:
            flipped = (values < probability)[:, tf.newaxis, tf.newaxis, tf.newaxis]
            images = tf.where(flipped, tf.reverse(images, [axis]), images)
    if any((config.brightness, config.contrast, config.saturation, config.hue)):
        images = jitter_colour(tf.cast(images, tf.float32), draws, config)
    return normalize(images)


def augment(batch: types.Batch, config: AugmentConfig) -> types.Batch:
    """Augments pixels and boxes; the images come back float32 and normalised."""
    return augment_boxes(batch, config)._replace(images=augment_images(batch, config))
