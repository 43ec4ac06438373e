"""Average precision against cases worked by hand, a plain reference, and pycocotools used as its demo does."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from input.shards import GroundTruth
from trainer import metrics

LABELS = ("cat", "dog", "eel")


def ground_truth(boxes, classes, difficult=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    difficult = np.zeros(len(boxes), bool) if difficult is None else np.array(difficult, bool)
    return GroundTruth("image", 100, 100, boxes, np.array(classes, np.int32), difficult)


def found(boxes, scores, classes):
    return metrics.ImageDetections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(classes, np.int32)
    )


def random_case(seed, *, num_images=30, num_classes=3, share_difficult=0.2, isolated=False):
    """Objects, and detections that are jittered objects, duplicates of them and noise; some images have neither.

    `isolated` lays the objects out on a grid, so that no detection overlaps two of them.
    """
    rng = np.random.default_rng(seed)
    truths, detections = [], []
    for _ in range(num_images):
        num_objects = rng.integers(0, 9)
        if isolated:
            cells = rng.permutation(9)[:num_objects]
            corners = np.stack([cells // 3, cells % 3], axis=1) * 100.0
            sizes = rng.integers(20, 60, (num_objects, 2))
        else:
            corners, sizes = rng.integers(0, 60, (num_objects, 2)), rng.integers(10, 120, (num_objects, 2))
        boxes = np.concatenate([corners, corners + sizes], axis=1)
        classes = rng.integers(0, num_classes, num_objects)
        truths.append(ground_truth(boxes, classes, rng.random(num_objects) < share_difficult))
        copies = rng.integers(0, 3, num_objects)
        near = np.repeat(boxes, copies, axis=0) + rng.normal(0, 5, (copies.sum(), 4))
        noise = np.concatenate([np.full((3, 2), 400.0), rng.integers(410, 480, (3, 2))], axis=1)
        all_classes = np.append(np.repeat(classes, copies), rng.integers(0, num_classes, 3))
        detections.append(found(np.concatenate([near, noise]), rng.random(len(all_classes)), all_classes))
    return truths, detections


# Ten objects; true, true, false, true, false, true. Precision after each: 1, 1, 2/3, 3/4, 3/5, 4/6; recall reaches
# 0.1, 0.2, 0.2, 0.3, 0.3, 0.4. Best precision from there on: 1, 1, 3/4, 3/4, 2/3, 2/3.
JUDGED = np.array([True, True, False, True, False, True])


def test_voc07_by_hand():
    # Recalls 0, 0.1, 0.2 -> 1; 0.3 -> 3/4; 0.4 -> 2/3; 0.5 to 1 -> 0.
    assert metrics.voc07_ap(JUDGED, 10) == pytest.approx((3 + 3 / 4 + 2 / 3) / 11)


def test_voc12_by_hand():
    assert metrics.voc12_ap(JUDGED, 10) == pytest.approx(0.1 * 1 + 0.1 * 1 + 0.1 * 3 / 4 + 0.1 * 2 / 3)


@pytest.mark.parametrize("average_precision", [metrics.voc07_ap, metrics.voc12_ap])
def test_average_precision_of_none_and_of_all(average_precision):
    nothing = np.zeros(0, bool)
    assert average_precision(nothing, 0) is None
    assert average_precision(np.array([False]), 0) is None
    assert average_precision(nothing, 3) == 0.0
    assert average_precision(np.array([True] * 3), 3) == 1.0


def test_pairwise_iou_counts_pixels_as_the_devkit_does():
    # Pixels 1..10 and 6..15 of a row, VOC's way: 5 shared of 15, times one column. As edges: 0..10 and 5..15.
    iou = metrics.pairwise_iou(np.array([[0, 0, 10, 1]]), np.array([[5, 0, 15, 1], [20, 0, 30, 1], [0, 0, 10, 1]]))
    np.testing.assert_allclose(iou, [[5 / 15, 0, 1]])
    assert metrics.pairwise_iou(np.zeros((1, 4)), np.zeros((1, 4))) == 0.0


def test_matching_by_hand():
    truths = [
        ground_truth([[0, 0, 10, 10], [0, 20, 10, 30], [50, 50, 60, 60]], [0, 0, 1], [False, True, False]),
        ground_truth([], []),
    ]
    detections = [
        found(
            [[0, 0, 10, 10], [0, 0, 10, 9], [0, 20, 10, 30], [0, 20, 10, 29], [50, 50, 60, 60], [0, 0, 10, 5]],
            [0.8, 0.9, 0.7, 0.6, 0.5, 0.4],
            [0, 0, 0, 0, 0, 0],
        ),
        found([[0, 0, 10, 10]], [0.85], [0]),
    ]
    matches = metrics.match_voc(truths, detections)
    # In order of score: the object found; a detection in an image without objects; the duplicate, though it overlaps
    # better; two on the difficult object; one on an object of another class; IoU exactly 0.5, again a duplicate.
    assert matches.true_positives.tolist() == [True, False, False, False, False, False, False]
    assert matches.ignored.tolist() == [False, False, False, True, True, False, False]


def test_an_iou_of_exactly_the_threshold_is_a_hit():
    matches = metrics.match_voc([ground_truth([[0, 0, 10, 10]], [0])], [found([[0, 0, 10, 5]], [0.5], [0])])
    assert matches.true_positives.tolist() == [True]


def test_a_detection_is_matched_to_the_object_it_overlaps_most_even_if_that_has_a_match():
    truths = [ground_truth([[0, 0, 10, 10], [0, 2, 10, 12]], [0, 0])]
    detections = [found([[0, 0, 10, 10], [0, 0.5, 10, 10.5]], [0.9, 0.8], [0, 0])]
    assert metrics.match_voc(truths, detections).true_positives.tolist() == [True, False]


def reference_voc(truths, detections, category):
    """VOC 2007 and 2012 average precision from their definitions: loops, and fractions for the recalls."""
    rows = [
        (score, image, box)
        for image, detection in enumerate(detections)
        for box, score, found_class in zip(detection.boxes.astype(float), detection.scores, detection.classes)
        if found_class == category
    ]
    rows.sort(key=lambda row: -row[0])
    num_objects = sum(int(np.sum((truth.classes == category) & ~truth.difficult)) for truth in truths)
    taken, judged = set(), []
    for _, image, (ymin, xmin, ymax, xmax) in rows:
        best, best_iou = None, 0.0
        for number, (top, left, bottom, right) in enumerate(truths[image].boxes.astype(float)):
            if truths[image].classes[number] != category:
                continue
            height, width = min(ymax, bottom) - max(ymin, top), min(xmax, right) - max(xmin, left)
            if height <= 0 or width <= 0:
                continue
            areas = (ymax - ymin) * (xmax - xmin) + (bottom - top) * (right - left)
            iou = height * width / (areas - height * width)
            if iou > best_iou:
                best, best_iou = number, iou
        if best_iou >= 0.5 and truths[image].difficult[best]:
            continue
        judged.append(best_iou >= 0.5 and (image, best) not in taken)
        if judged[-1]:
            taken.add((image, best))
    recalls = [Fraction(sum(judged[: n + 1]), num_objects) for n in range(len(judged))]
    precisions = [Fraction(sum(judged[: n + 1]), n + 1) for n in range(len(judged))]

    def best_precision(recall):
        return max((p for r, p in zip(recalls, precisions) if r >= recall), default=Fraction(0))

    voc07 = sum(best_precision(Fraction(tenths, 10)) for tenths in range(11)) / 11
    voc12 = sum(best_precision(Fraction(n, num_objects)) for n in range(1, num_objects + 1)) / num_objects
    return float(voc07), float(voc12)


@pytest.mark.parametrize("seed", range(5))
def test_voc_equals_its_definitions(seed):
    truths, detections = random_case(seed)
    result = metrics.compute_metrics(truths, detections, LABELS)
    for category, label in enumerate(LABELS):
        voc07, voc12 = reference_voc(truths, detections, category)
        assert result["per_class"][label]["voc07_ap50"] == pytest.approx(voc07, abs=1e-12)
        assert result["per_class"][label]["voc12_ap50"] == pytest.approx(voc12, abs=1e-12)
    values = [result["per_class"][label]["voc12_ap50"] for label in LABELS]
    assert result["voc12_ap50"] == pytest.approx(np.mean(values))
    assert 0.1 < result["voc12_ap50"] < 0.9


def pycocotools_directly(truths, detections, tmp_path, **params):
    """The route of pycocotools' own demo: a file of annotations, `loadRes`, evaluate, accumulate, summarize."""
    annotations, results = [], []
    for image, (truth, detection) in enumerate(zip(truths, detections), 1):
        for (ymin, xmin, ymax, xmax), category, difficult in zip(
            truth.boxes.tolist(), truth.classes.tolist(), truth.difficult.tolist()
        ):
            width, height = xmax - xmin, ymax - ymin
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category + 1,
                    "bbox": [xmin, ymin, width, height],
                    "area": width * height,
                    "iscrowd": int(difficult),
                }
            )
        for (ymin, xmin, ymax, xmax), score, category in zip(
            detection.boxes.tolist(), detection.scores.tolist(), detection.classes.tolist()
        ):
            box = [xmin, ymin, xmax - xmin, ymax - ymin]
            results.append({"image_id": image, "category_id": category + 1, "bbox": box, "score": score})
    path = tmp_path / "annotations.json"
    images = [{"id": image} for image in range(1, len(truths) + 1)]
    categories = [{"id": index, "name": label} for index, label in enumerate(LABELS, 1)]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": categories}))
    truth = COCO(str(path))
    evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
    for name, value in params.items():
        setattr(evaluator.params, name, value)
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator


