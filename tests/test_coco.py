"""COCO's JSON: the same shards as from the same data in Pascal VOC's format, and a policy for each flaw."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import other_formats
import pytest
import voc_tree
from voc_tree import annotation_xml, encoded, object_xml, picture

from input import shards, tfrecord
from input.conversion import convert, findings
from input.conversion.config import ConversionError, ConvertConfig
from input.conversion.workers import Workers
from input.manifest import Manifest

PLAIN = "<pose>Unspecified</pose><truncated>0</truncated><difficult>{}</difficult>"
BOX = [10.0, 5.0, 20.0, 20.0]  # x, y, width, height: the cat of `voc_tree.annotation_xml`
GOOD = [(5.0, 10.0, 25.0, 30.0)]


def drawn_tree(root: pathlib.Path) -> voc_tree.VocTree:
    """Images of several kinds, with only what COCO can say: no pose, and nothing truncated."""
    tree = voc_tree.VocTree(root)
    for index in range(12):
        objects = [
            object_xml(("cat", "dog")[i % 2], (1 + i, 2 + index, 20 + index, 31), PLAIN.format(i % 2))
            for i in range(index % 4)
        ]
        extension, image_format = ((".jpg", "JPEG"), (".png", "PNG"))[index % 2]
        xml = annotation_xml(*(objects or [""]), filename=f"img{index}{extension}")
        tree.add(f"img{index}", xml, encoded(picture(seed=index), image_format), extension)
    return tree


def run(output: pathlib.Path, **settings: Any) -> Manifest:
    (manifest,) = convert.convert(ConvertConfig(output_dir=str(output), **settings), Workers(1))
    return manifest


def records(folder: pathlib.Path) -> dict[str, shards.GroundTruth]:
    return {record.image_id: record for record in shards.read_annotations(shards.expand_glob(f"{folder}/*.tfrecord"))}


def test_the_same_shards_as_from_voc(tmp_path):
    """Byte for byte, with labels.txt."""
    tree = drawn_tree(tmp_path / "voc")
    other_formats.write_coco(tree.root, tmp_path / "train.json")
    run(tmp_path / "of_voc", voc_dirs=(str(tree.root),), split="train")
    manifest = run(tmp_path / "of_coco", coco_json=str(tmp_path / "train.json"), images_dir=str(tree.images))
    names = [path.name for path in (tmp_path / "of_voc").glob("*.tfrecord")]
    assert len(names) == 8
    for name in ["labels.txt", "label_map.pbtxt", *names]:
        assert (tmp_path / "of_voc" / name).read_bytes() == (tmp_path / "of_coco" / name).read_bytes()
    assert (manifest.split, manifest.num_difficult) == ("train", 6)
    assert set(manifest.noted.counts) == {"no_objects", "reencoded"}


class Made:
    """A folder of images a and b, and a COCO file that a test may change before it is converted."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.images = folder / "images"
        self.images.mkdir()
        for seed, name in enumerate(("a.jpg", "b.jpg")):
            (self.images / name).write_bytes(encoded(picture(seed=seed)))
        self.document: dict[str, Any] = {
            "images": [
                {"id": index, "file_name": name, "height": 40, "width": 60}
                for index, name in ((1, "a.jpg"), (2, "b.jpg"))
            ],
            "annotations": [
                {"id": index, "image_id": index, "category_id": 1, "bbox": BOX, "iscrowd": 0} for index in (1, 2)
            ],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }

    def convert(self, **settings: Any) -> Manifest:
        (self.folder / "made.json").write_text(json.dumps(self.document))
        settings = {"on_error": "skip", "images_dir": str(self.images), **settings}
        return run(self.folder / "out", coco_json=str(self.folder / "made.json"), **settings)


@pytest.fixture
def made(tmp_path) -> Made:
    return Made(tmp_path)


def of_b(**changes: Any):
    """Changes fields of b's annotation; those that are None are left out."""

    def change(document: dict[str, Any]):
        fields = {**document["annotations"][1], **changes}
        document["annotations"][1] = {key: value for key, value in fields.items() if value is not None}

    return change


def more_of_b(**fields: Any):
    return lambda document: document["annotations"].append({"image_id": 2, "category_id": 1, **fields})


