"""Where the folders of annotations and images are found, whatever they are called."""

import pathlib
import zipfile

import pytest

from input import files
from input.conversion.config import ConversionError
from input.conversion.layout import Folders, find_folders, unwrap, walk


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
        (("a.xml", "images/a.jpg", "__MACOSX/._a.xml"), "", "images"),  # a zip file that was made and unpacked on macOS
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


def test_a_class_may_be_called_train(tmp_path):
    """Folders for each class."""
    root = make(
        tmp_path / "set", *(f"{name}/{name}.{kind}" for name in ("bus", "car", "train") for kind in ("xml", "jpg"))
    )
    assert find_folders(root) == found(root, "", "")


def test_folders_of_splits_without_xml_are_left_alone(tmp_path):
    root = make(tmp_path / "set", "annots/a.xml", "images/a.jpg", "test/b.jpg", "val/more/c.jpg")
    assert find_folders(root) == found(root, "annots", "images")
    root = make(tmp_path / "set", "train/d.xml", "train/d.jpg")
    assert find_folders(root, f"{root}/annots") == found(root, "annots", "images")


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
        (
            ("train/a.xml", "train/a.jpg", "valid/xml/b.xml", "test/c.jpg", "extra/d.xml", "extra/d.jpg"),
            r"train and \S*set/valid hold XML files, and so does \S*set/extra: .* --voc_dir or --annotations_dir",
        ),
        (("train/a.xml", "train/a.jpg", "b.xml", "b.jpg"), r"set/train hold XML files, and so does \S*set: "),
        (("train/test/a.xml", "train/test/a.jpg"), "train holds splits itself: name one of them with --voc_dir"),
    ],
)
def test_what_cannot_be_decided_is_refused(tmp_path, paths, message):
    with pytest.raises(ConversionError, match=message):
        find_folders(make(tmp_path / "set", *paths))


def test_folders_with_a_dot_in_their_names_are_entered(tmp_path):
    """So are folders called as a kind of file that holds neither annotations nor images."""
    wanted = ["a.xml", "cam.left/b.xml", "clip.mp4/deep/c.XML", "dr.smith/__d.xml"]
    root = make(tmp_path / "set", *wanted, "a.jpg", "__MACOSX/._a.xml", "cam.left/.e.xml", ".old/f.xml", "notes.md")
    assert list(walk(root, (".xml",))) == wanted


def test_an_archive_beside_the_files_is_not_entered(tmp_path):
    """Often it is the one from which they were unpacked."""
    root = make(tmp_path / "set", "a.xml")
    with zipfile.ZipFile(f"{root}/set.zip", "w") as archive:
        archive.writestr("a.xml", "")
    assert list(walk(root, (".xml",))) == ["a.xml"]


def test_no_request_for_files_that_are_known_by_their_names(tmp_path, monkeypatch):
    """In a bucket each takes milliseconds, and there are as many as files."""
    root = make(tmp_path / "set", "a.xml", "a.jpg", "b.TIFF", "c.txt", "d.json", "e.yaml", "one/f.md", "README")
    asked = []
    is_dir = files.is_dir
    monkeypatch.setattr(files, "is_dir", lambda path: asked.append(path) or is_dir(path))
    assert list(walk(root, (".xml", ".md"))) == ["a.xml", "one/f.md"]
    assert asked == [f"{root}/README", f"{root}/one"]
    asked.clear()
    assert find_folders(root) == found(root, "", "")
    assert set(asked) == {root, f"{root}/Annotations", f"{root}/JPEGImages", f"{root}/README", f"{root}/one"}


def test_the_only_folder_in_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("__set/a.xml", "__MACOSX/__set/._a.xml"):
            archive.writestr(name, "")
    assert unwrap(str(tmp_path / "set.zip")) == f"{tmp_path}/set.zip/__set"