@pytest.mark.parametrize("seed", range(3))
def test_coco_equals_pycocotools(seed, tmp_path, capsys):
    truths, detections = random_case(seed)
    result = metrics.compute_metrics(truths, detections, LABELS)
    assert capsys.readouterr().out == ""
    evaluator = pycocotools_directly(truths, detections, tmp_path)
    evaluator.summarize()
    ours = [result[f"coco_ap{suffix}"] for suffix in ("", "50", "75", "_small", "_medium", "_large")]
    theirs = [value if value > -1 else None for value in evaluator.stats[:6]]
    assert ours == pytest.approx(theirs, abs=1e-12)
    for index, label in enumerate(LABELS):
        precision = evaluator.eval["precision"][:, :, index, 0, -1]
        assert result["per_class"][label]["coco_ap"] == pytest.approx(precision.mean())
        assert result["per_class"][label]["coco_ap50"] == pytest.approx(precision[0].mean())


def test_voc_equals_pycocotools_where_the_two_agree_on_matches(tmp_path):
    """For isolated objects both match alike; then COCO's tool with VOC's recalls gives VOC's numbers."""
    truths, detections = random_case(7, share_difficult=0.0, isolated=True)
    result = metrics.compute_metrics(truths, detections, LABELS)
    for index, label in enumerate(LABELS):
        num_objects = result["per_class"][label]["num_objects"]
        for key, recalls in (
            ("voc07_ap50", np.linspace(0, 1, 11)),
            ("voc12_ap50", np.arange(1, num_objects + 1) / num_objects),
        ):
            evaluator = pycocotools_directly(
                truths, detections, tmp_path, iouThrs=np.array([0.5]), recThrs=recalls - 1e-9
            )
            expected = evaluator.eval["precision"][0, :, index, 0, -1].mean()
            assert result["per_class"][label][key] == pytest.approx(expected, abs=1e-12)


