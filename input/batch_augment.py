"""What happens to a batch on the device: flips, mixing, colour, normalising. Static shapes, compiles under XLA.

Mixing takes its partners from the places that follow in the replica's own batch, whose order is random.

Every random number comes with the image, drawn on the host from its own seed, so neither the number of replicas nor
the place of an image in its batch changes what happens to it. (Drawn on the device they would depend on it: compiled
by XLA, TensorFlow's stateless generators give other numbers for the same seed.) Boxes and pixels are handled apart,
from the same draws: with host target assignment the host needs the augmented boxes, while the device still has to
augment the pixels.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from input import boxes as box_ops
from input import types
from input.augment import PAD_VALUE, still_shown, strength
from input.config import AugmentConfig
from input.types import Draws

# Mean and standard deviation of ImageNet's colours (R, G, B in 0..1), as torchvision and TF Model Garden use them.
MEAN_RGB = (0.485, 0.456, 0.406)
STDDEV_RGB = (0.229, 0.224, 0.225)

# RGB -> YIQ (NTSC, FCC 1953): a rotation of the IQ plane is a change of hue, its scale the saturation.
_YIQ_FROM_RGB = np.array(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], dtype=np.float32
)
_RGB_FROM_YIQ = np.linalg.inv(_YIQ_FROM_RGB).astype(np.float32)


def normalize(images):
    """u8 or float [b, h, w, 3] in 0..255 -> f32, minus ImageNet's mean, over its standard deviation."""
    images = tf.cast(images, tf.float32)
    scale = tf.constant([1 / (255 * deviation) for deviation in STDDEV_RGB])
    shift = tf.constant([-mean / deviation for mean, deviation in zip(MEAN_RGB, STDDEV_RGB)])
    return images * scale + shift


def colour_matrices(draws: Draws, config: AugmentConfig):
    """Hue, saturation, grayscale and contrast as one linear map of RGB an image.

    Returns:
      f32 [b, 3, 3], to be multiplied from the left with a column (R, G, B).
    """
    angle = (2 * draws.hue - 1) * strength("hue", config.hue, draws, config) * 2 * np.pi
    saturation = 1 + (2 * draws.saturation - 1) * strength("saturation", config.saturation, draws, config)
    gray = draws.grayscale < strength("grayscale", config.grayscale, draws, config)
    saturation = tf.where(gray, 0.0, saturation)
    contrast = _contrast(draws, config)
    cos, sin = saturation * tf.cos(angle), saturation * tf.sin(angle)
    zero, one = tf.zeros_like(cos), tf.ones_like(cos)
    turn = tf.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], axis=1)
    in_rgb = _RGB_FROM_YIQ @ tf.reshape(turn, [-1, 3, 3]) @ _YIQ_FROM_RGB
    return contrast[:, tf.newaxis, tf.newaxis] * in_rgb


def _contrast(draws: Draws, config: AugmentConfig):
    return 1 + (2 * draws.contrast - 1) * strength("contrast", config.contrast, draws, config)


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
    contrast = _contrast(draws, config)[:, tf.newaxis, tf.newaxis]
    brightness = (2 * draws.brightness - 1) * strength("brightness", config.brightness, draws, config) * 255
    brightness = brightness[:, tf.newaxis, tf.newaxis]
    # The mean keeps its place under contrast alone: it moves by hue and saturation, but not by contrast.
    turned_mean = tf.matmul(mean, matrices, transpose_b=True)
    shift = turned_mean / contrast - turned_mean + brightness
    shape = tf.shape(images)
    pixels = tf.reshape(images, [shape[0], -1, 3])
    pixels = tf.matmul(pixels, matrices, transpose_b=True) + shift
    return tf.reshape(tf.clip_by_value(pixels, 0.0, 255.0), shape)


# Regions: rectangles of whole pixels, f32 [b, 4] ymin xmin ymax xmax; an empty one where nothing is to happen.


def _region(happens, y, x, sides, image_size):
    """A rectangle of `sides` f32 [b, 2] around a centre (y, x) in shares of the image, cut off at its border."""
    size = tf.constant(image_size, tf.float32)
    centre = tf.stack([y, x], axis=1) * size
    corners = tf.concat([centre - sides / 2, centre + sides / 2], axis=1)
    corners = tf.round(tf.clip_by_value(corners, 0.0, tf.tile(size, [2])))
    return tf.where(happens[:, tf.newaxis], corners, 0.0)