def of_image_b(**changes: Any):
    return lambda document: document["images"][1].update(changes)


# What is done to image b, the reason that must be reported, and the boxes that its record then has (None: no record).
CASES = {
    "no image": (of_image_b(file_name="c.jpg"), "missing_image", None),
    "no file name": (of_image_b(file_name=None), "missing_image", None),
    "other shape": (of_image_b(width=99), "other_size", None),
    "no size": (of_image_b(width=None), "size", GOOD),
    "size as text": (of_image_b(width="60", height="41"), "size", GOOD),
    "resized": (of_image_b(width=30, height=20), "scaled", [(10.0, 20.0, 40.0, 60.0)]),
    "listed twice": (lambda document: document["images"].append({"id": 3, "file_name": "b.jpg"}), "duplicate_id", GOOD),
    "other machine's folder": (of_image_b(file_name="C:\\data\\b.jpg"), "path_in_filename", GOOD),
    "out of the folder": (of_image_b(file_name="../images/b.jpg"), "path_in_filename", GOOD),
    "a dot, but no extension": (of_image_b(file_name="b.2"), "missing_image", None),
    "other extension": (of_image_b(file_name="b.png"), "extension", GOOD),
    "no such image": (more_of_b(image_id=7, bbox=BOX), "no_such_image", GOOD),
    "no category": (more_of_b(category_id=9, bbox=BOX), "missing_name", GOOD),
    "three numbers": (more_of_b(bbox=BOX[:3]), "missing_corner", GOOD),
    "no box": (of_b(bbox=None), "all_objects_dropped", None),
    "run lengths for a box": (more_of_b(segmentation={"counts": [5], "size": [40, 60]}), "missing_corner", GOOD),
    "polygons for a box": (
        of_b(bbox=[], segmentation=[[10, 5, 30, 5, 20, 9], [10, 25, 12, 25, 12, 24]]),
        "polygon",
        GOOD,
    ),
    "NaN": (more_of_b(bbox=[1, 2, 3, float("nan")]), "bad_number", GOOD),
    "true": (more_of_b(bbox=[1, 2, 3, True]), "bad_number", GOOD),
    "a list": (more_of_b(bbox=[1, 2, 3, [4]]), "bad_number", GOOD),
    "a huge whole number": (more_of_b(bbox=[1, 2, 3, 10**400]), "bad_number", GOOD),
    "numbers as text": (of_b(bbox=["10,0", "5", "20", "20"]), "comma_number", GOOD),
    "no width": (more_of_b(bbox=[1, 2, 0, 5]), "degenerate_box", GOOD),
    "negative width": (of_b(bbox=[30, 5, -20, 20]), "swapped_box", GOOD),
    "reaching out": (of_b(bbox=[-5, -5, 70, 70]), "clipped_box", [(0.0, 0.0, 40.0, 60.0)]),
    "outside": (more_of_b(bbox=[70, 5, 20, 20]), "outside_box", GOOD),
    "rotated": (  # 20 x 10 becomes 10 x 20 around the same centre
        of_b(bbox=[10, 15, 20, 10], segmentation=[], attributes={"rotation": 90.0, "occluded": False}),
        "rotated_box",
        [(10.0, 15.0, 30.0, 25.0)],
    ),
    "twice the same": (more_of_b(bbox=BOX), "duplicate_box", GOOD),
    "no annotation": (of_b(image_id=1), "no_objects", []),
    "no UTF-8": (lambda document: document["categories"][0].update(name="\ud800"), "not_utf8", None),
}


@pytest.mark.parametrize("case", CASES)
def test_policy(case, made):
    change, reason, expected = CASES[case]
    change(made.document)
    if case == "no UTF-8":  # of the class of both
        made.document["annotations"][0]["category_id"] = 2
    manifest = made.convert()
    (kind,) = (kind for kind, reasons in findings.KINDS.items() if reason in reasons)
    assert manifest.findings(kind).counts[reason] == 1
    found = records(made.folder / "out")
    assert "a" in found
    if expected is None:
        assert set(found) == {"a"}
    else:
        np.testing.assert_allclose(found["b"].boxes, np.reshape(expected, (-1, 4)), atol=1e-4)


