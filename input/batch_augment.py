"""The device stage: flips, mixing, colour and normalisation of a batch. Static shapes; compiles under XLA.

An image is mixed with the images that follow it in its replica's own batch, whose order is random.

Boxes and pixels are handled apart, by the same random numbers: with host target assignment the host needs the augmented
boxes, while the device still has to augment the pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from input import boxes as box_ops
from input.config import AugmentConfig
from input.random_numbers import RandomNumbers, strength
from input.types import BACKGROUND, IGNORED, PAD_VALUE, Batch

# Mean and standard deviation of ImageNet's colours (R, G, B in 0..1), as torchvision and TF Model Garden use them.
MEAN_RGB = (0.485, 0.456, 0.406)
STDDEV_RGB = (0.229, 0.224, 0.225)

# RGB -> YIQ (NTSC, FCC 1953): a rotation of the IQ plane is a change of hue, its scale the saturation.
_YIQ_FROM_RGB = np.array(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], dtype=np.float32
)
_RGB_FROM_YIQ = np.linalg.inv(_YIQ_FROM_RGB).astype(np.float32)


# Mean (R, G, B) in 0..255 that is subtracted and number that is divided by, for each `InputConfig.preprocessing`.
_PIXEL_STATISTICS = {
    "imagenet": ([255 * mean for mean in MEAN_RGB], [255 * deviation for deviation in STDDEV_RGB]),
    "caffe": ([123.68, 116.779, 103.939], [1.0, 1.0, 1.0]),  # as Keras's ResNets; the channels are then BGR
    "tf_lite": ([127.0, 127.0, 127.0], [128.0, 128.0, 128.0]),  # as the authors' EfficientNet-Lite
}


def normalize(images: tf.Tensor, preprocessing: str = "auto") -> tf.Tensor:
    """u8 or float [b, h, w, 3], RGB in 0..255 -> f32, the network's input.

    Args:
      images: the pixels.
      preprocessing: as in `InputConfig`.
    """
    means, divisors = _PIXEL_STATISTICS["imagenet" if preprocessing == "auto" else preprocessing]
    scale = tf.constant([1 / divisor for divisor in divisors])
    shift = tf.constant([-mean / divisor for mean, divisor in zip(means, divisors)])
    images = tf.cast(images, tf.float32) * scale + shift
    return tf.reverse(images, [3]) if preprocessing == "caffe" else images


def colour_matrices(random: RandomNumbers, config: AugmentConfig) -> tf.Tensor:
    """Hue, saturation, grayscale and contrast as one linear map of RGB for each image.

    Returns:
      f32 [b, 3, 3], to be multiplied with a column (R, G, B) on its right.
    """
    angle = (2 * random.hue - 1) * strength("hue", config.hue, random, config) * 2 * np.pi
    saturation = 1 + (2 * random.saturation - 1) * strength("saturation", config.saturation, random, config)
    gray = random.grayscale < strength("grayscale", config.grayscale, random, config)
    saturation = tf.where(gray, 0.0, saturation)
    contrast = _contrast(random, config)
    cos, sin = saturation * tf.cos(angle), saturation * tf.sin(angle)
    zero, one = tf.zeros_like(cos), tf.ones_like(cos)
    turn = tf.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], axis=1)
    in_rgb = _RGB_FROM_YIQ @ tf.reshape(turn, [-1, 3, 3]) @ _YIQ_FROM_RGB
    return contrast[:, tf.newaxis, tf.newaxis] * in_rgb


def _contrast(random: RandomNumbers, config: AugmentConfig) -> tf.Tensor:
    return 1 + (2 * random.contrast - 1) * strength("contrast", config.contrast, random, config)


def jitter_colour(images: tf.Tensor, random: RandomNumbers, config: AugmentConfig) -> tf.Tensor:
    """Brightness, contrast, saturation and hue in one pass over the pixels.

    Contrast changes the distance from the image's mean colour, as `tf.image.adjust_contrast` does.

    Args:
      images: f32 [b, h, w, 3] in 0..255.

    Returns:
      f32 [b, h, w, 3], clipped to 0..255.
    """
    matrices = colour_matrices(random, config)
    mean = tf.reduce_mean(images, axis=[1, 2])[:, tf.newaxis]
    contrast = _contrast(random, config)[:, tf.newaxis, tf.newaxis]
    brightness = (2 * random.brightness - 1) * strength("brightness", config.brightness, random, config) * 255
    brightness = brightness[:, tf.newaxis, tf.newaxis]
    # Hue and saturation move the mean colour, contrast must not.
    turned_mean = tf.matmul(mean, matrices, transpose_b=True)
    shift = turned_mean / contrast - turned_mean + brightness
    shape = tf.shape(images)
    pixels = tf.reshape(images, [shape[0], -1, 3])
    pixels = tf.matmul(pixels, matrices, transpose_b=True) + shift
    return tf.reshape(tf.clip_by_value(pixels, 0.0, 255.0), shape)


# Regions: rectangles of whole pixels, f32 [b, 4] ymin xmin ymax xmax; empty in the images that are left as they are.


def _region(happens: tf.Tensor, y: tf.Tensor, x: tf.Tensor, sides: tf.Tensor, image_size: tuple[int, int]) -> tf.Tensor:
    """A rectangle of `sides` f32 [b, 2] around a centre (y, x) in shares of the image, clipped to the image."""
    size = tf.constant(image_size, tf.float32)
    center = tf.stack([y, x], axis=1) * size
    corners = tf.concat([center - sides / 2, center + sides / 2], axis=1)
    corners = tf.round(tf.clip_by_value(corners, 0.0, tf.tile(size, [2])))
    return tf.where(happens[:, tf.newaxis], corners, 0.0)


def _cutout_region(random: RandomNumbers, config: AugmentConfig, image_size: tuple[int, int]) -> tf.Tensor:
    """Cutout (DeVries & Taylor 2017): a square, whose side is here 10 to 40% of the image's shorter side."""
    side = (0.1 + 0.3 * random.cutout_size) * min(image_size)
    sides = tf.stack([side, side], axis=1)
    happens = random.cutout < strength("cutout", config.cutout, random, config)
    return _region(happens, random.cutout_y, random.cutout_x, sides, image_size)


