"""Tiles cover a picture, and one object in several of them is reported once."""

from __future__ import annotations

import numpy as np
import pytest

from trainer import tiles
from trainer.matching import ImageDetections


@pytest.mark.parametrize(
    ("length", "tile", "overlap"), [(3840, 1024, 0.2), (1025, 1024, 0.2), (2160, 640, 0.0), (50, 9, 0.9)]
)
def test_tiles_cover_a_side_and_overlap(length, tile, overlap):
    starts = tiles.tile_starts(length, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] + tile == length
    assert min(np.array(starts[:-1]) + tile - starts[1:]) >= tile * overlap - 1
    assert tiles.tile_starts(tile, tile, overlap) == [0]


def draw_4k(seed):
    """A 4K picture with objects of a grey value each, many on the seams of tiles of 1024 px, and their boxes."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((2160, 3840, 3), np.uint8)
    seams = [(y, x) for y in tiles.tile_starts(2160, 1024, 0.2) for x in tiles.tile_starts(3840, 1024, 0.2) if y and x]
    centres = seams + [(y + 1024 - 30, x - 700) for y, x in seams[:3]] + [(300, 300), (1900, 1300), (1100, 3700)]
    boxes = []
    for value, (y, x) in enumerate(centres, 1):
        height, width = rng.integers(40, 180, 2)
        box = np.clip([y - height // 2, x - width // 2, y + height // 2, x + width // 2], 0, [2160, 3840] * 2)
        picture[box[0] : box[2], box[1] : box[3]] = value
        boxes.append(box)
    return picture, np.array(boxes, np.float32)


def find_values(images):
    """A detector that reports the extent of each grey value; a small or cut object scores less, or more, by chance."""
    rng = np.random.default_rng(len(images))
    found = []
    for image in images:
        values = [value for value in np.unique(image) if value]
        boxes = []
        for value in values:
            ys, xs = np.nonzero(image[..., 0] == value)
            boxes.append([ys.min(), xs.min(), ys.max() + 1, xs.max() + 1])
        scores = rng.uniform(0.5, 1.0, len(values)).astype(np.float32)
        found.append(
            ImageDetections(np.array(boxes, np.float32).reshape(-1, 4), scores, np.zeros(len(values), np.int32))
        )
    return found


def find_values_but_not_in_the_whole(images):
    if images.shape[1] > 1024:
        return [ImageDetections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))]
    return find_values(images)


@pytest.mark.parametrize("detect", [find_values, find_values_but_not_in_the_whole])
@pytest.mark.parametrize("seed", range(2))
def test_each_object_on_the_seams_of_a_4k_picture_is_found_once(detect, seed):
    picture, boxes = draw_4k(seed)
    found = tiles.detect_in_tiles(detect, picture, tile=1024, overlap=0.2, batch_size=4)
    assert len(boxes) >= 10
    assert len(found.boxes) == len(boxes)
    assert np.all(np.diff(found.scores) <= 0)
    for box in boxes:
        assert np.abs(found.boxes - box).max(axis=1).min() == 0


def test_a_picture_of_one_tile_is_detected_once():
    calls = []

    def detect(images):
        calls.append(images.shape)
        return find_values(images)

    tiles.detect_in_tiles(detect, np.zeros((100, 90, 3), np.uint8), tile=100, overlap=0.2, batch_size=4)
    assert calls == [(1, 100, 90, 3)]


def test_neighbours_of_different_classes_and_of_one_tile_stay():
    detections = ImageDetections(
        np.array([[0, 0, 10, 10], [0, 0, 10, 10], [2, 2, 8, 8]], np.float32),
        np.array([0.9, 0.8, 0.7], np.float32),
        np.array([0, 1, 0], np.int32),
    )
    same_tile, cut = np.zeros(3, int), np.zeros(3, bool)
    assert sorted(tiles._merge(detections, same_tile, cut)) == [0, 1, 2]
    assert sorted(tiles._merge(detections, np.arange(3), cut)) == [0, 1]
    assert sorted(tiles._merge(detections, np.arange(3), np.array([True, False, False]))) == [1, 2]
