"""Thresholds, confusions and calibration by hand; suspect labels by planted errors."""

from __future__ import annotations

import numpy as np
import pytest

from input.shards import GroundTruth
from trainer import diagnosis, metrics
from trainer.matching import ImageDetections

LABELS = ("cat", "dog", "eel")


def truth(boxes, classes, difficult=None, region=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    difficult = np.zeros(len(boxes), bool) if difficult is None else np.array(difficult, bool)
    regions, every_class = (
        np.array([region] if region else [], np.float32).reshape(-1, 4),
        np.int32([-1] * bool(region)),
    )
    return GroundTruth("image", 640, 640, boxes, np.array(classes, np.int32), difficult, regions, every_class)


def found(boxes, scores, classes):
    return ImageDetections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(classes, np.int32)
    )


A, B, C, D = [0, 0, 10, 10], [0, 100, 10, 110], [100, 0, 110, 10], [100, 100, 110, 110]


def test_the_best_threshold_by_hand():
    """Three cats. Right 0.9; then right and wrong, both 0.7; then wrong. F1 at these: 2/4, 4/6, 4/7."""
    judgement = metrics.judge(
        [truth([A, B, C], [0, 0, 0])], [found([A, B, D, D], [0.9, 0.7, 0.7, 0.2], [0, 0, 0, 0])], LABELS
    )
    curve = diagnosis.threshold_curve(judgement, 0)
    np.testing.assert_allclose(curve.scores, [0.9, 0.7, 0.2])
    np.testing.assert_allclose(curve.precision, [1, 2 / 3, 1 / 2])
    np.testing.assert_allclose(curve.recall, [1 / 3, 2 / 3, 2 / 3])
    np.testing.assert_allclose(curve.f1, [2 / 4, 4 / 6, 4 / 7])
    assert diagnosis.best_threshold(curve) == pytest.approx((4 / 6, 0.7))
    assert diagnosis.best_threshold(diagnosis.threshold_curve(judgement, 1)) is None


def test_confusions_by_hand():
    truths = [
        truth([A, B, C, D], [0, 0, 1, 2], [False, False, False, True]),
        truth([A], [2]),
        truth([], [], region=[90, 90, 120, 120]),
    ]
    detections = [
        # A is found twice, B as a dog, C with too low a score, and D is difficult.
        found([A, A, B, C, D], [0.9, 0.8, 0.7, 0.3, 0.6], [0, 0, 1, 1, 0]),
        found([D], [0.9], [1]),
        found([D], [0.9], [1]),  # in an ignored region
    ]
    matrix = diagnosis.confusion_matrix(metrics.judge(truths, detections, LABELS), np.array([0.5, 0.5, 0.5]))
    assert matrix.tolist() == [
        [1, 1, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 0, 1],
        [1, 1, 0, 0],
    ]


def test_calibration_by_hand():
    judgement = metrics.judge([truth([A, B], [0, 0])], [found([A, B, C], [0.95, 0.91, 0.25], [0, 0, 0])], LABELS)
    bins = diagnosis.calibration(judgement)
    np.testing.assert_allclose(bins[9], [0.93, 1, 2], rtol=1e-6)
    np.testing.assert_allclose(bins[2], [0.25, 0, 1], rtol=1e-6)
    assert bins[:, 2].sum() == 3


def test_suspects_by_hand():
    near_b = [0, 106, 10, 116]  # 4 of 16: IoU 0.25
    truths = [truth([A, near_b, C, C], [0, 0, 1, 1]), truth([A, B], [0, 0], [False, True], region=[90, 90, 120, 120])]
    detections = [
        found([A, A, B, C, D, D], [0.8, 0.2, 0.9, 0.6, 0.7, 0.5], [1, 0, 0, 1, 2, 0]),
        # Right; on a difficult object; not confident; in an ignored region.
        found([A, B, C, D], [0.9, 0.9, 0.1, 0.9], [0, 1, 1, 1]),
    ]
    suspects = diagnosis.find_suspects(metrics.judge(truths, detections, LABELS))
    found_kinds = {suspect.kind: suspect for suspect in suspects}
    assert len(suspects) == len(found_kinds) == 4
    assert {suspect.image for suspect in suspects} == {0}
    assert [suspect.kind for suspect in suspects] == ["doubled", "missing", "shifted", "wrong class"]
    assert found_kinds["doubled"].suspicion == 1
    assert found_kinds["doubled"].item in (2, 3)
    assert (found_kinds["missing"].item, found_kinds["missing"].suspicion) == (-1, pytest.approx(0.7))
    assert (found_kinds["shifted"].item, found_kinds["shifted"].suspicion) == (1, pytest.approx(0.9 * 0.75))
    assert (found_kinds["wrong class"].item, found_kinds["wrong class"].suspicion) == (0, pytest.approx(0.8 - 0.2))


def planted_split(seed=0, num_images=300):
    """Labels of which 5% each are dropped, shifted by half a side or of another class, and what a model sees.

    The model is a good one: it finds 95% of the true objects, its boxes and scores scatter, and in every second image
    it sees something that is not there.
    """
    rng = np.random.default_rng(seed)
    truths, detections, planted = [], [], []
    for image in range(num_images):
        cells = rng.permutation(9)[: rng.integers(2, 7)]
        corners = np.stack([cells // 3, cells % 3], axis=1) * 210.0 + rng.uniform(0, 60, (len(cells), 2))
        sides = rng.uniform(40, 140, (len(cells), 2))
        boxes, classes = np.concatenate([corners, corners + sides], axis=1), rng.integers(0, 3, len(cells))
        seen = rng.random(len(cells)) < 0.95
        jitter = rng.normal(0, 0.03, (len(cells), 4)) * np.tile(sides, 2)
        scores = rng.beta(6, 2, len(cells))
        ghosts = int(rng.random() < 0.5)
        corner = rng.uniform(0, 400, (ghosts, 2))
        detections.append(
            found(
                np.concatenate([(boxes + jitter)[seen], np.concatenate([corner, corner + 90], axis=1)]),
                np.append(scores[seen], rng.beta(2, 6, ghosts)),
                np.append(classes[seen], rng.integers(0, 3, ghosts)),
            )
        )
        error = rng.choice(["", "missing", "shifted", "wrong class"], len(cells), p=[0.85, 0.05, 0.05, 0.05])
        kept = []
        for index in range(len(cells)):
            box, category = boxes[index].copy(), classes[index]
            if error[index] == "shifted":
                box[1::2] += 0.5 * sides[index, 1]
            if error[index] == "wrong class":
                category = (category + 1) % 3
            if error[index]:
                planted.append((error[index], image, boxes[index]))
            if error[index] != "missing":
                kept.append((box, category))
        truths.append(truth([box for box, _ in kept], [category for _, category in kept]))
    return truths, detections, planted


def test_planted_errors_are_found_first():
    truths, detections, planted = planted_split()
    judgement = metrics.judge(truths, detections, LABELS)
    suspects = diagnosis.find_suspects(judgement)

    def points_at(suspect, error):
        kind, image, box = error
        where = judgement.found.boxes[suspect.detection]  # none of the planted errors is a double
        return (suspect.kind, suspect.image) == (kind, image) and np.abs(where - box).max() < 40

    recall = {
        share: np.mean([any(points_at(s, error) for s in suspects[: share * len(planted)]) for error in planted])
        for share in (1, 2)
    }
    assert len(planted) > 100
    print(f"recall at k planted errors: {recall[1]:.2f}, at 2k: {recall[2]:.2f}")
    assert recall[1] > 0.75
    assert recall[2] > 0.9  # the model does not see 5% of the objects, so their labels stay unsuspected
