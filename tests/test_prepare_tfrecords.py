"""The converter as a whole: its contract, its restarts, its refusals."""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import other_formats
import pytest
import voc_tree
from voc_tree import annotation_xml, encoded, object_xml, picture

from input import shards, tfrecord
from input.conversion import convert, listing, staging
from input.conversion.config import ConversionError, ConvertConfig
from input.conversion.source import Input
from input.conversion.workers import Workers
from input.manifest import Manifest, ShardInfo, read_manifest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def tree(tmp_path) -> voc_tree.VocTree:
    """20 good images, 5 of them without objects."""
    made = voc_tree.VocTree(tmp_path / "voc")
    made.add_many(20)
    return made


def run(tree: voc_tree.VocTree, output: str = "out", workers: int = 1, **settings) -> list[Manifest]:
    settings = {"voc_dirs": (str(tree.root),), "output_dir": str(tree.root.parent / output), **settings}
    with Workers(workers) as pool:
        return convert.convert(ConvertConfig(**settings), pool)


def command(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "prepare_tfrecords.py", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def ids(folder: pathlib.Path, split: str) -> list[str]:
    return [record.image_id for record in shards.read_annotations(shards.expand_glob(f"{folder}/{split}-*"))]


# The contract.


def test_command(tree, tmp_path):
    tree.image_set("train", *(f"img{index:03d}" for index in range(12)))
    out = tmp_path / "out"
    done = command(f"--voc_dir={tree.root}", "--image_set=train", f"--output_dir={out}", "--num_workers=2")
    assert done.returncode == 0, done.stderr
    assert "train: 12 images (3 without objects), 18 boxes, 8 shards" in done.stdout
    names = [f"train-{index:05d}-of-00008.tfrecord" for index in range(8)]
    assert sorted(os.listdir(out)) == [
        "label_map.pbtxt",
        "labels.txt",
        *names,
        "train.manifest.json",
        "train.report.html",
    ]
    assert (out / "labels.txt").read_text() == "cat\ndog\n"
    checked = command(f"--check={out}/train-*.tfrecord")
    assert checked.returncode == 0, checked.stderr
    assert "8 of 8 shards are sound, with 12 records." in checked.stdout

    tree.add("bad", b"<annotation")
    failed = command(f"--voc_dir={tree.root}", f"--output_dir={out}", "--num_workers=1")
    assert failed.returncode == 1
    assert "bad.xml: not_xml" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert [name for name in os.listdir(out) if name.startswith("all")] == []


def test_flags_of_formats_and_classes(tree, tmp_path):
    """One command with each of them; the last line is what the page says of classes."""
    other_formats.write_coco(tree.root, tmp_path / "all.json")
    other_formats.write_yolo(tree.root, tmp_path / "yolo")
    classes = ["--rename=cat=lion", "--ignore_classes=dog", "--store_max_side=50", "--jpeg_quality=80"]
    of_coco = [f"--coco_json={tmp_path}/all.json", f"--images_dir={tree.images}"]
    of_yolo = [f"--yolo_dir={tmp_path}/yolo", "--val_fraction=0.25", "--group_by=^(img00)[0-4]"]
    for name, arguments in (("coco", of_coco), ("yolo", of_yolo)):
        done = command(*arguments, *classes, f"--output_dir={tmp_path}/{name}", "--num_workers=1")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / name / "labels.txt").read_text() == "lion\n"
        assert "20 images were made smaller" in done.stdout or name == "yolo"
    assert (
        "all: 20 images (5 without objects), 20 boxes, 10 ignored regions, 8 shards"
        in command(*of_coco, *classes, f"--output_dir={tmp_path}/coco", "--num_workers=1").stdout
    )
    val = read_manifest(f"{tmp_path}/yolo/val.manifest.json")
    assert val.num_images == 5
    assert len({image_id in val.inputs for image_id in ("img000", "img001", "img002", "img003", "img004")}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--voc_dir=x"], "--output_dir is missing"),
        (["--output_dir=x"], "--voc_dir is missing"),
        (["--voc_dir=x", "--output_dir=x", "y"], "unexpected arguments: y"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, arguments, message):
    done = command(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_manifest_says_what_the_shards_hold(tree, tmp_path):
    (manifest,) = run(tree)
    assert read_manifest(f"{tmp_path}/out/all.manifest.json") == manifest
    paths = shards.expand_glob(f"{tmp_path}/out/all-*")
    truths = shards.read_annotations(paths)
    assert manifest.split == "all"
    assert manifest.num_images == len(truths) == 20
    assert manifest.num_negatives == sum(not len(truth.boxes) for truth in truths) == 5
    boxes = collections.Counter(np.concatenate([truth.classes for truth in truths]).tolist())
    assert manifest.boxes_per_class == {"cat": boxes[0], "dog": boxes[1]} == {"cat": 20, "dog": 10}
    assert manifest.num_boxes == 30
    assert manifest.num_truncated == 30
    assert manifest.images_per_class == {"cat": 15, "dog": 10}
    assert manifest.settings["zero_based"] is False
    for path, shard, count in zip(paths, manifest.shards, shards.count_records(paths)):
        data = pathlib.Path(path).read_bytes()
        assert shard == ShardInfo(
            name=os.path.basename(path),
            num_records=count,
            num_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
    assert set(manifest.inputs) == {truth.image_id for truth in truths}


def test_splits_of_a_folder_without_image_sets(tree, tmp_path):
    train, val = run(tree, val_fraction=0.25, seed=3)
    assert (train.num_images, val.num_images) == (15, 5)
    assert sorted(ids(tmp_path / "out", "train") + ids(tmp_path / "out", "val")) == [f"img{i:03d}" for i in range(20)]
    run(tree, "again", val_fraction=0.25, seed=4)
    assert set(ids(tmp_path / "again", "val")) != set(ids(tmp_path / "out", "val"))


def test_several_folders_and_overrides(tree, tmp_path):
    other = voc_tree.VocTree(tmp_path / "voc2012")
    other.add("2012")
    other.image_set("train", "2012")
    tree.image_set("train", "img000", "img001 -1", "img002.jpg")
    (manifest,) = run(tree, voc_dirs=(str(tree.root), str(other.root)), image_set="train")
    assert set(manifest.inputs) == {"img000", "img001", "img002", "2012"}
    listed = tmp_path / "mine.txt"
    listed.write_text("img003\nimg004\n")
    (manifest,) = run(
        tree,
        voc_dirs=(),
        annotations_dir=str(tree.annotations),
        images_dir=str(tree.images),
        image_set_file=str(listed),
    )
    assert (manifest.split, set(manifest.inputs)) == ("mine", {"img003", "img004"})


def test_folders_of_splits_are_converted_by_one_command(tree, tmp_path):
    """As Roboflow writes them: train/, valid/ and test/ with the XML beside the images."""
    for split, first in (("train", 0), ("valid", 10), ("test", 15)):
        folder = tmp_path / "set" / split
        folder.mkdir(parents=True)
        for index in range(first, first + 5):
            (tree.annotations / f"img{index:03d}.xml").rename(folder / f"img{index:03d}.xml")
            (tree.images / f"img{index:03d}.jpg").rename(folder / f"img{index:03d}.jpg")
    out = tmp_path / "out"
    done = command(f"--voc_dir={tmp_path}/set", f"--output_dir={out}", "--num_workers=1")
    assert done.returncode == 0, done.stderr
    assert f"val: annotations from {tmp_path}/set/valid, images from {tmp_path}/set/valid" in done.stdout
    for split, first in (("train", 0), ("val", 10), ("test", 15)):
        assert sorted(ids(out, split)) == [f"img{index:03d}" for index in range(first, first + 5)]
    for settings in ({"split": "x"}, {"image_set": "x"}, {"val_fraction": 0.5}):
        with pytest.raises(ConversionError, match="train"):
            run(tree, "again", voc_dirs=(f"{tmp_path}/set",), **settings)


def test_a_split_is_named(tree, tmp_path):
    (tree.annotations).rename(tree.root / "annots")
    (tree.images).rename(tree.root / "images")
    (manifest,) = run(tree, split="val")
    assert (manifest.split, manifest.num_images) == ("val", 20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"voc_dirs": ()}, "--voc_dir"),
        ({"voc_dirs": ("/nowhere",)}, "--voc_dir=/nowhere: there is no such folder"),
        ({"split": "../x"}, "names files"),
        ({"split": "x", "val_fraction": 0.5}, "leave out --split"),
        ({"image_set": "test"}, r"test\.txt is missing; image sets there: some"),
        ({"image_set": "none"}, "lists no image"),
        ({"val_fraction": 1.5}, "--val_fraction=1.5"),
        ({"val_fraction": 0.01}, "leaves a split empty"),
        ({"image_set": "some", "val_fraction": 0.5}, "leave out --image_set"),
        ({"labels_file": "/nowhere"}, "^/nowhere: No such file or directory; put that right"),
        ({"on_error": "ignore"}, "choose fail or skip"),
        ({"num_shards": -1}, "must be positive"),
        ({"voc_dirs": ("a", "b"), "images_dir": "c"}, "one --voc_dir"),
    ],
)
def test_wrong_use_is_explained(tree, settings, message):
    tree.image_set("some", "img000")
    (tree.root / "ImageSets" / "Main" / "none.txt").write_text("\n")
    if "image_set" in settings and settings["image_set"] == "test":
        (tree.root / "ImageSets" / "Main" / "none.txt").unlink()
    with pytest.raises(ConversionError, match=message):
        run(tree, **settings)


