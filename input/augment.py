"""What happens to one image on the host: decode, crop, one resize, uint8 out.

The host is the scarce part of a GPU machine, so only what needs the compressed bytes happens here; arithmetic
over pixels is `batch_augment`'s, on the device. Everything is graph-mode and stateless.
"""

from typing import NamedTuple

import tensorflow as tf

from input import boxes as box_ops
from input import types
from input.config import AugmentConfig, InputConfig

PAD_VALUE = 114  # grey near ImageNet's mean colour, so that the edge of the padding is a weak one


class Window(NamedTuple):
    """A part of the original image, and the size that it is resized to."""

    offset: tf.Tensor  # i32 [2] y, x in pixels of the original
    size: tf.Tensor  # i32 [2] height, width in pixels of the original
    resized: tf.Tensor  # i32 [2] height, width in pixels of the network's input, at most its size


def fit_window(original_size, image_size) -> Window:
    """The whole image, resized to fit into `image_size` with its aspect ratio kept.

    Args:
      original_size: i32 [2], height and width of the image.
      image_size: (height, width) to fit into.
    """
    original = tf.cast(original_size, tf.float32)
    scale = tf.reduce_min(tf.constant(image_size, tf.float32) / original)
    resized = tf.clip_by_value(tf.cast(tf.round(original * scale), tf.int32), 1, image_size)
    return Window(tf.zeros([2], tf.int32), original_size, resized)


def jitter_window(original_size, image_size, config: AugmentConfig, seed) -> Window:
    """Large-scale jitter (Ghiasi et al. 2021, "Simple Copy-Paste", section 3): a random scale, a random crop.

    The image is resized to `scale` times its letterboxed size, `scale` log-uniform in
    [config.scale_min, config.scale_max]; what exceeds `image_size` is cropped at a random place, and the crop is
    taken from the original pixels, so that nothing outside it is decoded or resized.

    Args:
      original_size: i32 [2].
      image_size: (height, width).
      seed: i32 [2], stateless.
    """
    draws = tf.random.stateless_uniform([3], seed, alg="philox")
    original = tf.cast(original_size, tf.float32)
    target = tf.constant(image_size, tf.float32)
    log_scale = tf.math.log(config.scale_min) + draws[0] * tf.math.log(config.scale_max / config.scale_min)
    scale = tf.reduce_min(target / original) * tf.exp(log_scale)
    size = tf.clip_by_value(tf.round(target / scale), 1.0, original)
    offset = tf.round(draws[1:] * (original - size))
    resized = tf.clip_by_value(tf.round(size * scale), 1.0, target)
    return Window(*(tf.cast(value, tf.int32) for value in (offset, size, resized)))


def transform_of(window: Window):
    """f32 [4] (scale_y, scale_x, offset_y, offset_x): input pixel = scale * original pixel + offset."""
    scale = tf.cast(window.resized, tf.float32) / tf.cast(window.size, tf.float32)
    return tf.concat([scale, -tf.cast(window.offset, tf.float32) * scale], axis=0)


def resize_and_pad(image, window: Window, image_size):
    """Resizes the pixels of `window` bilinearly and pads them at the bottom and the right.

    Args:
      image: u8 [window.size, 3], the pixels of the window alone.
      window: where they come from and the size they get.
      image_size: (height, width) of the result.

    Returns:
      u8 [height, width, 3].
    """
    # From float32, because the kernel that reads uint8 takes nearly twice as long. The cast cuts fractions off:
    # rounding would be one more pass over the pixels, for half a grey level that evaluation lacks as well.
    pixels = tf.cast(tf.image.resize(tf.cast(image, tf.float32), window.resized), tf.uint8)
    # Joined rather than tf.pad, which visits each value where this copies rows.
    missing = tf.constant(image_size, tf.int32) - window.resized
    padding = tf.constant(PAD_VALUE, tf.uint8)
    pixels = tf.concat([pixels, tf.fill([window.resized[0], missing[1], 3], padding)], axis=1)
    pixels = tf.concat([pixels, tf.fill([missing[0], image_size[1], 3], padding)], axis=0)
    return tf.ensure_shape(pixels, [*image_size, 3])


def letterbox(image, image_size):
    """Fits a decoded image into the network's input: what evaluation and the exported model see.

    Args:
      image: u8 [h, w, 3].
      image_size: (height, width).

    Returns:
      u8 [height, width, 3] and the f32 [4] transform from original to input pixels.
    """
    window = fit_window(tf.shape(image)[:2], image_size)
    return resize_and_pad(image, window, image_size), transform_of(window)


