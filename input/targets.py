"""Matching boxes to anchors, and what each anchor should then answer.

The rules, the same for both methods:

- A padding box (class -1) or an empty one takes no part.
- An anchor is positive for the box, not difficult, with which its IoU is highest (ties: the lowest box index) when
  that reaches `positive_iou`.
- With `force_match` each box, not difficult, also claims the anchor with which its IoU is highest and above 0
  (within 1e-6: the lowest anchor index), whatever that anchor's IoU with other boxes. Where several boxes claim one
  anchor, it goes to the highest IoU, then to the lowest box index; the others do not look for another anchor.
- Any other anchor is ignored when its IoU with some box, difficult or not, reaches `negative_iou`, and background
  otherwise.
"""

import numpy as np
import tensorflow as tf

from input import boxes as box_ops
from input.anchors import anchor_shapes, grid_sizes, make_anchors
from input.types import BACKGROUND, IGNORED, Targets

NEAR_TIE = 1e-6  # IoUs closer than this are equal, so that rounding does not choose an anchor
FORCED = 2.0  # added to the IoU of a claimed anchor: above every IoU
MARGIN = 1e-2  # px by which the sparse search looks too far: more than rounding can take away


def assign_targets(boxes, classes, difficult, box_weights, *, anchor_config, match_config, image_size, method="dense"):
    """What every anchor of a batch of images should answer. Eagerly, in a tf.function or in Dataset.map.

    Args:
      boxes: [b, m, 4] px of the network's input.
      classes: i32 [b, m]; -1 pads.
      difficult: bool [b, m].
      box_weights: f32 [b, m].
      anchor_config: AnchorConfig.
      match_config: MatchConfig.
      image_size: (height, width) of the network's input.
      method: "dense" compares every box with every anchor, with static shapes and no scatter: for a GPU, and it
        compiles under XLA. "sparse" visits only the anchors that may match a box: for the host and any other CPU.

    Returns:
      Targets: class_targets i32 [b, a], box_targets f32 [b, a, 4], weights f32 [b, a].

    Raises:
      ValueError: for an unknown method.
    """
    boxes = tf.cast(boxes, tf.float32)
    classes = tf.cast(classes, tf.int32)
    box_weights = tf.cast(box_weights, tf.float32)
    areas = box_ops.area(boxes)
    takes_part = (classes >= 0) & (areas > 0.0) & tf.math.is_finite(areas)
    if method == "dense":
        anchors = tf.constant(make_anchors(anchor_config, image_size))
        return _assign_dense(boxes, classes, difficult, box_weights, takes_part, anchors, match_config)
    if method == "sparse":
        return _assign_sparse(
            boxes, classes, difficult, box_weights, takes_part, anchor_config, match_config, image_size
        )
    raise ValueError(f"method={method!r}: choose dense or sparse.")


def _assign_dense(boxes, classes, difficult, box_weights, takes_part, anchors, config):
    def match(image):
        """One image: index of the anchor's box i32 [a], whether it is matched, and whether to ignore it if not."""
        boxes, takes_part, difficult = image
        ious = tf.where(takes_part[:, tf.newaxis], box_ops.iou(boxes, anchors), 0.0)  # [m, a]
        scores = tf.where(difficult[:, tf.newaxis], 0.0, ious)
        if config.force_match:
            best_of_box = tf.reduce_max(scores, axis=1, keepdims=True)
            claimable = (scores > 0.0) & (scores >= best_of_box - NEAR_TIE)
            claims = claimable & (tf.range(tf.shape(anchors)[0]) == _first(claimable, axis=1)[:, tf.newaxis])
            scores = tf.where(claims, scores + FORCED, scores)
        best_of_anchor = tf.reduce_max(scores, axis=0)
        return (
            _first(scores == best_of_anchor, axis=0),
            best_of_anchor >= config.positive_iou,
            tf.reduce_max(ious, axis=0) >= config.negative_iou,
        )

    index, matched, ignored = tf.map_fn(
        match,
        (boxes, takes_part, difficult),
        fn_output_signature=(tf.int32, tf.bool, tf.bool),
        parallel_iterations=1,  # the IoUs of one image take megabytes
    )
    matched_boxes = tf.where(matched[..., tf.newaxis], tf.gather(boxes, index, batch_dims=1), anchors)
    return Targets(
        class_targets=tf.where(
            matched, tf.gather(classes, index, batch_dims=1), tf.where(ignored, IGNORED, BACKGROUND)
        ),
        box_targets=box_ops.encode(matched_boxes, anchors),
        weights=tf.where(matched, tf.gather(box_weights, index, batch_dims=1), 1.0),
    )


