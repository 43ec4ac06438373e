"""What the records of a split hold, in numbers, and which anchors match their boxes. No TensorFlow here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from input import anchors, shards
from input.config import AnchorConfig, MatchConfig

if TYPE_CHECKING:
    from input.conversion.workers import Advance, Workers

THRESHOLD = MatchConfig().positive_iou  # an anchor is positive from this IoU with a box on
GAIN = 0.03  # anchors that match this much more of some class's boxes are worth a suggestion
SIDES = (320, 512, 640, 800, 1024)  # px, of the longer side of the network's input, to choose from
SMALL = 16.0  # px, two cells of P3: below this side objects are hard to find
_SMALLEST_SIZES = (32, 24, 48, 16, 64, 12, 96, 8, 6, 4)  # px, to try on P3; those nearest to the default come first


class Survey(NamedTuple):
    """Some numbers about each of i images and each of their n boxes."""

    image_ids: np.ndarray  # str [i]
    sizes: np.ndarray  # i32 [i, 2], height and width in px
    num_boxes: np.ndarray  # i32 [i]; the boxes of an image follow those of the image before
    boxes: np.ndarray  # f32 [n, 4], ymin xmin ymax xmax in px of the original image
    classes: np.ndarray  # i32 [n], 0-based
    difficult: np.ndarray  # bool [n]
    num_regions: np.ndarray  # i32 [i], ignored regions; they follow each other as the boxes do
    regions: np.ndarray  # f32 [r, 4], as `boxes`
    shard_lengths: np.ndarray  # i32 [shards], the number of images in each

    def boxes_of(self, index: int) -> slice:
        """The slice of `boxes`, `classes` and `difficult` that belongs to one image."""
        return _slice_of(index, self.num_boxes)

    def regions_of(self, index: int) -> slice:
        """The slice of `regions` that belongs to one image."""
        return _slice_of(index, self.num_regions)

    def locate(self, index: int) -> tuple[int, int]:
        """The index of the shard that holds an image, and the index of its record in that shard."""
        ends = np.cumsum(self.shard_lengths)
        shard = int(np.searchsorted(ends, index, side="right"))
        return shard, index - int(ends[shard] - self.shard_lengths[shard])


def _slice_of(index: int, counts: np.ndarray) -> slice:
    end = int(counts[: index + 1].sum())
    return slice(end - int(counts[index]), end)


def take_survey(paths: Sequence[str], workers: Workers, num_images: int, what: str) -> Survey:
    """Reads all shards, verifying their checksums, and keeps the numbers, in the order of the shards.

    Args:
      paths: shards; none is empty.
      workers: processes to read with.
      num_images: the number of records, for the progress bar.
      what: the progress bar's title.

    Raises:
      tfrecord.DamagedShardError: names the file.
    """
    return _join(workers.map(_survey_shard, paths, num_images, what))


def _join(parts: Sequence[Survey]) -> Survey:
    return Survey._make(map(np.concatenate, zip(*parts)))


def _survey_shard(path: str, advance: Advance) -> Survey:
    images = shards.iterate_annotations([path])
    parts = []
    while some := list(itertools.islice(images, 256)):  # since many small arrays take much memory
        parts.append(_survey_images(some))
        advance(len(some))
    joined = _join(parts)
    return joined._replace(shard_lengths=np.array([len(joined.image_ids)], np.int32))


def _survey_images(images: Sequence[shards.GroundTruth]) -> Survey:
    return Survey(
        image_ids=np.array([image.image_id for image in images]),
        sizes=np.array([(image.height, image.width) for image in images], np.int32),
        num_boxes=np.array([len(image.classes) for image in images], np.int32),
        boxes=np.concatenate([image.boxes for image in images]),
        classes=np.concatenate([image.classes for image in images]),
        difficult=np.concatenate([image.difficult for image in images]),
        num_regions=np.array([len(image.regions) for image in images], np.int32),
        regions=np.concatenate([image.regions for image in images]),
        shard_lengths=np.zeros(0, np.int32),
    )


def input_boxes(survey: Survey, image_size: tuple[int, int]) -> np.ndarray:
    """The boxes in px of the network's input, f32 [n, 4], letterboxed as `windows.fit_window` does it."""
    sizes, target = survey.sizes.astype(np.float32), np.array(image_size, np.float32)
    scales = (target / sizes).min(axis=1, keepdims=True)
    resized = np.clip(np.round(sizes * scales), 1, target)
    shares = np.repeat(resized / sizes, survey.num_boxes, axis=0)
    return (survey.boxes.reshape(-1, 2, 2) * shares[:, np.newaxis]).reshape(-1, 4)


def choose_image_size(survey: Survey, num_classes: int) -> tuple[int, int]:
    """A size (height, width) of the network's input for this data.

    Its shape is that of the images: the geometric mean of width / height. It is the smallest of `SIDES` at which nine
    in ten boxes of every class have a side of at least `SMALL`, or else the largest.
    """
    aspect = math.exp(np.log(survey.sizes[:, 1] / survey.sizes[:, 0]).mean())
    size = (0, 0)
    for side in SIDES:
        height, width = (max(round(side * min(share, 1) / 32) * 32, 32) for share in (1 / aspect, aspect))
        size = height, width
        sides = by_class(box_sides(input_boxes(survey, size)), survey.classes, num_classes)
        if all(np.quantile(each, 0.1) >= SMALL for each in sides if len(each)):
            break
    return size