def test_empty_folder(tmp_path):
    with pytest.raises(ConversionError, match="holds no XML file"):
        run(voc_tree.VocTree(tmp_path / "voc"))
    with pytest.raises(ConversionError, match="neither it nor a folder in it holds an XML file"):
        run(voc_tree.VocTree(tmp_path / "other"), voc_dirs=(str(tmp_path),))


# Labels.


def test_labels_agree_over_splits(tree, tmp_path):
    tree.image_set("train", "img002", "img003")
    tree.image_set("val", "img001")  # a cat only
    tree.add("cow", annotation_xml(object_xml("cow"), filename="cow.jpg"))
    tree.image_set("test", "cow")
    run(tree, image_set="train")
    (val,) = run(tree, image_set="val")
    assert val.labels == ("cat", "dog")
    with pytest.raises(
        ConversionError, match=r"cow\.xml: unknown_class: class 'cow' is not in the label list(.|\n)*--labels"
    ):
        run(tree, image_set="test")
    assert shards.read_labels([f"{tmp_path}/out/x"]) == ("cat", "dog")


def test_given_labels_fix_the_order(tree, tmp_path):
    labels = tmp_path / "given.txt"
    labels.write_text("dog\nzebra\ncat\n")
    (manifest,) = run(tree, labels_file=str(labels))
    assert manifest.boxes_per_class == {"dog": 10, "zebra": 0, "cat": 20}
    truths = shards.read_annotations(shards.expand_glob(f"{tmp_path}/out/all-*"))
    assert {index for truth in truths for index in truth.classes} == {0, 2}


