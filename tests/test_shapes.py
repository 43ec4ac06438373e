"""The drawn data set: reproducible, proper Pascal VOC, and boxes that fit what is drawn."""

import hashlib
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from trainer import shapes


@pytest.fixture(scope="module")
def drawn():
    """Pictures as float arrays, with their objects."""
    rngs = [np.random.default_rng([7, number]) for number in range(80)]
    return [(np.asarray(image, np.float32), objects) for image, objects in (shapes.draw(r, (160, 240)) for r in rngs)]


def _digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        shapes.write_shapes(tmp_path / name, num_images=4, image_size=(64, 96), seed=seed)
    assert _digest(tmp_path / "a") == _digest(tmp_path / "b") != _digest(tmp_path / "c")


def test_voc_layout(tmp_path):
    shapes.write_shapes(tmp_path, num_images=20, image_size=(64, 96), seed=0)
    sets = {path.stem: path.read_text().split() for path in (tmp_path / "ImageSets" / "Main").iterdir()}
    assert {name: len(lines) for name, lines in sets.items()} == {"train": 14, "val": 2, "test": 4}
    listed = sorted(name for lines in sets.values() for name in lines)
    assert listed == sorted(path.stem for path in (tmp_path / "Annotations").iterdir())
    names = set()
    for name in listed:
        root = ElementTree.parse(tmp_path / "Annotations" / f"{name}.xml").getroot()
        with Image.open(tmp_path / "JPEGImages" / root.findtext("filename")) as image:
            assert (image.format, image.size) == ("JPEG", (96, 64))
        assert (root.findtext("size/width"), root.findtext("size/height")) == ("96", "64")
        for element in root.iter("object"):
            names.add(element.findtext("name"))
            xmin, ymin, xmax, ymax = (int(element.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax"))
            assert 1 <= xmin < xmax <= 96
            assert 1 <= ymin < ymax <= 64
    assert names == set(shapes.CLASSES)


def test_an_image_does_not_depend_on_how_many_are_drawn(tmp_path):
    shapes.write_shapes(tmp_path / "few", num_images=2, image_size=(64, 96))
    shapes.write_shapes(tmp_path / "more", num_images=3, image_size=(64, 96))
    few, more = (tmp_path / name / "JPEGImages" / "000001.jpg" for name in ("few", "more"))
    assert few.read_bytes() == more.read_bytes()


def test_boxes_end_where_the_colour_changes(drawn):
    """A circle touches its box in the middle of each side: the colour jumps across the side, and not farther out."""
    across, outside = [], []
    for pixels, objects in drawn:
        for name, (xmin, ymin, xmax, ymax) in objects:
            if name != "circle" or len(objects) > 1 or xmin < 9 or xmax > 232:
                continue
            row = pixels[(ymin + ymax) // 2 - 1]
            # 0-based columns: the first inside is xmin - 1, the last inside xmax - 1.
            across += [row[xmin - 4] - row[xmin + 1], row[xmax + 2] - row[xmax - 3]]
            outside += [row[xmin - 9] - row[xmin - 4], row[min(xmax + 7, 239)] - row[xmax + 2]]
    assert len(across) >= 6
    across, outside = (np.mean(np.linalg.norm(jumps, axis=1)) for jumps in (across, outside))
    assert across > 2 * outside
    assert across > 60


def test_circles_have_square_boxes_and_others_do_not_always(drawn):
    sides = {name: [] for name in shapes.CLASSES}
    for _, objects in drawn:
        for name, (xmin, ymin, xmax, ymax) in objects:
            sides[name].append((xmax - xmin) - (ymax - ymin))
    assert min(map(len, sides.values())) > 30
    assert np.abs(sides["circle"]).max() <= 1
    assert np.abs(sides["triangle"]).max() > 1


def test_shapes_overlap_by_a_quarter_at_most(drawn):
    shares = []
    for _, objects in drawn:
        boxes = np.array([box for _, box in objects], np.float64).reshape(-1, 4)
        top = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        bottom = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        common = np.prod(np.maximum(bottom - top + 1, 0), axis=-1)
        areas = np.diagonal(common)
        share = common / np.minimum(areas[:, None], areas[None])
        shares += list(share[np.triu_indices(len(boxes), 1)])
    assert 0 < max(shares) <= 0.25
