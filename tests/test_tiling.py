"""Large images cut into tiles, against what is painted in them."""

from __future__ import annotations

import io
import itertools
import pathlib

import numpy as np
import pytest
import voc_tree
from PIL import Image
from voc_tree import annotation_xml, encoded, object_xml

from input import shards, tfrecord
from input.conversion import convert, report
from input.conversion.config import ConversionError, ConvertConfig
from input.conversion.workers import Workers

HEIGHT, WIDTH, TILE = 300, 430, 128
COLOURS = {"cat": (255, 0, 0), "dog": (0, 0, 255), "ignore": (0, 255, 0)}


def painted(seed: int) -> tuple[np.ndarray, list[tuple[str, tuple[int, int, int, int]]]]:
    """A black image with a rectangle in every cell of a grid, many of them on seams: pixels; names and edges."""
    rng = np.random.default_rng(seed)
    pixels, objects = np.zeros((HEIGHT, WIDTH, 3), np.uint8), []
    for y, x in itertools.product(range(0, HEIGHT - 60, 60), range(0, WIDTH - 70, 70)):
        if rng.random() < 0.3:
            continue
        top, left = y + int(rng.integers(30)), x + int(rng.integers(30))
        ymax, xmax = top + int(rng.integers(4, 30)), left + int(rng.integers(4, 40))
        name = str(rng.choice(list(COLOURS)))
        pixels[top:ymax, left:xmax] = COLOURS[name]
        objects.append((name, (top, left, ymax, xmax)))
    return pixels, objects


def make_tree(folder, image_format="PNG", count=3):
    tree = voc_tree.VocTree(folder)
    for seed in range(count):
        pixels, objects = painted(seed)
        xml = "".join(
            object_xml(name, (left + 1, top + 1, xmax, ymax), "<truncated>0</truncated>")
            for name, (top, left, ymax, xmax) in objects
        )
        tree.add(
            *(f"i{seed}", annotation_xml(xml, size=None), encoded(Image.fromarray(pixels), image_format)),
            extension=".png" if image_format == "PNG" else ".jpg",
        )
    return tree


def run(tree, output, **settings):
    config = ConvertConfig(output_dir=str(output), voc_dirs=(str(tree.root),), num_shards=1, **settings)
    with Workers(1) as workers:
        (manifest,) = convert.convert(config, workers)
    (path,) = shards.expand_glob(f"{output}/*.tfrecord")
    keys = frozenset(["image/encoded", "image/filename", "image/object/truncated", "image/object/is_crowd"])
    features = [tfrecord.decode_example(record, keys) for record in tfrecord.read_records(path)]
    return manifest, list(zip(shards.read_annotations([path]), features))


def seen_in(objects, tile):
    """What a crop shows, by counting pixels: for each object its box there, and whether it counts as an object."""
    top, left, ymax, xmax = tile
    for name, (y0, x0, y1, x1) in objects:
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[y0:y1, x0:x1] = True
        part = mask[top:ymax, left:xmax]
        if part.any():
            rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
            center = top <= (y0 + y1) / 2 < ymax and left <= (x0 + x1) / 2 < xmax
            counts = name != "ignore" and bool(center or part.sum() >= mask.sum() / 4)
            yield name, (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1), counts, part.sum() < mask.sum()


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_tiles_show_what_was_painted_there(tmp_path, image_format):
    manifest, records = run(make_tree(tmp_path / "voc", image_format), tmp_path / "out", tile=TILE, overlap=0.25)
    tops, lefts = [0, 86, 172], [0, 76, 151, 226, 302]  # evenly, a step being at most 96
    assert {truth.image_id for truth, _ in records} == {
        f"i{seed}_x{left}_y{top}" for seed in range(3) for top in tops for left in lefts
    }
    assert len({truth.image_id for truth, _ in records}) == manifest.num_images == 45
    num_cut = num_slivers = 0
    for truth, features in records:
        seed, left, top = (int(text[1:]) for text in truth.image_id.split("_"))
        pixels, objects = painted(seed)
        with Image.open(io.BytesIO(features["image/encoded"][0])) as image:
            shown = np.asarray(image.convert("RGB"))
        assert shown.shape == (TILE, TILE, 3) == (truth.height, truth.width, 3)
        there = pixels[top : top + TILE, left : left + TILE]
        assert np.abs(shown.astype(int) - there).mean() < 4
        expected = list(seen_in(objects, (top, left, top + TILE, left + TILE)))
        whole = [(name, box, cut) for name, box, counts, cut in expected if counts]
        assert [(manifest.labels[index], tuple(box)) for index, box in zip(truth.classes, truth.boxes.tolist())] == [
            (name, pytest.approx(box, abs=1e-3)) for name, box, _ in whole
        ]
        is_region = np.array(features["image/object/is_crowd"], bool)
        truncated = np.array(features["image/object/truncated"], bool)[~is_region]
        assert truncated.tolist() == [bool(cut) for _, _, cut in whole]
        regions = sorted(box for _, box, counts, _ in expected if not counts)
        assert sorted(map(tuple, truth.regions.tolist())) == [pytest.approx(box, abs=1e-3) for box in regions]
        assert features["image/filename"] == [f"{truth.image_id}.jpg".encode()]
        num_cut += sum(cut for _, _, cut in whole)
        num_slivers += sum(name != "ignore" and not counts for name, _, counts, _ in expected)
    assert num_cut > 20
    assert num_slivers > 3
    (finding, *_) = (finding for finding in manifest.noted.files if finding.reason == "tiled")
    assert finding.detail.startswith("15 tiles, ")