def test_other_labels_than_another_splits_are_refused(tree, tmp_path):
    tree.image_set("train", "img002")
    tree.image_set("val", "img003")
    run(tree, image_set="train")
    labels = tmp_path / "given.txt"
    labels.write_text("dog\ncat\n")
    for overwrite in (False, True):
        with pytest.raises(ConversionError, match=r"train\.manifest\.json was made with"):
            run(tree, image_set="val", labels_file=str(labels), overwrite=overwrite)


# Shards.


def listed(image_id: str, num_bytes: int) -> Input:
    return Input(image_id, "", "", "", "", b"", num_bytes, "")


def test_number_of_shards(tree):
    """By bytes, at least 8 where there are images enough, or as asked."""
    images = [listed(str(index), 1_000_000) for index in range(1000)]
    config = ConvertConfig(output_dir="out", voc_dirs=("voc",))
    assert staging.num_shards(images[:5], config) == 5
    assert staging.num_shards(images[:50], config) == 8
    # 1000 MB and 2 MB of other bytes, in MiB, over 50.
    config = ConvertConfig(output_dir="out", voc_dirs=("voc",), shard_bytes=50 << 20)
    assert staging.num_shards(images, config) == 20
    assert staging.num_shards(images, ConvertConfig(output_dir="out", voc_dirs=("voc",), num_shards=3)) == 3


