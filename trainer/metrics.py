"""Average precision of VOC 2007, of VOC 2010 and later, and of COCO.

Everything here is NumPy, in float64. Boxes are [ymin, xmin, ymax, xmax] in pixels of the original image, edges of a
continuous plane: a VOC object whose first and last pixels are 1 and 10 spans 0..10. The width of that span, 10, is what
the VOC devkit gets from 10 - 1 + 1, so the IoUs are the devkit's without a "+ 1".

Difficult objects: in VOC they need not be found, and a detection of one is ignored (it is neither right nor wrong).
COCO has no such mark. As is usual, they become `iscrowd` there: these need not be found either, and detections inside
them are ignored.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from input.shards import GroundTruth


class ImageDetections(NamedTuple):
    """The detections of one image, without padding."""

    boxes: np.ndarray  # f32 [d, 4] ymin xmin ymax xmax, px of the original image
    scores: np.ndarray  # f32 [d]
    classes: np.ndarray  # i32 [d], 0-based


class Matches(NamedTuple):
    """The detections of all images, best score first, each with its verdict."""

    classes: np.ndarray  # int [d]
    true_positives: np.ndarray  # bool [d]
    ignored: np.ndarray  # bool [d], detections of difficult objects, which do not count


def compute_metrics(
    ground_truths: Sequence[GroundTruth], detections: Sequence[ImageDetections], labels: Sequence[str]
) -> dict[str, Any]:
    """Every metric of one evaluation, ready for JSON.

    Args:
      ground_truths: one for each image; `boxes` [n, 4], `classes` int [n], `difficult` bool [n].
      detections: one for each image, in the same order.
      labels: the class names; a class is an index into them.

    Returns:
      `voc07_ap50`, `voc12_ap50`, `coco_ap`, `coco_ap50`, `coco_ap75`, `coco_ap_small`, `coco_ap_medium`,
      `coco_ap_large` (means over the classes that have objects), `num_images`, and `per_class`: for each label the
      first four and `num_objects` (without the difficult ones), `num_difficult`, `num_detections`.
      An average precision without any object to find is None.

    Raises:
      ValueError: if the two sequences differ in length.
    """
    if len(ground_truths) != len(detections):
        raise ValueError(f"{len(ground_truths)} images have ground truth but {len(detections)} have detections.")
    truth_classes = np.concatenate([np.zeros(0, np.int64), *(truth.classes for truth in ground_truths)])
    difficult = np.concatenate([np.zeros(0, bool), *(truth.difficult for truth in ground_truths)])
    matches = match_voc(ground_truths, detections)
    coco, coco_per_class = coco_metrics(ground_truths, detections, len(labels))

    per_class: dict[str, dict[str, Any]] = {}
    for index, label in enumerate(labels):
        num_objects = int(np.sum((truth_classes == index) & ~difficult))
        judged = matches.true_positives[(matches.classes == index) & ~matches.ignored]
        per_class[label] = {
            "voc07_ap50": voc07_ap(judged, num_objects),
            "voc12_ap50": voc12_ap(judged, num_objects),
            **coco_per_class[index],
            "num_objects": num_objects,
            "num_difficult": int(np.sum((truth_classes == index) & difficult)),
            "num_detections": int(np.sum(matches.classes == index)),
        }
    voc = {
        key: _mean([values[key] for values in per_class.values() if values[key] is not None])
        for key in ("voc07_ap50", "voc12_ap50")
    }
    return {**voc, **coco, "num_images": len(ground_truths), "per_class": per_class}


def match_voc(
    ground_truths: Sequence[GroundTruth], detections: Sequence[ImageDetections], iou_threshold: float = 0.5
) -> Matches:
    """Judges detections as the VOC devkit does (`VOCevaldet.m`).

    A detection is matched to the object of its class and image that it overlaps most, difficult or not, and to no
    other. Below the threshold it is false. At or above it, it is ignored if the object is difficult, true if its score
    is the best of those matched to the object, and false (a duplicate) otherwise.
    """
    scores, classes, objects, ignored = [np.zeros(0)], [np.zeros(0, int)], [np.zeros(0, int)], [np.zeros(0, bool)]
    first_object = 0  # objects are numbered over all images
    for truth, found in zip(ground_truths, detections):
        num_found, num_objects = len(found.classes), len(truth.classes)
        iou = np.where(found.classes[:, None] == truth.classes[None], pairwise_iou(found.boxes, truth.boxes), -1.0)
        iou = np.concatenate([iou, np.full((num_found, 1), -1.0)], axis=1)  # argmax needs at least one column
        best = np.argmax(iou, axis=1)
        hit = iou[np.arange(num_found), best] >= iou_threshold
        scores.append(found.scores)
        classes.append(found.classes)
        objects.append(np.where(hit, first_object + best, -1))
        ignored.append(hit & np.append(truth.difficult, False)[best])
        first_object += num_objects

    order = np.argsort(-np.concatenate(scores), kind="stable")
    matched = np.concatenate(objects)[order]
    is_ignored = np.concatenate(ignored)[order]
    is_first = np.zeros(len(matched), bool)
    is_first[np.unique(matched, return_index=True)[1]] = True
    return Matches(
        classes=np.concatenate(classes)[order],
        true_positives=is_first & (matched >= 0) & ~is_ignored,
        ignored=is_ignored,
    )


def pairwise_iou(boxes: np.ndarray, other_boxes: np.ndarray) -> np.ndarray:
    """IoU of [n, 4] and [m, 4] boxes as f64 [n, m]; 0 where both are empty."""
    boxes, other_boxes = boxes.astype(np.float64)[:, None], other_boxes.astype(np.float64)[None]
    top_left = np.maximum(boxes[..., :2], other_boxes[..., :2])
    bottom_right = np.minimum(boxes[..., 2:], other_boxes[..., 2:])
    intersection = np.prod(np.maximum(bottom_right - top_left, 0.0), axis=-1)
    areas = np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1)
    union = areas + np.prod(other_boxes[..., 2:] - other_boxes[..., :2], axis=-1) - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def voc07_ap(true_positives: np.ndarray, num_objects: int) -> float | None:
    """Average precision of VOC 2007: the mean over the recalls 0, 0.1 ... 1 of the best precision from there on.

    Recalls are compared in whole numbers: 3 of 10 objects reach the recall 0.3, but rounding could make 3 / 10 miss it.

    Args:
      true_positives: bool [d], the detections of one class, best score first, without the ignored ones.
      num_objects: how many objects there are to find, without the difficult ones.

    Returns:
      A number in 0..1, or None if there is nothing to find. Source: Everingham et al. 2010, section 4.2.
    """
    if num_objects == 0:
        return None
    found, precision = _precision_envelope(true_positives)
    return sum(precision[10 * found >= tenths * num_objects].max(initial=0.0) for tenths in range(11)) / 11


def voc12_ap(true_positives: np.ndarray, num_objects: int) -> float | None:
    """Average precision of VOC 2010 to 2012: the area under the precision made monotone, at every recall.

    Arguments and result are those of `voc07_ap`. Source: VOC 2012 development kit, section 3.4.1.
    """
    if num_objects == 0:
        return None
    _, precision = _precision_envelope(true_positives)
    return float(precision[true_positives].sum() / num_objects)  # recall changes only where an object is found


def _precision_envelope(true_positives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """After each detection, the number of objects found, i64 [d], and the best precision from there on, f64 [d]."""
    found = np.cumsum(true_positives)
    precision = found / np.arange(1, len(found) + 1)
    return found, np.maximum.accumulate(precision[::-1])[::-1]


def coco_metrics(
    ground_truths: Sequence[GroundTruth], detections: Sequence[ImageDetections], num_classes: int
) -> tuple[dict[str, float | None], list[dict[str, float | None]]]:
    """COCO average precision by pycocotools: over all classes, and for each class `coco_ap` and `coco_ap50`.

    As in COCO, at most 100 detections of a class count in an image, and objects are small up to an area of 32**2 and
    medium up to 96**2 pixels of the original image. A value is None where there is nothing to find.
    """
    truths = (
        (image, box.tolist(), category, {"iscrowd": int(difficult)})
        for image, truth in enumerate(ground_truths)
        for box, category, difficult in zip(truth.boxes, truth.classes, truth.difficult)
    )
    results = (
        (image, box.tolist(), category, {"iscrowd": 0, "score": float(score)})
        for image, found in enumerate(detections)
        for box, category, score in zip(found.boxes, found.classes, found.scores)
    )
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        indexes = (_coco_index(len(ground_truths), num_classes, rows) for rows in (truths, results))
        evaluator = COCOeval(*indexes, iouType="bbox")
        evaluator.evaluate()
        evaluator.accumulate()
    precision = evaluator.eval["precision"][..., -1]  # [iou, recall, class, area]; -1: nothing to find

    def average(precision: np.ndarray) -> float | None:
        return _mean(precision[precision > -1])

    overall = {
        "coco_ap": average(precision[:, :, :, 0]),
        "coco_ap50": average(precision[0, :, :, 0]),
        "coco_ap75": average(precision[5, :, :, 0]),
        "coco_ap_small": average(precision[:, :, :, 1]),
        "coco_ap_medium": average(precision[:, :, :, 2]),
        "coco_ap_large": average(precision[:, :, :, 3]),
    }
    per_class = [
        {"coco_ap": average(precision[:, :, index, 0]), "coco_ap50": average(precision[0, :, index, 0])}
        for index in range(num_classes)
    ]
    return overall, per_class


def _coco_index(
    num_images: int, num_classes: int, rows: Iterable[tuple[int, list[float], int, dict[str, Any]]]
) -> COCO:
    """pycocotools' index of annotations, each given as image, box, class and further entries."""
    index = COCO()
    index.dataset = {
        "images": [{"id": image} for image in range(num_images)],
        "categories": [{"id": category} for category in range(num_classes)],
        "annotations": [
            {
                "id": number,  # from 1, since pycocotools takes 0 for "no match"
                "image_id": image,
                "category_id": int(category),
                "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
                "area": (xmax - xmin) * (ymax - ymin),
                **extra,
            }
            for number, (image, (ymin, xmin, ymax, xmax), category, extra) in enumerate(rows, 1)
        ],
    }
    index.createIndex()
    return index


def _mean(values: Sequence[float] | np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None