def _cutmix_region(random: RandomNumbers, config: AugmentConfig, image_size: tuple[int, int]) -> tf.Tensor:
    """CutMix (Yun et al. 2019, section 3.1): the partner's share of the area is uniform in 0..1."""
    sides = tf.sqrt(random.cutmix_size)[:, tf.newaxis] * tf.constant([image_size], tf.float32)
    return _region(random.cutmix < config.cutmix, random.cutmix_y, random.cutmix_x, sides, image_size)


def _inside(region: tf.Tensor, image_size: tuple[int, int]) -> tf.Tensor:
    """Which pixels lie in the region, bool [b, h, w, 1]."""
    ymin, xmin, ymax, xmax = tf.unstack(region[:, tf.newaxis, :], axis=2)
    y, x = (tf.range(side, dtype=tf.float32)[tf.newaxis] for side in image_size)
    rows, columns = (y >= ymin) & (y < ymax), (x >= xmin) & (x < xmax)
    return (rows[:, :, tf.newaxis] & columns[:, tf.newaxis, :])[..., tf.newaxis]


class _Objects(NamedTuple):
    """The objects of a batch of images."""

    boxes: tf.Tensor  # f32 [b, n, 4]
    classes: tf.Tensor  # f32 [b, n], -1 pads; float because TensorFlow has int32 arithmetic on the host only
    difficult: tf.Tensor  # f32 [b, n], 0 or 1; float because a GPU cannot roll bool
    weights: tf.Tensor  # f32 [b, n]

    def only(self, keep: tf.Tensor) -> _Objects:
        """The objects for which `keep`, bool [b, n] or [b, 1], is true; the others become padding."""
        return self._replace(classes=tf.where(keep, self.classes, float(BACKGROUND)))

    def partners(self, shift: int) -> _Objects:
        """The objects of the image that is `shift` later in the batch."""
        return _Objects(*(tf.roll(values, -shift, axis=0) for values in self))

    def within(self, region: tf.Tensor, min_visible: float) -> _Objects:
        """What is visible of the objects if only `region` is left; boxes are clipped to it."""
        shown = _intersection(self.boxes, region)
        keep = self._still_shown(box_ops.area(shown), _center_in(self.boxes, region), min_visible)
        return self._replace(boxes=shown).only(keep)

    def outside(self, region: tf.Tensor, min_visible: float) -> _Objects:
        """The objects that are still visible if `region` is covered; their boxes stay as they are."""
        visible = box_ops.area(self.boxes) - box_ops.area(_intersection(self.boxes, region))
        return self.only(self._still_shown(visible, ~_center_in(self.boxes, region), min_visible))

    def _still_shown(self, visible_area: tf.Tensor, center_visible: tf.Tensor, min_visible: float) -> tf.Tensor:
        """Which to keep. Of an ignored region what is seen is still not to be learnt, however little."""
        is_region = self.classes == float(IGNORED)
        shown = box_ops.still_shown(self.boxes, visible_area, center_visible, min_visible)
        return shown | (is_region & (visible_area > 0))