def _first(mask, axis):
    """Lowest index along `axis` where `mask` [n, m] is true, 0 if nowhere: `argmax` promises no particular one."""
    size = tf.shape(mask)[axis]
    positions = tf.expand_dims(tf.range(size), 1 - axis)
    return tf.reduce_min(tf.where(mask, positions, size), axis=axis) % size


def _assign_sparse(boxes, classes, difficult, box_weights, takes_part, anchor_config, config, image_size):
    anchors = tf.constant(make_anchors(anchor_config, image_size))
    num_anchors = anchors.shape[0]
    batch_size = tf.shape(boxes)[0]

    boxes_per_image = tf.shape(boxes, out_type=tf.int64)[1]
    rows = tf.where(tf.reshape(takes_part, [-1]))[:, 0]  # the n boxes that take part, over the whole batch
    image = rows // boxes_per_image
    boxes, classes, difficult, box_weights = (
        tf.gather(tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], axis=0)), rows)
        for x in (boxes, classes, difficult, box_weights)
    )

    # Every pair of a box and an anchor that can matter.
    box, anchor = _candidates(boxes, anchor_config, config, image_size)
    ious = box_ops.paired_iou(tf.gather(boxes, box), tf.gather(anchors, anchor))
    scores = tf.where(tf.gather(difficult, box), 0.0, ious)
    num_boxes = tf.shape(boxes)[0]
    if config.force_match:
        best_of_box = tf.math.unsorted_segment_max(scores, box, num_boxes)
        claimable = (scores > 0.0) & (scores >= tf.gather(best_of_box, box) - NEAR_TIE)
        claimed = tf.math.unsorted_segment_min(tf.where(claimable, anchor, num_anchors), box, num_boxes)
        scores = tf.where(anchor == tf.gather(claimed, box), scores + FORCED, scores)

    # Reduced over the boxes of each anchor.
    place = tf.gather(image, box) * num_anchors + anchor  # in the batch's anchors, flattened
    num_places = batch_size * num_anchors
    ignored = tf.boolean_mask(place, ious >= config.negative_iou)
    positive = tf.where(scores >= config.positive_iou)[:, 0]
    place, anchor, box, scores = (tf.gather(x, positive) for x in (place, anchor, box, scores))
    best_of_anchor = tf.math.unsorted_segment_max(scores, place, num_places)
    best = tf.where(scores == tf.gather(best_of_anchor, place))[:, 0]
    place, anchor, box = (tf.gather(x, best) for x in (place, anchor, box))
    first_of_anchor = tf.math.unsorted_segment_min(box, place, num_places)
    first = tf.where(box == tf.gather(first_of_anchor, place))[:, 0]
    place, anchor, box = (tf.gather(x, first) for x in (place, anchor, box))

    def scatter(background, places, values):
        return tf.tensor_scatter_nd_update(background, places[:, tf.newaxis], values)

    class_targets = tf.fill([num_places], BACKGROUND)
    class_targets = scatter(class_targets, ignored, tf.fill(tf.shape(ignored), IGNORED))
    class_targets = scatter(class_targets, place, tf.gather(classes, box))
    box_targets = box_ops.encode(tf.gather(boxes, box), tf.gather(anchors, anchor))
    box_targets = scatter(tf.zeros([num_places, 4]), place, box_targets)
    weights = scatter(tf.ones([num_places]), place, tf.gather(box_weights, box))
    return Targets(
        class_targets=tf.reshape(class_targets, [batch_size, num_anchors]),
        box_targets=tf.reshape(box_targets, [batch_size, num_anchors, 4]),
        weights=tf.reshape(weights, [batch_size, num_anchors]),
    )


