"""What passes between the stages. Shape letters: b batch, h w image, a anchors, m padded boxes, n boxes."""

from typing import NamedTuple

import tensorflow as tf

BACKGROUND = -1  # class target of an anchor with no object; also the class of a padding box
IGNORED = -2  # class target of an anchor that counts neither for nor against


class Records(NamedTuple):
    """A batch of parsed tf.Examples; the images are still encoded. n is the number of boxes of the image with most."""

    images: tf.Tensor  # string [b]
    sizes: tf.Tensor  # i32 [b, 2], height and width of the images
    normalized_boxes: tf.Tensor  # f32 [b, n, 4], ymin xmin ymax xmax in 0..1 of the image
    classes: tf.Tensor  # i32 [b, n], 0-based, -1 pads
    difficult: tf.Tensor  # bool [b, n]


class Draws(NamedTuple):
    """The columns of `Batch.draws`: a uniform number in [0, 1) an image and decision; f32 [b] each."""

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
    def of(cls, draws: tf.Tensor) -> "Draws":
        """The columns of f32 [b, NUM_DRAWS]."""
        return cls(*tf.unstack(draws, num=NUM_DRAWS, axis=1))


NUM_DRAWS = len(Draws._fields)


class Batch(NamedTuple):
    """A batch as the device receives it; `batch_augment` returns it with float, normalised images."""

    images: tf.Tensor  # u8 [b, h, w, 3]
    boxes: tf.Tensor  # f32 [b, m, 4] px
    classes: tf.Tensor  # i32 [b, m], -1 pads
    difficult: tf.Tensor  # bool [b, m]
    box_weights: tf.Tensor  # f32 [b, m]
    original_sizes: tf.Tensor  # i32 [b, 2]
    transforms: tf.Tensor  # f32 [b, 4]
    valid: tf.Tensor  # bool [b], false for a damaged image and for the padding of the last evaluation batch
    num_dropped: tf.Tensor  # i32 [b], boxes beyond `max_boxes`
    record_index: tf.Tensor  # i64 [b], position of the record in the shards read in order: names the image
    draws: tf.Tensor  # f32 [b, NUM_DRAWS], uniform in [0, 1): what decides each image's augmentation


class Targets(NamedTuple):
    """What each anchor should answer."""

    class_targets: tf.Tensor  # i32 [b, a]: a class, BACKGROUND or IGNORED
    box_targets: tf.Tensor  # f32 [b, a, 4] (dy, dx, dh, dw); zeros where there is no class
    weights: tf.Tensor  # f32 [b, a]: weight of the matched box; 1 where there is none