def _intersection(boxes: tf.Tensor, region: tf.Tensor) -> tf.Tensor:
    region = region[:, tf.newaxis]
    top_left = tf.maximum(boxes[..., :2], region[..., :2])
    return tf.concat([top_left, tf.maximum(top_left, tf.minimum(boxes[..., 2:], region[..., 2:]))], axis=-1)


def _center_in(boxes: tf.Tensor, region: tf.Tensor) -> tf.Tensor:
    region, center = region[:, tf.newaxis], (boxes[..., :2] + boxes[..., 2:]) / 2
    return tf.reduce_all((center >= region[..., :2]) & (center < region[..., 2:]), axis=-1)


def _join(parts: list[_Objects], num_slots: int) -> _Objects:
    """The objects of several parts in one; if there are more than `num_slots`, the largest (see `mix_what_fits`)."""
    joined = _Objects(*(tf.concat(values, axis=1) for values in zip(*parts)))
    area = tf.where(joined.classes == BACKGROUND, -1.0, box_ops.area(joined.boxes))
    largest = tf.math.top_k(area, num_slots).indices
    return _Objects(*(tf.gather(values, largest, batch_dims=1) for values in joined))


def _mixup_share(random: RandomNumbers) -> tf.Tensor:
    """The image's own share, f32 [b], from Beta(1.5, 1.5) (Zhang et al. 2019, "Bag of Freebies", section 3.1).

    This is the distribution of one coordinate of a uniform point in a disc; the point is given in polar coordinates.
    """
    return 0.5 + 0.5 * tf.sqrt(random.mixup_radius) * tf.cos(2 * np.pi * random.mixup_angle)