def test_images_that_fit_are_stored_as_they_are(tmp_path):
    tree = make_tree(tmp_path / "voc", "JPEG", count=2)
    for verify in ("decode", "header"):
        manifest, records = run(tree, tmp_path / verify, tile=WIDTH, verify=verify)
        for truth, features in records:
            assert features["image/encoded"] == [(tree.images / f"{truth.image_id}.jpg").read_bytes()]
        assert "tiled" not in manifest.noted.counts


def test_tiles_without_objects_are_thinned(tmp_path):
    tree = voc_tree.VocTree(tmp_path / "voc")
    for number in range(3):
        xml = annotation_xml(object_xml(box=(1, 1, 20, 20)), size=None)
        tree.add(f"i{number}", xml, encoded(Image.new("RGB", (640, 640))))
    counts = {}
    for name, settings in {
        "all": {},
        "half": {"tile_negatives": 0.5},
        "none": {"tile_negatives": 0.0},
        "dropped": {"drop_empty": True},
    }.items():
        manifest, records = run(tree, tmp_path / name, tile=64, overlap=0.0, **settings)
        assert manifest.num_boxes == 3
        counts[name] = manifest.num_negatives
        assert manifest.num_images == len(records) == 3 + counts[name]
    assert (counts["all"], counts["none"], counts["dropped"]) == (297, 0, 0)
    assert 100 < counts["half"] < 200


def test_wrong_use_is_explained(tmp_path):
    tree = make_tree(tmp_path / "voc", count=1)
    for settings, message in (
        ({"tile": 8}, "--tile=8 must be at least 32"),
        ({"overlap": 1.0}, "--overlap must be"),
        ({"tile_negatives": -1.0}, "--tile_negatives be from 0 to 1"),
    ):
        with pytest.raises(ConversionError, match=message):
            run(tree, tmp_path / "out", **settings)
    tree.add("i0_x0_y0", annotation_xml(size=None), encoded(Image.new("RGB", (8, 8))))
    with pytest.raises(ConversionError, match="a tile of i0 as the image i0_x0_y0 is called"):
        run(tree, tmp_path / "out", tile=TILE)


def test_the_report_recommends_tiles_for_small_objects_in_large_images(tmp_path):
    """By hand: objects of 12 px are 16 px in an input of 640 px if it shows 480 px of the image."""
    tree = voc_tree.VocTree(tmp_path / "voc")
    for number in range(4):
        xml = "".join(object_xml(box=(at, at, at + 11, at + 11)) for at in range(100, 2900, 400))
        tree.add(f"i{number}", annotation_xml(xml, size=None), encoded(Image.new("RGB", (3000, 3000))))
    with Workers(1) as workers:
        for output, settings in (("whole", {}), ("tiled", {"tile": 480})):
            config = ConvertConfig(
                output_dir=str(tmp_path / output), voc_dirs=(str(tree.root),), num_shards=1, **settings
            )
            (manifest,) = convert.convert(config, workers)
            text, path = report.write_report(config.output_dir, manifest.split, (512, 512), workers)
            page = pathlib.Path(path).read_text(encoding="utf-8")
            recommended = "--tile=480 --overlap=0.1" in text
            assert recommended == ("--tile=480 --overlap=0.1" in page) == (output == "whole")
            assert "--store_max_side" not in text
