"""Where a model errs: the best score threshold, confusions, calibration, and labels that may be wrong."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trainer import matching
from trainer.matching import Found, Objects, Pairs
from trainer.metrics import Judgement

HIT_IOU = 0.5
MIN_SUSPECT_SCORE = 0.3  # a less confident model says little about a label
_COVERED_IOU = 0.3  # a detection that overlaps no object by more has no label
_NEAR_IOU = 0.1  # the least overlap of a shifted box with where the object is
_WELL_PLACED_IOU = 0.6
_DOUBLED_IOU = 0.6
KINDS = ("missing", "wrong class", "shifted", "doubled")


class Curve(NamedTuple):
    """One class as the score threshold falls; t thresholds, each a score that was given."""

    scores: np.ndarray  # f64 [t], descending
    precision: np.ndarray  # f64 [t]
    recall: np.ndarray  # f64 [t]
    f1: np.ndarray  # f64 [t], the harmonic mean of both


class Suspect(NamedTuple):
    """A label that may be wrong, and why."""

    kind: str  # one of KINDS
    suspicion: float  # 0 to 1
    image: int
    item: int  # the object; -1 if it is missing
    detection: int  # what the model sees; -1 for a doubled object


def threshold_curve(judgement: Judgement, index: int) -> Curve:
    """Precision and recall of a class at each threshold, by VOC's rule at an IoU of 0.5."""
    rows = np.flatnonzero((judgement.found.classes == index) & judgement.voc.counted[0])
    scores = judgement.found.scores[rows]
    num_to_find = int(np.sum(judgement.voc.to_find[0] & (judgement.objects.classes == index)))
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(rows)])  # equal scores enter together
    num_hits = np.cumsum(judgement.voc.hits[0, rows])[ends]
    precision = num_hits / (ends + 1)
    recall = num_hits / max(num_to_find, 1)
    f1 = 2 * num_hits / np.maximum(ends + 1 + num_to_find, 1)
    return Curve(scores[ends], precision, recall, f1)


def best_threshold(curve: Curve) -> tuple[float, float] | None:
    """The highest F1 and the score from which detections give it; None if no detection is right."""
    if not len(curve.f1) or curve.f1.max() == 0:
        return None
    best = int(np.argmax(curve.f1))
    return float(curve.f1[best]), float(curve.scores[best])