def _quadrants(image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Offsets (y, x) px of the four tiles of a mosaic, in reading order."""
    height, width = image_size
    return [(0, 0), (0, width // 2), (height // 2, 0), (height // 2, width // 2)]


def mix_what_fits(batch: Batch, config: AugmentConfig) -> Batch:
    """Leaves an image unmixed whose objects and regions, with those that would be mixed in, may exceed its slots.

    What has no slot would be learnt as background. Only the random numbers change, so this runs once, on the host, and
    boxes and pixels agree.
    """
    random = RandomNumbers.of(batch.random_numbers)
    num_slots = batch.boxes.shape[1]
    count = tf.math.count_nonzero(batch.classes != BACKGROUND, axis=1, dtype=tf.int32)
    for name, num_images in (("mosaic", 4), ("cutmix", 2), ("mixup", 2)):  # in the order of `augment_boxes`
        number, probability = getattr(random, name), getattr(config, name)
        together = tf.add_n([tf.roll(count, -shift, axis=0) for shift in range(num_images)])
        number = tf.where(together > num_slots, 1.0, number)  # no probability exceeds 1
        random = random._replace(**{name: number})
        count = tf.where(number < probability, together, count)
    return batch._replace(random_numbers=tf.stack(random, axis=1))


def augment_boxes(batch: Batch, config: AugmentConfig) -> Batch:
    """The batch with its objects moved to where `augment_images` moves their pixels."""
    random = RandomNumbers.of(batch.random_numbers)
    image_size, num_slots = tuple(batch.images.shape[1:3]), batch.boxes.shape[1]
    height, width = image_size
    ymin, xmin, ymax, xmax = tf.unstack(batch.boxes, axis=2)
    flipped_x = (random.horizontal_flip < config.horizontal_flip)[:, tf.newaxis]
    xmin, xmax = tf.where(flipped_x, width - xmax, xmin), tf.where(flipped_x, width - xmin, xmax)
    flipped_y = (random.vertical_flip < config.vertical_flip)[:, tf.newaxis]
    ymin, ymax = tf.where(flipped_y, height - ymax, ymin), tf.where(flipped_y, height - ymin, ymax)
    boxes = tf.stack([ymin, xmin, ymax, xmax], axis=2)
    objects = _Objects(
        boxes, tf.cast(batch.classes, tf.float32), tf.cast(batch.difficult, tf.float32), batch.box_weights
    )

    if config.mosaic:
        happens = (random.mosaic < config.mosaic)[:, tf.newaxis]
        tiles = []
        for shift, offset in enumerate(_quadrants(image_size)):
            tile = objects.partners(shift).only(happens)
            tiles.append(tile._replace(boxes=tile.boxes / 2 + tf.constant([*offset, *offset], tf.float32)))
        objects = _join([objects.only(~happens), *tiles], num_slots)
    if config.cutmix:
        region = _cutmix_region(random, config, image_size)
        pasted = objects.partners(1).within(region, config.min_visible)
        objects = _join([objects.outside(region, config.min_visible), pasted], num_slots)
    if config.mixup:
        happens, share = (random.mixup < config.mixup)[:, tf.newaxis], _mixup_share(random)[:, tf.newaxis]
        partners = objects.partners(1)
        partners = partners._replace(weights=partners.weights * (1 - share)).only(happens)
        own = objects._replace(weights=objects.weights * tf.where(happens, share, 1.0))
        objects = _join([own, partners], num_slots)
    if config.cutout or config.randaugment:
        objects = objects.outside(_cutout_region(random, config, image_size), config.min_visible)

    present = objects.classes != BACKGROUND
    return batch._replace(
        boxes=tf.where(present[..., tf.newaxis], objects.boxes, 0.0),
        classes=tf.cast(objects.classes, tf.int32),
        difficult=(objects.difficult > 0) & present,
        box_weights=tf.where(present, objects.weights, 1.0),
    )


def augment_images(batch: Batch, config: AugmentConfig, preprocessing: str = "auto") -> tf.Tensor:
    """The batch's images f32 [b, h, w, 3], flipped, mixed, changed in colour and normalised."""
    random = RandomNumbers.of(batch.random_numbers)
    images, image_size = batch.images, tuple(batch.images.shape[1:3])

    def per_image(values: tf.Tensor) -> tf.Tensor:
        return values[:, tf.newaxis, tf.newaxis, tf.newaxis]

    if config.horizontal_flip:
        flips = per_image(random.horizontal_flip < config.horizontal_flip)
        images = tf.where(flips, tf.reverse(images, [2]), images)
    if config.vertical_flip:
        flips = per_image(random.vertical_flip < config.vertical_flip)
        images = tf.where(flips, tf.reverse(images, [1]), images)
    if config.mixes:
        images = tf.cast(images, tf.float32)  # a GPU cannot roll uint8
    if config.mosaic:
        halves = tf.nn.avg_pool2d(images, 2, 2, "VALID")
        rows = [
            tf.concat([tf.roll(halves, -shift, axis=0), tf.roll(halves, -shift - 1, axis=0)], axis=2)
            for shift in (0, 2)
        ]
        images = tf.where(per_image(random.mosaic < config.mosaic), tf.concat(rows, axis=1), images)
    if config.cutmix:
        pasted = _inside(_cutmix_region(random, config, image_size), image_size)
        images = tf.where(pasted, tf.roll(images, -1, axis=0), images)
    if config.mixup:
        share = per_image(tf.where(random.mixup < config.mixup, _mixup_share(random), 1.0))
        images = share * images + (1 - share) * tf.roll(images, -1, axis=0)
    colours = (config.brightness, config.contrast, config.saturation, config.hue, config.grayscale)
    if any(colours) or config.randaugment:
        images = jitter_colour(tf.cast(images, tf.float32), random, config)
    if config.cutout or config.randaugment:
        erased = _inside(_cutout_region(random, config, image_size), image_size)
        images = tf.where(erased, tf.cast(PAD_VALUE, images.dtype), images)
    return normalize(images, preprocessing)


def augment(batch: Batch, config: AugmentConfig, preprocessing: str = "auto") -> Batch:
    """Augments pixels and boxes; the images come back float32 and normalised."""
    return augment_boxes(batch, config)._replace(images=augment_images(batch, config, preprocessing))