def test_every_shard_is_a_fair_sample(tmp_path):
    """Images named by class, as data sets often are: every shard has its share of both halves."""
    inputs = [listed(f"{'ab'[index // 2000]}{index}", 0) for index in range(4000)]
    for seed in (0, 1):
        order = listing.shuffled(inputs, seed, "shards")
        assert sorted(order) == sorted(inputs)
        for start in range(0, 4000, 500):
            share = np.mean([item.image_id[0] == "a" for item in order[start : start + 500]])
            assert abs(share - 0.5) < 0.12  # 5 standard deviations of 500 draws
    assert order != listing.shuffled(inputs, 0, "shards")


def test_same_shards_whatever_the_workers_and_the_order_of_files(tree, tmp_path):
    run(tree, "one", workers=1)
    run(tree, "three", workers=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    run(tree, "seed", seed=1)
    assert ids(tmp_path / "one", "all") != ids(tmp_path / "seed", "all")


def test_skipping_never_leaves_an_empty_shard(tree, tmp_path):
    for index in range(17):
        (tree.images / f"img{index:03d}.jpg").write_bytes(b"")
    (manifest,) = run(tree, on_error="skip")
    assert [shard.num_records for shard in manifest.shards] == [1, 1, 1]
    assert manifest.refused.counts == {"empty_image": 17}
    assert len(manifest.inputs) == 20
    for index in range(17, 20):
        (tree.images / f"img{index:03d}.jpg").write_bytes(b"")
    with pytest.raises(ConversionError, match="no image is left"):
        run(tree, "other", on_error="skip")


def test_where_no_image_is_left_the_reasons_are_given(tree, tmp_path):
    """The first few, and the number of the others; whatever else skips files."""
    for index in range(20):
        (tree.images / f"img{index:03d}.jpg").write_bytes(b"")
    with pytest.raises(ConversionError) as error:
        run(tree, on_error="skip")
    named = [f"img{index:03d}.jpg: empty_image: the file is empty" for index in range(5)]
    assert str(error.value).splitlines() == [
        "nothing was published; 1 problem:",
        "all: no image is left to convert:",
        *named,
        "and 15 more such files in all",
        "Correct the files (shards without them are not made again).",
    ]
    labels = tmp_path / "labels.txt"
    labels.write_text("cow\n")
    tree.add_many(20)
    for index in range(0, 20, 4):
        (tree.annotations / f"img{index:03d}.xml").unlink()  # those without objects
    with pytest.raises(ConversionError, match=r"and 10 more .* in all\n.*--drop_unknown_classes\.$") as error:
        run(tree, on_error="skip", labels_file=str(labels))
    assert "--on_error" not in str(error.value)


def test_all_bad_files_are_listed_and_nothing_is_published(tree, tmp_path):
    (tree.images / "img003.jpg").unlink()
    (tree.annotations / "img007.xml").write_bytes(b"")
    with pytest.raises(ConversionError) as error:
        run(tree)
    for line in ("img003.xml: missing_image", "img007.xml: empty_annotation", "--on_error=skip"):
        assert line in str(error.value)
    assert [name for name in os.listdir(tmp_path / "out") if not name.startswith(".")] == []
    (skipping,) = run(tree, "skipping", on_error="skip")
    assert (skipping.num_images, skipping.refused.counts) == (18, {"empty_annotation": 1, "missing_image": 1})
    # Put right, only what they touch is made again, and the outcome is as if they had never been bad.
    tree.add_many(8)
    run(tree)
    run(tree, "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


# Restarts.


def test_killed_before_any_change(tmp_path):
    """Nothing but whole files bear final names, and the same command finishes with the same bytes."""
    tree = voc_tree.VocTree(tmp_path / "voc")
    tree.add_many(5)
    run(tree, "reference", num_shards=3)
    run(tree, "old", num_shards=4, zero_based=True)
    folders = (tree.root, tmp_path / "reference", tmp_path / "old", tmp_path / "scratch")
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "killed_converter.py", *folders],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert all(int(kills) > 20 for kills in done.stdout.split())


def children(pid: int) -> list[int]:
    listed = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


def is_running(pid: int) -> bool:
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"  # a zombie has ended


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.002)


