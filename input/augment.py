"""The host stage: a batch of encoded images is decoded, cropped, resized once and given out as uint8.

The host is the scarce part of a GPU machine, so only what needs the compressed bytes happens here; arithmetic over
pixels is left to `batch_augment`, on the device. Arithmetic over boxes and sizes runs once for the batch, because it
costs less than starting its ops; only decoding, resizing and the rare warp go image by image. Everything is graph-mode
and stateless.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from input import boxes as box_ops
from input import windows
from input.config import AugmentConfig, InputConfig
from input.random_numbers import RandomNumbers, strength
from input.types import BACKGROUND, IGNORED, PAD_VALUE, Batch, Records
from input.windows import Window

# Pixels.


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """u8 [h, w, 3] of a JPEG, PNG, BMP or the first frame of a GIF; string scalar in."""
    return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def _is_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    """bool [...] of strings [...], by the first bytes, as `tf.image.is_jpeg`."""
    return tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff"


def _decode_window(encoded: tf.Tensor, window: Window, ratio: tf.Tensor, is_jpeg: tf.Tensor, crops: bool) -> tf.Tensor:
    """u8 [window.size / ratio, 3] of one image: of a JPEG only the window is decoded, a PNG is decoded whole and cut.

    Args:
      encoded: string scalar.
      window: aligned to `ratio`.
      ratio: i32 scalar, one of `JPEG_RATIOS`.
      is_jpeg: bool scalar; false for a PNG.
      crops: whether the window may be smaller than the image.
    """

    def jpeg(ratio: int) -> Callable[[], tf.Tensor]:
        if not crops:
            return lambda: tf.io.decode_jpeg(encoded, channels=3, ratio=ratio)
        bounds = tf.concat([window.offset, window.size], axis=0) // ratio
        return lambda: tf.image.decode_and_crop_jpeg(encoded, bounds, channels=3, ratio=ratio)

    def png() -> tf.Tensor:
        pixels = tf.io.decode_png(encoded, channels=3)
        if crops:
            (top, left), (bottom, right) = tf.unstack(window.offset), tf.unstack(window.offset + window.size)
            pixels = pixels[top:bottom, left:right]
        return shrink(pixels, ratio)

    # The ratio is an attribute of the decoding op, so each ratio needs a branch of its own.
    branches = [png, *(jpeg(ratio) for ratio in windows.JPEG_RATIOS)]
    branch = tf.reduce_sum(tf.cast(is_jpeg & (ratio >= tf.constant(windows.JPEG_RATIOS)), tf.int32))
    return tf.switch_case(branch, branches)


def shrink(image: tf.Tensor, ratio: tf.Tensor) -> tf.Tensor:
    """u8 [h, w, 3] -> u8 [h / ratio, w / ratio, 3], rounded up: the means of blocks, as of a JPEG decoded smaller."""

    def means() -> tf.Tensor:
        pixels = tf.cast(image, tf.float32)
        for _ in range(2):  # rows, then columns
            pixels = tf.math.segment_mean(pixels, tf.range(tf.shape(pixels)[0]) // ratio)
            pixels = tf.transpose(pixels, [1, 0, 2])
        return tf.cast(tf.round(pixels), tf.uint8)

    return tf.cond(ratio > 1, means, lambda: image)


def resize(image: tf.Tensor, resized: tf.Tensor) -> tf.Tensor:
    """u8 [h, w, 3] -> u8 [*resized, 3], bilinear."""
    # From float32, because the kernel that reads uint8 takes nearly twice as long. The cast drops the fraction, because
    # rounding would be one more pass over the pixels, for half a grey level.
    return tf.cast(tf.image.resize(tf.cast(image, tf.float32), resized), tf.uint8)


def pad(image: tf.Tensor, image_size: tuple[int, int]) -> tf.Tensor:
    """u8 [h, w, 3] -> u8 [*image_size, 3], with grey at the bottom and the right."""
    height, width = tf.unstack(tf.constant(image_size) - tf.shape(image)[:2])
    # Concatenated, because that copies rows where tf.pad visits each value.
    padding = tf.constant(PAD_VALUE, tf.uint8)
    image = tf.concat([image, tf.fill([tf.shape(image)[0], width, 3], padding)], axis=1)
    image = tf.concat([image, tf.fill([height, image_size[1], 3], padding)], axis=0)
    return tf.ensure_shape(image, [*image_size, 3])


def letterbox(image: tf.Tensor, image_size: tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Fits a decoded image into the network's input, with nearly the pixels that its JPEG would give.

    Args:
      image: u8 [h, w, 3].
      image_size: (height, width).

    Returns:
      u8 [height, width, 3] and the f32 [4] transform from original to input pixels.
    """
    window = windows.fit_window(windows.whole_image(tf.shape(image)[:2]), image_size)
    ratio = windows.jpeg_ratio(window)
    window = windows.align_window(window, ratio)
    return pad(resize(shrink(image, ratio), window.resized), image_size), windows.transform_of(window)


