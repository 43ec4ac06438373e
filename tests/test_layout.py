"""Where the folders of annotations and images are found, whatever they are called."""

import pathlib

import pytest

from input.conversion.config import ConversionError
from input.conversion.layout import Folders, find_folders


def make(root: pathlib.Path, *paths: str) -> str:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    return str(root)


def found(root: str, *folders: str) -> list[Folders]:
    return [Folders("", *(f"{root}/{folder}" if folder else root for folder in folders))]


@pytest.mark.parametrize(
    ("paths", "annotations", "images"),
    [
        (("Annotations/a.xml", "JPEGImages/a.jpg"), "Annotations", "JPEGImages"),
        (("annotations/a.xml", "images/a.png"), "annotations", "images"),
        (("annots/a.xml", "images/a.JPG"), "annots", "images"),
        (("labels/a.xml", "img/a.jpg"), "labels", "img"),
        (("boxes/a.xml", "pictures/a.bmp"), "boxes", "pictures"),  # by what is in them
        (("a.xml", "a.jpg"), "", ""),
        (("all/a.xml", "all/a.jpg"), "all", "all"),
        (("xml/a.xml", "a.jpg"), "xml", ""),
        # VOC's own folders of masks hold images too.
        (("Annotations/a.xml", "JPEGImages/a.jpg", "SegmentationClass/a.png"), "Annotations", "JPEGImages"),
        (("annots/a.xml", "images/a.jpg", "previews/a.jpg"), "annots", "images"),  # the one with a usual name
        (("annots/a.xml", "images/a.jpg", ".thumbs/a.jpg"), "annots", "images"),
    ],
)
def test_folders_are_found(tmp_path, paths, annotations, images):
    root = make(tmp_path / "set", *paths)
    assert find_folders(root) == found(root, annotations, images)


def test_given_folders_are_used(tmp_path):
    root = make(tmp_path / "set", "a/a.xml", "b/a.xml", "images/a.jpg", "img/a.jpg")
    assert find_folders(root, f"{root}/b", f"{root}/img") == found(root, "b", "img")
    assert find_folders("", "x", "y") == [Folders("", "x", "y")]


@pytest.mark.parametrize("valid", ["valid", "val", "Validation"])
def test_folders_of_splits(tmp_path, valid):
    """As Roboflow writes them, XML beside the images; or each split with folders of its own."""
    root = make(
        tmp_path / "set", "train/a.xml", "train/a.jpg", f"{valid}/xml/b.xml", f"{valid}/images/b.jpg", "notes.txt"
    )
    assert sorted(find_folders(root)) == [
        Folders("train", f"{root}/train", f"{root}/train"),
        Folders("val", f"{root}/{valid}/xml", f"{root}/{valid}/images"),
    ]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ((), "there is no such folder"),
        (("notes.txt",), "holds an XML file; name the folder with --annotations_dir"),
        (("data.yaml", "train/images/a.jpg", "valid/labels/b.txt"), r"It holds data\.yaml: is --yolo_dir meant\?"),
        (("data.yaml", "images/a.jpg"), r"--annotations_dir\. It holds data\.yaml: is --yolo_dir meant\?"),
        (("annotations/all.json", "a.jpg"), r"It holds annotations/all\.json: is --coco_json meant\?"),
        (("a.xml",), "holds an image; name the folder with --images_dir"),
        (("annots/a.xml", "labels/a.xml", "images/a.jpg"), r"annots and .*labels hold XML files: .*--annotations_dir"),
        (("xml/a.xml", "one/a.jpg", "two/a.jpg"), r"one and .*two hold images: choose one with --images_dir"),
        (("train/test/a.xml", "train/test/a.jpg"), "train holds splits itself: name one of them with --voc_dir"),
    ],
)
def test_what_cannot_be_decided_is_refused(tmp_path, paths, message):
    with pytest.raises(ConversionError, match=message):
        find_folders(make(tmp_path / "set", *paths))
