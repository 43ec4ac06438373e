"""Near duplicates: planted copies are found, different images are not, and the search agrees with brute force."""

from __future__ import annotations

import collections
import itertools
import pathlib

import numpy as np
import pytest
import voc_tree
from PIL import Image, ImageEnhance
from voc_tree import annotation_xml, encoded

from input.conversion import convert, looks, report
from input.conversion.config import ConvertConfig
from input.conversion.workers import Workers
from input.manifest import manifest_path


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
    (manifest,) = convert.convert(
        ConvertConfig(output_dir=str(tmp_path / "out"), voc_dirs=(str(tree.root),)), Workers(1)
    )
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
    train, val = convert.convert(ConvertConfig(output_dir=str(tmp_path / "out"), voc_dirs=(str(folder),)), Workers(1))
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
        (manifest,) = convert.convert(
            ConvertConfig(output_dir=str(tmp_path / "out"), voc_dirs=(str(tree.root),)), workers
        )
        text, path = report.write_report(str(tmp_path / "out"), manifest.split, (64, 64), workers)
    assert "c.jpg: near_duplicate: as b: " in text
    page = pathlib.Path(path).read_text(encoding="utf-8")
    section = page.partition("<h2>1 images that equal others or look like them</h2>")[2].partition("<h2>")[0]
    assert [part.partition("</b>")[0] for part in section.split("<figcaption><b>")[1:]] == ["b", "c"]


@pytest.mark.parametrize("seed", range(20))
def test_the_search_agrees_with_brute_force(seed, monkeypatch):
    """For hashes in small groups, whose members differ in numbers of bits around the threshold."""
    monkeypatch.setattr(looks, "_AT_ONCE", 50)
    rng = np.random.default_rng(seed)
    num_groups = int(rng.integers(1, 60))
    groups = rng.integers(0, 2, (num_groups, looks.NUM_BITS), np.uint8)
    bits = np.repeat(groups, rng.integers(1, 10, num_groups), axis=0)
    rng.shuffle(bits)
    for row in bits:
        row[rng.choice(looks.NUM_BITS, rng.integers(10), replace=False)] ^= 1
    hashes = [np.packbits(row).tobytes().hex() for row in bits]
    split = len(hashes) // 2

    def expected(pairs):
        differences = ((first, second, int((bits[first] != bits[second]).sum())) for first, second in pairs)
        near = [pair for pair in differences if pair[2] <= looks.MAX_DIFFERENT]
        return sorted(near, key=lambda pair: (pair[0], pair[2], pair[1]))

    pairs = [(later, earlier) for earlier, later in itertools.combinations(range(len(bits)), 2)]
    assert list(looks.find_pairs(hashes)) == expected(pairs)
    across = looks.find_pairs(hashes[:split], hashes[split:])
    found = [(first, split + second, count) for first, second, count in across]
    assert found == expected(itertools.product(range(split), range(split, len(bits))))


def test_a_pair_at_the_threshold_is_found_wherever_its_bits_differ():
    """At random, and in two bits of each band but one, which is the hardest case."""
    rng = np.random.default_rng(0)
    pairs = [[rng.choice(band, 2, replace=False) for band in looks._BANDS] for _ in looks._BANDS]
    flips = [np.concatenate([*pairs[band][:band], *pairs[band][band + 1 :]]) for band in range(8)]
    flips += [rng.choice(looks.NUM_BITS, looks.MAX_DIFFERENT + row % 2, replace=False) for row in range(400)]
    bits = rng.integers(0, 2, (len(flips), looks.NUM_BITS), np.uint8)
    others = bits.copy()
    for other, flipped in zip(others, flips):
        other[flipped] ^= 1
    hashes, other_hashes = (
        [np.packbits(row, bitorder="little").tobytes().hex() for row in rows] for rows in (bits, others)
    )
    near = [row for row, flipped in enumerate(flips) if len(flipped) == looks.MAX_DIFFERENT]
    assert list(looks.find_pairs(hashes, other_hashes)) == [(row, row, looks.MAX_DIFFERENT) for row in near]


@pytest.mark.parametrize("num_flipped", [0, 4])
def test_thousands_that_are_all_alike_take_few_comparisons(num_flipped, monkeypatch):
    """Pictures of one scene: each is in ten near pairs, and most are compared with a few hundreds of the others."""
    compared = []
    count_bits = looks._count_bits
    monkeypatch.setattr(looks, "_count_bits", lambda words: compared.append(len(words)) or count_bits(words))
    rng = np.random.default_rng(0)
    bits = np.tile(rng.integers(0, 2, looks.NUM_BITS, np.uint8), (5000, 1))
    for row in bits:
        row[rng.choice(looks.NUM_BITS, num_flipped, replace=False)] ^= 1
    pairs = list(looks.find_pairs([np.packbits(row).tobytes().hex() for row in bits]))
    assert collections.Counter(first for first, _, _ in pairs) == {row: min(row, 10) for row in range(1, 5000)}
    assert all(int((bits[first] != bits[second]).sum()) == count for first, second, count in pairs)
    assert sum(compared) < 5000 * 1500  # all pairs would be 5000 * 2500, in each of two words


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
    (manifest,) = convert.convert(
        ConvertConfig(output_dir=str(tmp_path / "out"), voc_dirs=(str(tree.root),), verify="header"), Workers(1)
    )
    assert manifest.looks == {}
    assert pathlib.Path(manifest_path(str(tmp_path / "out"), "all")).exists()
