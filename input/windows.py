"""Which part of each image is shown, and at what size: letterbox, scale jitter, SSD's crop.

Everything is graph-mode and stateless.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from input import boxes as box_ops
from input.config import AugmentConfig
from input.random_numbers import RandomNumbers

JPEG_RATIOS = (1, 2, 4, 8)  # by which libjpeg can decode an image smaller
_IOU_CROP_TRIALS = 50


class Region(NamedTuple):
    """A part of the original image, f32, in its pixels. All shapes may have batch axes before them."""

    offset: tf.Tensor  # [2] y, x
    size: tf.Tensor  # [2] height, width


class Window(NamedTuple):
    """A region of whole pixels, and the size to which it is resized. All shapes may have batch axes before them."""

    offset: tf.Tensor  # i32 [2] y, x in pixels of the original
    size: tf.Tensor  # i32 [2] height, width in pixels of the original
    resized: tf.Tensor  # i32 [2] height, width in pixels of the network's input, at most its size


def whole_image(original_size: tf.Tensor) -> Region:
    """The whole of an image of size i32 [..., 2]."""
    size = tf.cast(original_size, tf.float32)
    return Region(tf.zeros_like(size), size)


def fit_window(region: Region, image_size: tuple[int, int]) -> Window:
    """The region, resized to fit into `image_size` (height, width) with its aspect ratio kept."""
    return _make_window(region, image_size, relative_scale=1.0, position=0.0)


def jitter_window(region: Region, image_size: tuple[int, int], random: RandomNumbers, config: AugmentConfig) -> Window:
    """Large-scale jitter (Ghiasi et al. 2021, "Simple Copy-Paste", section 3): a random scale, a random crop.

    The region is resized to `scale` times its letterboxed size, `scale` being log-uniform in
    [config.scale_min, config.scale_max]. If it then exceeds `image_size`, a crop at a random position is taken from the
    original pixels, so that nothing outside the crop is decoded or resized.

    Args:
      region: of b images.
      image_size: (height, width).
      random: of the images.
      config: the range of scales.
    """
    # In float64, because the last bit of TensorFlow's exp depends on an image's index in the batch.
    low, high = np.log(config.scale_min), np.log(config.scale_max)
    scale = tf.cast(tf.exp(low + tf.cast(random.scale, tf.float64) * (high - low)), tf.float32)
    position = tf.stack([random.offset_y, random.offset_x], axis=1)
    return _make_window(region, image_size, relative_scale=scale[:, tf.newaxis], position=position)


def _make_window(
    region: Region, image_size: tuple[int, int], *, relative_scale: tf.Tensor, position: tf.Tensor
) -> Window:
    """The part of the region that fits at a scale; `position` is the share of what is left over that lies before it."""
    target = tf.constant(image_size, tf.float32)
    scale = tf.reduce_min(target / region.size, axis=-1, keepdims=True) * relative_scale
    size = tf.clip_by_value(tf.round(target / scale), 1.0, region.size)
    offset = region.offset + tf.round(position * (region.size - size))
    resized = tf.clip_by_value(tf.round(size * scale), 1.0, target)
    return Window(*(tf.cast(value, tf.int32) for value in (offset, size, resized)))


def iou_crop_region(
    original_size: tf.Tensor, boxes: tf.Tensor, classes: tf.Tensor, random: RandomNumbers, config: AugmentConfig
) -> Region:
    """SSD's crop (Liu et al. 2016, section 2.2): a patch whose IoU with an object reaches a random threshold.

    With probability `config.iou_crop` it is the first of 50 random patches that contains the centre of a box whose IoU
    with the patch reaches the threshold, one of 0, 0.1, 0.3, 0.5, 0.7 and 0.9. A patch has 10 to 100% of the image's
    area and, before it is clipped to the image, 1/2 to 2 times the image's aspect ratio. If no patch meets this, and
    otherwise, it is the whole image.

    Args:
      original_size: i32 [b, 2].
      boxes: f32 [b, n, 4] in pixels of the original image.
      classes: i32 [b, n], -1 pads.
      random: of the images.
      config: the probability.
    """

    def choose(image: tuple[tf.Tensor, ...]) -> Region:
        size, boxes, classes, number, seed = image
        everything = Region(tf.zeros([2]), size)

        def crop() -> Region:
            seeds = tf.stack([tf.bitcast(seed, tf.int32), 0])
            patches, suitable = _iou_crop_trials(size, boxes, classes, seeds)
            first = tf.argmax(suitable)
            patch = Region(patches.offset[first], patches.size[first])
            return tf.cond(suitable[first], lambda: patch, lambda: everything)

        return tf.cond(number < config.iou_crop, crop, lambda: everything)

    images = (tf.cast(original_size, tf.float32), boxes, classes, random.iou_crop, random.iou_crop_seed)
    return tf.map_fn(choose, images, fn_output_signature=Region(*(tf.TensorSpec([2], tf.float32),) * 2))


def _iou_crop_trials(
    original_size: tf.Tensor, boxes: tf.Tensor, classes: tf.Tensor, seeds: tf.Tensor
) -> tuple[Region, tf.Tensor]:
    """Random patches of one image, each with a first axis [trials], and which of them will do, bool [trials]."""
    area, ratio, y, x, threshold = tf.unstack(
        tf.random.stateless_uniform([_IOU_CROP_TRIALS, 5], seeds, alg="philox"), axis=1
    )
    threshold = tf.gather([0.0, 0.1, 0.3, 0.5, 0.7, 0.9], tf.cast(threshold[0] * 6, tf.int32))
    area, ratio = 0.1 + 0.9 * area, tf.exp((2 * ratio - 1) * np.log(2.0))
    size = tf.minimum(tf.sqrt(tf.stack([area / ratio, area * ratio], axis=1)), 1.0) * original_size
    size = tf.maximum(tf.round(size), 1.0)
    offset = tf.round(tf.stack([y, x], axis=1) * (original_size - size))
    overlap = box_ops.iou(tf.concat([offset, offset + size], axis=1), boxes)
    centers = (boxes[:, :2] + boxes[:, 2:])[tf.newaxis] / 2
    inside = tf.reduce_all((centers >= offset[:, tf.newaxis]) & (centers < (offset + size)[:, tf.newaxis]), axis=-1)
    suitable = tf.reduce_any((overlap >= threshold) & inside & (classes >= 0), axis=1) | tf.reduce_all(classes < 0)
    return Region(offset, size), suitable


def transform_of(window: Window) -> tf.Tensor:
    """f32 [..., 4] (scale_y, scale_x, offset_y, offset_x): input pixel = scale * original pixel + offset."""
    scale = tf.cast(window.resized, tf.float32) / tf.cast(window.size, tf.float32)
    return tf.concat([scale, -tf.cast(window.offset, tf.float32) * scale], axis=-1)


def jpeg_ratio(window: Window) -> tf.Tensor:
    """i32 [...]: the largest of 1, 2, 4 and 8 by which a JPEG can be decoded smaller and still need no enlarging.

    Large photographs are decoded in a fraction of the time, and each pixel of the smaller image is a mean over the
    larger one, whereas a bilinear resize by more than 2 would skip pixels.
    """
    shrinks = tf.reduce_min(window.size // window.resized, axis=-1)
    return 1 + tf.add_n([tf.cast(shrinks >= ratio, tf.int32) * (ratio // 2) for ratio in JPEG_RATIOS[1:]])


def align_window(window: Window, ratio: tf.Tensor) -> Window:
    """The window, grown to whole pixels of the image that is `ratio` (i32 [...]) times smaller.

    At the right and lower edges it may reach up to `ratio` - 1 pixels beyond the original, where a JPEG repeats its
    last pixels.
    """
    ratio = ratio[..., tf.newaxis]
    start = window.offset // ratio * ratio
    stop = -(-(window.offset + window.size) // ratio) * ratio
    return window._replace(offset=start, size=stop - start)
