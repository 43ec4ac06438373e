"""Average precision of VOC 2007, of VOC 2010 and later, and of COCO; COCO's recall; and how certain they are.

Everything here is NumPy, in float64. Boxes are [ymin, xmin, ymax, xmax] in pixels of the original image, edges of a
continuous plane: a VOC object whose first and last pixels are 1 and 10 spans 0..10. The width of that span, 10, is what
the VOC devkit gets from 10 - 1 + 1, so the IoUs are the devkit's without a "+ 1".

Difficult objects: in VOC they need not be found, and a detection of one is ignored (it is neither right nor wrong).
COCO has no such mark. As is usual, they become `iscrowd` there: these need not be found either, and detections inside
them are ignored.

Ignored regions are COCO's crowds. VOC's metrics, too, leave out a detection in one that would otherwise be false.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from input.shards import GroundTruth
from trainer import matching
from trainer.matching import COCO_AREAS, Found, ImageDetections, Objects, Verdicts

COCO_IOUS = np.linspace(0.5, 0.95, 10)
_COCO_RECALLS = np.linspace(0.0, 1.0, 101)
_VOC_AP, _COCO_AP = ("voc07", "voc12"), ("coco",)

# How much of the recall axis, 0 to 1, lies below a recall: the average precision is the best precision from each recall
# on, weighted with the step that this makes there. Arguments: the number of objects found, and of those to find.
# VOC 2007 counts the recalls 0, 0.1 ... 1 that are reached, in whole numbers: 3 of 10 objects reach 0.3, but rounding
# could make 3 / 10 miss it (Everingham et al. 2010, section 4.2). VOC 2012 takes every recall (development kit, section
# 3.4.1). COCO counts 0, 0.01 ... 1, compared in float64 as pycocotools does.
_REACHED: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "voc07": lambda found, to_find: (10 * found // to_find + 1) / 11,
    "voc12": lambda found, to_find: found / to_find,
    "coco": lambda found, to_find: np.searchsorted(_COCO_RECALLS, found / to_find, "right") / len(_COCO_RECALLS),
}


class Judgement(NamedTuple):
    """The detections and objects of a split, and the verdicts from which every metric follows."""

    objects: Objects
    found: Found
    voc: Verdicts  # a row for IoU 0.5, then one for each further IoU
    coco: Verdicts  # for each of COCO_AREAS a row for each of COCO_IOUS, then one for each further IoU
    num_images: int
    labels: Sequence[str]
    ious: Sequence[float]  # the further IoUs


def judge(
    ground_truths: Sequence[GroundTruth],
    detections: Sequence[ImageDetections],
    labels: Sequence[str],
    ious: Sequence[float] = (),
) -> Judgement:
    """Matches the detections of each image with its objects, by both rules.

    Args:
      ground_truths: one for each image; `boxes` [n, 4], `classes` int [n], `difficult` bool [n]; `regions` [r, 4],
        `region_classes` int [r], -1 for every class.
      detections: one for each image, in the same order.
      labels: the class names; a class is an index into them.
      ious: IoUs, above 0 and at most 1, at which average precision is wanted besides the usual ones.

    Raises:
      ValueError: the two sequences differ in length, or an IoU is out of range.
    """
    require_ious(ious)
    objects, found = matching.join_images(ground_truths, detections)
    pairs = matching.find_pairs(found, objects, min([0.5, *ious]))
    return Judgement(
        objects=objects,
        found=found,
        voc=matching.match_voc(found, objects, pairs, [0.5, *ious]),
        coco=matching.match_coco(found, objects, pairs, [*COCO_IOUS, *ious]),
        num_images=len(ground_truths),
        labels=labels,
        ious=ious,
    )


def require_ious(ious: Sequence[float]) -> None:
    """Refuses what is no IoU.

    Raises:
      ValueError: a number is out of range.
    """
    if wrong := [iou for iou in ious if not 0 < iou <= 1]:
        raise ValueError(f"an IoU must be above 0 and at most 1; got {wrong[0]:g}.")


def compute_metrics(
    ground_truths: Sequence[GroundTruth],
    detections: Sequence[ImageDetections],
    labels: Sequence[str],
    *,
    ious: Sequence[float] = (),
    resamples: int = 0,
) -> dict[str, Any]:
    """Every metric of one evaluation, ready for JSON.

    Args:
      ground_truths, detections, labels, ious: as `judge` takes them.
      resamples: the number of bootstrap samples of the images from which intervals are computed; 0: no intervals.

    Returns:
      `voc07_ap50`, `voc12_ap50`, `coco_ap`, `coco_ap50`, `coco_ap75`, `coco_ap_small`, `coco_ap_medium`,
      `coco_ap_large`; `coco_ar1`, `coco_ar10`, `coco_ar100` (recall with so many detections of a class in an image),
      `coco_ar_small`, `coco_ar_medium`, `coco_ar_large`; for each of `ious`, such as 0.3, `voc07_ap@0.3`,
      `voc12_ap@0.3` and `coco_ap@0.3`. These are means over the classes that have objects. Further `num_images`, and
      `per_class`: for each label the same and `num_objects` (without the difficult ones), `num_difficult`,
      `num_detections`. A value without any object to find is None.
      With `resamples` there and for each class `intervals`: for each average precision [low, high], between which it
      lies with 95% confidence, as far as the choice of images goes.

    Raises:
      ValueError: as `judge`.
    """
    return summarize(judge(ground_truths, detections, labels, ious), resamples=resamples)


def summarize(judgement: Judgement, *, resamples: int = 0) -> dict[str, Any]:
    """The metrics, as `compute_metrics` returns them."""
    objects, found, labels = judgement.objects, judgement.found, judgement.labels
    everything = np.ones((1, judgement.num_images), np.int32)
    values = {name: rows[:, 0] for name, rows in average_precisions(judgement, everything).items()}
    values.update(_recalls(judgement))
    counts = {
        "num_objects": np.bincount(objects.classes[~objects.difficult], minlength=len(labels)),
        "num_difficult": np.bincount(objects.classes[objects.difficult & ~objects.regions], minlength=len(labels)),
        "num_detections": np.bincount(found.classes, minlength=len(labels)),
    }
    result: dict[str, Any] = {name: _or_none(_mean(rows)) for name, rows in values.items()}
    result["num_images"] = judgement.num_images
    per_class: dict[str, dict[str, Any]] = {
        label: {
            **{name: _or_none(rows[index]) for name, rows in values.items()},
            **{name: int(rows[index]) for name, rows in counts.items()},
        }
        for index, label in enumerate(labels)
    }
    if resamples:
        samples = average_precisions(judgement, draw_samples(judgement.num_images, resamples))
        result["intervals"] = {name: interval(_mean(rows)) for name, rows in samples.items()}
        for index, label in enumerate(labels):
            per_class[label]["intervals"] = {name: interval(rows[index]) for name, rows in samples.items()}
    return {**result, "per_class": per_class}


def average_precisions(judgement: Judgement, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Every average precision of each class, where each image counts several times or not at all.

    Args:
      judgement: of the whole split.
      weights: int [s, images], how often each image counts in each of s samples.

    Returns:
      For each name f64 [k, s]; NaN where there is nothing to find.
    """
    ious, num_ious = judgement.ious, len(COCO_IOUS) + len(judgement.ious)
    voc = _class_averages(judgement, judgement.voc, _VOC_AP, weights)
    coco = _class_averages(judgement, judgement.coco, _COCO_AP, weights)["coco"]
    by_area = coco.reshape(len(COCO_AREAS), num_ious, *coco.shape[1:])
    averages = {
        "voc07_ap50": voc["voc07"][0],
        "voc12_ap50": voc["voc12"][0],
        "coco_ap": by_area[0, : len(COCO_IOUS)].mean(axis=0),
        "coco_ap50": by_area[0, 0],
        "coco_ap75": by_area[0, 5],
    }
    for area, suffix in list(enumerate(COCO_AREAS))[1:]:
        averages[f"coco_ap{suffix}"] = by_area[area, : len(COCO_IOUS)].mean(axis=0)
    for row, iou in enumerate(ious):
        averages[f"voc07_ap@{iou:g}"] = voc["voc07"][1 + row]
        averages[f"voc12_ap@{iou:g}"] = voc["voc12"][1 + row]
        averages[f"coco_ap@{iou:g}"] = by_area[0, len(COCO_IOUS) + row]
    return averages