def decode(encoded):
    """u8 [h, w, 3] of a JPEG, PNG, BMP or the first frame of a GIF; string scalar in."""
    return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def decode_window(encoded, window: Window):
    """u8 [window.size, 3]: a JPEG is decoded in the window alone, a PNG whole and then cut."""
    bounds = tf.concat([window.offset, window.size], axis=0)
    return tf.cond(
        tf.image.is_jpeg(encoded),
        lambda: tf.image.decode_and_crop_jpeg(encoded, bounds, channels=3),
        lambda: tf.slice(
            tf.io.decode_png(encoded, channels=3), [*tf.unstack(window.offset), 0], [*tf.unstack(window.size), 3]
        ),
    )


def still_shown(boxes, visible_area, centre_visible, min_visible):
    """The rule for a box of which a part is cropped away or covered, for every augmentation.

    It is kept if its centre is visible, or if at least `min_visible` of its area is; some of it must be.

    Args:
      boxes: f32 [..., 4], whole.
      visible_area: f32 [...].
      centre_visible: bool [...].
      min_visible: share of the area, 0 to 1.

    Returns:
      bool [...].
    """
    return (visible_area > 0) & (centre_visible | (visible_area >= min_visible * box_ops.area(boxes)))


def crop_boxes(boxes, image_size, min_visible):
    """Clips boxes to the image, and says which of them `still_shown` keeps.

    Args:
      boxes: f32 [n, 4] px, possibly outside the image.
      image_size: f32 or i32 [2], height and width.
      min_visible: as for `still_shown`.

    Returns:
      Clipped boxes f32 [n, 4] and keep bool [n].
    """
    limit = tf.cast(image_size, tf.float32)
    clipped = tf.clip_by_value(boxes, 0.0, tf.tile(limit, [2]))
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    centre_inside = tf.reduce_all((centre >= 0) & (centre < limit), axis=1)
    return clipped, still_shown(boxes, box_ops.area(clipped), centre_inside, min_visible)


def pad_boxes(boxes, classes, difficult, max_boxes):
    """Pads to `max_boxes`; of more boxes the largest are kept, in their order.

    Returns:
      boxes f32 [m, 4], classes i32 [m] (-1 pads), difficult bool [m].
    """
    area = box_ops.area(boxes)
    count = tf.minimum(tf.shape(boxes)[0], max_boxes)
    largest = tf.sort(tf.math.top_k(area, count, sorted=False).indices)
    missing = [[0, max_boxes - count]]
    boxes = tf.pad(tf.gather(boxes, largest), [*missing, [0, 0]])
    classes = tf.pad(tf.gather(classes, largest), missing, constant_values=types.BACKGROUND)
    difficult = tf.pad(tf.gather(difficult, largest), missing)
    return (
        tf.ensure_shape(boxes, [max_boxes, 4]),
        tf.ensure_shape(classes, [max_boxes]),
        tf.ensure_shape(difficult, [max_boxes]),
    )


def load_and_crop(record: types.Record, config: InputConfig, seed=None) -> types.Sample:
    """Decodes a record, crops, resizes and carries the boxes along.

    Args:
      record: one parsed example.
      config: sizes and augmentation.
      seed: i32 [2], stateless; None, or an augmentation without scale jitter, shows the whole image.
    """
    jitters = seed is not None and (config.augment.scale_min, config.augment.scale_max) != (1.0, 1.0)
    if jitters:
        window = jitter_window(record.size, config.image_size, config.augment, seed)
        image = decode_window(record.image, window)
        original_size = record.size
    else:
        image = tf.io.decode_jpeg(record.image, channels=3)  # its kernel takes a PNG too, the other format of records
        original_size = tf.shape(image)[:2]
        window = fit_window(original_size, config.image_size)
    transform = transform_of(window)
    side = tf.tile(tf.cast(original_size, tf.float32), [2])
    boxes = record.normalized_boxes * side * tf.tile(transform[:2], [2]) + tf.tile(transform[2:], [2])
    boxes, keep = crop_boxes(boxes, window.resized, config.augment.min_visible)
    boxes, classes, difficult = pad_boxes(
        tf.boolean_mask(boxes, keep),
        tf.boolean_mask(record.classes, keep),
        tf.boolean_mask(record.difficult, keep),
        config.max_boxes,
    )
    return types.Sample(
        image=resize_and_pad(image, window, config.image_size),
        boxes=boxes,
        classes=classes,
        difficult=difficult,
        box_weights=tf.ones([config.max_boxes]),
        original_size=original_size,
        transform=transform,
    )