def test_metrics_without_detections():
    result = metrics.compute_metrics([ground_truth([[0, 0, 10, 10]], [1])], [found([], [], [])], LABELS)
    assert (result["voc07_ap50"], result["voc12_ap50"], result["coco_ap"], result["coco_ap50"]) == (0, 0, 0, 0)
    assert result["per_class"]["dog"]["num_objects"] == 1


def test_classes_and_images_without_objects():
    truths = [ground_truth([[0, 0, 10, 10]], [1]), ground_truth([], []), ground_truth([[0, 0, 9, 9]], [2], [True])]
    detections = [found([[0, 0, 10, 10]], [0.9], [1]), found([[0, 0, 5, 5]], [0.8], [0]), found([], [], [])]
    result = json.loads(json.dumps(metrics.compute_metrics(truths, detections, LABELS), allow_nan=False))
    for label in ("cat", "eel"):  # the mean is over the classes that have objects
        assert {result["per_class"][label][key] for key in ("voc07_ap50", "voc12_ap50", "coco_ap", "coco_ap50")} == {
            None
        }
    assert (result["voc07_ap50"], result["voc12_ap50"]) == (1, 1)
    assert result["coco_ap"] == pytest.approx(1)
    assert result["num_images"] == 3
    counts = [(v["num_objects"], v["num_difficult"], v["num_detections"]) for v in result["per_class"].values()]
    assert counts == [(0, 0, 1), (1, 0, 1), (0, 1, 0)]


@pytest.mark.parametrize("num_images", [0, 1])
def test_no_objects_at_all(num_images):
    result = metrics.compute_metrics([ground_truth([], [])] * num_images, [found([], [], [])] * num_images, LABELS)
    assert (result["voc07_ap50"], result["voc12_ap50"], result["coco_ap"]) == (None, None, None)
    assert result["num_images"] == num_images


def test_ground_truths_and_detections_must_be_of_the_same_images():
    with pytest.raises(ValueError, match="1 images have ground truth but 0"):
        metrics.compute_metrics([ground_truth([], [])], [], LABELS)