def test_good_files_give_no_findings(made):
    manifest = made.convert(strict=True, on_error="fail")
    assert [manifest.findings(kind).counts for kind in findings.KINDS] == [{}, {}, {}, {}]
    assert manifest.labels == ("cat", "dog")


@pytest.mark.parametrize(
    "change",
    [
        of_b(attributes={"rotation": 0.0}),
        of_b(attributes={"rotation": None, "colour": "red"}),
        of_b(attributes={"rotation": 90.0}, segmentation={"counts": [5], "size": [40, 60]}),  # CVAT's ellipse
    ],
)
def test_what_is_no_rotation(made, change):
    change(made.document)
    made.convert(strict=True, on_error="fail")
    np.testing.assert_allclose(records(made.folder / "out")["b"].boxes, GOOD, atol=1e-4)


def test_rounding_is_no_flaw(made):
    """A width of two decimals may reach a hundredth of a pixel out of the image."""
    made.document["annotations"][1]["bbox"] = [10.005, 5, 50.0, 35]
    assert made.convert(strict=True, on_error="fail").num_boxes == 2


def test_crowds_become_ignored_regions(made):
    """As in COCO, of their own class: a region that no anchor has to learn, and no object to be found."""
    more_of_b(bbox=[0, 0, 60, 40], iscrowd=1, category_id=2)(made.document)
    manifest = made.convert()
    assert (manifest.num_boxes, manifest.num_ignored, manifest.num_negatives) == (2, 1, 0)
    assert manifest.boxes_per_class == {"cat": 2, "dog": 0}
    record = records(made.folder / "out")["b"]
    np.testing.assert_allclose(record.boxes, GOOD, atol=1e-5)
    np.testing.assert_allclose(record.regions, [(0, 0, 40, 60)], atol=1e-5)
    assert record.region_classes.tolist() == [1]
    paths = shards.expand_glob(f"{made.folder}/out/*.tfrecord")
    (example,) = (
        features
        for path in paths
        for serialized in tfrecord.read_records(path)
        if (features := tfrecord.decode_example(serialized, frozenset(CROWD_KEYS)))["image/source_id"] == [b"b"]
    )
    assert [example[key] for key in CROWD_KEYS[1:]] == [[1, 2], [0, 1], [0, 1]]


def test_a_crowd_with_the_box_of_an_object_is_no_duplicate(made):
    crowd = {"image_id": 2, "category_id": 1, "bbox": BOX, "iscrowd": 1}
    made.document["annotations"].insert(0, crowd)
    manifest = made.convert()
    assert (manifest.num_boxes, manifest.num_ignored, manifest.dropped.counts) == (2, 1, {})


CROWD_KEYS = (
    *("image/source_id", "image/object/class/label"),
    *("image/object/is_crowd", "image/object/difficult"),
)


def test_images_in_subfolders(made):
    """Two images of one name in two folders are two images; what the folder holds besides is not looked at."""
    for name in ("one", "two"):
        (made.images / name).mkdir()
        (made.images / name / "x.jpg").write_bytes(encoded(picture(seed=ord(name[0]))))
    made.document["images"] += [
        {"id": 3, "file_name": "one/x.jpg", "height": 40, "width": 60},
        {"id": 4, "file_name": "two\\x.jpg", "height": 40, "width": 60},
    ]
    made.document["annotations"].append({"image_id": "4", "category_id": "1", "bbox": BOX})  # ids as texts
    manifest = made.convert()
    assert set(manifest.inputs) == {"a", "b", "one/x", "two/x"}
    found = records(made.folder / "out")
    assert (len(found["one/x"].boxes), len(found["two/x"].boxes)) == (0, 1)
    assert manifest.noted.counts == {"no_objects": 1}


