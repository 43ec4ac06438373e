"""Assigns boxes to anchors: what the network should predict for each anchor.

The rules of `--assignment=iou`, which are the same for both methods (those of atss are in `input/atss.py`):

- A padding box (class -1) or an empty one takes no part. A difficult one takes part in the last rule only.
- An anchor is assigned to the box with which its IoU is highest (ties: the lowest box index) if that IoU reaches
  `positive_iou`.
- With `force_match` each box also gets a low-quality match: the anchor with which its IoU is highest and above 0 is
  assigned to it, whatever the anchor's IoU with other boxes. Of several within 1e-6, `low_quality_ties` chooses the
  one with the lowest index, the nearest one (then the lowest index), or all. If several boxes have the same such
  anchor, the highest IoU decides, then the lowest box index; the other boxes get no other anchor.
- Any other anchor is ignored if its IoU with some box, difficult or not, reaches `negative_iou`, or if half of it lies
  in an ignored region (class -2; see regions.py), and is background otherwise.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from input import atss, low_quality, regions
from input import boxes as box_ops
from input.anchors import anchor_shapes, grid_offset, grid_sizes, grid_steps, make_anchors
from input.config import InputConfig
from input.types import BACKGROUND, IGNORED, Batch, Targets

MARGIN = 1e-2  # px by which the sparse search looks too far: more than any rounding error


def assign(batch: Batch, config: InputConfig, *, method: str) -> Targets:
    """The targets of every anchor of a batch. Works eagerly, in a tf.function and in Dataset.map.

    Args:
      batch: boxes, classes, difficult, box_weights and valid are read; all anchors of an image not valid are IGNORED.
      config: the anchors, the thresholds and the size of the network's input.
      method: "dense" compares every box with every anchor, with static shapes and no scatter: it is for a GPU, and
        compiles under XLA. "sparse" looks only at the anchors near a box: it is for the host and any other CPU.

    Raises:
      ValueError: the method is unknown.
    """
    boxes = tf.cast(batch.boxes, tf.float32)
    areas = box_ops.area(boxes)
    takes_part = (batch.classes >= 0) & (areas > 0.0) & tf.math.is_finite(areas)
    objects = batch._replace(boxes=tf.where(takes_part[..., tf.newaxis], boxes, 0.0))  # an empty box overlaps nothing
    if method not in ("dense", "sparse"):
        raise ValueError(f"method={method!r}: choose dense or sparse.")
    anchors = make_anchors(config.anchor, config.image_size)
    if config.match.assignment == "iou" and method == "sparse":
        targets = _assign_sparse(objects, config)
    else:
        match = atss.match if config.match.assignment == "atss" else _match_dense
        targets = _make_targets(objects, anchors, *match(objects, anchors, config))
    class_targets = regions.ignore_inside(targets.class_targets, batch, tf.constant(anchors), method=method)
    return targets._replace(class_targets=tf.where(batch.valid[:, tf.newaxis], class_targets, IGNORED))


def _match_dense(batch: Batch, anchors: np.ndarray, config: InputConfig) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """As `atss.match`."""
    # [b, m, a] of these are hundreds of megabytes: XLA fuses them away, so a GPU should run this compiled.
    ious = box_ops.iou(batch.boxes, anchors)
    scores = tf.where(batch.difficult[..., tf.newaxis], 0.0, ious)
    if config.match.force_match:
        indexes = tf.range(len(anchors), dtype=tf.float32)
        distances = box_ops.squared_center_distance(batch.boxes[:, :, tf.newaxis], anchors)
        forced, best = low_quality.matches(scores, indexes, distances, config.match.low_quality_ties)
        scores = tf.where(forced, best + low_quality.BONUS, scores)
    matched = tf.reduce_max(scores, axis=1) >= config.match.positive_iou
    ignored = tf.reduce_max(ious, axis=1) >= config.match.negative_iou
    # XLA and the CPU's kernel give the lowest of several indexes; TensorFlow's own GPU kernel does not promise it.
    return tf.argmax(scores, axis=1, output_type=tf.int32), matched, ignored


def _make_targets(
    batch: Batch, anchors: np.ndarray, index: tf.Tensor, matched: tf.Tensor, ignored: tf.Tensor
) -> Targets:
    boxes, classes, box_weights = (
        tf.gather(values, index, batch_dims=1) for values in (batch.boxes, batch.classes, batch.box_weights)
    )
    return Targets(
        class_targets=tf.where(matched, classes, tf.where(ignored, IGNORED, BACKGROUND)),
        box_targets=box_ops.encode(tf.where(matched[..., tf.newaxis], boxes, anchors), anchors),
        weights=tf.where(matched, box_weights, 1.0),
    )


def _assign_sparse(batch: Batch, config: InputConfig) -> Targets:
    anchors = tf.constant(make_anchors(config.anchor, config.image_size))
    num_anchors = anchors.shape[0]
    batch_size = tf.shape(batch.boxes)[0]

    # The boxes that take part, those of the whole batch on one axis, the difficult ones last.
    takes_part = box_ops.area(batch.boxes) > 0.0
    ordinary = tf.where(takes_part & ~batch.difficult)  # [n, 2]
    num_ordinary = tf.shape(ordinary)[0]
    taking_part = tf.concat([ordinary, tf.where(takes_part & batch.difficult)], axis=0)
    boxes, classes, box_weights = (
        tf.gather_nd(values, taking_part) for values in (batch.boxes, batch.classes, batch.box_weights)
    )

    # From here on `box` and `anchor` are indexes, those of anchors counted over the whole batch. The three lists `box`,
    # `anchor` and `ious` have one entry for each pair of a box and an anchor near it.
    box_offsets = tf.cast(taking_part[:, 0], tf.int32) * num_anchors
    box, anchor = _candidates(boxes, box_offsets, config)
    ious = box_ops.paired_iou(tf.gather(boxes, box), tf.gather(anchors, anchor % num_anchors))
    ignored = tf.gather(anchor, tf.where(ious >= config.match.negative_iou)[:, 0])  # unless it is assigned to a box
    positive = tf.where((ious >= config.match.positive_iou) & (box < num_ordinary))[:, 0]
    pairs = [tf.gather(x, positive) for x in (box, anchor, ious)]
    if config.match.force_match:
        distances = box_ops.squared_center_distance(tf.gather(boxes, box), tf.gather(anchors, anchor % num_anchors))
        ties = config.match.low_quality_ties
        forced = _low_quality_matches(box, anchor, ious, distances, num_ordinary, ties)
        pairs = [tf.concat(both, axis=0) for both in zip(pairs, forced)]

    # Of the boxes paired with one anchor, the first of those with the highest score.
    box, anchor, scores = pairs
    anchor, group = tf.unique(anchor)
    best = tf.math.unsorted_segment_max(scores, group, tf.size(anchor))
    first_of_best = tf.where(scores == tf.gather(best, group), box, box.dtype.max)
    box = tf.math.unsorted_segment_min(first_of_best, group, tf.size(anchor))

    def scatter(background: tf.Tensor, anchor: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        return tf.tensor_scatter_nd_update(background, anchor[:, tf.newaxis], values)

    size = batch_size * num_anchors
    class_targets = scatter(tf.fill([size], BACKGROUND), ignored, tf.fill(tf.shape(ignored), IGNORED))
    class_targets = scatter(class_targets, anchor, tf.gather(classes, box))
    deltas = box_ops.encode(tf.gather(boxes, box), tf.gather(anchors, anchor % num_anchors))
    box_targets = tf.scatter_nd(anchor[:, tf.newaxis], deltas, [size, 4])
    weights = scatter(tf.ones([size]), anchor, tf.gather(box_weights, box))
    return Targets(
        class_targets=tf.reshape(class_targets, [batch_size, num_anchors]),
        box_targets=tf.reshape(box_targets, [batch_size, num_anchors, 4]),
        weights=tf.reshape(weights, [batch_size, num_anchors]),
    )


def _low_quality_matches(
    box: tf.Tensor, anchor: tf.Tensor, ious: tf.Tensor, distances: tf.Tensor, num_ordinary: tf.Tensor, ties: str
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The pairs that `low_quality.matches` chooses: boxes below `num_ordinary`, anchors, and the scores."""
    best = tf.gather(tf.math.segment_max(ious, box), box)
    chosen = (ious > 0.0) & (ious >= best - low_quality.NEAR_TIE)
    if ties == "nearest":
        nearest = tf.math.segment_min(tf.where(chosen, distances, np.inf), box)
        chosen &= distances <= tf.gather(nearest, box) + low_quality.NEAR_DISTANCE
    if ties != "all":
        first = tf.math.segment_min(tf.where(chosen, anchor, anchor.dtype.max), box)
        chosen = anchor == tf.gather(first, box)
    pairs = tf.where(chosen & (box < num_ordinary))[:, 0]
    return tf.gather(box, pairs), tf.gather(anchor, pairs), tf.gather(best, pairs) + low_quality.BONUS


