"""What a training run feeds the network: images, their boxes, and the anchors that are assigned to each box.

Every box has one of four states:

- matched: an anchor is assigned to it whose IoU with it reaches `--positive_iou`, or the box's own threshold with
  `--assignment=atss`;
- forced: an anchor is assigned to it by `--force_match` alone, the one that overlaps it most;
- unmatched: no anchor is assigned to it, so the network never learns it (with `--force_match`, another box has taken
  the anchor that overlaps it most);
- difficult: it is marked so in the data, and left out of training on purpose.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from input.anchors import make_anchors, num_anchors_by_level
from input.config import AnchorConfig, InputConfig

if TYPE_CHECKING:
    import tensorflow as tf

    from input.types import Batch

# TensorFlow, and what imports it, is imported in the functions that need it, so that `--help` answers at once.

MATCHED, FORCED, UNMATCHED, DIFFICULT = STATES = ("matched", "forced", "unmatched", "difficult")


class Picture(NamedTuple):
    """One image as the network receives it, with n boxes and the p positive anchors."""

    record_index: int
    pixels: np.ndarray  # u8 [h, w, 3], augmented
    boxes: np.ndarray  # f32 [n, 4] px
    classes: np.ndarray  # i32 [n]
    states: np.ndarray  # str [n], of STATES
    anchors: np.ndarray  # f32 [p, 4] px
    levels: np.ndarray  # i32 [p], of the pyramid
    assigned_boxes: np.ndarray  # i32 [p], the index of the box that each anchor is assigned to
    ious: np.ndarray  # f32 [p], with that box


def receive(paths: Sequence[str], config: InputConfig, num_images: int) -> Iterator[Picture]:
    """The first images of a training run on one replica, as they enter the network.

    Args:
      paths: shards, in order.
      config: the run's settings; `batch_size` matters, since images are mixed within a batch.
      num_images: how many; after the last record the next epoch follows.
    """
    import tensorflow as tf

    from input import batch_augment, boxes, pipeline
    from input.targets import assign

    config = dataclasses.replace(config, mixture=(), data_service="")  # how images look does not depend on these
    anchors = make_anchors(config.anchor, config.image_size)
    levels = anchor_levels(config.anchor, config.image_size)
    unforced = dataclasses.replace(config, match=dataclasses.replace(config.match, force_match=False))

    def assigned_anchors(batch: Batch, config: InputConfig) -> tuple[tf.Tensor, tf.Tensor]:
        targets = assign(batch, config, method="sparse")
        return targets.class_targets, boxes.decode(targets.box_targets, anchors)

    def prepare(batch: Batch) -> tuple[Batch, tuple[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
        batch = batch_augment.augment(batch, config.augment)
        pixels = (batch.images * batch_augment.STDDEV_RGB + batch_augment.MEAN_RGB) * 255.0
        pixels = tf.cast(tf.round(tf.clip_by_value(pixels, 0.0, 255.0)), tf.uint8)
        return batch._replace(images=pixels), assigned_anchors(batch, config), assigned_anchors(batch, unforced)

    def pictures() -> Iterator[Picture]:
        dataset = pipeline.make_dataset(paths, config, training=True, batch_size=config.batch_size)
        dataset = pipeline.mix_what_fits(dataset, config.augment).map(prepare)
        for batch, targets, unforced_targets in dataset.as_numpy_iterator():
            for row, present in enumerate(batch.classes >= 0):
                own_boxes, classes, difficult = own = [
                    values[row][present] for values in (batch.boxes, batch.classes, batch.difficult)
                ]
                positive, assigned = _find_positives(*(values[row] for values in targets), *own)
                _, matched = _find_positives(*(values[row] for values in unforced_targets), *own)
                ious = boxes.paired_iou(own_boxes[assigned], anchors[positive]).numpy()
                states = np.full(len(classes), UNMATCHED, dtype="<U9")
                states[assigned] = FORCED
                states[np.intersect1d(assigned, matched)] = MATCHED
                states[difficult] = DIFFICULT
                yield Picture(
                    record_index=int(batch.record_index[row]),
                    pixels=batch.images[row],
                    boxes=own_boxes,
                    classes=classes,
                    states=states,
                    anchors=anchors[positive],
                    levels=levels[positive],
                    assigned_boxes=assigned,
                    ious=ious,
                )

    return itertools.islice(pictures(), num_images)


def _find_positives(
    class_targets: np.ndarray, matched_boxes: np.ndarray, *own: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The positive ones of all anchors, and which box each is assigned to; `own` as `find_assigned_boxes` takes it."""
    positive = np.flatnonzero(class_targets >= 0)
    return positive, find_assigned_boxes(class_targets[positive], matched_boxes[positive], *own)


def find_assigned_boxes(
    class_targets: np.ndarray, matched_boxes: np.ndarray, boxes: np.ndarray, classes: np.ndarray, difficult: np.ndarray
) -> np.ndarray:
    """Which box each positive anchor is assigned to: targets hold only what the anchor should become.

    Args:
      class_targets: i32 [p].
      matched_boxes: f32 [p, 4] px, the anchors moved by their box targets.
      boxes: f32 [n, 4] px.
      classes: i32 [n].
      difficult: bool [n]; no anchor is assigned to such a box.

    Returns:
      i32 [p]: the nearest box of the anchor's class, which is equal except for rounding; of equal boxes the first.
    """
    if not len(matched_boxes):
        return np.zeros([0], np.int32)
    distances = np.abs(matched_boxes[:, np.newaxis] - boxes).max(axis=-1)
    candidates = (class_targets[:, np.newaxis] == classes) & ~difficult
    return np.where(candidates, distances, np.inf).argmin(axis=1).astype(np.int32)


def anchor_levels(config: AnchorConfig, image_size: tuple[int, int]) -> np.ndarray:
    """The level of every anchor, i32 [a], in the order of `make_anchors`."""
    counts = num_anchors_by_level(config, image_size)
    return np.repeat(np.array(config.levels, np.int32), counts)


def anchor_sizes(config: AnchorConfig) -> list[str]:
    """The sizes of each level's anchors, as the square roots of their areas in px, such as "32-51"."""
    spans = [sorted({round(size * scale(config.scales)) for scale in (min, max)}) for size in config.sizes]
    return ["-".join(map(str, span)) for span in spans]