def test_killed_with_its_workers(tmp_path):
    """SIGKILL of the command at work: its workers leave too, and the same command continues."""
    tree = voc_tree.VocTree(tmp_path / "voc")
    for index in range(8):  # each takes long enough to be caught at it
        stem = f"large{index}"
        xml = annotation_xml(filename=f"{stem}.png", size=(1500, 1500))
        tree.add(stem, xml, encoded(picture(1500, 1500, seed=index), "PNG", compress_level=1), ".png")
    out = tmp_path / "out"
    arguments = [f"--voc_dir={tree.root}", f"--output_dir={out}", "--num_workers=2"]
    process = subprocess.Popen([sys.executable, "prepare_tfrecords.py", *arguments], cwd=ROOT)
    wait_for(lambda: list(out.glob(".all.partial/*.json")) or process.poll() is not None)
    workers = children(process.pid)
    process.kill()
    process.wait()
    assert len(workers) >= 2
    assert list(out.glob("*.tfrecord")) == []
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob(".all.partial/*.shard")}
    wait_for(lambda: not any(map(is_running, workers)))

    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert kept
    for name, modified in kept.items():  # what was finished was taken over
        assert (out / name.replace(".shard", ".tfrecord")).stat().st_mtime_ns == modified
    run(tree, "reference")
    assert contents(tmp_path / "reference").items() <= contents(out).items()
    assert set(contents(out)) - set(contents(tmp_path / "reference")) == {"all.report.html"}


def test_a_second_run_does_nothing(tree, tmp_path):
    (first,) = run(tree)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("all*")}
    (second,) = run(tree)
    assert first == second
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("all*")}


