"""What the host does with a batch of encoded images: decode, crop, one resize, uint8 out.

The host is the scarce part of a GPU machine, so only what needs the compressed bytes happens here; arithmetic
over pixels is `batch_augment`'s, on the device. Everything is graph-mode and stateless. What is arithmetic over boxes
and sizes runs once for the batch, since each op costs more to start than to do; what is done for each image in turn is
only to decode and resize it.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from input import boxes as box_ops
from input import types
from input.config import MAX_MAGNITUDE, RANDAUGMENT_LIMITS, AugmentConfig, InputConfig

PAD_VALUE = 114  # grey near ImageNet's mean colour, so that the edge of the padding is a weak one
_JPEG_RATIOS = (1, 2, 4, 8)  # libjpeg leaves out what a smaller image does not show
_IOU_CROP_TRIALS = 50


class Window(NamedTuple):
    """A part of the original image, and the size that it is resized to. All shapes may have batch axes before them."""

    offset: tf.Tensor  # i32 [2] y, x in pixels of the original
    size: tf.Tensor  # i32 [2] height, width in pixels of the original
    resized: tf.Tensor  # i32 [2] height, width in pixels of the network's input, at most its size


class Region(NamedTuple):
    """A part of the original image, f32, in its pixels. All shapes may have batch axes before them."""

    offset: tf.Tensor  # [2] y, x
    size: tf.Tensor  # [2] height, width


def whole(original_size) -> Region:
    """All of an image of size i32 [..., 2]."""
    size = tf.cast(original_size, tf.float32)
    return Region(tf.zeros_like(size), size)


def fit_window(region: Region, image_size) -> Window:
    """The region, resized to fit into `image_size` (height, width) with its aspect ratio kept."""
    return _place(region, image_size, 1.0, 0.0)


def jitter_window(region: Region, image_size, draws: types.Draws, config: AugmentConfig) -> Window:
    """Large-scale jitter (Ghiasi et al. 2021, "Simple Copy-Paste", section 3): a random scale, a random crop.

    The region is resized to `scale` times its letterboxed size, `scale` log-uniform in
    [config.scale_min, config.scale_max]; what exceeds `image_size` is cropped at a random place, and the crop is
    taken from the original pixels, so that nothing outside it is decoded or resized.

    Args:
      region: of b images.
      image_size: (height, width).
      draws: of the images.
      config: the range of scales.
    """
    # In float64, because the last bit of TensorFlow's exp depends on an image's place in the batch.
    low, high = np.log(config.scale_min), np.log(config.scale_max)
    scale = tf.cast(tf.exp(low + tf.cast(draws.scale, tf.float64) * (high - low)), tf.float32)
    return _place(region, image_size, scale[:, tf.newaxis], tf.stack([draws.offset_y, draws.offset_x], axis=1))


def _place(region, image_size, relative_scale, place) -> Window:
    target = tf.constant(image_size, tf.float32)
    scale = tf.reduce_min(target / region.size, axis=-1, keepdims=True) * relative_scale
    size = tf.clip_by_value(tf.round(target / scale), 1.0, region.size)
    offset = region.offset + tf.round(place * (region.size - size))
    resized = tf.clip_by_value(tf.round(size * scale), 1.0, target)
    return Window(*(tf.cast(value, tf.int32) for value in (offset, size, resized)))


def _iou_crop_trials(original_size, boxes, classes, seed):
    """Patches of one image to choose from, f32 [trials, 2], and which of them will do, bool [trials]."""
    area, ratio, y, x, threshold = tf.unstack(
        tf.random.stateless_uniform([_IOU_CROP_TRIALS, 5], seed, alg="philox"), axis=1
    )
    threshold = tf.gather([0.0, 0.1, 0.3, 0.5, 0.7, 0.9], tf.cast(threshold[0] * 6, tf.int32))
    area, ratio = 0.1 + 0.9 * area, tf.exp((2 * ratio - 1) * np.log(2.0))
    size = tf.minimum(tf.sqrt(tf.stack([area / ratio, area * ratio], axis=1)), 1.0) * original_size
    size = tf.maximum(tf.round(size), 1.0)
    offset = tf.round(tf.stack([y, x], axis=1) * (original_size - size))
    overlap = box_ops.iou(tf.concat([offset, offset + size], axis=1), boxes)
    overlap = tf.where(classes >= 0, overlap, -1.0)
    centre = (boxes[:, :2] + boxes[:, 2:])[tf.newaxis] / 2
    inside = tf.reduce_all((centre >= offset[:, tf.newaxis]) & (centre < (offset + size)[:, tf.newaxis]), axis=-1)
    will_do = tf.reduce_any((overlap >= threshold) & inside & (classes >= 0), axis=1) | tf.reduce_all(classes < 0)
    return Region(offset, size), will_do


def iou_crop_region(original_size, boxes, classes, draws: types.Draws, config: AugmentConfig) -> Region:
    """SSD's crop (Liu et al. 2016, section 2.2): a patch that shows an object by at least a drawn IoU.

    With probability `config.iou_crop` the first of 50 random patches that holds the centre of a box whose IoU with the
    patch is at least one of 0, 0.1, 0.3, 0.5, 0.7 and 0.9, drawn for the image; a patch is 10 to 100% of the image's
    area and, before it is cut to the image, 1/2 to 2 times as wide, relative to the image, as it is high. Where none
    of them is such, and otherwise, the whole image.

    Args:
      original_size: i32 [b, 2].
      boxes: f32 [b, n, 4] in pixels of the original image.
      classes: i32 [b, n], -1 pads.
      draws: of the images.
      config: the probability.
    """

    def choose(row):
        size, boxes, classes, draw, seed = row
        everything = Region(tf.zeros([2]), size)

        def crop():
            (offsets, sizes), will_do = _iou_crop_trials(
                size, boxes, classes, tf.stack([tf.bitcast(seed, tf.int32), 0])
            )
            first = tf.argmax(will_do)
            return tf.cond(will_do[first], lambda: Region(offsets[first], sizes[first]), lambda: everything)

        return tf.cond(draw < config.iou_crop, crop, lambda: everything)

    rows = (tf.cast(original_size, tf.float32), boxes, classes, draws.iou_crop, draws.iou_crop_seed)
    return tf.map_fn(choose, rows, fn_output_signature=Region(*(tf.TensorSpec([2], tf.float32),) * 2))


def transform_of(window: Window):
    """f32 [..., 4] (scale_y, scale_x, offset_y, offset_x): input pixel = scale * original pixel + offset."""
    scale = tf.cast(window.resized, tf.float32) / tf.cast(window.size, tf.float32)
    return tf.concat([scale, -tf.cast(window.offset, tf.float32) * scale], axis=-1)


def jpeg_ratio(window: Window):
    """i32 [...]: the largest of 1, 2, 4 and 8 by which a JPEG can be decoded smaller and still not need enlarging.

    Large photographs are decoded in a fraction of the time, and each pixel of the smaller image is a mean of the larger
    one's: a bilinear resize by more than 2 would skip pixels.
    """
    shrinks = tf.reduce_min(window.size // window.resized, axis=-1)
    return 1 + tf.add_n([tf.cast(shrinks >= ratio, tf.int32) * (ratio // 2) for ratio in _JPEG_RATIOS[1:]])


def align_window(window: Window, ratio) -> Window:
    """The window, grown to whole pixels of the image that is `ratio` times smaller.

    At the right and lower edge it may reach up to `ratio` - 1 pixels beyond the original, where a JPEG repeats the last
    ones.
    """
    ratio = ratio[..., tf.newaxis]
    start = window.offset // ratio * ratio
    stop = -(-(window.offset + window.size) // ratio) * ratio
    return window._replace(offset=start, size=stop - start)


def decode(encoded):
    """u8 [h, w, 3] of a JPEG, PNG, BMP or the first frame of a GIF; string scalar in."""
    return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def _is_jpeg(encoded):
    """bool [...] of strings [...], by the first bytes, as `tf.image.is_jpeg`."""
    return tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff"


def _decode_window(encoded, window: Window, ratio, crops: bool):
    """u8 [window.size / ratio, 3] of one image: a JPEG is decoded in the window alone, a PNG whole and then cut.

    Args:
      encoded: string scalar.
      window: aligned to `ratio`.
      ratio: i32 scalar, one of `_JPEG_RATIOS`; 0 for a PNG.
      crops: whether the window may be smaller than the image.
    """

    def jpeg(ratio):
        if not crops:
            return lambda: tf.io.decode_jpeg(encoded, channels=3, ratio=ratio)
        bounds = tf.concat([window.offset, window.size], axis=0) // ratio
        return lambda: tf.image.decode_and_crop_jpeg(encoded, bounds, channels=3, ratio=ratio)

    def png():
        pixels = tf.io.decode_png(encoded, channels=3)
        return tf.slice(pixels, [*tf.unstack(window.offset), 0], [*tf.unstack(window.size), 3]) if crops else pixels

    branches = {number: jpeg(ratio) for number, ratio in enumerate(_JPEG_RATIOS)}
    branch = tf.reduce_sum(tf.cast(ratio > tf.constant(_JPEG_RATIOS[:-1]), tf.int32))
    return tf.switch_case(tf.where(ratio == 0, len(branches), branch), {**branches, len(branches): png})


def resize(image, resized):
    """u8 [h, w, 3] -> u8 [*resized, 3], bilinear."""
    # From float32, because the kernel that reads uint8 takes nearly twice as long. The cast cuts fractions off:
    # rounding would be one more pass over the pixels, for half a grey level.
    return tf.cast(tf.image.resize(tf.cast(image, tf.float32), resized), tf.uint8)


def pad(image, image_size):
    """u8 [h, w, 3] -> u8 [*image_size, 3], grey at the bottom and the right."""
    height, width = tf.unstack(tf.constant(image_size) - tf.shape(image)[:2])
    # Joined rather than tf.pad, which visits each value where this copies rows.
    padding = tf.constant(PAD_VALUE, tf.uint8)
    image = tf.concat([image, tf.fill([tf.shape(image)[0], width, 3], padding)], axis=1)
    image = tf.concat([image, tf.fill([height, image_size[1], 3], padding)], axis=0)
    return tf.ensure_shape(image, [*image_size, 3])


def letterbox(image, image_size):
    """Fits a decoded image into the network's input.

    Args:
      image: u8 [h, w, 3].
      image_size: (height, width).

    Returns:
      u8 [height, width, 3] and the f32 [4] transform from original to input pixels.
    """
    window = fit_window(whole(tf.shape(image)[:2]), image_size)
    return pad(resize(image, window.resized), image_size), transform_of(window)


def load_and_letterbox(encoded, image_size):
    """Fits an image file into the network's input just as evaluation does; string scalar in, of a format of `decode`.

    Returns:
      u8 [height, width, 3], the f32 [4] transform, and the i32 [2] size of the original.
    """

    def from_jpeg():
        size = tf.io.extract_jpeg_shape(encoded)[:2]
        window = fit_window(whole(size), image_size)
        ratio = jpeg_ratio(window)
        window = align_window(window, ratio)
        image = _decode_window(encoded, window, ratio, crops=False)
        return pad(resize(image, window.resized), image_size), transform_of(window), size

    def from_other():
        image = decode(encoded)
        return *letterbox(image, image_size), tf.shape(image)[:2]

    return tf.cond(_is_jpeg(encoded), from_jpeg, from_other)


# Rotation, shear and shift in one resampling: affine maps of (x, y) in pixels of the network's input, f32 [b, 2, 3].


def strength(name: str, value, draws: types.Draws, config: AugmentConfig):
    """f32 [b]: how far `name`, a field of the config, may go in each image.

    That is `value` (f32 scalar or [b]) or, in the images for which RandAugment (Cubuk et al. 2020) draws the operation,
    at least its magnitude's share of the operation's limit. An image draws `config.randaugment` operations, with
    replacement.
    """
    value = tf.broadcast_to(tf.cast(value, tf.float32), tf.shape(draws.scale))
    draws = [draws.randaugment_1, draws.randaugment_2, draws.randaugment_3][: config.randaugment]
    if not draws or name not in RANDAUGMENT_LIMITS:
        return value
    number = list(RANDAUGMENT_LIMITS).index(name)
    drawn = tf.reduce_any([tf.floor(draw * len(RANDAUGMENT_LIMITS)) == number for draw in draws], axis=0)
    magnitude = RANDAUGMENT_LIMITS[name] * config.randaugment_magnitude / MAX_MAGNITUDE
    return tf.where(drawn, tf.maximum(value, magnitude), value)


def warp_matrices(draws: types.Draws, config: AugmentConfig, image_size):
    """Where the points of each image go, and which images are warped at all.

    With probability `config.warp`, or where RandAugment says so: rotation by up to `config.rotate` degrees and shear
    (x moves by a share of y) by up to `config.shear`, both about the centre, and translation by up to the share
    `config.translate` of each side; each is uniform, to both sides.

    Returns:
      f32 [b, 2, 3] and bool [b].
    """

    def amount(name, draw):
        limit = tf.where(draws.warp < config.warp, float(getattr(config, name)), 0.0)
        return (2 * draw - 1) * strength(name, limit, draws, config)

    height, width = image_size
    angle, shear = amount("rotate", draws.rotate) * (np.pi / 180), amount("shear", draws.shear)
    shift = tf.stack(
        [amount("translate", draws.translate_x) * width, amount("translate", draws.translate_y) * height], axis=1
    )
    # In float64, as in `jitter_window`.
    cos, sin = (tf.cast(of(tf.cast(angle, tf.float64)), tf.float32) for of in (tf.cos, tf.sin))
    turn = tf.reshape(tf.stack([cos, shear * cos - sin, sin, shear * sin + cos], axis=1), [-1, 2, 2])
    centre = tf.constant([width / 2, height / 2])
    offset = centre + shift - tf.linalg.matvec(turn, centre)
    moves = (angle != 0) | (shear != 0) | tf.reduce_any(shift != 0, axis=1)
    return tf.concat([turn, offset[..., tf.newaxis]], axis=2), moves


def warp_image(image, matrix):
    """The image u8 [h, w, 3] moved by an affine map f32 [2, 3], bilinear; grey where nothing comes from."""
    turn, offset = matrix[:, :2], matrix[:, 2]
    back = tf.linalg.inv(turn)
    # The op counts pixels by their centres, from 0, and wants to know where each pixel comes from.
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


def warp_boxes(boxes, matrices):
    """The upright boxes f32 [b, n, 4] around boxes [b, n, 4] moved by f32 [b, 2, 3]; not clipped."""
    ymin, xmin, ymax, xmax = tf.unstack(boxes, axis=-1)
    corners = tf.stack([tf.stack([xmin, xmax, xmin, xmax], -1), tf.stack([ymin, ymin, ymax, ymax], -1)], axis=-1)
    moved = tf.einsum("bij,bnkj->bnki", matrices[..., :2], corners) + matrices[:, tf.newaxis, tf.newaxis, :, 2]
    low, high = tf.reduce_min(moved, axis=2), tf.reduce_max(moved, axis=2)
    return tf.concat([low[..., ::-1], high[..., ::-1]], axis=-1)


# Boxes.


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
      boxes: f32 [..., n, 4] px, possibly outside the image.
      image_size: f32 or i32 [..., 2], height and width.
      min_visible: as for `still_shown`.

    Returns:
      Clipped boxes f32 [..., n, 4] and keep bool [..., n].
    """
    limit = tf.cast(image_size, tf.float32)[..., tf.newaxis, :]
    clipped = tf.clip_by_value(boxes, 0.0, tf.concat([limit, limit], axis=-1))
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    centre_inside = tf.reduce_all((centre >= 0) & (centre < limit), axis=-1)
    return clipped, still_shown(boxes, box_ops.area(clipped), centre_inside, min_visible)


