"""YOLO's text files: the same records as from the same data in Pascal VOC's format, and a policy for each flaw."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

import numpy as np
import other_formats
import pytest
import voc_tree
from voc_tree import annotation_xml, encoded, object_xml, picture

from input import shards, tfrecord
from input.conversion import convert, findings, listing
from input.conversion.config import ConversionError, ConvertConfig
from input.conversion.workers import Workers
from input.manifest import Manifest

GOOD = [(5.0, 10.0, 25.0, 30.0)]
LINE = f"0 {20 / 60} {15 / 40} {20 / 60} {20 / 40}"  # the centre and the sides of that box
ALL_KEYS = (
    *("image/encoded", "image/filename", "image/format", "image/height", "image/width", "image/key/sha256"),
    *("image/object/class/text", "image/object/class/label", "image/object/view", "image/object/is_crowd"),
    *("image/object/truncated", "image/object/difficult", "image/source_id"),
)
BOX_KEYS = tuple(f"image/object/bbox/{corner}" for corner in tfrecord.CORNERS)


def config(folder: pathlib.Path, **settings: Any) -> ConvertConfig:
    return ConvertConfig(output_dir=str(folder.parent / "out"), yolo_dir=str(folder), **settings)


def run(folder: pathlib.Path, **settings: Any) -> Manifest:
    (manifest,) = convert.convert(config(folder, **settings), Workers(1))
    return manifest


def records(folder: pathlib.Path) -> dict[str, shards.GroundTruth]:
    return {record.image_id: record for record in shards.read_annotations(shards.expand_glob(f"{folder}/*.tfrecord"))}


def test_the_same_records_as_from_voc(tmp_path):
    """In the same shards and order; boxes as exact as six decimals are."""
    tree = voc_tree.VocTree(tmp_path / "voc")
    for index in range(12):
        flags = "<pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
        objects = [object_xml(("cat", "dog")[i % 2], (1 + i, 2, 20 + index, 40), flags) for i in range(index % 4)]
        xml = annotation_xml(*(objects or [""]), filename=f"img{index}.jpg")
        tree.add(f"img{index}", xml, encoded(picture(seed=index)))
    convert.convert(ConvertConfig(output_dir=str(tmp_path / "of_voc"), voc_dirs=(str(tree.root),)), Workers(1))
    other_formats.write_yolo(tree.root, tmp_path / "yolo")
    manifest = run(tmp_path / "yolo", strict=True)
    assert manifest.noted.counts == {"no_label_file": 3, "no_objects": 3}
    for name in ("labels.txt", "label_map.pbtxt"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "of_voc" / name).read_bytes()
    for shard in manifest.shards:
        both = [list(tfrecord.read_records(f"{tmp_path}/{folder}/{shard.name}")) for folder in ("of_voc", "out")]
        assert len(both[0]) == len(both[1]) > 0
        for ours, theirs in zip(*both):
            assert tfrecord.decode_example(ours, frozenset(ALL_KEYS)) == tfrecord.decode_example(
                theirs, frozenset(ALL_KEYS)
            )
            one, other = (tfrecord.decode_example(record, frozenset(BOX_KEYS)) for record in (ours, theirs))
            for key in BOX_KEYS:
                np.testing.assert_allclose(one[key], other[key], rtol=0, atol=2e-6)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """Images a and b, with one cat each."""
    made = tmp_path / "set"
    for name in ("images", "labels"):
        (made / name).mkdir(parents=True)
    for seed, stem in enumerate("ab"):
        (made / "images" / f"{stem}.jpg").write_bytes(encoded(picture(seed=seed)))
        (made / "labels" / f"{stem}.txt").write_text(LINE + "\n")
    (made / "data.yaml").write_text("names: [cat, dog]\n")
    return made


def text_of_b(text: str | bytes):
    data = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / "labels" / "b.txt").write_bytes(data)


# What is done to image b, the reason that must be reported, and the boxes that its record then has (None: no record).
CASES = {
    "no text file": (lambda folder: (folder / "labels" / "b.txt").unlink(), "no_label_file", []),
    "empty text file": (text_of_b(""), "no_objects", []),
    "only spaces": (text_of_b(" \n\t\r\n"), "no_objects", []),
    "no image": (lambda folder: (folder / "images" / "b.jpg").unlink(), "missing_image", None),
    "folder in place of the file": (
        lambda folder: ((folder / "labels" / "b.txt").unlink(), (folder / "labels" / "b.txt").mkdir()),
        "unreadable",
        None,
    ),
    "class without name": (text_of_b(LINE.replace("0 ", "2 ", 1)), "unknown_class", None),
    "class by name": (text_of_b(LINE.replace("0 ", "cat ", 1)), "unknown_class", None),
    "negative class": (text_of_b(LINE.replace("0 ", "-1 ", 1)), "unknown_class", None),
    "binary": (text_of_b(b"\x00\xff\xfe\x80 1"), "unknown_class", None),
    "three numbers": (text_of_b(f"{LINE}\n0 0.5 0.5 0.5"), "missing_corner", GOOD),
    "a score at the end": (text_of_b(f"{LINE}\n0 0.5 0.5 0.5 0.5 0.9"), "missing_corner", GOOD),
    "no numbers": (text_of_b("0"), "all_objects_dropped", None),
    "words": (text_of_b(f"{LINE}\n0 0.5 0.5 wide 0.5"), "bad_number", GOOD),
    "NaN": (text_of_b(f"{LINE}\n0 0.5 0.5 nan 0.5"), "bad_number", GOOD),
    "commas": (text_of_b(LINE.replace(".", ",", 1)), "comma_number", GOOD),
    "exponent": (text_of_b(f"{LINE}\n0 5e-1 0.5 0.5 0.5"), "exponent_number", [*GOOD, (10, 15, 30, 45)]),
    "polygon": (
        text_of_b(f"0 {10 / 60} {9 / 40} {20 / 60} {25 / 40} {30 / 60} {5 / 40}"),
        "polygon",
        GOOD,
    ),
    "pixels in place of shares": (text_of_b("0 20 15 20 20"), "all_objects_dropped", None),
    "reaching out": (text_of_b("0 0.5 0.5 1.2 1"), "clipped_box", [(0, 0, 40, 60)]),
    "no width": (text_of_b(f"{LINE}\n0 0.5 0.5 0 0.5"), "degenerate_box", GOOD),
    "negative width": (text_of_b(f"0 {20 / 60} {15 / 40} {-20 / 60} {20 / 40}"), "swapped_box", GOOD),
    "twice the same": (text_of_b(f"{LINE}\n{LINE}"), "duplicate_box", GOOD),
    "orientation that swaps the sides": (
        lambda folder: (folder / "images" / "b.jpg").write_bytes(encoded(picture(), exif=turned())),
        "exif_unclear",
        None,
    ),
    "two images of one stem": (
        lambda folder: (folder / "images" / "b.png").write_bytes(encoded(picture(), "PNG")),
        "same_stem",
        GOOD,
    ),
}


def turned():
    exif = picture().getexif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("case", CASES)
def test_policy(case, folder):
    change, reason, expected = CASES[case]
    change(folder)
    manifest = run(folder, on_error="skip")
    (kind,) = (kind for kind, reasons in findings.KINDS.items() if reason in reasons)
    assert manifest.findings(kind).counts[reason] == 1
    found = records(folder.parent / "out")
    assert "a" in found
    if expected is None:
        assert set(found) == {"a"}
    else:
        np.testing.assert_allclose(found["b"].boxes, np.reshape(expected, (-1, 4)), atol=1e-4)


def test_good_files_give_no_findings(folder):
    (folder / "labels" / "b.txt").write_bytes(b"\xef\xbb\xbf" + LINE.encode() + b"\r\n+0.0" + LINE[1:].encode())
    manifest = run(folder, drop_invalid_objects=True)
    assert manifest.dropped.counts == {"duplicate_box": 1}  # a byte order mark, and a class that is written as a float
    np.testing.assert_allclose(records(folder.parent / "out")["b"].boxes, GOOD, atol=1e-4)


def test_the_flag_decides_about_an_orientation(folder):
    (folder / "images" / "b.jpg").write_bytes(encoded(picture(), exif=turned()))
    run(folder, exif="apply")
    record = records(folder.parent / "out")["b"]
    assert (record.height, record.width) == (60, 40)
    np.testing.assert_allclose(record.boxes, [(7.5, 20 / 3, 37.5, 20)], atol=1e-4)


def test_keypoints_after_the_box_are_left_out(folder):
    (folder / "data.yaml").write_text("names: [cat, dog]\nkpt_shape: [2, 3]\n")
    (folder / "labels" / "b.txt").write_text(f"{LINE} 0.1 0.2 2 0.3 0.4 2")
    assert run(folder, on_error="fail").repaired.counts == {}
    np.testing.assert_allclose(records(folder.parent / "out")["b"].boxes, GOOD, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "text", "labels"),
    [
        ("data.yaml", "names: ['cat', 'dog']", ("cat", "dog")),
        ("coco8.yml", "names:\n- cat\n- 'no'\n", ("cat", "no")),
        ("data.yaml", "names:\n  0: dog\n  1: cat # a comment\n", ("dog", "cat")),
        ("data.yaml", "names: {1: cat, 0: no}", ("no", "cat")),
        ("data.yaml", "names: [cat, dog, cat]", ("cat", "dog")),
        ("data.yaml", "names: {2: dog, 0: cat}", ("cat", "dog")),
        ("data.yaml", "names: !!python/object/apply:os.system [cat]", ("cat",)),  # a tag is not looked at
        ("classes.txt", "cat\ntraffic  light\n", ("cat", "traffic light")),
        ("obj.names", "cat\r\ndog\r\n", ("cat", "dog")),
    ],
)
def test_where_classes_are_named(folder, name, text, labels):
    (folder / "data.yaml").unlink()
    (folder / name).write_text(text)
    assert run(folder).labels == labels


def test_white_space_in_a_file_name_counts(folder):
    for seed, stem in enumerate(("b  2", "b 2")):
        (folder / "images" / f"{stem}.jpg").write_bytes(encoded(picture(seed=9 + seed)))
        (folder / "labels" / f"{stem}.txt").write_text(LINE + "\n" + "1 0.2 0.2 0.2 0.2\n" * (stem == "b 2"))
    run(folder, strict=True)
    found = records(folder.parent / "out")
    assert {image_id: len(record.boxes) for image_id, record in found.items()} == {"a": 1, "b": 1, "b  2": 1, "b 2": 2}


@pytest.mark.parametrize("name", ["classes.txt", "obj.names"])
def test_a_blank_line_is_a_class_without_a_name(folder, name):
    """The classes after it keep their indexes; blank lines at the end mean nothing."""
    (folder / "data.yaml").unlink()
    (folder / name).write_text("cat\n \ndog\n\n\n")
    (folder / "labels" / "b.txt").write_text(LINE.replace("0 ", "2 ", 1))
    manifest = run(folder)
    assert (manifest.labels, manifest.boxes_per_class) == (("cat", "dog"), {"cat": 1, "dog": 1})
    for index in (1, 3):
        (folder / "labels" / "b.txt").write_text(LINE.replace("0 ", f"{index} ", 1))
        with pytest.raises(ConversionError, match=rf"b\.txt: unknown_class: class '{index}' has no name"):
            run(folder, overwrite=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no file names the classes"),
        ("names: []", "no file names the classes"),
        ("names: cat", "no file names the classes"),
        ("names: {cat: 0}", "no file names the classes"),
        ("nc: 2", "no file names the classes"),
        ("names: [cat", "is not YAML"),
        ("&a [*a]", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("names: [cat]\ntrain: nowhere/pictures", "says train: nowhere/pictures, but there is no such folder"),
    ],
)
def test_a_set_that_cannot_be_used_is_refused(folder, text, message):
    (folder / "data.yaml").unlink()
    if text:
        (folder / "data.yaml").write_text(text)
    with pytest.raises(ConversionError, match=message):
        run(folder)


def test_a_set_of_another_format_is_noticed(folder):
    (folder / "data.yaml").unlink()
    (folder / "labels" / "a.xml").write_text("")
    with pytest.raises(ConversionError, match=r"to data\.yaml\. It holds labels/a\.xml: is --voc_dir meant\?"):
        run(folder)


def test_two_files_that_name_classes(folder):
    (folder / "data.yaml").rename(folder / "one.yaml")
    (folder / "two.yaml").write_text("names: [x]")
    with pytest.raises(ConversionError, match=r"one\.yaml and two\.yaml both name classes"):
        run(folder)
    with pytest.raises(ConversionError, match="there is no such folder"):
        run(folder / "nowhere")


def make(root: pathlib.Path, *paths: str) -> pathlib.Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(encoded(picture()) if path.endswith(".jpg") else LINE.encode())
    return root


NAMES = "names: [cat, dog]\n"


@pytest.mark.parametrize(
    ("yaml", "paths", "expected"),
    [
        # Ultralytics: images/train beside labels/train.
        (
            "path: ../datasets/x\ntrain: images/train\nval: images/val\n",
            ("images/train/a.jpg", "labels/train/a.txt", "images/val/b.jpg", "labels/val/b.txt"),
            {"train": [("a", "a.txt")], "val": [("b", "b.txt")]},
        ),
        # Roboflow: its paths lead to a folder above, and there is no test set.
        (
            "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n",
            (
                "train/images/a_jpg.rf.0a1b.jpg",
                "train/labels/a_jpg.rf.0a1b.txt",
                "valid/images/b.jpg",
                "valid/labels/b.txt",
            ),
            {"train": [("a_jpg.rf.0a1b", "a_jpg.rf.0a1b.txt")], "val": [("b", "b.txt")]},
        ),
        # A path of another machine.
        (
            "train: C:\\data\\set\\images\\train\nval: /content/set/images/val/\n",
            ("images/train/a.jpg", "images/train/c.jpg", "labels/train/a.txt", "images/val/b.jpg", "labels/val/b.txt"),
            {"train": [("a", "a.txt"), ("c", "")], "val": [("b", "b.txt")]},
        ),
        # Label Studio, and labelImg: all in one folder.
        ("", ("images/a.jpg", "labels/a.txt", "labels/classes.txt"), {"all": [("a", "a.txt")]}),
        ("", ("a.jpg", "a.txt", "classes.txt", "README.dataset.txt"), {"all": [("a", "a.txt")]}),
        # CVAT's "YOLO 1.1".
        ("", ("obj_train_data/a.jpg", "obj_train_data/a.txt", "train.txt"), {"train": [("a", "a.txt")]}),
        # Folders in folders.
        (
            "train: images\n",
            ("images/one/a.jpg", "images/two/a.jpg", "labels/two/a.txt"),
            {"train": [("one/a", ""), ("two/a", "two/a.txt")]},
        ),
        ("", ("images/train/a.jpg", "labels/train/a.txt"), {"train": [("a", "a.txt")]}),
        (
            "",
            ("train/a.jpg", "train/a.txt", "val/b.jpg", "val/b.txt"),
            {"train": [("a", "a.txt")], "val": [("b", "b.txt")]},
        ),
        # The word `images` in a name below the folder of that name.
        (
            "train: images/coco_images\n",
            ("images/coco_images/a.jpg", "labels/coco_images/a.txt"),
            {"train": [("a", "a.txt")]},
        ),
        ("train: my_images\n", ("my_images/a.jpg", "my_labels/a.txt"), {"train": [("a", "a.txt")]}),
    ],
)
def test_folders_are_found(tmp_path, yaml, paths, expected):
    root = make(tmp_path / "set", *paths)
    (root / "data.yaml").write_text(NAMES + yaml)
    found = listing.list_inputs(config(root), Workers(1))
    assert {
        split: [(item.image_id, item.annotation_name) for item in listed.inputs] for split, listed in found.items()
    } == expected
    lines = listing.describe_folders(config(root))
    assert sorted(line.partition(":")[0] for line in lines) == sorted(expected)
    assert all(manifest.num_images for manifest in convert.convert(config(root), Workers(1)))


@pytest.mark.parametrize(
    ("yaml", "paths", "settings", "message"),
    [
        ("", ("train/images/a.jpg",), {"split": "x"}, r"has folders of its splits \(train\): leave out --split"),
        ("", ("valid/a.jpg", "val/b.jpg"), {}, "several folders of one split"),
        ("train: [images/a, images/b]", ("images/a/a.jpg", "images/b/b.jpg"), {}, "several folders of one split"),
        ("", ("images/notes.txt",), {}, "holds no image"),
        (
            "",
            ("images/train/a.jpg", "images/train/b.jpg", "annotations/train/a.txt"),
            {},
            r"images/train: none of its 2 images has a text file in \S*set/labels/train or \S*set/images/train: move",
        ),
        ("", ("train/a.jpg", "train/a.txt", "val/b.jpg"), {}, r"val: none of its 1 images has a text file in \S*val: "),
        ("", ("a.jpg",), {"images_dir": "x"}, "--images_dir does not go with --yolo_dir"),
    ],
)
def test_what_cannot_be_decided_is_refused(tmp_path, yaml, paths, settings, message):
    root = make(tmp_path / "set", *paths)
    (root / "data.yaml").write_text(NAMES + yaml)
    with pytest.raises(ConversionError, match=message):
        run(root, **settings)


PAIRS = [f"{kind}/{stem}" for stem in ("train/a", "train/b", "val/c") for kind in ("images", "labels")]
LISTS = {
    "CVAT": ("path: ./\ntrain: train.txt\n", {"train.txt": "data/images/train/a.jpg\n\n"}, {"train": ["a"]}),
    "Ultralytics": (
        "path: ../datasets/x\ntrain: lists/train.txt\nval: lists/val.txt\ntest: test.txt\n",
        {"lists/train.txt": "../images/train/b.jpg\n./here.jpg", "lists/val.txt": "C:\\x\\images\\val\\c.jpg\r\n"},
        {"train": ["images/train/b", "lists/here"], "val": ["c"]},
    ),
    "Darknet": (
        "",
        {
            "obj.data": "classes = 1\ntrain  = data/train.txt\nvalid=data/test.txt\nnames = data/obj.names\n",
            "train.txt": "data/images/train/a.jpg\n",
            "test.txt": "data/images/train/b.jpg\ndata/images/val/c.jpg\n",
        },
        {"train": ["a"], "val": ["train/b", "val/c"]},
    ),
    "Darknet without obj.data": (
        "",
        {"train.txt": "images/train/a.jpg\n", "test.txt": "images/train/b.jpg\nimages/val/c.jpg\n"},
        {"train": ["a"], "test": ["train/b", "val/c"]},
    ),
}


@pytest.mark.parametrize("case", LISTS)
@pytest.mark.parametrize("packed", [False, True])
def test_lists_of_images(tmp_path, case, packed):
    yaml, lists, expected = LISTS[case]
    root = make(tmp_path / "set", *(f"{pair}.{'jpg' if 'images' in pair else 'txt'}" for pair in PAIRS))
    make(root, "lists/here.jpg", "lists/here.txt")
    (root / ("data.yaml" if yaml else "obj.names")).write_text(NAMES + yaml if yaml else "cat\ndog\n")
    for name, text in lists.items():
        (root / name).write_bytes(text.encode())
    if packed:
        root = pathlib.Path(shutil.make_archive(str(root), "zip", tmp_path, "set"))
    found = listing.list_inputs(config(root), Workers(1))
    assert {split: [item.image_id for item in listed.inputs] for split, listed in found.items()} == expected
    assert sorted(line.partition(":")[0] for line in listing.describe_folders(config(root))) == sorted(expected)
    manifests = convert.convert(config(root, on_error="fail"), Workers(1))
    assert all(manifest.num_boxes == manifest.num_images > 0 for manifest in manifests)


@pytest.mark.parametrize(
    ("yaml", "lists", "noted"),
    [
        ("train: images/train\ntest: images/test", {}, r"images/test: none of its 1 images has a text file"),
        ("train: train.txt\ntest: test.txt", {"test.txt": "images/test/b.jpg"}, r"test.txt: none of its 1 images has"),
        ("train: train.txt\ntest: test.txt", {"test.txt": "images/test/x.jpg"}, r"test.txt lists 1 images, and none"),
        ("train: train.txt\nval: val.txt", {"val.txt": "\n"}, ""),
        ("", {}, r"images/test: none of its 1 images has a text file"),
    ],
)
def test_a_test_split_that_nobody_labelled_is_left_out(tmp_path, yaml, lists, noted):
    root = make(tmp_path / "set", "images/train/a.jpg", "labels/train/a.txt", "images/test/b.jpg")
    for name, text in {"data.yaml": NAMES + yaml, "train.txt": "images/train/a.jpg\n", **lists}.items():
        (root / name).write_text(text)
    manifest = run(root)
    assert (manifest.split, manifest.num_boxes) == ("train", 1)
    found = [finding.detail for finding in manifest.noted.files if finding.reason == "unlabelled_split"]
    assert [noted in detail for detail in found] == [True] * bool(noted)


def test_darknet_lists_that_were_not_written_are_not_missed(tmp_path):
    root = make(tmp_path / "set", "obj_train_data/a.jpg", "obj_train_data/a.txt")
    (root / "obj.names").write_text("cat\n")
    (root / "obj.data").write_text("classes = 1\ntrain = data/train.txt\nnames = data/obj.names\n")
    manifest = run(root)
    assert (manifest.split, manifest.num_boxes) == ("train", 1)


def test_flaws_of_a_list(folder):
    """An image that is not there, one without a text file, one listed twice, and two of one stem."""
    (folder / "data.yaml").write_text(NAMES + "train: train.txt\n")
    make(folder, "images/c.jpg", "images/unlisted.jpg")
    (folder / "images" / "b.png").write_bytes(encoded(picture(), "PNG"))
    lines = [f"./images/{name}" for name in ("a.jpg", "b.jpg", "c.jpg", "none.jpg", "a.jpg", "b.png")]
    (folder / "train.txt").write_text("\n".join(lines))
    manifest = run(folder, on_error="skip")
    assert set(records(folder.parent / "out")) == {"a", "b", "c"}
    counts = {**manifest.refused.counts, **manifest.dropped.counts, **manifest.repaired.counts}
    assert counts == {"missing_image": 1, "listed_twice": 1, "same_stem": 1}
    assert manifest.noted.counts["no_label_file"] == 1
    with pytest.raises(ConversionError, match=r"missing_image: no images/none\.\* though a list names it"):
        run(folder, overwrite=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"train\.txt lists 0 images, and none of them is in \S*set: correct its lines"),
        ("images/x.jpg\n", r"train\.txt lists 1 images, and none of them is in"),
        ("images/c.jpg\n", r"train\.txt: none of its 1 images has a text file in \S*set/labels or \S*set/images: "),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(folder, text, message):
    (folder / "data.yaml").write_text(NAMES + "train: train.txt\n")
    make(folder, "images/c.jpg")
    (folder / "train.txt").write_text(text)
    with pytest.raises(ConversionError, match=message):
        run(folder)


def test_classes_are_renamed_and_ignored(folder):
    (folder / "labels" / "b.txt").write_text(f"{LINE}\n1 0.2 0.2 0.2 0.2\n")
    manifest = run(folder, rename=("cat=lion",), ignore_classes=("dog",))
    assert (manifest.labels, manifest.num_boxes, manifest.num_ignored) == (("lion",), 2, 1)


def test_changed_names_are_another_conversion(folder):
    """They give the indexes another meaning, though no label file changed."""
    run(folder)
    (folder / "data.yaml").write_text("names: [dog, cat]\n")
    with pytest.raises(ConversionError, match="2 changed: a, b"):
        run(folder)