def load_and_letterbox(encoded: tf.Tensor, image_size: tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Fits an image file into the network's input just as evaluation does; string scalar in, of a format of `decode`.

    Returns:
      u8 [height, width, 3], the f32 [4] transform, and the i32 [2] size of the original.
    """

    def from_jpeg() -> tuple[tf.Tensor, ...]:
        size = tf.io.extract_jpeg_shape(encoded)[:2]
        window = windows.fit_window(windows.whole_image(size), image_size)
        ratio = windows.jpeg_ratio(window)
        window = windows.align_window(window, ratio)
        image = _decode_window(encoded, window, ratio, tf.constant(True), crops=False)
        return pad(resize(image, window.resized), image_size), windows.transform_of(window), size

    def from_other() -> tuple[tf.Tensor, ...]:
        image = decode(encoded)
        return *letterbox(image, image_size), tf.shape(image)[:2]

    return tf.cond(_is_jpeg(encoded), from_jpeg, from_other)


# Warp: rotation, shear and translation in one resampling. The affine maps, f32 [b, 2, 3], take (x, y) in pixels of the
# network's input.


def warp_matrices(
    random: RandomNumbers, config: AugmentConfig, image_size: tuple[int, int]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Where the points of each image move to, and which images are warped at all.

    With probability `config.warp`, or where RandAugment chooses an operation: rotation by up to `config.rotate` degrees
    and shear (x moves by a share of y) by up to `config.shear`, both about the centre, and translation by up to the
    share `config.translate` of each side. Each amount is uniform and may have either sign.

    Returns:
      f32 [b, 2, 3] and bool [b].
    """

    def amount(name: str, number: tf.Tensor, unit: float) -> tf.Tensor:
        limit = tf.where(random.warp < config.warp, float(getattr(config, name)), 0.0)
        # The unit is multiplied first, for the same reason as the small factors in `load_and_crop`.
        return (2 * number - 1) * (strength(name, limit, random, config) * unit)

    height, width = image_size
    angle, shear = amount("rotate", random.rotate, np.pi / 180), amount("shear", random.shear, 1.0)
    shift_x = amount("translate", random.translate_x, width)
    shift_y = amount("translate", random.translate_y, height)
    shift = tf.stack([shift_x, shift_y], axis=1)
    # In float64, as in `windows.jitter_window`.
    cos, sin = (tf.cast(function(tf.cast(angle, tf.float64)), tf.float32) for function in (tf.cos, tf.sin))
    turn = tf.reshape(tf.stack([cos, shear * cos - sin, sin, shear * sin + cos], axis=1), [-1, 2, 2])
    center = tf.constant([width / 2, height / 2])
    offset = center + shift - tf.linalg.matvec(turn, center)
    moves = (angle != 0) | (shear != 0) | tf.reduce_any(shift != 0, axis=1)
    return tf.concat([turn, offset[..., tf.newaxis]], axis=2), moves


def warp_image(image: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """The image u8 [h, w, 3] moved by an affine map f32 [2, 3], bilinear; grey where no pixel moves to."""
    turn, offset = matrix[:, :2], matrix[:, 2]
    back = tf.linalg.inv(turn)
    # The op wants the inverse map, between the centres of pixels, which it counts from 0.
    offset = tf.linalg.matvec(back, 0.5 - offset) - 0.5
    flat = tf.concat([tf.reshape(tf.concat([back, offset[:, tf.newaxis]], axis=1), [6]), [0.0, 0.0]], axis=0)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[tf.newaxis],
        transforms=flat[tf.newaxis],
        output_shape=tf.shape(image)[:2],
        fill_value=float(PAD_VALUE),
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )[0]


def warp_boxes(boxes: tf.Tensor, matrices: tf.Tensor) -> tf.Tensor:
    """The upright boxes f32 [b, n, 4] around boxes [b, n, 4] moved by f32 [b, 2, 3]; not clipped."""
    ymin, xmin, ymax, xmax = tf.unstack(boxes, axis=-1)
    corners = tf.stack([tf.stack([xmin, xmax, xmin, xmax], -1), tf.stack([ymin, ymin, ymax, ymax], -1)], axis=-1)
    moved = tf.einsum("bij,bnkj->bnki", matrices[..., :2], corners) + matrices[:, tf.newaxis, tf.newaxis, :, 2]
    low, high = tf.reduce_min(moved, axis=2), tf.reduce_max(moved, axis=2)
    return tf.concat([low[..., ::-1], high[..., ::-1]], axis=-1)


# Boxes.


def crop_boxes(
    boxes: tf.Tensor, image_size: tuple[int, int] | tf.Tensor, min_visible: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Clips boxes to the image, and says which of them `boxes.still_shown` keeps.

    Args:
      boxes: f32 [..., n, 4] px, possibly outside the image.
      image_size: f32 or i32 [..., 2], height and width.
      min_visible: as for `boxes.still_shown`.

    Returns:
      Clipped boxes f32 [..., n, 4] and keep bool [..., n].
    """
    limit = tf.cast(image_size, tf.float32)[..., tf.newaxis, :]
    clipped = box_ops.clip(boxes, limit)
    center = (boxes[..., :2] + boxes[..., 2:]) / 2
    center_inside = tf.reduce_all((center >= 0) & (center < limit), axis=-1)
    return clipped, box_ops.still_shown(boxes, box_ops.area(clipped), center_inside, min_visible)


def keep_boxes(
    boxes: tf.Tensor, classes: tf.Tensor, difficult: tf.Tensor, keep: tf.Tensor, max_boxes: int, num_slots: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """The boxes to keep, in their order and padded to `num_slots`.

    Of more than `max_boxes` objects the largest stay objects, and the others become ignored regions. Regions are
    dropped, the smallest first, where there is no slot left.

    Args:
      boxes: f32 [b, n, 4].
      classes: i32 [b, n].
      difficult: bool [b, n].
      keep: bool [b, n].
      max_boxes: how many objects an image has at most.
      num_slots: m, at least `max_boxes`.

    Returns:
      boxes f32 [b, m, 4], classes i32 [b, m] (-1 pads), difficult bool [b, m], and i32 [b]: how many objects are beyond
      `max_boxes`.
    """
    missing = tf.maximum(num_slots - tf.shape(boxes)[1], 0)
    boxes = tf.pad(boxes, [[0, 0], [0, missing], [0, 0]])
    classes, difficult, keep = (tf.pad(values, [[0, 0], [0, missing]]) for values in (classes, difficult, keep))
    is_object = keep & (classes != IGNORED)
    num_beyond = tf.math.count_nonzero(is_object, axis=1, dtype=tf.int32) - max_boxes
    areas = box_ops.area(boxes)
    by_size = tf.argsort(tf.where(is_object, areas, -1.0), direction="DESCENDING", stable=True)
    is_object &= tf.argsort(by_size) < max_boxes  # the place of each in that order
    classes, difficult = tf.where(is_object, classes, IGNORED), difficult | ~is_object
    # Objects come first, so that each has a slot.
    largest = tf.math.top_k(tf.where(is_object, np.inf, tf.where(keep, areas, -1.0)), num_slots).indices
    kept = tf.gather(keep, largest, batch_dims=1)
    order = tf.argsort(tf.where(kept, largest, tf.shape(boxes)[1]), axis=1)
    largest = tf.gather(largest, order, batch_dims=1)
    boxes, classes, difficult, kept = (
        tf.gather(values, largest, batch_dims=1) for values in (boxes, classes, difficult, keep)
    )
    return (
        tf.ensure_shape(tf.where(kept[..., tf.newaxis], boxes, 0.0), [None, num_slots, 4]),
        tf.ensure_shape(tf.where(kept, classes, BACKGROUND), [None, num_slots]),
        tf.ensure_shape(difficult & kept, [None, num_slots]),
        tf.maximum(num_beyond, 0),
    )


# The whole stage.


def load_and_crop(
    records: Records,
    config: InputConfig,
    *,
    training: bool,
    record_index: tf.Tensor,
    valid: tf.Tensor,
    random_numbers: tf.Tensor,
) -> Batch:
    """Decodes a batch of records, crops and resizes the images, and moves the boxes along. For use in `Dataset.map`.

    Args:
      records: of b images.
      config: sizes and augmentation.
      training: whether to augment; otherwise the whole images are shown.
      record_index: i64 [b], passed on.
      valid: bool [b], passed on.
      random_numbers: f32 [b, NUM_PER_IMAGE], passed on.

    Raises:
      tf.errors.InvalidArgumentError: an image cannot be decoded.
    """
    augment = config.augment if training else AugmentConfig()
    random = RandomNumbers.of(random_numbers)
    sides = tf.cast(tf.tile(records.sizes, [1, 2]), tf.float32)
    region = windows.whole_image(records.sizes)
    if augment.iou_crop:
        original_boxes = records.normalized_boxes * sides[:, tf.newaxis]
        region = windows.iou_crop_region(records.sizes, original_boxes, records.classes, random, augment)
    jitters = (augment.scale_min, augment.scale_max) != (1.0, 1.0)
    if jitters:
        window = windows.jitter_window(region, config.image_size, random, augment)
    else:
        window = windows.fit_window(region, config.image_size)
    ratio = windows.jpeg_ratio(window)
    window = windows.align_window(window, ratio)
    transforms = windows.transform_of(window)
    scales, offsets = (tf.tile(part, [1, 2]) for part in tf.split(transforms, 2, axis=1))
    # The two small factors are multiplied first. Grappler would do so for some batch sizes only, and thereby round
    # differently.
    boxes = records.normalized_boxes * (sides * scales)[:, tf.newaxis] + offsets[:, tf.newaxis]

    boxes, keep = crop_boxes(boxes, window.resized, augment.min_visible)
    is_region = records.classes == IGNORED  # what is seen of one is ignored, however little
    keep |= is_region & (box_ops.area(boxes) > 0)
    per_image: tuple[Any, ...] = (records.images, window, ratio, _is_jpeg(records.images))
    if augment.warps:
        matrices, moves = warp_matrices(random, augment, config.image_size)
        warped, still_kept = crop_boxes(warp_boxes(boxes, matrices), config.image_size, augment.min_visible)
        boxes = tf.where(moves[:, tf.newaxis, tf.newaxis], warped, boxes)
        keep &= still_kept | (is_region & (box_ops.area(boxes) > 0)) | ~moves[:, tf.newaxis]
        per_image += (matrices, moves)

    def load(
        encoded: tf.Tensor,
        window: Window,
        ratio: tf.Tensor,
        is_jpeg: tf.Tensor,
        matrix: tf.Tensor | None = None,
        moves: tf.Tensor | None = None,
    ) -> tf.Tensor:
        crops = jitters or bool(augment.iou_crop)
        image = resize(_decode_window(encoded, window, ratio, is_jpeg, crops), window.resized)
        if augment.warps:
            image = tf.cond(moves, lambda: warp_image(pad(image, config.image_size), matrix), lambda: image)
        return tf.reshape(image, [tf.shape(image)[0], -1])  # long rows are copied faster than pixels

    height, width = config.image_size
    batch_size = records.images.shape[0]
    # A dataset, because its `padded_batch` pads while it copies the images into the batch, which is done in any case.
    images = tf.data.Dataset.from_tensor_slices(per_image).map(load)
    images = images.padded_batch(batch_size, [height, width * 3], tf.constant(PAD_VALUE, tf.uint8))
    keep &= records.classes != BACKGROUND
    boxes, classes, difficult, num_dropped = keep_boxes(
        boxes, records.classes, records.difficult, keep, config.max_boxes, config.num_slots
    )
    return Batch(
        images=tf.reshape(images.get_single_element(), [batch_size, height, width, 3]),
        boxes=boxes,
        classes=classes,
        difficult=difficult,
        box_weights=tf.ones_like(boxes[..., 0]),
        original_sizes=records.sizes,
        transforms=transforms,
        valid=valid,
        num_dropped=num_dropped,
        record_index=record_index,
        random_numbers=random_numbers,
    )


def blank(config: InputConfig, *, record_index: tf.Tensor, random_numbers: tf.Tensor) -> Batch:
    """A batch to show in place of b images that cannot be decoded: grey, without objects, not `valid`."""
    count, boxes = record_index.shape[0], config.num_slots
    return Batch(
        images=tf.fill([count, *config.image_size, 3], tf.constant(PAD_VALUE, tf.uint8)),
        boxes=tf.zeros([count, boxes, 4]),
        classes=tf.fill([count, boxes], BACKGROUND),
        difficult=tf.zeros([count, boxes], tf.bool),
        box_weights=tf.ones([count, boxes]),
        original_sizes=tf.ones([count, 2], tf.int32),
        transforms=tf.tile([[1.0, 1.0, 0.0, 0.0]], [count, 1]),
        valid=tf.zeros([count], tf.bool),
        num_dropped=tf.zeros([count], tf.int32),
        record_index=record_index,
        random_numbers=random_numbers,
    )
