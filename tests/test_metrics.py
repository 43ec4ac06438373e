"""Average precision against cases worked by hand, a plain reference, and pycocotools used as its demo does."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from input.shards import GroundTruth
from trainer import matching, metrics

LABELS = ("cat", "dog", "eel")


def ground_truth(boxes, classes, difficult=None, regions=(), region_classes=()):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    difficult = np.zeros(len(boxes), bool) if difficult is None else np.array(difficult, bool)
    regions = np.array(regions, np.float32).reshape(-1, 4)
    return GroundTruth(
        *("image", 100, 100, boxes, np.array(classes, np.int32), difficult, regions, np.array(region_classes, np.int32))
    )


def found(boxes, scores, classes):
    return matching.ImageDetections(
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


def regions_case(seed):
    """A random case, in half of whose images there are ignored regions of one class or of all."""
    rng = np.random.default_rng(seed)
    truths, detections = random_case(seed)
    for index in range(0, len(truths), 2):
        count = rng.integers(1, 4)
        corners = rng.integers(0, 420, (count, 2))
        boxes = np.concatenate([corners, corners + rng.integers(30, 120, (count, 2))], axis=1).astype(np.float32)
        truths[index] = truths[index]._replace(regions=boxes, region_classes=rng.integers(-1, len(LABELS), count))
    return truths, detections


# Ten objects; true, true, false, true, false, true. Precision after each: 1, 1, 2/3, 3/4, 3/5, 4/6; recall reaches
# 0.1, 0.2, 0.2, 0.3, 0.3, 0.4. Best precision from there on: 1, 1, 3/4, 3/4, 2/3, 2/3.
JUDGED = np.array([True, True, False, True, False, True])


def test_voc07_by_hand():
    # Recalls 0, 0.1, 0.2 -> 1; 0.3 -> 3/4; 0.4 -> 2/3; 0.5 to 1 -> 0.
    assert metrics.average_precision("voc07", JUDGED, 10) == pytest.approx((3 + 3 / 4 + 2 / 3) / 11)


def test_voc12_by_hand():
    assert metrics.average_precision("voc12", JUDGED, 10) == pytest.approx(
        0.1 * 1 + 0.1 * 1 + 0.1 * 3 / 4 + 0.1 * 2 / 3
    )


def test_coco_by_hand():
    # Of the recalls 0, 0.01 ... 1: 21 up to 0.2 -> 1; 10 up to 0.3 -> 3/4; 10 up to 0.4 -> 2/3.
    expected = (21 + 10 * 3 / 4 + 10 * 2 / 3) / 101
    assert metrics.average_precision("coco", JUDGED, 10) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["voc07", "voc12", "coco"])
def test_average_precision_of_none_and_of_all(kind):
    nothing = np.zeros(0, bool)
    assert metrics.average_precision(kind, nothing, 0) is None
    assert metrics.average_precision(kind, np.array([False]), 0) is None
    assert metrics.average_precision(kind, nothing, 3) == 0.0
    assert metrics.average_precision(kind, np.array([True] * 3), 3) == pytest.approx(1.0, abs=1e-15)


def match_voc(truths, detections, iou=0.5):
    objects, all_found = matching.join_images(truths, detections)
    return matching.match_voc(all_found, objects, matching.find_pairs(all_found, objects, iou), [iou])


def test_ious_count_pixels_as_the_devkit_does():
    # Pixels 1..10 and 6..15 of a row, VOC's way: 5 shared of 15, times one column. As edges: 0..10 and 5..15.
    truths = [ground_truth([[5, 0, 15, 1], [20, 0, 30, 1], [0, 0, 10, 1], [3, 0, 3, 1]], [0] * 4)]
    objects, all_found = matching.join_images(truths, [found([[0, 0, 10, 1], [3, 0, 3, 1]], [0.9, 0.8], [0, 0])])
    pairs = matching.find_pairs(all_found, objects, 1e-9)
    assert (pairs.detections.tolist(), pairs.objects.tolist()) == ([0, 0], [0, 2])
    np.testing.assert_allclose(pairs.ious, [5 / 15, 1])
    np.testing.assert_allclose(pairs.covers, [5 / 10, 1])


def test_pairs_are_the_same_in_parts(monkeypatch):
    objects, all_found = matching.join_images(*random_case(3))
    whole = matching.find_pairs(all_found, objects, 0.1)
    assert len(whole.ious) > 100
    monkeypatch.setattr(matching, "_PAIRS_AT_ONCE", 7)
    for ours, theirs in zip(matching.find_pairs(all_found, objects, 0.1), whole):
        np.testing.assert_array_equal(ours, theirs)


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
    verdicts = match_voc(truths, detections)
    # In order of score: the object found; a detection in an image without objects; the duplicate, though it overlaps
    # better; two on the difficult object; one on an object of another class; IoU exactly 0.5, again a duplicate.
    assert verdicts.hits[0].tolist() == [True, False, False, False, False, False, False]
    assert verdicts.counted[0].tolist() == [True, True, True, False, False, True, True]
    assert verdicts.to_find[0].tolist() == [True, False, True]


def test_an_iou_of_exactly_the_threshold_is_a_hit():
    verdicts = match_voc([ground_truth([[0, 0, 10, 10]], [0])], [found([[0, 0, 10, 5]], [0.5], [0])])
    assert verdicts.hits.tolist() == [[True]]


def test_a_detection_is_matched_to_the_object_it_overlaps_most_even_if_that_has_a_match():
    truths = [ground_truth([[0, 0, 10, 10], [0, 2, 10, 12]], [0, 0])]
    detections = [found([[0, 0, 10, 10], [0, 0.5, 10, 10.5]], [0.9, 0.8], [0, 0])]
    assert match_voc(truths, detections).hits.tolist() == [[True, False]]


def test_a_detection_in_a_region_is_ignored_unless_it_is_a_hit():
    """By hand: one object, and beside it a region of every class and one of the first class."""
    region, cats = [0, 20, 10, 40], [0, 60, 10, 80]
    truths = [ground_truth([[0, 18, 10, 28]], [0], None, [region, cats], [-1, 0])]
    detections = [
        found(
            [
                [0, 18, 10, 28],
                [0, 18, 10, 28],
                [0, 30, 10, 40],
                [0, 15, 10, 24],
                [0, 15, 10, 25],
                [0, 60, 10, 80],
                [0, 60, 10, 80],
            ],
            [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3],
            [0, 0, 1, 1, 1, 0, 1],
        )
    ]
    judgement = metrics.judge(truths, detections, LABELS)
    # The hit, its duplicate in the region, one of another class there; 4 of 9 inside, 5 of 10; one among the cats, and
    # one there of another class.
    assert judgement.voc.hits[0].tolist() == [True] + [False] * 6
    assert judgement.voc.counted[0].tolist() == [True, False, False, True, False, False, True]
    np.testing.assert_array_equal(judgement.coco.counted[0], judgement.voc.counted[0])
    result = metrics.summarize(judgement)["per_class"]
    assert (result["cat"]["voc12_ap50"], result["cat"]["coco_ap"]) == (1, pytest.approx(1))
    assert (result["cat"]["num_objects"], result["cat"]["num_difficult"]) == (1, 0)
    assert result["dog"]["voc12_ap50"] is None  # a region is no object


def reference_voc(truths, detections, category, threshold=0.5):
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
        if best_iou >= threshold and truths[image].difficult[best]:
            continue
        is_hit = best_iou >= threshold and (image, best) not in taken
        shares = [
            max(min(ymax, bottom) - max(ymin, top), 0) * max(min(xmax, right) - max(xmin, left), 0)
            for (top, left, bottom, right), of_class in zip(
                truths[image].regions.astype(float), truths[image].region_classes
            )
            if of_class in (-1, category)
        ]
        if not is_hit and any(0 < share >= threshold * (ymax - ymin) * (xmax - xmin) for share in shares):
            continue
        judged.append(bool(is_hit))  # not NumPy's, which Python 3.9's fractions dislike
        if judged[-1]:
            taken.add((image, best))
    if not num_objects:
        return None, None
    recalls = [Fraction(sum(judged[: n + 1]), num_objects) for n in range(len(judged))]
    precisions = [Fraction(sum(judged[: n + 1]), n + 1) for n in range(len(judged))]

    def best_precision(recall):
        return max((p for r, p in zip(recalls, precisions) if r >= recall), default=Fraction(0))

    voc07 = sum(best_precision(Fraction(tenths, 10)) for tenths in range(11)) / 11
    voc12 = sum(best_precision(Fraction(n, num_objects)) for n in range(1, num_objects + 1)) / num_objects
    return float(voc07), float(voc12)


@pytest.mark.parametrize(
    ("make_case", "seed"), [*((random_case, seed) for seed in range(5)), (regions_case, 5), (regions_case, 6)]
)
def test_voc_equals_its_definitions(make_case, seed):
    truths, detections = make_case(seed)
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
        rows = [*zip(truth.boxes.tolist(), truth.classes.tolist(), truth.difficult.tolist())]
        for box, of_class in zip(truth.regions.tolist(), truth.region_classes.tolist()):
            rows += [(box, category, True) for category in range(len(LABELS)) if of_class in (-1, category)]
        for (ymin, xmin, ymax, xmax), category, difficult in rows:
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


def tied_case(seed):
    """Boxes and scores of few values: equal scores, equal IoUs, duplicates, crowds, images with nothing."""
    rng = np.random.default_rng(seed)

    def some_boxes(count):
        corners = rng.integers(0, 4, (count, 2)) * 16
        return np.concatenate([corners, corners + rng.integers(1, 5, (count, 2)) * 16], axis=1)

    truths, detections = [], []
    for _ in range(40):
        count = rng.integers(0, 7)
        truths.append(ground_truth(some_boxes(count), rng.integers(0, 2, count), rng.random(count) < 0.3))
        count = rng.integers(0, 25)
        detections.append(found(some_boxes(count), rng.integers(1, 5, count) / 4, rng.integers(0, 3, count)))
    return truths, detections


def crowded_case(seed):
    """More detections of a class in an image than COCO counts."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 400, (150, 2))
    boxes = np.concatenate([corners, corners + rng.integers(10, 120, (150, 2))], axis=1)
    near = boxes + rng.normal(0, 4, boxes.shape)
    return [ground_truth(boxes, [0] * 150)], [found(near, rng.random(150), [0] * 150)]


