"""Near duplicates: planted copies are found, different images are not, and the search agrees with brute force."""

from __future__ import annotations

import itertools
import pathlib

import numpy as np
import pytest
import voc_tree
from PIL import Image, ImageEnhance
from voc_tree import annotation_xml, encoded

from input import shards
from input.conversion import convert, looks, report
from input.conversion.config import ConvertConfig
from input.conversion.workers import Workers


def scene(seed: int, height: int = 240, width: int = 320) -> Image.Image:
    """A smooth background with some shapes and noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    for _ in range(8):
        y, x = rng.integers(0, height - 40), rng.integers(0, width - 40)
        pixels[y : y + rng.integers(9, 40), x : x + rng.integers(9, 40)] = rng.integers(0, 256, 3)
    return Image.fromarray(np.clip(pixels + rng.integers(-5, 6, pixels.shape), 0, 255).astype(np.uint8))


CHANGES = {
    "encoded anew": lambda image: encoded(image, quality=40),
    "half the size": lambda image: encoded(image.resize((160, 120), Image.Resampling.LANCZOS)),
    "another size": lambda image: encoded(image.resize((500, 375), Image.Resampling.BILINEAR)),
    "brighter": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.1)),
    "grey": lambda image: encoded(image.convert("L")),
    "a PNG": lambda image: encoded(image, "PNG"),
    "cropped": lambda image: encoded(image.crop((4, 3, 316, 237))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_planted_copies_are_found(tmp_path, change):
    """Ten of them among forty images, and nothing else."""
    tree = voc_tree.VocTree(tmp_path / "voc")
    for seed in range(30):
        tree.add(f"img{seed:02d}", annotation_xml(size=None), encoded(scene(seed), quality=90))
    for seed in range(10):
        tree.add(f"copy{seed:02d}", annotation_xml(size=None), CHANGES[change](scene(seed)))
    (manifest,) = convert.convert(ConvertConfig(str(tmp_path / "out"), (str(tree.root),)), Workers(1))
    found = [finding for finding in manifest.noted.files if finding.reason == "near_duplicate"]
    pairs = {(finding.image_id, finding.detail.split(":")[0]) for finding in found}
    assert pairs == {(f"img{seed:02d}", f"as copy{seed:02d}") for seed in range(10)}
    assert not manifest.noted.counts.get("same_image")


def test_near_duplicates_of_another_split_are_named(tmp_path):
    folder = tmp_path / "set"
    for path, data in (
        ("train/a", encoded(scene(0))),
        ("train/b", encoded(scene(1))),
        ("val/c", encoded(scene(0), quality=50)),
        ("val/d", encoded(scene(1))),  # the same bytes: another reason
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{path}.xml").write_text(annotation_xml(size=None))
        (folder / f"{path}.jpg").write_bytes(data)
    train, val = convert.convert(ConvertConfig(str(tmp_path / "out"), (str(folder),)), Workers(1))
    reasons = {(finding.image_id, finding.reason) for finding in val.noted.files if "e" in finding.reason}
    assert {("c", "near_duplicate_elsewhere"), ("d", "same_image_elsewhere")} <= reasons
    assert ("d", "near_duplicate_elsewhere") not in reasons
    (finding,) = (finding for finding in val.noted.files if finding.reason == "near_duplicate_elsewhere")
    assert finding.detail.startswith("as a of train: ")
    assert not any("duplicate" in reason for reason in train.noted.counts)


def test_the_page_shows_both_images_of_a_pair(tmp_path):
    tree = voc_tree.VocTree(tmp_path / "voc")
    for stem, data in (("a", encoded(scene(0))), ("b", encoded(scene(1))), ("c", encoded(scene(1), quality=40))):
        tree.add(stem, annotation_xml(size=None), data)
    with Workers(1) as workers:
        (manifest,) = convert.convert(ConvertConfig(str(tmp_path / "out"), (str(tree.root),)), workers)
        text, path = report.write_report(str(tmp_path / "out"), manifest, (64, 64), workers)
    assert "c.jpg: near_duplicate: as b: " in text
    page = pathlib.Path(path).read_text(encoding="utf-8")
    section = page.partition("<h2>1 images that equal others or look like them</h2>")[2].partition("<h2>")[0]
    assert [part.partition("</b>")[0] for part in section.split("<figcaption><b>")[1:]] == ["b", "c"]


def test_the_search_agrees_with_brute_force(monkeypatch):
    monkeypatch.setattr(looks, "_PAIRS_AT_ONCE", 7 * 40)
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (40, looks.NUM_BITS), np.uint8)
    for row in range(20):  # half of them near another, around the threshold
        bits[20 + row] = bits[row]
        flipped = rng.choice(looks.NUM_BITS, looks.MAX_DIFFERENT - 2 + row % 5, replace=False)
        bits[20 + row, flipped] ^= 1
    hashes = [np.packbits(row).tobytes().hex() for row in bits]

    def expected(pairs):
        differences = ((first, second, int((bits[first] != bits[second]).sum())) for first, second in pairs)
        return [pair for pair in differences if pair[2] <= looks.MAX_DIFFERENT]

    assert sorted(looks.find_pairs(hashes)) == sorted(expected((b, a) for a, b in itertools.combinations(range(40), 2)))
    across = expected(itertools.product(range(20), range(20, 40)))
    found = [(first, 20 + second, count) for first, second, count in looks.find_pairs(hashes[:20], hashes[20:])]
    assert sorted(found) == across
    assert 8 < len(across) < 16


def test_an_image_is_in_few_pairs():
    """The nearest ones: a hundred hashes that are the same but for up to five bits of the last."""
    hashes = ["0f" * 16] * 99
    hashes.insert(50, "0f" * 15 + "10")
    pairs = list(looks.find_pairs([*hashes, "0f" * 15 + "10"]))
    assert len(pairs) <= 10 * 101
    assert pairs[-10] == (100, 50, 0)
    assert {first for first, _, _ in pairs} == set(range(1, 101))


def test_flat_images_are_in_no_pair():
    flat, dark = (Image.new("RGB", (80, 60), colour) for colour in ("white", "black"))
    dark.paste((200, 0, 0), (10, 10, 20, 20))
    hashes = [looks.look_of(image) for image in (flat, flat, dark, dark)]
    assert list(looks.find_pairs(hashes)) == []
    assert list(looks.find_pairs([])) == []


def test_without_decoding_there_is_no_hash(tmp_path):
    tree = voc_tree.VocTree(tmp_path / "voc")
    tree.add("a", annotation_xml(size=None), encoded(scene(0)))
    (manifest,) = convert.convert(ConvertConfig(str(tmp_path / "out"), (str(tree.root),), verify="header"), Workers(1))
    assert manifest.looks == {}
    assert pathlib.Path(shards.manifest_path(str(tmp_path / "out"), "all")).exists()