def test_the_end_of_a_path_that_is_there_counts(made):
    """Where --images_dir is a folder inside that of the names, and there are other images of the same name."""
    for name in ("1.jpg", "cam1/1.jpg", "cam2/1.jpg"):
        (made.images / name).parent.mkdir(exist_ok=True)
        (made.images / name).write_bytes(encoded(picture(seed=len(made.document["images"]))))
        made.document["images"].append({"id": name, "file_name": f"images/{name}", "height": 40, "width": 60})
    made.document["images"].append({"id": 9, "file_name": "images\\cam2\\2.jpg", "height": 40, "width": 60})
    manifest = made.convert()
    assert set(records(made.folder / "out")) == {"a", "b", "1", "cam1/1", "cam2/1"}
    assert [(finding.image_id, finding.reason) for finding in manifest.refused.files] == [("cam2/2", "missing_image")]


def test_a_name_with_a_dot_is_not_that_of_another_image(made):
    (made.images / "frame.2.jpg").write_bytes(encoded(picture(seed=7)))
    (made.images / "frame.jpg").write_bytes(encoded(picture(seed=8)))
    made.document["images"].append({"id": 3, "file_name": "frame.2", "height": 40, "width": 60})
    manifest = made.convert()
    assert set(manifest.inputs) == {"a", "b", "frame.2"}
    assert manifest.noted.counts == {"extension": 1, "no_objects": 1}


def test_an_image_may_have_been_saved_in_another_format(made):
    (made.images / "photo.jpg").write_bytes(encoded(picture(seed=7)))
    made.document["images"].append({"id": 3, "file_name": "photo.jfif", "height": 40, "width": 60})
    manifest = made.convert()
    assert (set(manifest.inputs), manifest.noted.counts["extension"]) == ({"a", "b", "photo"}, 1)