CASES = {
    **{f"random{seed}": random_case(seed) for seed in range(3)},
    **{f"tied{seed}": tied_case(seed) for seed in range(4)},
    **{f"regions{seed}": regions_case(seed) for seed in range(3)},
    "crowded": crowded_case(0),
    "difficult": random_case(8, share_difficult=1.0),
    "one_detection": (random_case(9)[0], [found([], [], [])] * 29 + [found([[0, 0, 9, 9]], [0.5], [2])]),
}


@pytest.mark.parametrize("case", CASES)
def test_coco_equals_pycocotools(case, tmp_path, capsys):
    truths, detections = CASES[case]
    judgement = metrics.judge(truths, detections, LABELS)
    result = metrics.summarize(judgement)
    assert capsys.readouterr().out == ""
    evaluator = pycocotools_directly(truths, detections, tmp_path)
    evaluator.summarize()
    names = ["coco_ap", "coco_ap50", "coco_ap75", "coco_ap_small", "coco_ap_medium", "coco_ap_large"]
    names += ["coco_ar1", "coco_ar10", "coco_ar100", "coco_ar_small", "coco_ar_medium", "coco_ar_large"]
    theirs = [value if value > -1 else None for value in evaluator.stats]
    assert [result[name] for name in names] == pytest.approx(theirs, abs=1e-12)
    precision = evaluator.eval["precision"].mean(axis=1)[..., -1]  # [iou, class, area]
    for index, label in enumerate(LABELS):
        ours = [result["per_class"][label][name] for name in names[:6]]
        rows = [precision[:, index, 0], precision[:1, index, 0], precision[5:6, index, 0], *precision[:, index, 1:].T]
        theirs = [row.mean() if row.mean() > -1 else None for row in rows]
        assert ours == pytest.approx(theirs, abs=1e-12)
    # The verdicts themselves: equal numbers of hits for each class, area and IoU.
    hits = judgement.coco.hits.reshape(4, 10, -1)
    to_find = judgement.coco.to_find.reshape(4, 10, -1)[:, 0]
    recall = evaluator.eval["recall"][..., -1]
    for index in range(len(LABELS)):
        number = to_find[:, judgement.objects.classes == index].sum(axis=-1)
        ours = hits[:, :, judgement.found.classes == index].sum(axis=-1)
        there = number > 0
        np.testing.assert_array_equal(ours[there] / number[there, None], recall[:, index].T[there])
        assert np.all(recall[:, index].T[~there] == -1)