def keep_boxes(boxes, classes, difficult, keep, max_boxes):
    """The boxes to keep, padded to `max_boxes`; of more boxes the largest, in their order.

    Args:
      boxes: f32 [b, n, 4].
      classes: i32 [b, n].
      difficult: bool [b, n].
      keep: bool [b, n].
      max_boxes: m.

    Returns:
      boxes f32 [b, m, 4], classes i32 [b, m] (-1 pads), difficult bool [b, m], and i32 [b]: how many were too many.
    """
    missing = tf.maximum(max_boxes - tf.shape(boxes)[1], 0)
    boxes = tf.pad(boxes, [[0, 0], [0, missing], [0, 0]])
    classes, difficult, keep = (tf.pad(values, [[0, 0], [0, missing]]) for values in (classes, difficult, keep))
    largest = tf.math.top_k(tf.where(keep, box_ops.area(boxes), -1.0), max_boxes).indices
    kept = tf.gather(keep, largest, batch_dims=1)
    order = tf.argsort(tf.where(kept, largest, tf.shape(boxes)[1]), axis=1)
    largest = tf.gather(largest, order, batch_dims=1)
    boxes, classes, difficult, kept = (
        tf.gather(values, largest, batch_dims=1) for values in (boxes, classes, difficult, keep)
    )
    return (
        tf.ensure_shape(tf.where(kept[..., tf.newaxis], boxes, 0.0), [None, max_boxes, 4]),
        tf.ensure_shape(tf.where(kept, classes, types.BACKGROUND), [None, max_boxes]),
        tf.ensure_shape(difficult & kept, [None, max_boxes]),
        tf.maximum(tf.math.count_nonzero(keep, axis=1, dtype=tf.int32) - max_boxes, 0),
    )