def test_an_unreadable_ignored_region_refuses_no_image(made):
    """Nothing is lost that would have been learnt, as where it is an object of a class of the list."""
    labels = made.folder / "labels.txt"
    labels.write_text("cow\n")
    made.document["annotations"].append({"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 0]})
    settings = {"labels_file": str(labels), "drop_unknown_classes": True}
    manifest = made.convert(**settings)
    assert (manifest.num_images, manifest.num_ignored, manifest.dropped.counts["degenerate_box"]) == (2, 2, 1)
    labels.write_text("cat\n")
    made.document["annotations"] = made.document["annotations"][-1:]
    assert made.convert(**settings, overwrite=True).refused.counts == {"all_objects_dropped": 1}


def test_white_space_in_a_file_name_counts(made):
    """But for that around it, as a line of a list leaves it."""
    for index, name in enumerate(("b  2.jpg", "b 2.jpg", "b\u00a0\u00a03.jpg")):
        (made.images / name).write_bytes(encoded(picture(seed=9 + index)))
        made.document["images"].append({"id": 3 + index, "file_name": f"{name}\n", "height": 40, "width": 60})
    manifest = made.convert(strict=True, on_error="fail")
    assert set(manifest.inputs) == {"a", "b", "b  2", "b 2", "b\u00a0\u00a03"}


def test_the_set_as_a_category_is_no_class(made):
    """Roboflow writes the name of the whole set as category 0."""
    made.document["categories"] = [
        {"id": 0, "name": "my-animals", "supercategory": "none"},
        {"id": 2, "name": "dog", "supercategory": "my-animals"},
        {"id": 1, "name": "cat", "supercategory": "my-animals"},
    ]
    assert made.convert().labels == ("cat", "dog")


def test_a_category_that_is_its_own_supercategory_is_a_class(made):
    """As COCO's own `person` is, also in a file that shows nobody."""
    made.document["categories"] = [
        {"id": 1, "name": "cat", "supercategory": "animal"},
        {"id": 2, "name": "person", "supercategory": "person"},
    ]
    assert made.convert().labels == ("cat", "person")


def test_classes_dropped_as_asked(made):
    labels = made.folder / "labels.txt"
    labels.write_text("dog\n")
    made.document["annotations"][1]["category_id"] = 2
    manifest = made.convert(labels_file=str(labels))
    assert manifest.refused.counts == {"unknown_class": 1}
    manifest = made.convert(labels_file=str(labels), drop_unknown_classes=True, overwrite=True)
    assert (manifest.dropped.counts, manifest.num_ignored) == ({"unknown_class_ignored": 1}, 1)


def test_classes_are_renamed_and_ignored(made):
    """The order of the others stays that of the ids."""
    made.document["categories"].append({"id": 3, "name": "kitten"})
    for index, name in ((1, "dog"), (2, "kitten")):
        category = {"dog": 2, "kitten": 3}[name]
        made.document["annotations"].append({"image_id": index, "category_id": category, "bbox": [1, 1, 5 + index, 5]})
    manifest = made.convert(rename=("kitten=cat",), ignore_classes=("dog",))
    assert (manifest.labels, manifest.num_boxes, manifest.num_ignored) == (("cat",), 3, 1)


def test_a_misspelt_class_to_ignore_is_noted_where_there_is_a_label_list(made):
    """It may be one that this split lacks. Classes in the list may be named, and others that the file has."""
    labels = made.folder / "labels.txt"
    labels.write_text("cat\ncow\n")
    manifest = made.convert(labels_file=str(labels), ignore_classes=("Cat", "cow", "dog"), rename=("horse=cat",))
    assert (manifest.num_boxes, manifest.noted.counts) == (2, {"unused_class": 1})
    assert manifest.noted.files[0].detail == "'Cat'"


def test_a_fraction_is_held_out(made):
    (made.folder / "made.json").write_text(json.dumps(made.document))
    config = ConvertConfig(
        output_dir=str(made.folder / "out"),
        coco_json=str(made.folder / "made.json"),
        images_dir=str(made.images),
        val_fraction=0.5,
    )
    assert [(item.split, item.num_images) for item in convert.convert(config, Workers(1))] == [("train", 1), ("val", 1)]


def test_a_changed_annotation_is_named(made):
    made.convert()
    made.document["annotations"][1]["bbox"] = [1, 2, 3, 4]
    with pytest.raises(ConversionError, match="1 changed: b"):
        made.convert()


def repeat(what: str, **fields: Any):
    return lambda document: document[what].append(fields)


def all_annotations(**fields: Any):
    return lambda document: [annotation.update(fields) for annotation in document["annotations"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (repeat("images", id=1, file_name="c.jpg"), "the images 'a.jpg' and 'c.jpg' have one id, 1, .* image_id"),
        (repeat("categories", id="2", name="cow"), "the categories 'dog' and 'cow' have one id, 2, .* category_id"),
        (all_annotations(image_id=7), "their id is, for instance, 1, and image_id of an annotation 7; export"),
        (
            lambda document: [annotation.pop("image_id") for annotation in document["annotations"]],
            "image_id of an annotation missing",
        ),
    ],
)
def test_ids_that_contradict_each_other_are_refused(made, change, message):
    change(made.document)
    with pytest.raises(ConversionError, match=message):
        made.convert()


def test_an_entry_that_is_there_twice_is_read_once(made):
    made.document["categories"].append(made.document["categories"][0])
    made.document["images"].append(made.document["images"][1])
    manifest = made.convert()
    assert (manifest.num_boxes, manifest.labels, manifest.refused.counts) == (2, ("cat", "dog"), {"duplicate_id": 1})


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("instances_train2017.json", "train"),
        ("valid/_annotations.coco.json", "val"),
        ("test.json", "test"),
        ("training.json", "all"),
    ],
)
def test_the_split_follows_from_the_name(made, name, split):
    path = made.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(made.document))
    assert run(made.folder / "out", coco_json=str(path), images_dir=str(made.images)).split == split


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not in COCO's format"),
        ('{"images": [], "annotations": {}, "categories": []}', "is not in COCO's format"),
        ('{"images": [], "annotations": [], "categories": []}', "names no category"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}', "holds no image"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(made, text, message):
    path = made.folder / "made.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConversionError, match=message):
        run(made.folder / "out", coco_json=str(path), images_dir=str(made.images))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"voc_dirs": ("x",)}, "are different formats"),
        ({"yolo_dir": "x"}, "are different formats"),
        ({"image_set": "x"}, "--image_set is for Pascal VOC only"),
        ({"zero_based": True}, "--zero_based is for Pascal VOC only"),
    ],
)
def test_flags_of_other_formats_are_refused(settings, message):
    with pytest.raises(ConversionError, match=message):
        ConvertConfig(output_dir="out", coco_json="x", **settings)