@pytest.mark.parametrize("seed", range(2))
def test_average_precision_at_any_iou(seed, tmp_path):
    truths, detections = tied_case(seed)
    ious = (0.3, 0.62, 1.0)
    result = metrics.compute_metrics(truths, detections, LABELS, ious=ious)
    plain = metrics.compute_metrics(truths, detections, LABELS)
    assert {name: result[name] for name in plain if name.startswith(("coco", "voc"))} == {
        name: value for name, value in plain.items() if name.startswith(("coco", "voc"))
    }
    evaluator = pycocotools_directly(truths, detections, tmp_path, iouThrs=np.array(ious))
    precision = evaluator.eval["precision"][:, :, :2, 0, -1].mean(axis=1)  # no object has the third class
    for row, iou in enumerate(ious):
        assert result[f"coco_ap@{iou:g}"] == pytest.approx(precision[row].mean(), abs=1e-12)
        for index, label in enumerate(LABELS[:2]):
            voc07, voc12 = reference_voc(truths, detections, index, iou)
            assert result["per_class"][label][f"voc07_ap@{iou:g}"] == pytest.approx(voc07, abs=1e-12)
            assert result["per_class"][label][f"voc12_ap@{iou:g}"] == pytest.approx(voc12, abs=1e-12)
    with pytest.raises(ValueError, match=r"above 0 and at most 1; got 1\.5"):
        metrics.judge(truths, detections, LABELS, [0.5, 1.5])