def _candidates(boxes, anchor_config, config, image_size):
    """All pairs of a box and an anchor that may be positive, ignored or forced, and few others.

    Two rectangles have an IoU of at least t where their intersection is at least t / (1 + t) of the sum of their
    areas. The intersection is the product of the overlaps in y and x, of which neither exceeds the smaller side, so
    each has to be at least that bound divided by the other's largest. An overlap is half the sum of the sides less
    the distance of the centres: that bounds the distance, and the anchors of one shape lie on a grid.

    Args:
      boxes: f32 [n, 4] px, none empty.

    Returns:
      i64 [c], i64 [c]: indices of boxes, ascending, and of anchors.
    """
    shapes = anchor_shapes(anchor_config)  # [levels, s, 2]
    levels, per_location, _ = shapes.shape
    grids = np.array(grid_sizes(anchor_config, image_size), np.int64)  # [levels, 2]
    first_anchors = per_location * np.cumsum(np.concatenate([[0], grids.prod(axis=1)[:-1]]))  # [levels]
    # One entry for each of the p = levels * s shapes.
    sides = shapes.reshape(-1, 2)
    strides = np.repeat(2.0 ** np.array(anchor_config.levels), per_location)[:, np.newaxis].astype(np.float32)
    grids = np.repeat(grids, per_location, axis=0)
    first_anchors = np.repeat(first_anchors, per_location) + np.tile(np.arange(per_location), levels)

    box_sides = (boxes[:, 2:] - boxes[:, :2])[:, tf.newaxis]  # [n, 1, 2], against [p, 2]
    centers = (boxes[:, :2] + boxes[:, 2:])[:, tf.newaxis] / 2.0 / strides - 0.5  # [n, p, 2] in cells
    smaller = tf.minimum(box_sides, sides)
    mean = (box_sides + sides) / 2.0
    areas = tf.reduce_prod(box_sides, axis=-1) + sides.prod(axis=-1)  # [n, p]

    threshold = config.negative_iou
    if config.force_match:
        # Just below the IoU of the box's best anchor, which for one shape is the nearest one.
        nearest = tf.clip_by_value(tf.round(centers), 0.0, tf.cast(grids - 1, tf.float32))
        overlaps = tf.clip_by_value(mean - tf.abs(nearest - centers) * strides, 0.0, smaller)
        intersections = tf.reduce_prod(overlaps, axis=-1)
        best = tf.reduce_max(intersections / (areas - intersections), axis=1, keepdims=True)  # [n, 1]
        threshold = tf.clip_by_value(0.999 * best - 2.0 * NEAR_TIE, 0.0, threshold)
    needed = threshold / (1.0 + threshold) * areas
    reach = mean - needed[..., tf.newaxis] / tf.reverse(smaller, [-1]) + MARGIN
    reach = reach / strides
    low = tf.maximum(tf.cast(tf.math.ceil(centers - reach), tf.int64), 0)
    high = tf.minimum(tf.cast(tf.math.floor(centers + reach), tf.int64), grids - 1)
    counts = tf.maximum(high - low + 1, 0)  # [n, p, 2]

    # Ranges of numbers that hold the window in their upper and the cell within it in their lower half.
    cells = tf.reshape(tf.reduce_prod(counts, axis=-1), [-1])
    starts = tf.range(tf.size(cells, out_type=tf.int64)) * 2**32
    windows = tf.ragged.range(starts, starts + cells).flat_values
    window, cell = windows // 2**32, windows % 2**32
    low, counts = (tf.gather(tf.reshape(x, [-1, 2]), window) for x in (low, counts))
    row, column = low[:, 0] + cell // counts[:, 1], low[:, 1] + cell % counts[:, 1]
    box, shape = window // len(sides), window % len(sides)
    anchor = tf.gather(first_anchors, shape) + (row * tf.gather(grids[:, 1], shape) + column) * per_location
    return box, anchor