def _candidates(boxes: tf.Tensor, box_offsets: tf.Tensor, config: InputConfig) -> tuple[tf.Tensor, tf.Tensor]:
    """All pairs of a box and an anchor that can be positive, ignored or a low-quality match, and few others.

    Two rectangles have an IoU of at least t if their intersection is at least the share t / (1 + t) of the sum of their
    areas. The intersection is the product of the overlaps in y and in x, and neither overlap exceeds the smaller of the
    two sides. So each overlap has to reach, as a share of that side, the least intersection divided by the product of
    the smaller sides. An overlap is half the sum of the two sides less the distance of the centres, so this bounds the
    distance; and the anchors of one shape lie on a grid.

    Args:
      boxes: f32 [n, 4] px, none empty.
      box_offsets: i32 [n], added to the indexes of the box's anchors.

    Returns:
      i32 [c], i32 [c]: indexes of boxes, ascending, and of anchors.
    """
    # For each of the p shapes of anchors, y before x.
    per_location = config.anchor.anchors_per_location
    sides = anchor_shapes(config.anchor).reshape(-1, 2).T[:, np.newaxis]  # [2, 1, p]
    steps = grid_steps(config.anchor, config.image_size)
    strides = np.repeat(steps, per_location, axis=0).T[:, np.newaxis]  # [2, 1, p]
    grids = np.array(grid_sizes(config.anchor, config.image_size))  # [levels, 2]
    first_anchors = np.cumsum([0, *grids.prod(axis=1)[:-1] * per_location])
    first_anchors = np.add.outer(first_anchors, np.arange(per_location)).ravel()  # [p]
    grids = np.repeat(grids, per_location, axis=0).T[:, np.newaxis]  # [2, 1, p]
    row_steps = grids[1] * per_location  # from an anchor to that of its shape in the next row

    low, high = tf.transpose(boxes[:, :2])[..., tf.newaxis], tf.transpose(boxes[:, 2:])[..., tf.newaxis]  # [2, n, 1]
    centers = (low + high) / (2.0 * strides) - grid_offset(config.anchor)  # [2, n, p], in cells
    smaller = tf.minimum(high - low, sides)
    mean = (high - low + sides) / 2.0
    areas = tf.reduce_prod(high - low, axis=0) + sides.prod(axis=0)  # [n, p]
    threshold = config.match.negative_iou
    if config.match.force_match:
        # Among the anchors of one shape the nearest has the highest IoU.
        nearest = tf.clip_by_value(tf.round(centers), 0.0, grids - 1.0)
        overlaps = tf.clip_by_value(mean - tf.abs(nearest - centers) * strides, 0.0, smaller)
        intersections = overlaps[0] * overlaps[1]
        best = tf.reduce_max(intersections / (areas - intersections), axis=1, keepdims=True)  # [n, 1]
        threshold = tf.minimum(best, threshold)
    threshold = tf.maximum(
        0.999 * threshold - 2.0 * low_quality.NEAR_TIE, 0.0
    )  # so that no rounding or near tie can matter
    share = threshold / (1.0 + threshold) * areas / (smaller[0] * smaller[1])
    reach = (mean - share * smaller + MARGIN) / strides
    first = tf.cast(tf.clip_by_value(tf.math.ceil(centers - reach), 0.0, grids), tf.int32)
    last = tf.cast(tf.clip_by_value(tf.math.floor(centers + reach), -1.0, grids - 1.0), tf.int32)
    rows, columns = tf.unstack(tf.maximum(last - first + 1, 0))  # [n, p]
    rows = tf.where(share <= 1.0, rows, 0)
    corners = box_offsets[:, tf.newaxis] + first_anchors + first[0] * row_steps + first[1] * per_location

    # Each pair of a box and a shape has a window of anchors: first the windows' rows, then the rows' anchors.
    windows = tf.reshape(tf.range(tf.size(rows)), tf.shape(rows))
    window, row_starts = _sequences(windows, corners, rows, row_steps)
    return _sequences(window // sides.shape[-1], row_starts, tf.gather(tf.reshape(columns, [-1]), window), per_location)


def _sequences(
    labels: tf.Tensor, starts: tf.Tensor, counts: tf.Tensor, steps: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Arithmetic sequences end to end: the label of each element's sequence and its value, i32 [sum of counts] each."""
    labels, starts, counts, steps = (tf.cast(x, tf.int64) for x in (labels, starts, counts, steps))
    # One kernel makes both, because the label is in the upper half of the 64 bits.
    starts += tf.bitwise.left_shift(labels, np.int64(32))
    limits = starts + counts * steps
    steps = tf.broadcast_to(steps, tf.shape(limits))
    both = tf.ragged.range(*(tf.reshape(x, [-1]) for x in (starts, limits, steps))).flat_values
    return tf.cast(tf.bitwise.right_shift(both, np.int64(32)), tf.int32), tf.cast(both & np.int64(2**32 - 1), tf.int32)