def _cutout_region(draws: Draws, config: AugmentConfig, image_size):
    """DeVries & Taylor 2017: a square; its side here is 10 to 40% of the image's shorter one."""
    side = (0.1 + 0.3 * draws.cutout_size) * min(image_size)
    sides = tf.stack([side, side], axis=1)
    happens = draws.cutout < strength("cutout", config.cutout, draws, config)
    return _region(happens, draws.cutout_y, draws.cutout_x, sides, image_size)


def _cutmix_region(draws: Draws, config: AugmentConfig, image_size):
    """CutMix (Yun et al. 2019, section 3.1): the partner's share of the area is uniform in 0..1."""
    sides = tf.sqrt(draws.cutmix_size)[:, tf.newaxis] * tf.constant([image_size], tf.float32)
    return _region(draws.cutmix < config.cutmix, draws.cutmix_y, draws.cutmix_x, sides, image_size)


def _inside(region, image_size):
    """bool [b, h, w, 1]: the pixels of a region."""
    ymin, xmin, ymax, xmax = tf.unstack(region[:, tf.newaxis, :], axis=2)
    y, x = (tf.range(side, dtype=tf.float32)[tf.newaxis] for side in image_size)
    rows, columns = (y >= ymin) & (y < ymax), (x >= xmin) & (x < xmax)
    return (rows[:, :, tf.newaxis] & columns[:, tf.newaxis, :])[..., tf.newaxis]


class _Objects(NamedTuple):
    """The objects of a batch of images."""

    boxes: tf.Tensor  # f32 [b, n, 4]
    classes: tf.Tensor  # f32 [b, n], -1 pads; float because TensorFlow's int32 arithmetic leaves the GPU
    difficult: tf.Tensor  # bool [b, n]
    weights: tf.Tensor  # f32 [b, n]

    def where(self, keep) -> "_Objects":
        return self._replace(classes=tf.where(keep, self.classes, float(types.BACKGROUND)))

    def partners(self, shift) -> "_Objects":
        """Those of the image `shift` places further on in the batch."""
        return _Objects(*(tf.roll(values, -shift, axis=0) for values in self))

    def within(self, region, min_visible) -> "_Objects":
        """What is seen of them where only `region` is left."""
        shown = _intersection(self.boxes, region)
        return self._replace(boxes=shown).where(
            still_shown(self.boxes, box_ops.area(shown), _centre_in(self.boxes, region), min_visible)
        )

    def outside(self, region, min_visible) -> "_Objects":
        """What is seen of them where `region` is covered; a box that is kept stays as it is."""
        visible = box_ops.area(self.boxes) - box_ops.area(_intersection(self.boxes, region))
        return self.where(still_shown(self.boxes, visible, ~_centre_in(self.boxes, region), min_visible))


def _intersection(boxes, region):
    region = region[:, tf.newaxis]
    top_left = tf.maximum(boxes[..., :2], region[..., :2])
    return tf.concat([top_left, tf.maximum(top_left, tf.minimum(boxes[..., 2:], region[..., 2:]))], axis=-1)


def _centre_in(boxes, region):
    region, centre = region[:, tf.newaxis], (boxes[..., :2] + boxes[..., 2:]) / 2
    return tf.reduce_all((centre >= region[..., :2]) & (centre < region[..., 2:]), axis=-1)


def _join(parts, max_boxes) -> _Objects:
    """All objects of several parts; of more than `max_boxes` the largest."""
    joined = _Objects(*(tf.concat(values, axis=1) for values in zip(*parts)))
    area = tf.where(joined.classes == types.BACKGROUND, -1.0, box_ops.area(joined.boxes))
    largest = tf.math.top_k(area, max_boxes).indices
    return _Objects(*(tf.gather(values, largest, batch_dims=1) for values in joined))


def _mixup_share(draws: Draws):
    """f32 [b]: the image's own share, from Beta(1.5, 1.5) (Zhang et al. 2019, "Bag of Freebies", section 3.1).

    That distribution is the semicircle's: a coordinate of a uniform point of a disk, here in polar coordinates.
    """
    return 0.5 + 0.5 * tf.sqrt(draws.mixup_radius) * tf.cos(2 * np.pi * draws.mixup_angle)