def test_a_lost_shard_is_made_again(tree, tmp_path):
    run(tree)
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "all-00002-of-00008.tfrecord").unlink()
    run(tree)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"zero_based": True}, "--zero_based: false then, true now"),
        ({"num_shards": 3}, "--num_shards: 0 then, 3 now"),
        ({"labels_file": "given.txt"}, "labels: cat, dog then, dog, cat now"),
    ],
)
def test_changed_flags_are_named(tree, tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("given.txt").write_text("dog\ncat\n")
    run(tree)
    before = contents(tmp_path / "out")
    with pytest.raises(ConversionError, match=message):
        run(tree, **settings)
    assert contents(tmp_path / "out") == before
    run(tree, **settings, overwrite=True)
    run(tree, "fresh", **settings)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh") != before


def test_changed_input_is_named(tree, tmp_path):
    run(tree)
    tree.add("img001", annotation_xml(object_xml(), object_xml("dog"), filename="img001.jpg"))
    tree.add("new")
    (tree.annotations / "img002.xml").unlink()
    with pytest.raises(ConversionError) as error:
        run(tree)
    for line in ("1 new: new", "1 gone: img002", "1 changed: img001", "--overwrite starts anew"):
        assert line in str(error.value)
    (manifest,) = run(tree, overwrite=True)
    assert manifest.num_images == 20
    run(tree, "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_overwriting_finds_the_classes_anew(tree):
    run(tree)
    tree.add("cow", annotation_xml(object_xml("cow"), filename="cow.jpg"))
    (manifest,) = run(tree, overwrite=True)
    assert manifest.labels == ("cat", "cow", "dog")


def test_overwriting_keeps_labels_that_were_put_there(tree, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "labels.txt").write_text("dog\ncat\n")
    (manifest,) = run(tree, overwrite=True)
    assert manifest.labels == ("dog", "cat")


def test_leftovers_of_another_plan_are_removed(tree, tmp_path):
    (tree.images / "img003.jpg").unlink()
    with pytest.raises(ConversionError):
        run(tree)
    with pytest.raises(ConversionError):
        run(tree, num_shards=3)
    staged = os.listdir(tmp_path / "out" / ".all.partial")
    assert len(staged) == 9  # three files for each shard
    assert all("of-00003" in name for name in staged)


def test_a_manifest_of_another_version_is_named(tree, tmp_path):
    (manifest,) = run(tree)
    (tmp_path / "out" / "all.manifest.json").write_text(dataclasses.replace(manifest, version=0).to_json())
    with pytest.raises(ConversionError, match=r"all\.manifest\.json was written by another version"):
        run(tree)


def test_a_damaged_manifest_is_named(tree, tmp_path):
    """As after an edit by hand. What makes a manifest unsound: test_shards.py."""
    (manifest,) = run(tree)
    path = tmp_path / "out" / "all.manifest.json"
    for text, wrong in (
        ("{", "Expecting"),
        (manifest.to_json().replace('"num_boxes": 30,', ""), "num_boxes is missing"),
    ):
        path.write_text(text)
        with pytest.raises(
            ConversionError, match=rf"all\.manifest\.json is not a sound manifest \({wrong}.*--overwrite starts anew"
        ):
            run(tree)
    assert run(tree, overwrite=True) == [manifest]


def test_a_report_on_other_shards_is_removed(tree, tmp_path):
    """So that none is believed where a run was killed before it wrote its own."""
    run(tree)
    (tmp_path / "out" / "all.report.html").write_text("of the shards before")
    run(tree)
    assert (tmp_path / "out" / "all.report.html").exists()  # nothing was done
    run(tree, zero_based=True, overwrite=True)
    assert not (tmp_path / "out" / "all.report.html").exists()


def test_shards_without_a_manifest_are_not_overwritten(tree, tmp_path):
    run(tree)
    (tmp_path / "out" / "all.manifest.json").unlink()
    with pytest.raises(ConversionError, match="holds shards of all but no manifest"):
        run(tree)


def test_two_converters_on_one_folder(tree, tmp_path):
    (tmp_path / "out").mkdir()
    busy = pytest.raises(ConversionError, match="another converter is at work")
    with convert.locked(str(tmp_path / "out")), busy:
        run(tree)
    run(tree)


def test_full_disk(tree, tmp_path, monkeypatch):
    """Nothing is published, nothing half-written stays, and a later run continues."""
    writes = 0

    def fill_up(data: bytes) -> bytes:
        nonlocal writes
        writes += 1
        if writes == 3:
            raise OSError(28, "No space left on device")
        return frame(data)

    frame = tfrecord.frame_record
    monkeypatch.setattr(tfrecord, "frame_record", fill_up)
    with pytest.raises(ConversionError, match=r"No space left on device; .* the same command continues"):
        run(tree)
    assert [path.name for path in (tmp_path / "out").rglob("*.*") if path.name.endswith((".tfrecord", ".partial"))] == [
        ".all.partial"
    ]
    run(tree)
    run(tree, "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_killed_worker_is_explained(tree, monkeypatch):
    with Workers(2) as workers:
        monkeypatch.setattr(convert, "find_classes", lambda *_: workers.map(die, [0, 1], 2, "dying"))
        config = ConvertConfig(output_dir=str(tree.root.parent / "out"), voc_dirs=(str(tree.root),))
        with pytest.raises(ConversionError, match="a worker process was killed"):
            convert.convert(config, workers)


def die(_, advance):
    os.kill(os.getpid(), signal.SIGKILL)


# Checking.


def test_check_names_what_is_damaged(tree, tmp_path):
    run(tree)
    first, second, third, fourth = sorted((tmp_path / "out").glob("*.tfrecord"))[:4]
    data = bytearray(first.read_bytes())
    data[100] ^= 1
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:-5])
    record = next(tfrecord.read_records(str(third)))
    third.write_bytes(third.read_bytes() + tfrecord.frame_record(record))
    fourth.write_bytes(b"".join(map(tfrecord.frame_record, reversed(list(tfrecord.read_records(str(fourth)))))))
    fifth = tmp_path / "out" / "all-00004-of-00008.tfrecord"
    fifth.unlink()
    done = command(f"--check={tmp_path}/out")
    assert done.returncode == 1
    assert "3 of 7 shards are sound" in done.stdout
    problems = done.stderr.splitlines()
    for path, what in (
        (first, "damaged at record 0: the checksum"),
        (second, "cut off"),
        (third, "3 records, but 2 were written"),
        (fourth, "sha256 differs"),
        (fifth, "it is missing"),
    ):
        (problem,) = (problem for problem in problems if problem.startswith(f"{path}: "))
        assert what in problem
    assert len(problems) == 5


@pytest.mark.slow
def test_benchmark(tree):
    arguments = ["--num_images=20", "--rounds=1", "--num_workers=2", f"--voc_dir={tree.root}"]
    done = subprocess.run(
        [sys.executable, "benchmarks/convert.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    keys = {"images_per_s", "limit_images_per_s", "ratio_to_limit", "decode_ratio_to_limit", "peak_rss_mb"}
    assert keys <= set(figures)
    assert all(figure > 0 for figure in figures.values())
