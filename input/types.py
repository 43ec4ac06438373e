"""What passes between the stages. Shape letters: b batch, h w image, a anchors, m padded boxes, n boxes."""

from typing import NamedTuple

import tensorflow as tf

BACKGROUND = -1  # class target of an anchor with no object; also the class of a padding box
IGNORED = -2  # class target of an anchor that counts neither for nor against


class Record(NamedTuple):
    """One parsed tf.Example; the image is still encoded."""

    image: tf.Tensor  # string []
    size: tf.Tensor  # i32 [2], height and width of the image
    normalized_boxes: tf.Tensor  # f32 [n, 4], ymin xmin ymax xmax in 0..1 of the image
    classes: tf.Tensor  # i32 [n], 0-based
    difficult: tf.Tensor  # bool [n]
    image_id: tf.Tensor  # string []


class Sample(NamedTuple):
    """One image as the host hands it to batching; boxes are padded to m."""

    image: tf.Tensor  # u8 [h, w, 3]
    boxes: tf.Tensor  # f32 [m, 4], ymin xmin ymax xmax in pixels of `image`
    classes: tf.Tensor  # i32 [m], -1 pads
    difficult: tf.Tensor  # bool [m]
    box_weights: tf.Tensor  # f32 [m], weight in the loss; 1 unless mixing changes it
    original_size: tf.Tensor  # i32 [2], height and width of the decoded file
    transform: tf.Tensor  # f32 [4], scale_y scale_x offset_y offset_x: pixel of `image` = scale * original + offset


class Batch(NamedTuple):
    """A batch as the device receives it; `batch_augment` returns it with float, normalised images."""

    images: tf.Tensor  # u8 [b, h, w, 3]
    boxes: tf.Tensor  # f32 [b, m, 4] px
    classes: tf.Tensor  # i32 [b, m], -1 pads
    difficult: tf.Tensor  # bool [b, m]
    box_weights: tf.Tensor  # f32 [b, m]
    original_sizes: tf.Tensor  # i32 [b, 2]
    transforms: tf.Tensor  # f32 [b, 4]
    valid: tf.Tensor  # bool [b], false for the padding of the last evaluation batch
    record_index: tf.Tensor  # i64 [b], position of the record in the shards read in order: names the image
    draws: tf.Tensor  # f32 [b, NUM_DRAWS], uniform in [0, 1): what `batch_augment` decides each image's changes by


class Targets(NamedTuple):
    """What each anchor should answer."""

    class_targets: tf.Tensor  # i32 [b, a]: a class, BACKGROUND or IGNORED
    box_targets: tf.Tensor  # f32 [b, a, 4] (dy, dx, dh, dw); zeros where there is no class
    weights: tf.Tensor  # f32 [b, a]: weight of the matched box; 1 where there is none
