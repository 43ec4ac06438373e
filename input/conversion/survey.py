"""What the records of a split hold, in numbers, and which anchors fit their boxes. No TensorFlow here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from input import anchors, shards
from input.config import AnchorConfig, MatchConfig

if TYPE_CHECKING:
    from input.conversion.workers import Workers

THRESHOLD = MatchConfig().positive_iou  # IoU from which an anchor learns from a box
_SMALLEST_SIZES = (
    32,
    24,
    48,
    16,
    64,
    12,
    96,
    8,
    6,
    4,
)  # that are tried for P3, in px, the nearest to the default first


class Survey(NamedTuple):
    """Some numbers about each of i images and each of their n boxes."""

    image_ids: list[str]
    sizes: np.ndarray  # i32 [i, 2], height and width in px
    num_boxes: np.ndarray  # i32 [i]; the boxes of an image follow those of the image before
    boxes: np.ndarray  # f32 [n, 4], ymin xmin ymax xmax in px of the original image
    classes: np.ndarray  # i32 [n], 0-based
    difficult: np.ndarray  # bool [n]
    shard_lengths: np.ndarray  # i32 [shards], the number of images in each

    def of_image(self, index: int) -> slice:
        """Where the boxes of one image are."""
        end = int(self.num_boxes[: index + 1].sum())
        return slice(end - int(self.num_boxes[index]), end)

    def place(self, index: int) -> tuple[int, int]:
        """The shard that holds an image, and its place there."""
        ends = np.cumsum(self.shard_lengths)
        shard = int(np.searchsorted(ends, index, side="right"))
        return shard, index - int(ends[shard] - self.shard_lengths[shard])


def take_survey(paths: Sequence[str], workers: Workers, num_images: int, what: str) -> Survey:
    """Reads all shards, checksums included, and keeps their numbers, in the shards' order.

    Args:
      workers: processes to read with.
      num_images, what: for the progress bar.

    Raises:
      tfrecord.DamagedShardError: names the file.
    """
    image_ids, *columns = zip(*workers.map(_survey_shard, paths, num_images, what))
    return Survey([image_id for ids in image_ids for image_id in ids], *map(np.concatenate, columns))


def _survey_shard(path: str, advance) -> Survey:
    images = shards.read_annotations([path])
    advance(len(images))
    return Survey(
        [image.image_id for image in images],
        np.array([(image.height, image.width) for image in images], np.int32).reshape(-1, 2),
        np.array([len(image.classes) for image in images], np.int32),
        np.concatenate([np.zeros((0, 4), np.float32), *(image.boxes for image in images)]),
        np.concatenate([np.zeros(0, np.int32), *(image.classes for image in images)]),
        np.concatenate([np.zeros(0, np.bool_), *(image.difficult for image in images)]),
        np.array([len(images)], np.int32),
    )


def input_boxes(survey: Survey, image_size: tuple[int, int]) -> np.ndarray:
    """The boxes in px of the network's input, f32 [n, 4]; images are letterboxed as `windows.fit_window` does it."""
    sizes, target = survey.sizes.astype(np.float32), np.array(image_size, np.float32)
    scales = (target / sizes).min(axis=1, keepdims=True)
    resized = np.clip(np.round(sizes * scales), 1, target)
    return survey.boxes * np.repeat(np.tile(resized / sizes, 2), survey.num_boxes, axis=0)


def _heights_and_widths(boxes: np.ndarray) -> np.ndarray:
    return np.maximum(boxes[:, 2:] - boxes[:, :2], 2.0**-10).T  # float32 may have left nothing of a tiny box


def box_sides(boxes: np.ndarray) -> np.ndarray:
    """Square roots of the areas, [n] px: the measure that anchor sizes are in."""
    return np.sqrt(np.prod(_heights_and_widths(boxes), axis=0))


def aspect_ratios(boxes: np.ndarray) -> np.ndarray:
    """Width / height of each box, [n]."""
    height, width = _heights_and_widths(boxes)
    return width / height