def _heights_and_widths(boxes: np.ndarray) -> np.ndarray:
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.maximum(sides, 2.0**-10, out=sides).T  # a tiny box may round to nothing in float32


def box_sides(boxes: np.ndarray) -> np.ndarray:
    """The square root of each box's area, [n] px; anchor sizes are given in the same way."""
    return np.sqrt(np.prod(_heights_and_widths(boxes), axis=0))


def aspect_ratios(boxes: np.ndarray) -> np.ndarray:
    """Width / height of each box, [n]."""
    height, width = _heights_and_widths(boxes)
    return width / height


def by_class(values: np.ndarray, classes: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """Splits the values ([n], one for each box) by the class of the box, keeping their order."""
    ends = np.cumsum(np.bincount(classes, minlength=num_classes))
    return np.split(values[np.argsort(classes, kind="stable")], ends[:-1])


class Fit(NamedTuple):
    """Which boxes some anchors match."""

    anchor: AnchorConfig
    matched: np.ndarray  # bool [n]: some anchor has an IoU of at least THRESHOLD with the box
    per_class: np.ndarray  # f64 [k], the share of each class's boxes that is matched; NaN for a class without boxes

    @property
    def worst(self) -> int:
        """The class with the smallest share, 0-based."""
        return int(np.argmin(np.where(np.isnan(self.per_class), np.inf, self.per_class)))


def measure_fit(
    boxes: np.ndarray, classes: np.ndarray, num_classes: int, anchor: AnchorConfig, image_size: tuple[int, int]
) -> Fit:
    """Which boxes ([n, 4] px of the network's input, of `classes` [n]) these anchors match."""
    matched = np.zeros(len(boxes), np.bool_)
    for start in range(0, len(boxes), 1 << 11):  # in parts, since a box takes kilobytes against all anchor shapes
        part = slice(start, start + (1 << 11))
        matched[part] = anchors.best_iou_per_box(boxes[part], anchor, image_size) >= THRESHOLD
    totals = np.bincount(classes, minlength=num_classes)
    hits = np.bincount(classes, weights=matched, minlength=num_classes)
    return Fit(anchor, matched, np.divide(hits, totals, out=np.full(num_classes, np.nan), where=totals > 0))


def measure_fits(boxes: np.ndarray, classes: np.ndarray, num_classes: int, image_size: tuple[int, int]) -> list[Fit]:
    """The fit of the default anchors and, where others match clearly more boxes of some class, of those too."""
    fits = [measure_fit(boxes, classes, num_classes, AnchorConfig(), image_size)]
    if suggested := suggest_anchors(boxes, classes, num_classes, image_size) if len(boxes) else None:
        fit = measure_fit(boxes, classes, num_classes, suggested, image_size)
        fits += [fit] if gains(fit, fits[0]) else []
    return fits


def gains(fit: Fit, other: Fit) -> bool:
    """Whether `fit` matches clearly more boxes of some class than `other` does."""
    return bool(np.nanmax(fit.per_class - other.per_class) >= GAIN - 1e-9)


def suggest_anchors(
    boxes: np.ndarray, classes: np.ndarray, num_classes: int, image_size: tuple[int, int]
) -> AnchorConfig | None:
    """Anchors that match clearly more boxes of some class than the default ones do, or None.

    Anchors are better if the share of boxes that they match, averaged over the classes, is larger, and larger by `GAIN`
    for some class; so a rare class counts as much as a common one. The smallest size is chosen freely; sizes double
    from level to level, as the strides do. The scales stay: with three an octave no box's side is further than 12% from
    an anchor's. The aspect ratios are the default ones, or three or five centres of k-means on the logarithms of the
    boxes' own. Fewer are tried first, since each ratio costs computation at every location of the image.

    Args:
      boxes: [n, 4] px of the network's input, n > 0.
      classes: [n].
      num_classes: k.
      image_size: (height, width) of the network's input.
    """
    sample = _sample_evenly(classes, num_classes)
    boxes, classes = boxes[sample], classes[sample]

    def measure(anchor: AnchorConfig) -> Fit:
        return measure_fit(boxes, classes, num_classes, anchor, image_size)

    default = AnchorConfig()
    best = first = measure(default)
    if best.per_class[best.worst] > 1 - GAIN:
        return None
    log_ratios, weights = np.log(aspect_ratios(boxes)), 1 / np.bincount(classes)[classes]
    fitted = [sorted({float(f"{math.exp(mean):.2g}") for mean in k_means(log_ratios, weights, k)}) for k in (3, 5)]
    for ratios in (default.aspect_ratios, *map(tuple, fitted)):
        for smallest in _SMALLEST_SIZES:
            sizes = tuple(float(smallest << level) for level in range(5))
            fit = measure(AnchorConfig(sizes=sizes, aspect_ratios=ratios))
            if np.nanmean(fit.per_class) > np.nanmean(best.per_class) and gains(fit, best):
                best = fit
    return None if best is first else best.anchor


def _sample_evenly(classes: np.ndarray, num_classes: int, limit: int = 6000) -> np.ndarray:
    """Indices of about `limit` random boxes, equally many of each class as far as it has them."""
    order = np.random.default_rng(0).permutation(len(classes))
    share = max(limit // len(np.unique(classes)), 10)
    return np.concatenate([members[:share] for members in by_class(order, classes[order], num_classes)])


def k_means(values: np.ndarray, weights: np.ndarray, k: int) -> np.ndarray:
    """The centres of k clusters of numbers [n], f64 [k]; Lloyd's iteration, from the middles of k equal weights."""
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
