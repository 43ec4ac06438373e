"""What passes between the stages. Shape letters: b batch, h w image, a anchors, m padded boxes, n boxes."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

BACKGROUND = -1  # class target of an anchor with no object; also the class of a padding box
IGNORED = -2  # class target of an anchor that has no part in the loss; also the class of an ignored region
PAD_VALUE = 114  # grey near ImageNet's mean colour, so that the edge of the padding is a weak one


class Records(NamedTuple):
    """A batch of parsed tf.Examples; the images are still encoded. n is the largest number of boxes in an image."""

    images: tf.Tensor  # string [b]
    sizes: tf.Tensor  # i32 [b, 2], height and width of the images
    normalized_boxes: tf.Tensor  # f32 [b, n, 4], ymin xmin ymax xmax in 0..1 of the image
    classes: tf.Tensor  # i32 [b, n], 0-based, -1 pads, -2 for an ignored region
    difficult: tf.Tensor  # bool [b, n]


class Batch(NamedTuple):
    """A batch as the device receives it; `batch_augment` returns it with float, normalised images."""

    images: tf.Tensor  # u8 [b, h, w, 3]
    boxes: tf.Tensor  # f32 [b, m, 4] px
    classes: tf.Tensor  # i32 [b, m], -1 pads, -2 for an ignored region
    difficult: tf.Tensor  # bool [b, m]
    box_weights: tf.Tensor  # f32 [b, m]
    original_sizes: tf.Tensor | None  # i32 [b, 2], height and width; None in a training step
    # f32 [b, 4], (scale_y, scale_x, offset_y, offset_x): input px = scale * original px + offset; None likewise
    transforms: tf.Tensor | None
    valid: tf.Tensor  # bool [b], false for a damaged image and for the padding of the last evaluation batch
    num_dropped: tf.Tensor  # i32 [b], objects beyond `max_boxes`, which are ignored
    record_index: tf.Tensor  # i64 [b], counted over all shards read in order: names the image
    random_numbers: tf.Tensor  # f32 [b, random_numbers.NUM_PER_IMAGE], which decide each image's augmentation


class Targets(NamedTuple):
    """What the network should predict for each anchor."""

    class_targets: tf.Tensor  # i32 [b, a]: a class, BACKGROUND or IGNORED
    box_targets: tf.Tensor  # f32 [b, a, 4] (dy, dx, dh, dw); zeros where there is no class
    weights: tf.Tensor  # f32 [b, a]: weight of the matched box; 1 where there is none