def calibration(judgement: Judgement, num_bins: int = 10) -> np.ndarray:
    """f64 [bins, 3]: mean score, share of right ones, and number of the detections in each bin of scores."""
    counted = judgement.voc.counted[0]
    scores, hits = judgement.found.scores[counted], judgement.voc.hits[0, counted]
    bins = np.minimum((scores * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    sums = (np.bincount(bins, values, minlength=num_bins) for values in (scores, hits))
    return np.stack([*(total / np.maximum(counts, 1) for total in sums), counts], axis=1)


def any_class_pairs(found: Found, objects: Objects, min_iou: float) -> Pairs:
    """Overlapping pairs of an image, whatever their classes."""
    return matching.find_pairs(
        found._replace(classes=np.zeros_like(found.classes)),
        objects._replace(classes=np.zeros_like(objects.classes)),
        min_iou,
    )


def confusion_matrix(judgement: Judgement, thresholds: np.ndarray) -> np.ndarray:
    """int [k + 1, k + 1]: objects by their class (rows) and by the class found there (columns).

    The last row has detections without an object, the last column objects that were not found. Detections are taken
    best first, each for the free object of any class that it overlaps most, at an IoU of at least 0.5. Difficult
    objects and ignored regions, and detections of them, are left out.

    Args:
      judgement: of the split.
      thresholds: f64 [k], the score from which detections of each class count.
    """
    found, objects, background = judgement.found, judgement.objects, len(judgement.labels)
    shown = found.scores >= thresholds[found.classes]
    pairs = any_class_pairs(found, objects, HIT_IOU)
    order = np.lexsort((-pairs.ious, pairs.detections))
    object_of = np.full(len(found.classes), -1)
    on_difficult = np.zeros(len(found.classes), np.bool_)
    taken: set[int] = set()
    for detection, item in zip(pairs.detections[order].tolist(), pairs.objects[order].tolist()):
        if not shown[detection] or object_of[detection] >= 0:
            continue
        if objects.difficult[item]:
            on_difficult[detection] = True
        elif item not in taken:
            object_of[detection] = item
            taken.add(item)
    matched = np.flatnonzero(object_of >= 0)
    false = shown & (object_of < 0) & ~on_difficult
    missed = ~objects.difficult
    missed[list(taken)] = False
    matrix = np.zeros((background + 1, background + 1), np.int64)
    np.add.at(matrix, (objects.classes[object_of[matched]], found.classes[matched]), 1)
    matrix[background] += np.bincount(found.classes[false], minlength=background + 1)
    matrix[:, background] += np.bincount(objects.classes[missed], minlength=background + 1)
    return matrix


def find_suspects(judgement: Judgement) -> list[Suspect]:
    """Labels that a confident model contradicts, the most suspicious first.

    - missing: a detection where there is no label. Suspicion: its score.
    - wrong class: an object that is found as another class. Suspicion: by how much that score exceeds the score of the
      object's own class there.
    - shifted: an object whose only detection of its class lies beside it. Suspicion: its score times 1 - IoU.
    - doubled: two objects of a class in one place. Suspicion: their IoU.

    Difficult objects and ignored regions are never suspects, nor are detections on them.
    """
    found, objects = judgement.found, judgement.objects
    confident = found.scores >= MIN_SUSPECT_SCORE
    pairs = any_class_pairs(found, objects, _NEAR_IOU)
    own_class = found.classes[pairs.detections] == objects.classes[pairs.objects]
    own_score, own_iou = np.zeros(len(objects.classes)), np.zeros(len(objects.classes))
    hits = own_class & (pairs.ious >= HIT_IOU)
    np.maximum.at(own_score, pairs.objects[hits], found.scores[pairs.detections[hits]])
    sure = own_class & confident[pairs.detections]
    np.maximum.at(own_iou, pairs.objects[sure], pairs.ious[sure])
    best_iou = np.zeros(len(found.classes))
    np.maximum.at(best_iou, pairs.detections, np.maximum(pairs.ious, pairs.covers * objects.difficult[pairs.objects]))

    suspects = []
    explained = np.zeros(len(found.classes), np.bool_)
    for detection, item, iou, same in zip(
        pairs.detections.tolist(), pairs.objects.tolist(), pairs.ious.tolist(), own_class.tolist()
    ):
        score = float(found.scores[detection])
        if not confident[detection] or objects.difficult[item] or iou < best_iou[detection]:
            continue
        if same and iou < _WELL_PLACED_IOU and iou == own_iou[item]:
            explained[detection] = True
            suspects.append(Suspect("shifted", score * (1 - iou), int(objects.images[item]), item, detection))
        elif not same and iou >= HIT_IOU and score > own_score[item]:
            suspicion = score - float(own_score[item])
            suspects.append(Suspect("wrong class", suspicion, int(objects.images[item]), item, detection))

    alone = np.flatnonzero(confident & (best_iou < _COVERED_IOU) & ~explained)
    for detection in _best_in_place(found, alone):
        suspects.append(Suspect("missing", float(found.scores[detection]), int(found.images[detection]), -1, detection))

    as_found = Found(objects.images, objects.classes, objects.boxes, own_score, np.zeros(len(objects.classes), int))
    doubles = matching.find_pairs(as_found, objects, _DOUBLED_IOU)
    for first, second, iou in zip(doubles.detections.tolist(), doubles.objects.tolist(), doubles.ious.tolist()):
        if first < second and not (objects.difficult[first] or objects.difficult[second]):
            worse = first if own_iou[first] < own_iou[second] else second
            suspects.append(Suspect("doubled", iou, int(objects.images[worse]), worse, -1))
    return _one_for_each_object(sorted(suspects, key=lambda suspect: -suspect.suspicion))


def _best_in_place(found: Found, rows: np.ndarray) -> list[int]:
    """Of detections that overlap, whatever their class, the one with the best score; `rows` are best first."""
    chosen = Found(*(values[rows] for values in found))
    no = np.zeros(len(rows), np.bool_)
    as_objects = Objects(chosen.images, chosen.classes, chosen.boxes, difficult=no, regions=no)
    pairs = any_class_pairs(chosen, as_objects, HIT_IOU)
    kept = np.ones(len(rows), np.bool_)
    for detection, other in zip(pairs.detections.tolist(), pairs.objects.tolist()):
        if other < detection and kept[other]:
            kept[detection] = False
    return rows[kept].tolist()


def _one_for_each_object(suspects: list[Suspect]) -> list[Suspect]:
    """The first suspect of each object, and all that are missing."""
    seen: set[int] = set()
    kept = []
    for suspect in suspects:
        if suspect.item not in seen:
            kept.append(suspect)
        if suspect.item >= 0:
            seen.add(suspect.item)
    return kept