def _quadrants(image_size):
    """Offsets (y, x) px of the four tiles of a mosaic, in reading order."""
    height, width = image_size
    return [(0, 0), (0, width // 2), (height // 2, 0), (height // 2, width // 2)]


def augment_boxes(batch: types.Batch, config: AugmentConfig) -> types.Batch:
    """The batch with its objects where `augment_images` puts the pixels."""
    draws = Draws.of(batch.draws)
    image_size, max_boxes = tuple(batch.images.shape[1:3]), batch.boxes.shape[1]
    height, width = image_size
    ymin, xmin, ymax, xmax = tf.unstack(batch.boxes, axis=2)
    mirrored = (draws.horizontal_flip < config.horizontal_flip)[:, tf.newaxis]
    xmin, xmax = tf.where(mirrored, width - xmax, xmin), tf.where(mirrored, width - xmin, xmax)
    upended = (draws.vertical_flip < config.vertical_flip)[:, tf.newaxis]
    ymin, ymax = tf.where(upended, height - ymax, ymin), tf.where(upended, height - ymin, ymax)
    boxes = tf.stack([ymin, xmin, ymax, xmax], axis=2)
    objects = _Objects(boxes, tf.cast(batch.classes, tf.float32), batch.difficult, batch.box_weights)

    if config.mosaic:
        happens = (draws.mosaic < config.mosaic)[:, tf.newaxis]
        tiles = []
        for shift, offset in enumerate(_quadrants(image_size)):
            tile = objects.partners(shift)
            tiles.append(
                tile._replace(boxes=tile.boxes / 2 + tf.constant([*offset, *offset], tf.float32)).where(happens)
            )
        objects = _join([objects.where(~happens), *tiles], max_boxes)
    if config.cutmix:
        region = _cutmix_region(draws, config, image_size)
        pasted = objects.partners(1).within(region, config.min_visible)
        objects = _join([objects.outside(region, config.min_visible), pasted], max_boxes)
    if config.mixup:
        happens, share = (draws.mixup < config.mixup)[:, tf.newaxis], _mixup_share(draws)[:, tf.newaxis]
        partners = objects.partners(1)
        partners = partners._replace(weights=partners.weights * (1 - share)).where(happens)
        own = objects._replace(weights=objects.weights * tf.where(happens, share, 1.0))
        objects = _join([own, partners], max_boxes)
    if config.cutout or config.randaugment:
        objects = objects.outside(_cutout_region(draws, config, image_size), config.min_visible)

    present = objects.classes != types.BACKGROUND
    return batch._replace(
        boxes=tf.where(present[..., tf.newaxis], objects.boxes, 0.0),
        classes=tf.cast(objects.classes, tf.int32),
        difficult=objects.difficult & present,
        box_weights=tf.where(present, objects.weights, 1.0),
    )


def augment_images(batch: types.Batch, config: AugmentConfig):
    """f32 [b, h, w, 3]: the batch's images, flipped, mixed, coloured and normalised."""
    draws = Draws.of(batch.draws)
    images, image_size = batch.images, tuple(batch.images.shape[1:3])

    def happens(values, probability):
        return (values < probability)[:, tf.newaxis, tf.newaxis, tf.newaxis]

    if config.horizontal_flip:
        images = tf.where(happens(draws.horizontal_flip, config.horizontal_flip), tf.reverse(images, [2]), images)
    if config.vertical_flip:
        images = tf.where(happens(draws.vertical_flip, config.vertical_flip), tf.reverse(images, [1]), images)
    if config.mosaic or config.mixup:
        images = tf.cast(images, tf.float32)
    if config.mosaic:
        halves = tf.nn.avg_pool2d(images, 2, 2, "VALID")
        rows = [
            tf.concat([tf.roll(halves, -shift, axis=0), tf.roll(halves, -shift - 1, axis=0)], axis=2)
            for shift in (0, 2)
        ]
        images = tf.where(happens(draws.mosaic, config.mosaic), tf.concat(rows, axis=1), images)
    if config.cutmix:
        pasted = _inside(_cutmix_region(draws, config, image_size), image_size)
        images = tf.where(pasted, tf.roll(images, -1, axis=0), images)
    if config.mixup:
        share = tf.where(draws.mixup < config.mixup, _mixup_share(draws), 1.0)[:, tf.newaxis, tf.newaxis, tf.newaxis]
        images = share * images + (1 - share) * tf.roll(images, -1, axis=0)
    colours = (config.brightness, config.contrast, config.saturation, config.hue, config.grayscale)
    if any(colours) or config.randaugment:
        images = jitter_colour(tf.cast(images, tf.float32), draws, config)
    if config.cutout or config.randaugment:
        erased = _inside(_cutout_region(draws, config, image_size), image_size)
        images = tf.where(erased, tf.cast(PAD_VALUE, images.dtype), images)
    return normalize(images)


def augment(batch: types.Batch, config: AugmentConfig) -> types.Batch:
    """Augments pixels and boxes; the images come back float32 and normalised."""
    return augment_boxes(batch, config)._replace(images=augment_images(batch, config))
