"""Drawn detections: boxes on their edges, labels inside the picture, and colours that differ."""

from __future__ import annotations

import importlib
import io

import numpy as np
import pytest
from PIL import Image

from input.palette import class_colour
from trainer import drawing, predict
from trainer.formats import LabelledBox

COLOURS = {"cat": class_colour(0), "dog": class_colour(1)}


def drawn(size: tuple[int, int], *detections: LabelledBox) -> np.ndarray:
    """Pixels u8 of a grey picture of (height, width) on which detections are drawn."""
    image = Image.new("RGB", size[::-1], (128, 128, 128))
    predict.draw_detections(image, detections, COLOURS, {})
    return np.asarray(image)


def test_a_records_image_of_any_size_is_shrunk(monkeypatch):
    """Pillow takes large images for attacks; here from 1,000 pixels on, until the module is imported."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    importlib.reload(drawing)
    encoded = io.BytesIO()
    Image.new("1", (200, 90), 1).save(encoded, "PNG")
    small = np.asarray(drawing.shrink(encoded.getvalue(), 9, 20))
    assert small.shape == (9, 20, 3)
    assert small.min() == 255


def test_a_box_is_drawn_on_its_edges():
    box = (100, 40, 180, 250)
    pixels = drawn((200, 300), LabelledBox("dog", box, score=0.5))
    ymin, xmin, ymax, xmax = box
    for inside in (
        pixels[ymin:ymax, xmin],
        pixels[ymin:ymax, xmax - 1],
        pixels[ymin, xmin:xmax],
        pixels[ymax - 1, xmin:xmax],
    ):
        assert (inside == COLOURS["dog"]).all()
    for outside in (pixels[ymin:, xmin - 1], pixels[ymin:, xmax], pixels[ymax, :]):
        assert (outside == 128).all()
    assert (pixels[ymin + 20 : ymax - 20, xmin + 20 : xmax - 20] == 128).all()
    label = pixels[:ymin]  # above the box: filled, with letters on it
    assert (label == COLOURS["dog"]).all(axis=-1).sum() > 100
    assert (label.max(axis=-1) < 64).any() or (label.min(axis=-1) > 192).any()


@pytest.mark.parametrize(
    "box", [(0, 0, 200, 300), (0, 290, 30, 300), (190, 280, 200, 300), (5, 5, 6, 6), (199.2, 299.1, 200, 300)]
)
def test_a_label_stays_in_the_picture(box):
    alone = drawn((200, 300), LabelledBox("cat", (100, 50, 150, 90), score=0.98))
    whole_label = (alone[:100] != 128).any(axis=-1)
    height, width = whole_label.any(axis=1).sum(), whole_label.any(axis=0).sum()
    pixels = drawn((200, 300), LabelledBox("cat", box, score=0.98))
    ys, xs = np.nonzero((pixels == COLOURS["cat"]).all(axis=-1))
    assert np.ptp(ys) + 1 >= height
    assert np.ptp(xs) + 1 >= width


def test_the_best_detection_is_drawn_over_the_others():
    box = (50, 50, 150, 150)
    pixels = drawn((200, 300), LabelledBox("cat", box, score=0.9), LabelledBox("dog", box, score=0.4))
    assert (pixels[150 - 1, 50:150] == COLOURS["cat"]).all()


def test_labels_grow_with_the_picture():
    heights = []
    for size in ((300, 400), (1500, 2000)):
        pixels = drawn(size, LabelledBox("cat", (size[0] // 2, 10, size[0] - 10, 200), score=0.9))
        heights.append((pixels[: size[0] // 2] != 128).any(axis=(1, 2)).sum())
    assert heights[1] > 3 * heights[0]


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3)])
def test_the_smallest_pictures_can_be_drawn_on(size):
    pixels = drawn(size, LabelledBox("cat", (0, 0, *size), score=0.9))
    assert pixels.shape == (*size, 3)


def test_the_colours_of_many_classes_differ():
    colours = np.array([class_colour(index) for index in range(80)])
    distances = np.abs(colours[:, None] - colours[None]).sum(axis=-1) + 1000 * np.eye(len(colours), dtype=int)
    assert distances[:20, :20].min() >= 60
    assert distances.min() >= 10