def test_a_weighted_image_counts_as_so_many_copies():
    truths, detections = random_case(4, num_images=12)
    weights = np.array([[0, 1, 3, 0, 1, 1, 2, 0, 1, 1, 2, 0], [2, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2]])
    values = metrics.average_precisions(metrics.judge(truths, detections, LABELS), weights)
    for sample, counts in enumerate(weights):
        copies = np.repeat(np.arange(12), counts)
        expected = metrics.compute_metrics([truths[i] for i in copies], [detections[i] for i in copies], LABELS)
        for name, rows in values.items():
            for index, label in enumerate(LABELS):
                value = expected["per_class"][label][name]
                assert rows[index, sample] == pytest.approx(np.nan if value is None else value, nan_ok=True)


def test_intervals_hold_the_value_and_shrink_with_the_images():
    widths = []
    for num_images in (50, 800):
        result = metrics.compute_metrics(*random_case(5, num_images=num_images), LABELS, resamples=200)
        assert result["intervals"].keys() == {name for name in result if "_ap" in name}
        for name, (low, high) in result["intervals"].items():
            assert low <= result[name] <= high
        assert result["per_class"]["dog"]["intervals"].keys() == result["intervals"].keys()
        widths.append(np.diff(result["intervals"]["voc12_ap50"])[0])
    assert 2.8 < widths[0] / widths[1] < 5.6  # the square root of 16 is 4


def test_an_interval_is_as_wide_as_the_values_of_other_images_scatter():
    """The standard deviation over 60 drawn splits is what the bootstrap predicts from one of them."""
    values, widths = [], []
    for seed in range(60):
        judgement = metrics.judge(*random_case(100 + seed, num_images=60), LABELS)
        values.append(metrics.average_precisions(judgement, np.ones((1, 60), int))["voc12_ap50"].mean())
        if seed < 5:
            widths.append(np.diff(metrics.summarize(judgement, resamples=200)["intervals"]["voc12_ap50"])[0])
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(values), rel=0.3)


def test_comparing_two_models_on_the_same_images():
    truths, detections = random_case(6, num_images=60)
    rng = np.random.default_rng(0)

    def judged(spread):
        moved = [found(d.boxes + rng.normal(0, spread, d.boxes.shape), d.scores, d.classes) for d in detections]
        return metrics.judge(truths, moved, LABELS)

    original, slightly, far = judged(0), judged(0.2), judged(8)
    same = metrics.compare(original, original, 100)["voc12_ap50"]
    assert (same["difference"], same["interval"], same["real"]) == (0, [0, 0], False)
    assert not metrics.compare(original, slightly, 200)["voc12_ap50"]["real"]
    worse = metrics.compare(original, far, 200)["voc12_ap50"]
    assert worse["real"]
    assert worse["interval"][0] <= worse["difference"] <= worse["interval"][1] < 0
    assert worse["difference"] == pytest.approx(worse["second"] - worse["first"])
    # Paired: the interval of the difference is narrower than that of either model.
    (low, high) = metrics.summarize(original, resamples=200)["intervals"]["coco_ap"]
    paired = metrics.compare(original, slightly, 200)["coco_ap"]["interval"]
    assert paired[1] - paired[0] < (high - low) / 2


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
