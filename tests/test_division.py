"""What --val_fraction holds out: a share of every class, and no group or copy on both sides."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import voc_tree
from test_looks import scene
from voc_tree import annotation_xml, encoded, object_xml, picture

from input.conversion import convert, listing
from input.conversion.config import ConversionError, ConvertConfig
from input.conversion.division import choose_val
from input.conversion.source import Input
from input.conversion.workers import Workers
from input.manifest import read_manifest


def make_inputs(ids: list[str]) -> list[Input]:
    return [Input(image_id, "", "", "", "") for image_id in ids]


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_every_class_has_its_share(fraction, seed):
    """One class in 20 of 1000 images, one in 50, one in most, often together; some images have none."""
    rng = np.random.default_rng(seed)
    ids = [f"img{index:04d}" for index in range(1000)]
    shares = {"common": 0.8, "rare": 0.02, "seldom": 0.05}
    classes = {image_id: {name for name, share in shares.items() if rng.random() < share} for image_id in ids}
    inputs = listing.shuffled(make_inputs(ids), seed, "val")
    val = choose_val(inputs, classes, fraction, "", {})
    assert len(val) == round(fraction * 1000)
    total, held = (collections.Counter(name for image_id in part for name in classes[image_id]) for part in (ids, val))
    for name in shares:
        assert abs(held[name] - fraction * total[name]) <= 2, (name, held, total)
    assert val == choose_val(inputs, classes, fraction, "", {})


@pytest.mark.parametrize("group_by", [r"^video\d+", r"^video(\d+)_frame"])
def test_groups_stay_together(group_by):
    ids = [f"video{video}_frame{frame}" for video in range(10) for frame in range(1 + video)] + ["other1", "other2"]
    classes = {image_id: {"cat"} if "video" in image_id else set() for image_id in ids}
    val = choose_val(listing.shuffled(make_inputs(ids), 0, "val"), classes, 0.3, group_by, {})
    sides = collections.defaultdict(set)
    for image_id in ids:
        sides[image_id.partition("_")[0]].add(image_id in val)
    assert all(len(side) == 1 for side in sides.values())
    assert abs(len(val) - 0.3 * len(ids)) <= 4


@pytest.mark.parametrize("group_by", [r"^(?:(v\d+)_)?", r"^(v\d+_)?", r"^(?:v\d+_)?"])
def test_images_without_the_optional_part_are_no_group(group_by):
    ids = [f"v{index % 2}_{index}" for index in range(4)] + [f"photo{index}" for index in range(16)]
    val = choose_val(listing.shuffled(make_inputs(ids), 0, "val"), {}, 0.5, group_by, {})
    assert len(val) == 10
    assert all(("v0_0" in val, "v1_1" in val)[index] == (f"v{index}_{index + 2}" in val) for index in range(2))


def test_copies_stay_together(tmp_path):
    """Whatever their names; with a group of one of them too."""
    tree = voc_tree.VocTree(tmp_path / "voc")
    tree.add_many(24)
    for index in range(8):
        copied = (tree.images / f"img{index:03d}.jpg").read_bytes()
        tree.add(f"copy{index}", annotation_xml(object_xml(), filename=f"copy{index}.jpg"), copied)
    for seed in range(3):
        config = ConvertConfig(
            output_dir=str(tmp_path / f"out{seed}"),
            voc_dirs=(str(tree.root),),
            val_fraction=0.25,
            seed=seed,
            group_by="img00[01]",
        )
        with Workers(1) as workers:
            train, val = convert.convert(config, workers)
        assert val.num_images == 8
        assert "same_image_elsewhere" not in {**train.noted.counts, **val.noted.counts}
        of_val = set(val.inputs)
        for index in range(8):
            assert (f"copy{index}" in of_val) == (f"img{index:03d}" in of_val)


def test_near_duplicates_stay_together(tmp_path):
    tree = voc_tree.VocTree(tmp_path / "voc")
    for seed in range(18):
        tree.add(f"img{seed:02d}", annotation_xml(object_xml(), size=None), encoded(scene(seed)))
    for seed in range(6):
        small = scene(seed).resize((160, 120))
        tree.add(f"small{seed}", annotation_xml(object_xml(), size=None), encoded(small, quality=50))
    for seed in range(2):
        config = ConvertConfig(
            output_dir=str(tmp_path / f"out{seed}"), voc_dirs=(str(tree.root),), val_fraction=0.25, seed=seed
        )
        train, val = convert.convert(config, Workers(1))
        assert val.num_images == 6
        assert train.noted.counts.get("near_duplicate", 0) + val.noted.counts.get("near_duplicate", 0) == 6
        assert "near_duplicate_elsewhere" not in {**train.noted.counts, **val.noted.counts}


def test_images_that_are_all_alike_can_be_divided():
    """Their group is never larger than what is held out."""
    ids = [f"i{index}" for index in range(20)]
    val = choose_val(make_inputs(ids), {}, 0.3, "", dict.fromkeys(ids, "0f" * 16))
    assert len(val) == 6


def test_the_command_divides_by_class(tmp_path):
    """Four cows in forty images: one is held out."""
    tree = voc_tree.VocTree(tmp_path / "voc")
    for index in range(40):
        name = "cow" if index % 10 == 0 else "cat"
        tree.add(f"i{index}", annotation_xml(object_xml(name), filename=f"i{index}.jpg"), encoded(picture(seed=index)))
    for seed in range(5):
        config = ConvertConfig(
            output_dir=str(tmp_path / f"out{seed}"), voc_dirs=(str(tree.root),), val_fraction=0.25, seed=seed
        )
        _, val = convert.convert(config, Workers(1))
        assert val.images_per_class == {"cat": 9, "cow": 1}
    assert val.settings["group_by"] == ""
    assert read_manifest(f"{tmp_path}/out0/val.manifest.json").split == "val"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_by": "x"}, "--group_by goes with --val_fraction"),
        ({"group_by": "(", "val_fraction": 0.5}, "is not a regular expression"),
    ],
)
def test_wrong_use_is_explained(settings, message):
    with pytest.raises(ConversionError, match=message):
        ConvertConfig(output_dir="out", voc_dirs=("voc",), **settings)


def test_one_group_cannot_be_divided():
    inputs = make_inputs(["a1", "a2", "a3"])
    with pytest.raises(ConversionError, match="3 images in 1 groups leaves a split empty"):
        choose_val(inputs, {}, 0.4, "a", {})