# The whole.


def load_and_crop(
    records: types.Records, record_index, valid, draws, config: InputConfig, *, training: bool
) -> types.Batch:
    """Decodes a batch of records, crops, resizes and carries the boxes along. For use in `Dataset.map`.

    Args:
      records: of b images.
      record_index: i64 [b], passed on.
      valid: bool [b], passed on.
      draws: f32 [b, NUM_DRAWS], passed on.
      config: sizes and augmentation.
      training: whether to augment; otherwise the whole images are shown.

    Raises:
      tf.errors.InvalidArgumentError: an image cannot be decoded.
    """
    augment = config.augment if training else AugmentConfig()
    columns = types.Draws.of(draws)
    sides = tf.cast(tf.tile(records.sizes, [1, 2]), tf.float32)
    region = whole(records.sizes)
    if augment.iou_crop:
        original_boxes = records.normalized_boxes * sides[:, tf.newaxis]
        region = iou_crop_region(records.sizes, original_boxes, records.classes, columns, augment)
    jitters = (augment.scale_min, augment.scale_max) != (1.0, 1.0)
    if jitters:
        window = jitter_window(region, config.image_size, columns, augment)
    else:
        window = fit_window(region, config.image_size)
    is_jpeg = _is_jpeg(records.images)
    ratio = tf.where(is_jpeg, jpeg_ratio(window), 1)
    window = align_window(window, ratio)
    transforms = transform_of(window)
    scales, offsets = (tf.tile(part, [1, 2]) for part in tf.split(transforms, 2, axis=1))
    # The small factors first: Grappler would do so for some batch sizes and not for others, and round differently.
    boxes = records.normalized_boxes * (sides * scales)[:, tf.newaxis] + offsets[:, tf.newaxis]

    boxes, keep = crop_boxes(boxes, window.resized, augment.min_visible)
    per_image = (records.images, window, tf.where(is_jpeg, ratio, 0))
    if augment.warps:
        matrices, moves = warp_matrices(columns, augment, config.image_size)
        warped, still_kept = crop_boxes(warp_boxes(boxes, matrices), config.image_size, augment.min_visible)
        boxes = tf.where(moves[:, tf.newaxis, tf.newaxis], warped, boxes)
        keep &= still_kept | ~moves[:, tf.newaxis]
        per_image += (matrices, moves)

    def load(encoded, window, ratio, matrix=None, moves=None):
        crops = jitters or bool(augment.iou_crop)
        image = resize(_decode_window(encoded, window, ratio, crops), window.resized)
        if augment.warps:
            image = tf.cond(moves, lambda: warp_image(pad(image, config.image_size), matrix), lambda: image)
        return tf.reshape(image, [tf.shape(image)[0], -1])  # long rows are copied faster than pixels

    height, width = config.image_size
    batch_size = _count(records.images)
    # A dataset, because its batch pads while it copies, which has to be done in any case.
    images = tf.data.Dataset.from_tensor_slices(per_image).map(load)
    images = images.padded_batch(tf.cast(batch_size, tf.int64), [height, width * 3], tf.constant(PAD_VALUE, tf.uint8))
    boxes, classes, difficult, num_dropped = keep_boxes(
        boxes, records.classes, records.difficult, keep & (records.classes >= 0), config.max_boxes
    )
    return types.Batch(
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
        draws=draws,
    )


def _count(values):
    """The length of the first axis: a number where it is static, else a tensor."""
    return tf.shape(values)[0] if values.shape[0] is None else values.shape[0]


def blank(record_index, draws, config: InputConfig) -> types.Batch:
    """What stands for b images that cannot be decoded: grey, without objects, not `valid`."""
    count, boxes = _count(record_index), config.max_boxes
    return types.Batch(
        images=tf.fill([count, *config.image_size, 3], tf.constant(PAD_VALUE, tf.uint8)),
        boxes=tf.zeros([count, boxes, 4]),
        classes=tf.fill([count, boxes], types.BACKGROUND),
        difficult=tf.zeros([count, boxes], tf.bool),
        box_weights=tf.ones([count, boxes]),
        original_sizes=tf.ones([count, 2], tf.int32),
        transforms=tf.tile([[1.0, 1.0, 0.0, 0.0]], [count, 1]),
        valid=tf.zeros([count], tf.bool),
        num_dropped=tf.zeros([count], tf.int32),
        record_index=record_index,
        draws=draws,
    )
