"""Which detection finds which object, by the rules of the VOC devkit and of COCO, for all images at once.

Both rules need only the pairs of a detection and an object of its class and image that overlap enough. They are found
once, in parts, so that memory grows with the detections and the overlapping pairs and not with all boxes squared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from input.shards import GroundTruth

COCO_MAX_DETECTIONS = 100  # of one class in one image
COCO_AREAS = {"": (0.0, 1e10), "_small": (0.0, 32.0**2), "_medium": (32.0**2, 96.0**2), "_large": (96.0**2, 1e10)}
_PAIRS_AT_ONCE = 2_000_000


class ImageDetections(NamedTuple):
    """The detections of one image, without padding."""

    boxes: np.ndarray  # f32 [d, 4] ymin xmin ymax xmax, px of the original image
    scores: np.ndarray  # f32 [d]
    classes: np.ndarray  # i32 [d], 0-based


class Objects(NamedTuple):
    """The objects of all images, image by image; after those of an image its ignored regions.

    A region of every class is there once for each class that is detected in its image.
    """

    images: np.ndarray  # int [n], the index of the image
    classes: np.ndarray  # int [n]
    boxes: np.ndarray  # f64 [n, 4] px
    difficult: np.ndarray  # bool [n]; regions are difficult as well
    regions: np.ndarray  # bool [n]


class Found(NamedTuple):
    """The detections of all images, best score first; equal scores keep the order of the images."""

    images: np.ndarray  # int [d], the index of the image
    classes: np.ndarray  # int [d]
    boxes: np.ndarray  # f64 [d, 4] px
    scores: np.ndarray  # f64 [d]
    ranks: np.ndarray  # int [d]: the place, from 0, among the detections of its class and image


class Pairs(NamedTuple):
    """Detections and objects of the same class and image that overlap."""

    detections: np.ndarray  # int [p], rows of `Found`, ascending
    objects: np.ndarray  # int [p], rows of `Objects`
    ious: np.ndarray  # f64 [p]
    covers: np.ndarray  # f64 [p], the intersection as a share of the detection


class Verdicts(NamedTuple):
    """How a rule judges every detection, at several IoUs; r rows."""

    hits: np.ndarray  # bool [r, d]: true positives
    counted: np.ndarray  # bool [r, d]: detections that are right or wrong; the others are ignored
    to_find: np.ndarray  # bool [r, n]: objects that have to be found


def join_images(ground_truths: Sequence[GroundTruth], detections: Sequence[ImageDetections]) -> tuple[Objects, Found]:
    """The objects and the detections of all images as flat arrays.

    Raises:
      ValueError: if the two sequences differ in length.
    """
    if len(ground_truths) != len(detections):
        raise ValueError(f"{len(ground_truths)} images have ground truth but {len(detections)} have detections.")

    def joined(arrays: Sequence[np.ndarray], empty: np.ndarray) -> np.ndarray:
        return np.concatenate([empty, *arrays]).astype(empty.dtype)

    def image_indexes(lengths: Sequence[int]) -> np.ndarray:
        return np.repeat(np.arange(len(lengths)), lengths)

    no_int, no_box, no_bool = np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.bool_)
    parts = list(map(_with_regions, ground_truths, detections))
    objects = Objects(
        images=image_indexes([len(part.classes) for part in parts]),
        classes=joined([part.classes for part in parts], no_int),
        boxes=joined([part.boxes for part in parts], no_box),
        difficult=joined([part.difficult for part in parts], no_bool),
        regions=joined(
            [np.arange(len(part.classes)) >= len(truth.classes) for part, truth in zip(parts, ground_truths)], no_bool
        ),
    )
    scores = joined([found.scores for found in detections], np.zeros(0))
    order = np.argsort(-scores, kind="stable")
    images = image_indexes([len(found.classes) for found in detections])[order]
    classes = joined([found.classes for found in detections], no_int)[order]
    boxes = joined([found.boxes for found in detections], no_box)[order]
    return objects, Found(images, classes, boxes, scores[order], ranks_within(np.stack([images, classes], axis=1)))


def _with_regions(truth: GroundTruth, found: ImageDetections) -> GroundTruth:
    """The ground truth of an image with its regions as difficult objects, each of one class, after its own."""
    detected, every = np.unique(found.classes), truth.region_classes < 0
    boxes = [truth.boxes, truth.regions[~every], np.repeat(truth.regions[every], len(detected), axis=0)]
    classes = [truth.classes, truth.region_classes[~every], np.tile(detected, int(np.sum(every)))]
    num_regions = sum(map(len, classes[1:]))
    return truth._replace(
        boxes=np.concatenate(boxes),
        classes=np.concatenate(classes),
        difficult=np.append(truth.difficult, np.ones(num_regions, np.bool_)),
    )


def ranks_within(keys: np.ndarray) -> np.ndarray:
    """For each row of int [n, c] how many equal rows stand before it, int [n]."""
    order = np.lexsort(keys.T)
    is_first = np.append(True, np.any(keys[order][1:] != keys[order][:-1], axis=1))[: len(order)]
    starts = np.flatnonzero(is_first)
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return ranks


def find_pairs(found: Found, objects: Objects, min_iou: float) -> Pairs:
    """The pairs whose IoU, or for difficult objects and regions whose cover, is at least `min_iou` > 0."""
    num_classes = 1 + max(found.classes.max(initial=0), objects.classes.max(initial=0))
    groups = objects.images * num_classes + objects.classes
    order = np.argsort(groups, kind="stable")
    wanted = found.images * num_classes + found.classes
    first = np.searchsorted(groups[order], wanted, "left")
    counts = np.searchsorted(groups[order], wanted, "right") - first
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    borders = np.searchsorted(ends, np.arange(0, total, _PAIRS_AT_ONCE), "right")
    parts = []
    for start, stop in zip(borders, [*borders[1:], len(ends)]):
        detections = np.repeat(np.arange(start, stop), counts[start:stop])
        within = np.arange(len(detections)) - np.repeat(ends[start:stop] - counts[start:stop], counts[start:stop])
        within += ends[start - 1] if start else 0
        members = order[first[detections] + within]
        boxes, others = found.boxes[detections], objects.boxes[members]
        sides = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
        intersections = np.prod(np.maximum(sides, 0.0), axis=1)
        area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        union = area + np.prod(others[:, 2:] - others[:, :2], axis=1) - intersections
        overlap = intersections > 0
        ious = np.divide(intersections, union, out=np.zeros_like(union), where=overlap)
        covers = np.divide(intersections, area, out=np.zeros_like(union), where=overlap)
        near = np.where(objects.difficult[members], covers, ious) >= min_iou  # a cover is never below the IoU
        parts.append([detections[near], members[near], ious[near], covers[near]])
    empty = [np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0)]
    return Pairs(*(np.concatenate(columns) for columns in zip(empty, *parts)))


def match_voc(found: Found, objects: Objects, pairs: Pairs, ious: Sequence[float]) -> Verdicts:
    """Judges detections as the VOC devkit does (`VOCevaldet.m`), at each of r IoUs.

    A detection is matched to the object of its class and image that it overlaps most, difficult or not, and to no
    other. Below the IoU it is false. At or above it, it is ignored if the object is difficult, true if its score is the
    best of those matched to the object, and false (a duplicate) otherwise.

    The devkit knows no ignored regions. As in COCO, a detection that would be false is ignored if at least the IoU's
    share of it lies in a region of its class.
    """
    in_region = objects.regions[pairs.objects]
    order = np.lexsort((-pairs.objects, pairs.ious, pairs.detections))
    order = order[~in_region[order]]
    detections = pairs.detections[order]
    best = order[np.append(detections[1:] != detections[:-1], True)[: len(order)]]  # of equals the first object
    hits = np.zeros((len(ious), len(found.classes)), np.bool_)
    counted = np.ones_like(hits)
    for row, iou in enumerate(ious):
        near = best[pairs.ious[best] >= iou]
        difficult = objects.difficult[pairs.objects[near]]
        counted[row, pairs.detections[near[difficult]]] = False
        near = near[~difficult]
        first = np.unique(pairs.objects[near], return_index=True)[1]  # the best score is first
        hits[row, pairs.detections[near[first]]] = True
        counted[row, pairs.detections[in_region & (pairs.covers >= iou)]] = False
    return Verdicts(hits, counted | hits, np.repeat(~objects.difficult[None], len(ious), axis=0))


def match_coco(found: Found, objects: Objects, pairs: Pairs, ious: Sequence[float]) -> Verdicts:
    """Judges detections as pycocotools does (`COCOeval.evaluateImg`), for each of `COCO_AREAS` at each IoU.

    The rows are those of the first range of areas, one for each IoU, then those of the second, and so on. Difficult
    objects and regions are crowds: they need not be found, and detections inside them are ignored. Detections are taken
    best first. Each is matched to the free object with the highest IoU, of equals to the last. One that has to be found
    is preferred to one that need not be; only a crowd may be matched again. At most `COCO_MAX_DETECTIONS` detections of
    a class count in an image.
    """
    ranges = np.array(list(COCO_AREAS.values()))
    thresholds = np.minimum(ious, 1 - 1e-10)

    def outside(boxes: np.ndarray) -> np.ndarray:
        """bool [areas, n]: the boxes whose area is not in the range."""
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        return (areas < ranges[:, :1]) | (areas > ranges[:, 1:])

    to_find = ~(objects.difficult | outside(objects.boxes))  # [areas, n]
    overlaps = np.where(objects.difficult[pairs.objects], pairs.covers, pairs.ious)
    near = (overlaps >= thresholds.min()) & (found.ranks[pairs.detections] < COCO_MAX_DETECTIONS)
    detections, members, overlaps = pairs.detections[near], pairs.objects[near], overlaps[near]
    # Detections of different classes or images do not compete. So the best ones of all classes and images are matched
    # at once, then the second ones, and so on.
    competing, own_pairs = np.unique(detections, return_inverse=True)
    turns = ranks_within(np.stack([found.images[competing], found.classes[competing]], axis=1))[own_pairs]
    order = np.lexsort((members, overlaps, detections, turns))
    detections, members, overlaps, turns = detections[order], members[order], overlaps[order], turns[order]

    shape = (len(ranges), len(thresholds))
    hits = np.zeros((len(found.classes), *shape), np.bool_)
    matched = np.zeros_like(hits)
    taken = np.zeros((len(objects.classes), *shape), np.bool_)
    num_pairs = len(members)
    borders = np.searchsorted(turns, np.arange(turns.max(initial=-1) + 2))
    for start, stop in zip(borders, borders[1:]):
        here = members[start:stop]
        free = ~taken[here] | objects.difficult[here][:, None, None]
        fits = free & (overlaps[start:stop, None, None] >= thresholds)
        # A pair's place says which pair is better; those of objects that have to be found come above all others.
        places = np.arange(start, stop)[:, None] + num_pairs * to_find[:, here].T
        first = np.flatnonzero(np.append(True, detections[start + 1 : stop] != detections[start : stop - 1]))
        best = np.maximum.reduceat(np.where(fits, places[:, :, None], -1), first, axis=0)
        row, area, iou = np.nonzero(best >= 0)
        pair = best[row, area, iou] % num_pairs
        matched[detections[pair], area, iou] = True
        hits[detections[pair], area, iou] = to_find[area, members[pair]]
        taken[members[pair], area, iou] = True
    ignored = np.where(matched, ~hits, outside(found.boxes).T[:, :, None])
    ignored |= (found.ranks >= COCO_MAX_DETECTIONS)[:, None, None]

    def in_rows(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values.reshape(len(values), shape[0] * shape[1]).T)

    return Verdicts(in_rows(hits), in_rows(~ignored), np.repeat(to_find, len(thresholds), axis=0))