def by_class(values: np.ndarray, classes: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """The values [n] of each class, in their order."""
    ends = np.cumsum(np.bincount(classes, minlength=num_classes))
    return np.split(values[np.argsort(classes, kind="stable")], ends[:-1])


class Fit(NamedTuple):
    """How well anchors fit boxes."""

    anchor: AnchorConfig
    matched: np.ndarray  # bool [n]: an anchor overlaps the box enough to be positive
    per_class: np.ndarray  # f64 [k], share of the boxes matched; NaN for a class without boxes

    @property
    def worst(self) -> int:
        """The class with the smallest share."""
        return int(np.argmin(np.where(np.isnan(self.per_class), np.inf, self.per_class)))


def measure_fit(
    boxes: np.ndarray, classes: np.ndarray, num_classes: int, anchor: AnchorConfig, image_size: tuple[int, int]
) -> Fit:
    """Which boxes ([n, 4] px of the network's input) some anchor overlaps with an IoU of `THRESHOLD` or more."""
    matched = np.zeros(len(boxes), np.bool_)
    for start in range(0, len(boxes), 1 << 13):  # against all anchor shapes a box takes kilobytes
        part = slice(start, start + (1 << 13))
        matched[part] = anchors.best_iou_per_box(boxes[part], anchor, image_size) >= THRESHOLD
    totals = np.bincount(classes, minlength=num_classes)
    hits = np.bincount(classes, weights=matched, minlength=num_classes)
    return Fit(anchor, matched, np.divide(hits, totals, out=np.full(num_classes, np.nan), where=totals > 0))


def suggest_anchors(
    boxes: np.ndarray, classes: np.ndarray, num_classes: int, image_size: tuple[int, int]
) -> AnchorConfig | None:
    """Anchors that match clearly more of these boxes than the default ones do, or None.

    What counts is the share of boxes matched, averaged over the classes, so that a rare class counts as much as a
    common one. Sizes double from level to level, as the strides do, so that only the smallest is free; scales stay,
    since with three an octave no side is further than 12% from an anchor's. Aspect ratios are the default ones or,
    where those serve worse, the centres of k-means on the logarithms of the boxes' own: three, then five, since each
    costs computation at every place of the image.

    Args:
      boxes: [n, 4] px of the network's input, n > 0.
      classes: [n].
      image_size: (height, width) of the network's input.
    """
    sample = _sample_evenly(classes, num_classes)
    boxes, classes = boxes[sample], classes[sample]

    def score(anchor: AnchorConfig) -> float:
        return float(np.nanmean(measure_fit(boxes, classes, num_classes, anchor, image_size).per_class))

    default = AnchorConfig()
    best, best_score = None, score(default)
    log_ratios, weights = np.log(aspect_ratios(boxes)), 1 / np.bincount(classes)[classes]
    fitted = [sorted({float(f"{math.exp(mean):.2g}") for mean in k_means(log_ratios, weights, k)}) for k in (3, 5)]
    for ratios in (default.aspect_ratios, *map(tuple, fitted)):
        tried = [
            AnchorConfig(sizes=tuple(float(smallest << i) for i in range(5)), aspect_ratios=ratios)
            for smallest in _SMALLEST_SIZES
        ]
        scores = [score(anchor) for anchor in tried]
        choice = next(index for index, value in enumerate(scores) if value >= max(scores) - 0.005)
        if scores[choice] > best_score + 0.02:
            best, best_score = tried[choice], scores[choice]
    return best


def _sample_evenly(classes: np.ndarray, num_classes: int, limit: int = 6000) -> np.ndarray:
    """Indices of some `limit` random boxes, the same number of each class where there are so many."""
    order = np.random.default_rng(0).permutation(len(classes))
    share = max(limit // len(np.unique(classes)), 10)
    return np.concatenate([members[:share] for members in by_class(order, classes[order], num_classes)])


def k_means(values: np.ndarray, weights: np.ndarray, k: int) -> np.ndarray:
    """Centres of the k clusters of numbers [n], f64 [k]; Lloyd's iteration from the middles of k equal weights."""
    order = np.argsort(values, kind="stable")
    values, weights = values[order].astype(np.float64), weights[order]
    ranks = np.cumsum(weights) / weights.sum()
    means = values[np.searchsorted(ranks, (np.arange(k) + 0.5) / k)]
    for _ in range(100):
        member = np.searchsorted((means[1:] + means[:-1]) / 2, values)
        mass = np.bincount(member, weights, k)
        moved = np.divide(np.bincount(member, weights * values, k), mass, out=means.copy(), where=mass > 0)
        if np.array_equal(moved, means):
            break
        means = moved
    return means