def _class_averages(
    judgement: Judgement, verdicts: Verdicts, kinds: Sequence[str], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Average precision of each kind, f64 [r, k, s], for the r rows of the verdicts."""
    num_classes = len(judgement.labels)
    averages = {kind: np.full((len(verdicts.hits), num_classes, len(weights)), np.nan) for kind in kinds}
    for index in range(num_classes):
        rows = np.flatnonzero(judgement.found.classes == index)
        members = np.flatnonzero((judgement.objects.classes == index) & ~judgement.objects.regions)
        if not len(members):
            continue
        hits, counted, to_find = verdicts.hits[:, rows], verdicts.counted[:, rows], verdicts.to_find[:, members]
        images, object_images = judgement.found.images[rows], judgement.objects.images[members]
        step = max(1, 4_000_000 // (len(rows) + 1))  # bounds the memory
        for start in range(0, len(weights), step):
            part = slice(start, start + step)
            num_to_find = weights[part, object_images] @ to_find.T  # [s, r]
            weighted = weights[part, images]
            for row in range(len(hits)):
                results = _average_precision(hits[row], counted[row], num_to_find[:, row], weighted, kinds)
                for kind, result in zip(kinds, results):
                    averages[kind][row, index, part] = result
    return averages


def average_precision(kind: str, hits: np.ndarray, num_objects: int) -> float | None:
    """Average precision of one class.

    Args:
      kind: voc07, the mean over the recalls 0, 0.1 ... 1 of the best precision from there on; voc12, the area under the
        precision made monotone, at every recall; or coco, as voc07 but for the recalls 0, 0.01 ... 1.
      hits: bool [d], the detections of the class, best score first, without the ignored ones.
      num_objects: how many objects there are to find, without the difficult ones.

    Returns:
      A number in 0..1, or None if there is nothing to find.
    """
    weights = np.ones((1, len(hits)), np.int32)
    return _or_none(_average_precision(hits, np.ones_like(hits), np.array([num_objects]), weights, [kind])[0][0])


def _average_precision(
    hits: np.ndarray, counted: np.ndarray, num_to_find: np.ndarray, weights: np.ndarray, kinds: Sequence[str]
) -> list[np.ndarray]:
    """For each kind f64 [s]; NaN where nothing is to be found.

    Args:
      hits, counted: bool [d], one row of `Verdicts` for the detections of a class, best first.
      num_to_find: int [s].
      weights: int [s, d], how often each detection counts in each sample. Copies share a score and count at once.
      kinds: keys of `_REACHED`.
    """
    places = np.flatnonzero(hits)  # what comes after the last hit changes nothing
    none = np.where(num_to_find > 0, 0.0, np.nan)
    if not len(places):
        return [none] * len(kinds)
    before = weights[:, : places[-1] + 1] * counted[: places[-1] + 1]
    num_counted = np.cumsum(before, axis=1, dtype=np.int32)[:, places]
    num_found = np.cumsum(weights[:, places], axis=1, dtype=np.int32)
    precision = num_found / np.maximum(num_counted, 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    to_find = np.maximum(num_to_find, 1)[:, np.newaxis]
    steps = (np.diff(_REACHED[kind](num_found, to_find), axis=1, prepend=0.0) for kind in kinds)
    return [np.sum(best * step, axis=1) + none for step in steps]


def _recalls(judgement: Judgement) -> dict[str, np.ndarray]:
    """COCO's average recall of each class, f64 [k]; NaN where there is nothing to find."""
    num_classes, found, objects = len(judgement.labels), judgement.found, judgement.objects
    num_ious = len(COCO_IOUS) + len(judgement.ious)

    def recall(area: int, max_detections: int) -> np.ndarray:
        rows = slice(area * num_ious, area * num_ious + len(COCO_IOUS))
        num_hits = np.sum(judgement.coco.hits[rows] & (found.ranks < max_detections), axis=0)
        hits = np.bincount(found.classes, num_hits, minlength=num_classes)
        to_find = np.bincount(objects.classes, judgement.coco.to_find[rows.start], minlength=num_classes)
        return np.divide(hits / len(COCO_IOUS), to_find, out=np.full(num_classes, np.nan), where=to_find > 0)

    recalls = {f"coco_ar{number}": recall(0, number) for number in (1, 10, matching.COCO_MAX_DETECTIONS)}
    for area, suffix in list(enumerate(COCO_AREAS))[1:]:
        recalls[f"coco_ar{suffix}"] = recall(area, matching.COCO_MAX_DETECTIONS)
    return recalls


def draw_samples(num_images: int, resamples: int) -> np.ndarray:
    """How often each image is in each bootstrap sample, i32 [resamples, images]; the same at each call.

    A sample is as many images as there are, drawn with replacement (Efron and Tibshirani 1993, chapter 13).
    """
    random = np.random.default_rng(0)
    return (
        np.stack(
            [
                np.bincount(random.integers(num_images, size=num_images), minlength=num_images).astype(np.int32)
                for _ in range(resamples)
            ]
        )
        if num_images
        else np.zeros((resamples, 0), np.int32)
    )


def compare(first: Judgement, second: Judgement, resamples: int) -> dict[str, dict[str, Any]]:
    """How far two models differ on the same images, by a paired bootstrap: both are measured on the same samples.

    Returns:
      For each average precision `first`, `second`, `difference` (second - first), `interval` of the difference with 95%
      confidence, and `real`: whether 0 lies outside the interval. None where there is nothing to find.
    """
    everything = np.ones((1, first.num_images), np.int32)
    samples = draw_samples(first.num_images, resamples)
    values = [average_precisions(judgement, everything) for judgement in (first, second)]
    drawn = [average_precisions(judgement, samples) for judgement in (first, second)]
    result = {}
    for name in values[0]:
        one, other = (float(_mean(rows[name][:, 0])) for rows in values)
        bounds = interval(_mean(drawn[1][name]) - _mean(drawn[0][name]))
        result[name] = {
            "first": _or_none(one),
            "second": _or_none(other),
            "difference": _or_none(other - one),
            "interval": bounds,
            "real": bounds is not None and not bounds[0] <= 0 <= bounds[1],
        }
    return result


def interval(samples: np.ndarray) -> list[float] | None:
    """The 2.5th and the 97.5th percentile of f64 [s] without NaN; None if nothing is left."""
    known = samples[~np.isnan(samples)]
    return [float(bound) for bound in np.percentile(known, [2.5, 97.5])] if len(known) else None


def _mean(rows: np.ndarray) -> np.ndarray:
    """The mean over the classes, the first axis, that have a value; NaN where none has."""
    known = ~np.isnan(rows)
    count = known.sum(axis=0)
    total = np.where(known, rows, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def _or_none(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
