"""Every policy of the converter is provoked once, from files to shards, and its effect on the record is checked."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import os
import pathlib
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import voc_tree
from PIL import Image
from voc_tree import annotation_xml, box_xml, encoded, object_xml, picture

from input import shards, tfrecord
from input.conversion import convert, findings, frame, voc_xml
from input.conversion.config import ConversionError, ConvertConfig, ReadOptions
from input.conversion.example import Example, read_example
from input.conversion.source import Source
from input.conversion.workers import Workers
from input.manifest import Finding, Manifest

GOOD = [(5.0, 10.0, 25.0, 30.0)]  # the cat of `annotation_xml`: pixels (11..30, 6..25) counted from 1


def with_orientation(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, exif=exif)


def boxes(*written) -> str:
    return annotation_xml(*(object_xml(box=box) for box in written))


def corners(text: str) -> str:
    """The annotation of one object whose <bndbox> holds `text`."""
    return annotation_xml(f"<object><name>cat</name><pose/><truncated/><difficult/><bndbox>{text}</bndbox></object>")


def shaped(tag: str, inner: str) -> str:
    """The annotation of one object with another shape than <bndbox>."""
    return annotation_xml(object_xml().replace(box_xml((11, 6, 30, 25)), f"<{tag}>{inner}</{tag}>"))


def rotated(x: float, y: float, width: float, height: float, angle: float) -> str:
    return f"<cx>{x}</cx><cy>{y}</cy><w>{width}</w><h>{height}</h><angle>{angle}</angle>"


def rotation(degrees: str) -> str:
    """CVAT's, beside an attribute that the user defined."""
    named = {"colour": "red", "rotation": degrees}
    attributes = (f"<attribute><name>{name}</name><value>{value}</value></attribute>" for name, value in named.items())
    return f"<attributes>{''.join(attributes)}</attributes>"


def in_other_case(text: str) -> str:
    for tag in ("object", "bndbox", "xmin", "name", "size", "width"):
        text = text.replace(f"{tag}>", f"{tag.title()}>")
    return text


def swap_image(stem: str, content: bytes, extension: str = ".jpg"):
    def write(tree: voc_tree.VocTree):
        (tree.images / "b.jpg").unlink()
        (tree.images / (stem + extension)).write_bytes(content)

    return write


def replace_xml(content):
    return lambda tree: (tree.annotations / "b.xml").write_bytes(
        content.encode() if isinstance(content, str) else content
    )


def loop(tree: voc_tree.VocTree):
    (tree.images / "b.jpg").unlink()
    (tree.images / "b.jpg").symlink_to("b.jpg")


def pipe(tree: voc_tree.VocTree):
    (tree.images / "b.jpg").unlink()
    os.mkfifo(tree.images / "b.jpg")


def same_name_elsewhere(tree: voc_tree.VocTree):
    other = voc_tree.VocTree(tree.root.parent / "other")
    other.add("b", annotation_xml(object_xml(box=(1, 1, 5, 5))))


def not_utf8_name(tree: voc_tree.VocTree):
    for folder, extension in ((tree.annotations, b".xml"), (tree.images, b".jpg")):
        os.rename(folder / ("b" + extension.decode()), os.fsencode(folder) + b"/b\xe9" + extension)


def without_end(tree: voc_tree.VocTree):
    path = tree.images / "b.jpg"
    path.write_bytes(path.read_bytes()[:-2])


JPEG = encoded(picture())
BOMB = '<!DOCTYPE a [<!ENTITY x "xxxx"><!ENTITY y "&x;&x;&x;&x;">]>' + annotation_xml(object_xml("&y;"))
EXTERNAL = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>' + annotation_xml(object_xml("&x;"))
TWISTED = annotation_xml(object_xml(box=(11, 6, 30, 55)), size=(60, 40))  # right only when 60 high and 40 wide
DOG = object_xml("dog", (1, 1, 9, 9))
LACKS_YMAX = "<xmin>1</xmin><ymin>2</ymin><xmax>9</xmax>"
PART = "<part><name>head</name>" + box_xml((12, 7, 20, 20)) + "</part>"

# What is done to image b, the reason that must be reported, and the boxes that its record then has (None: no record).
CASES = {
    "missing xml": (lambda tree: (tree.annotations / "b.xml").unlink(), "missing_annotation", None),
    "empty xml": (replace_xml(""), "empty_annotation", None),
    "blank xml": (replace_xml(" \n"), "empty_annotation", None),
    "not xml": (replace_xml("a,b,c\n1,2,3"), "not_xml", None),
    "cut-off xml": (replace_xml(annotation_xml()[:-30]), "not_xml", None),
    "binary xml": (replace_xml(b"\x00\x01\x02\xff\xfe"), "not_xml", None),
    "schema": (replace_xml("<annotations><image/></annotations>"), "other_schema", None),
    "schema without content": (replace_xml("<annotation><shapes/></annotation>"), "other_schema", None),
    "objects deeper down": (
        replace_xml(annotation_xml(f"<objects>{object_xml()}</objects>")),
        "other_schema",
        None,
    ),
    "an object inside another": (replace_xml(annotation_xml(object_xml(inner=object_xml()))), "other_schema", None),
    "two boxes of an object": (
        replace_xml(annotation_xml(object_xml(inner=box_xml((1, 1, 9, 9))))),
        "other_schema",
        None,
    ),
    "entity bomb": (replace_xml(BOMB), "entities", None),
    "external entity": (replace_xml(EXTERNAL), "entities", None),
    "entities in UTF-16": (replace_xml(BOMB.encode("utf-16")), "entities", None),
    "unknown class": (replace_xml(annotation_xml(object_xml("cow"))), "unknown_class", None),
    "class name not UTF-8": (replace_xml(annotation_xml(object_xml("caf\xe9")).encode("latin-1")), "not_utf8", None),
    "unknown class not UTF-8, with a parser's help": (
        replace_xml(annotation_xml(object_xml("caf\ufffd"))),
        "not_utf8",
        None,
    ),
    "file name not UTF-8": (not_utf8_name, "not_utf8", None),
    "same name elsewhere": (same_name_elsewhere, "duplicate_id", GOOD),
    "missing image": (lambda tree: (tree.images / "b.jpg").unlink(), "missing_image", None),
    "empty image": (swap_image("b", b""), "empty_image", None),
    "not an image": (swap_image("b", b"hello, world"), "not_an_image", None),
    "HEIC": (swap_image("b", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", ".HEIC"), "not_an_image", None),
    "pixels without a known range": (
        swap_image("b", encoded(Image.fromarray(np.zeros((40, 60), np.float32)), "TIFF"), ".tif"),
        "unknown_range",
        None,
    ),
    "truncated": (swap_image("b", JPEG[: len(JPEG) // 2]), "damaged_image", None),
    "truncated in the header": (swap_image("b", JPEG[:100]), "damaged_image", None),
    "without its end": (without_end, "damaged_image", None),
    "truncated PNG": (swap_image("b", encoded(picture(), "PNG")[:-80], ".png"), "damaged_image", None),
    "too many pixels": (swap_image("b", encoded(picture(200, 300))), "too_many_pixels", None),
    "loop of links": (loop, "unreadable", None),
    "pipe": (pipe, "unreadable", None),
    "path not UTF-8": (
        replace_xml(annotation_xml().replace("JPEGImages", "JPEGImages\xe9").encode("latin-1")),
        "encoding",
        GOOD,
    ),
    "declared encoding": (
        replace_xml(f'<?xml version="1.0" encoding="gb2312"?>{annotation_xml(folder="图片")}'.encode("gb2312")),
        "folder",
        GOOD,
    ),
    "no size": (replace_xml(annotation_xml(size=None)), "size", GOOD),
    "zero size": (replace_xml(annotation_xml(size=(0, 0))), "size", GOOD),
    "size wrong by a pixel": (replace_xml(annotation_xml(size=(41, 59))), "size", GOOD),
    "size of another shape": (replace_xml(annotation_xml(size=(60, 40))), "other_size", None),
    "size of another shape by two pixels": (replace_xml(annotation_xml(size=(42, 60))), "other_size", None),
    "made smaller": (replace_xml(annotation_xml(size=(400, 600))), "scaled", [(0.5, 1.0, 2.5, 3.0)]),
    "made larger": (replace_xml(annotation_xml(size=(20, 30))), "scaled", [(10.0, 20.0, 40.0, 60.0)]),
    "filename of another image": (replace_xml(annotation_xml(filename="a.jpg")), "filename", GOOD),
    "image named by filename only": (
        lambda tree: (swap_image("other", JPEG)(tree), replace_xml(annotation_xml(filename="other.jpg"))(tree)),
        "image_name",
        GOOD,
    ),
    "filename without extension": (replace_xml(annotation_xml(filename="b")), "extension", GOOD),
    "extension in another case": (swap_image("b", JPEG, ".JPG"), "extension", GOOD),
    "filename out of the folder": (replace_xml(annotation_xml(filename="../../x/b.jpg")), "path_in_filename", GOOD),
    "Windows path": (replace_xml(annotation_xml(filename=r"C:\data\b.jpg")), "path_in_filename", GOOD),
    "lying folder": (replace_xml(annotation_xml(folder="VOC2007")), "folder", GOOD),
    "PNG as .jpg": (swap_image("b", encoded(picture(), "PNG")), "disguised_image", GOOD),
    "BMP as .jpg": (swap_image("b", encoded(picture(), "BMP")), "disguised_image", GOOD),
    "GIF as .jpg": (swap_image("b", encoded(picture(), "GIF")), "disguised_image", GOOD),
    "WebP as .jpg": (swap_image("b", encoded(picture(), "WEBP")), "disguised_image", GOOD),
    "JPEG as .png": (swap_image("b", JPEG, ".png"), "disguised_image", GOOD),
    "PNG": (swap_image("b", encoded(picture(), "PNG"), ".png"), "reencoded", GOOD),
    "CMYK": (swap_image("b", encoded(picture(mode="CMYK"))), "reencoded", GOOD),
    "grey": (swap_image("b", encoded(picture(mode="L"))), "grayscale", GOOD),
    "turned with its boxes": (
        lambda tree: (
            swap_image("b", with_orientation(picture(), 6))(tree),
            replace_xml(TWISTED)(tree),
        ),
        "exif_rotated",
        [(5.0, 10.0, 55.0, 30.0)],
    ),
    "turned without its boxes": (swap_image("b", with_orientation(picture(), 6)), "exif_ignored", GOOD),
    "mirrored": (swap_image("b", with_orientation(picture(), 2)), "exif_unclear", None),
    "upside down": (swap_image("b", with_orientation(picture(), 3)), "exif_unclear", None),
    "mirrored without objects": (
        lambda tree: (
            swap_image("b", with_orientation(picture(), 2))(tree),
            replace_xml(annotation_xml(""))(tree),
        ),
        "exif_ignored",
        [],
    ),
    "exponent": (replace_xml(boxes((11, 6, "3e1", 25))), "exponent_number", GOOD),
    "comma": (replace_xml(boxes((11, 6, "30,0", 25))), "comma_number", GOOD),
    "NaN": (replace_xml(boxes((11, 6, "nan", 25), (11, 6, 30, 25))), "bad_number", GOOD),
    "infinity": (replace_xml(boxes((11, 6, "1e999", 25), (11, 6, 30, 25))), "bad_number", GOOD),
    "words": (replace_xml(boxes((11, 6, "wide", 25), (11, 6, 30, 25))), "bad_number", GOOD),
    "missing corner": (replace_xml(corners(LACKS_YMAX)), "all_objects_dropped", None),
    "one corner missing of several objects": (
        replace_xml(corners(LACKS_YMAX).replace("<object>", object_xml() + "<object>")),
        "missing_corner",
        GOOD,
    ),
    "empty corner": (replace_xml(boxes((11, 6, " ", 25), (11, 6, 30, 25))), "missing_corner", GOOD),
    "no box": (replace_xml(annotation_xml("<object><name>cat</name></object>")), "all_objects_dropped", None),
    "no name": (replace_xml(annotation_xml(object_xml(" "), object_xml())), "missing_name", GOOD),
    "degenerate": (replace_xml(boxes((9, 9, 9, 20), (11, 6, 30, 25))), "degenerate_box", GOOD),
    "swapped": (replace_xml(boxes((30, 6, 11, 25))), "swapped_box", GOOD),
    "swapped in both directions": (replace_xml(boxes((30, 25, 11, 6))), "swapped_box", GOOD),
    "swapped and outside": (replace_xml(boxes((61, 6, 11, 25), (11, 6, 30, 25))), "swapped_outside", GOOD),
    "polygon of points": (
        replace_xml(
            shaped("polygon", "<pt><x>11</x><y>9</y></pt><pt><x>20</x><y>25</y></pt><pt><x>30</x><y>6</y></pt>")
        ),
        "polygon",
        GOOD,
    ),
    "polygon of x1, y1, ...": (
        replace_xml(shaped("polygon", "<x1>11</x1><y1>25</y1><x2>30</x2><y2>8</y2><x3>20</x3><y3>6</y3>")),
        "polygon",
        GOOD,
    ),
    "rotated box": (
        replace_xml(shaped("robndbox", rotated(20.5, 15.5, 19, 19 * math.sqrt(2) - 19, math.pi / 4))),
        "rotated_box",
        [(15.5 - 1 - 9.5, 20.5 - 1 - 9.5, 25.0, 30.0)],
    ),
    "rotated by a right angle": (
        replace_xml(shaped("robndbox", rotated(20.5, 14.5, 15, 19, math.pi / 2))),
        "rotated_box",
        [(14.5 - 1 - 7.5, 20.5 - 1 - 9.5, 22.0, 30.0)],
    ),
    "rotated by an attribute": (  # 19 x 10 from (11, 6) to (30, 16) becomes 10 x 19 around the same centre
        replace_xml(annotation_xml(object_xml(box=(11, 6, 30, 16), inner=rotation("90.0")))),
        "rotated_box",
        [(1.5 - 1, 15.5 - 1, 20.5, 25.5)],
    ),
    "tags in another case": (replace_xml(in_other_case(annotation_xml())), "tag_case", GOOD),
    "tags in another case in UTF-16": (replace_xml(in_other_case(annotation_xml()).encode("utf-16")), "tag_case", GOOD),
    "deleted object": (
        replace_xml(annotation_xml(object_xml(), object_xml("dog", inner="<deleted>1</deleted>"))),
        "deleted_object",
        GOOD,
    ),
    "clipped": (replace_xml(boxes((-5, -5, 61, 41))), "clipped_box", [(0.0, 0.0, 40.0, 60.0)]),
    "outside": (replace_xml(boxes((70, 6, 90, 25), (11, 6, 30, 25))), "outside_box", GOOD),
    "from zero": (replace_xml(boxes((0, 0, 30, 25))), "zero_coordinate", [(0.0, 0.0, 25.0, 30.0)]),
    "twice the same": (replace_xml(boxes((11, 6, 30, 25), (11, 6, 30, 25))), "duplicate_box", GOOD),
    "no flags": (replace_xml(annotation_xml(object_xml(flags="<pose>Left</pose>"))), "fields_absent", GOOD),
    "parts": (replace_xml(annotation_xml(object_xml(inner=PART))), "parts", GOOD),
    "no objects": (replace_xml(annotation_xml("")), "no_objects", []),
    "two images of one stem": (
        lambda tree: (tree.images / "b.png").write_bytes(encoded(picture(seed=1), "PNG")),
        "same_stem",
        GOOD,
    ),
    "same image": (
        lambda tree: (tree.images / "b.jpg").write_bytes((tree.images / "a.jpg").read_bytes()),
        "same_image",
        GOOD,
    ),
    "listed twice": (lambda tree: tree.image_set("some", "a", "b", "b"), "listed_twice", GOOD),
}
# The reasons that need a flag, several images or other labels, or that there is no image set: tested below.
ELSEWHERE = {
    *(
        "unknown_class_dropped",
        "unknown_class_ignored",
        "dropped_empty",
        "in_subfolder",
        "no_annotation",
        "same_image_elsewhere",
    ),
    *("similar_classes", "unused_class", "maybe_zero_based"),
    *("no_such_image", "no_label_file", "unlabelled_split"),  # of COCO and YOLO
    *("near_duplicate", "near_duplicate_elsewhere"),  # in test_looks.py
    "tiled",  # in test_tiling.py
}


@pytest.fixture
def tree(tmp_path) -> voc_tree.VocTree:
    made = voc_tree.VocTree(tmp_path / "voc")
    made.add("a")
    made.add("b")
    made.image_set("some", "a", "b")
    return made


def convert_tree(tree: voc_tree.VocTree, **settings: Any) -> tuple[Manifest, dict[str, shards.GroundTruth]]:
    """The manifest, and the records by id."""
    labels = tree.root.parent / "labels.txt"
    labels.write_text("cat\ndog\n")
    other = tree.root.parent / "other"
    config = ConvertConfig(
        output_dir=str(tree.root.parent / "out"),
        voc_dirs=(str(tree.root), *([str(other)] if other.exists() else [])),
        image_set="" if other.exists() else "some",
        labels_file=str(labels),
        **{"on_error": "skip", "max_pixels": 10_000, **settings},
    )
    (manifest,) = convert.convert(config, Workers(1))
    records = shards.read_annotations(shards.expand_glob(config.output_dir + "/*.tfrecord"))
    return manifest, {record.image_id: record for record in records}


@pytest.mark.parametrize("case", CASES)
def test_policy(case, tree):
    damage, reason, expected = CASES[case]
    damage(tree)
    if case == "file name not UTF-8":
        tree.image_set("some", "a", "b\ufffd")
    manifest, records = convert_tree(tree)
    (kind,) = (kind for kind, reasons in findings.KINDS.items() if reason in reasons)
    assert manifest.findings(kind).counts[reason] == 1
    (finding,) = (finding for finding in manifest.findings(kind).files if finding.reason == reason)
    assert finding.file.split(".")[0] in ("b", "other", "b\ufffd")
    assert finding.image_id.startswith("b")
    assert "a" in records  # the other image is not touched by it
    if expected is None:
        assert set(records) == {"a"}
    else:
        np.testing.assert_allclose(records["b"].boxes, np.reshape(expected, (-1, 4)), atol=1e-4)


def test_every_reason_is_provoked():
    reasons = [reason for kind in findings.KINDS.values() for reason in kind]
    assert {reason for _, reason, _ in CASES.values()} | ELSEWHERE == set(reasons)
    assert len(reasons) == len(set(reasons))


def test_every_policy_is_documented():
    document = (pathlib.Path(__file__).parents[1] / "docs" / "DATA_FORMAT.md").read_text(encoding="utf-8")
    for kind in findings.KINDS.values():
        for reason, policy in kind.items():
            policy = re.sub(r"(<\w+>)", r"`\1`", policy)  # Markdown takes a bare <size> for HTML
            assert f"| `{reason}` | {policy} |" in document


def test_good_files_give_no_findings(tree):
    manifest, records = convert_tree(tree, strict=True)
    assert [manifest.findings(kind).counts for kind in findings.KINDS] == [{}, {}, {}, {}]
    np.testing.assert_allclose(records["b"].boxes, GOOD, atol=1e-5)
    assert (records["b"].height, records["b"].width) == (40, 60)


# Images that are stored smaller.


@pytest.mark.parametrize("extension", [".jpg", ".png"])
@pytest.mark.parametrize("verify", ["header", "decode"])
def test_large_images_are_stored_smaller(tree, verify, extension):
    """With the boxes; in both directions the image is that of a good filter over all pixels."""
    image = picture(400, 600)
    swap_image("b", encoded(image, {".jpg": "JPEG", ".png": "PNG"}[extension], quality=95), extension)(tree)
    xml = annotation_xml(object_xml(box=(101, 51, 300, 250)), object_xml("ignore", (1, 1, 600, 40)), size=(400, 600))
    replace_xml(xml.replace("b.jpg", f"b{extension}"))(tree)
    example = read(tree, store_max_side=90, max_pixels=10**6, verify=verify)
    assert (example.annotation.height, example.annotation.width, example.source_size) == (60, 90, (400, 600))
    np.testing.assert_allclose(example.annotation.boxes, [(7.5, 15, 37.5, 45)])
    np.testing.assert_allclose(example.annotation.regions[0].box, (0, 0, 6, 90))
    stored = tf.io.decode_jpeg(example.encoded).numpy().astype(float)
    expected = np.asarray(image.resize((90, 60), Image.Resampling.BOX)).astype(float)
    assert np.abs(stored - expected).mean() < 2.5
    assert [finding.reason for finding in example.findings] == [] if extension == ".jpg" else ["reencoded"]


@pytest.mark.parametrize(("height", "width"), [(30, 61), (61, 30), (60, 60), (90, 2), (45, 60)])
def test_no_image_is_made_larger_and_no_side_is_lost(tree, height, width):
    data = encoded(picture(height, width))
    swap_image("b", data)(tree)
    replace_xml(annotation_xml(object_xml(box=(1, 1, width, height)), size=(height, width)))(tree)
    example = read(tree, store_max_side=60)
    stored = (example.annotation.height, example.annotation.width)
    assert max(stored) == 60
    assert min(stored) == max(round(min(height, width) * 60 / max(height, width)), 1)
    assert example.annotation.boxes == [(0, 0, *stored)]
    assert (example.encoded == data) == (max(height, width) == 60)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_a_turned_image_is_stored_smaller(tree, orientation, image_format, exif):
    """As the same image is that was turned before."""
    upright = gradient_image(200, 300)
    stored = stored_image(np.asarray(upright), orientation)
    extension = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif"}[image_format]
    with_exif = Image.Exif()
    with_exif[0x0112] = orientation
    options = {"quality": 95} if image_format == "JPEG" else {}
    swap_image("b", encoded(stored, image_format, exif=with_exif, **options), extension)(tree)
    shown = upright if exif == "apply" else stored
    replace_xml(annotation_xml(object_xml(box=(1, 1, shown.width, 20)), size=(shown.height, shown.width)))(tree)
    example = read(tree, store_max_side=60, exif=exif, max_pixels=10**6)
    height, width = example.annotation.height, example.annotation.width
    assert (height, width) == ((60, 40) if shown.height > shown.width else (40, 60))
    assert example.source_size == (shown.height, shown.width)
    np.testing.assert_allclose(example.annotation.boxes, [(0, 0, 20 * height / shown.height, width)])
    pixels = tf.io.decode_jpeg(example.encoded, channels=3).numpy().astype(float)
    expected = np.asarray(shown.convert("RGB").resize((width, height), Image.Resampling.BOX)).astype(float)
    assert np.abs(pixels - expected).mean() < 2.5
    assert not Image.open(io.BytesIO(example.encoded)).getexif()


def gradient_image(height: int, width: int) -> Image.Image:
    """Grey; no two corners alike."""
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray((rows * 150 // height + columns * 100 // width).astype(np.uint8))


def test_a_damaged_image_is_refused_even_where_it_is_made_smaller(tree):
    data = encoded(picture(400, 600))
    swap_image("b", data[: len(data) * 3 // 4])(tree)
    manifest, _ = convert_tree(tree, store_max_side=60, max_pixels=10**6)
    assert manifest.refused.counts == {"damaged_image": 1}


def test_a_grey_image_stays_grey_and_quality_is_as_asked(tree):
    data = encoded(picture(400, 600, "L"))
    swap_image("b", data)(tree)
    replace_xml(annotation_xml(size=(400, 600)))(tree)
    fine, coarse = (read(tree, store_max_side=90, max_pixels=10**6, jpeg_quality=quality) for quality in (95, 30))
    assert Image.open(io.BytesIO(fine.encoded)).mode == "L"
    assert [finding.reason for finding in fine.findings] == ["grayscale"]
    assert len(coarse.encoded) < len(fine.encoded) < len(data)


def test_what_was_stored_smaller_is_counted(tree):
    tree.add("b", annotation_xml(size=(400, 600)), encoded(picture(400, 600)))
    manifest, records = convert_tree(tree, store_max_side=100, max_pixels=10**6)
    assert (records["a"].height, records["b"].height) == (40, 67)
    size = sum(path.stat().st_size for path in tree.images.iterdir())
    assert (manifest.num_resized, manifest.source_pixels, manifest.source_bytes) == (1, 2400 + 240_000, size)
    assert manifest.repaired.counts == {}


@pytest.mark.parametrize("factor", [0.013, 0.3, 0.5, 1 / 3, 1.7, 2, 9.99])
@pytest.mark.parametrize("rounded", [math.floor, round, math.ceil])
def test_a_resized_image_agrees_with_its_size(factor, rounded):
    """Whatever rounds the sides, and whichever of the two is the larger."""
    for height, width in itertools.product((400, 667, 1080), (500, 1000, 1333)):
        resized = rounded(height * factor), rounded(width * factor)
        assert frame.agree((height, width), resized)
        assert frame.agree(resized, (height, width))
        assert not frame.agree((height, width), (resized[0], round(1.2 * resized[1]) + 4))


def test_boxes_of_a_resized_image(tree):
    """They are scaled in both directions on their own, and clipped where they were drawn."""
    written = [(1, 1, 600, 397), (-5, 100, 300, 500), (601, 1, 700, 9), (3, 3, 3.05, 9)]
    replace_xml(annotation_xml(*(object_xml(box=box) for box in written), size=(397, 600)))(tree)
    example = read(tree)
    assert example.annotation.boxes[0] == (0, 0, 40, 60)
    np.testing.assert_allclose(example.annotation.boxes[1], (99 / 397 * 40, 0, 40, 30))
    reasons = ["scaled", "clipped_box", "outside_box", "degenerate_box"]
    assert [finding.reason for finding in example.findings] == reasons


def read(tree: voc_tree.VocTree, **options: Any) -> Example:
    (image,) = tree.images.glob("b.*")
    source = Source("b", str(tree.annotations / "b.xml"), str(image))
    return read_example(source, ReadOptions(labels=("cat", "dog"), **options))


def test_attributes(tree):
    replace_xml(annotation_xml(object_xml(), DOG.replace("<truncated>1", "<truncated>0").replace("lt>0", "lt>1")))(tree)
    annotation = read(tree).annotation
    assert annotation.class_names == ["cat", "dog"]
    assert annotation.classes == [0, 1]
    assert annotation.truncated == [1, 0]
    assert annotation.difficult == [0, 1]
    assert annotation.poses == ["Left", "Left"]


def test_coordinates_of_both_conventions(tree):
    """The box of pixels 1..60, 1..40 counted from 1 is the whole image; as edges from 0 it lacks a row and a column."""
    replace_xml(boxes((1, 1, 60, 40)))(tree)
    assert read(tree).annotation.boxes == [(0, 0, 40, 60)]
    assert read(tree, zero_based=True).annotation.boxes == [(1, 1, 40, 60)]
    replace_xml(boxes((0, 0, 59.5, 40)))(tree)
    from_zero = read(tree, zero_based=True)
    assert from_zero.annotation.boxes == [(0, 0, 40, 59.5)]
    assert from_zero.findings == []


def test_all_objects_of_an_annotation(tree):
    flags = "<pose> Left\n side </pose><truncated>True</truncated><difficult>1</difficult>"
    written = [
        object_xml("dog", (1, 1, 60, 40)),
        object_xml("cat", (2, 3, 4, 5), flags),
        object_xml("dog", (1, 1, 2, 2)),
    ]
    for repeated, reasons in ([], []), (written[:1], ["duplicate_box"]):
        replace_xml(annotation_xml(*written, *repeated))(tree)
        for first in (0, 1):
            example = read(tree, zero_based=first == 0)
            annotation = example.annotation
            assert annotation.class_names == ["dog", "cat", "dog"]
            assert annotation.classes == [1, 0, 1]
            corners = [(1, 1, 40, 60), (3, 2, 5, 4), (1, 1, 2, 2)]
            assert annotation.boxes == [(top - first, left - first, *rest) for top, left, *rest in corners]
            assert annotation.difficult == [0, 1, 0]
            assert annotation.truncated == [1, 1, 1]
            assert annotation.poses == ["Left", "Left side", "Left"]
            assert [finding.reason for finding in example.findings] == reasons


def test_good_bytes_are_kept(tree):
    for image in (picture(), picture(mode="L")):
        for content in (encoded(image), encoded(image, progressive=True), with_orientation(image, 1)):
            swap_image("b", content)(tree)
            for verify in ("header", "decode"):
                example = read(tree, verify=verify)
                assert example.encoded == content
                assert [finding.reason for finding in example.findings] == ["grayscale"] * (image.mode == "L")


def gradient(dtype=np.uint8) -> np.ndarray:
    """[40, 60]: dark on the left, bright on the right, over the whole range of `dtype`."""
    return np.tile(np.linspace(0, np.iinfo(dtype).max, 60).astype(dtype), (40, 1))


@pytest.mark.parametrize(
    ("image", "image_format"),
    [
        (Image.fromarray(gradient()).convert("CMYK"), "JPEG"),
        (Image.fromarray(gradient()).convert("RGBA"), "PNG"),
        (Image.fromarray(gradient()).convert("LA"), "PNG"),
        (Image.fromarray(gradient()).convert("P"), "PNG"),
        (Image.fromarray(gradient(np.uint16)), "PNG"),
        (Image.fromarray(gradient(np.uint16)), "TIFF"),
        (Image.fromarray(gradient()), "GIF"),
    ],
    ids=["cmyk", "rgba", "grey with alpha", "palette", "16 bit", "16 bit tiff", "gif"],
)
def test_pixels_survive_encoding_anew(tree, image, image_format):
    swap_image("b", encoded(image, image_format))(tree)
    stored = tf.io.decode_jpeg(read(tree).encoded, channels=3).numpy()
    expected = np.repeat(gradient()[..., None], 3, axis=-1)
    assert stored.shape == expected.shape
    # 5 grey levels: JPEG of quality 95, of CMYK twice.
    np.testing.assert_allclose(stored.astype(int), expected, atol=5)


def raw_tiff(bits: int, sample_format: int) -> bytes:
    """A black TIFF of 40 x 60 pixels with such numbers: 1 unsigned, 2 signed, 3 floating-point."""
    fields = {256: 60, 257: 40, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: 40, 279: 300 * bits, 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    directory = struct.pack("<H", len(fields)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + 300 * bits) + bytes(300 * bits) + directory


@pytest.mark.parametrize(("bits", "sample_format"), [(12, 1), (16, 2), (32, 1), (32, 2), (32, 3)])
@pytest.mark.parametrize("options", [{}, {"store_max_side": 20}, {"verify": "header"}])
def test_pixels_without_a_known_range_are_refused(tree, bits, sample_format, options):
    """Numbers from 0 to 1, to 255 or to 4095 would become a black image."""
    swap_image("b", raw_tiff(bits, sample_format), ".tif")(tree)
    with pytest.raises(findings.Refused, match=f"of {bits} bits: convert it to unsigned 8 or 16 bits") as refusal:
        read(tree, **options)
    assert refusal.value.reason == "unknown_range"


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_small_numbers_of_16_bits_are_refused(tree, channels):
    """Cameras of 12 bits and of 8 write them; the upper 8 bits, which are kept, would be black."""
    image = np.full((40, 60, channels), 65535, np.uint16)
    for highest in (255, 4095):
        image[..., : 3 if channels > 2 else 1] = gradient(np.uint16)[..., None] // (65536 // (highest + 1))
        swap_image("b", tf.io.encode_png(image).numpy())(tree)
        with pytest.raises(findings.Refused, match=f"no number above {highest}: scale them") as refusal:
            read(tree)
        assert refusal.value.reason == "unknown_range"
    image[..., :1] += 1
    swap_image("b", tf.io.encode_png(image).numpy())(tree)
    read(tree)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_a_black_image_of_16_bits_is_stored(tree, image_format):
    swap_image("b", encoded(Image.fromarray(np.zeros((40, 60), np.uint16)), image_format))(tree)
    assert tf.io.decode_jpeg(read(tree).encoded).numpy().max() == 0


@pytest.mark.parametrize("orientation", [1, 3])
def test_a_tiff_in_which_white_is_zero_is_no_negative(tree, orientation):
    stored = Image.fromarray(gradient(np.uint16)[:, ::-1])
    swap_image("b", encoded(stored, "TIFF", tiffinfo={262: 0, 274: orientation}), ".tif")(tree)
    pixels = tf.io.decode_jpeg(read(tree, exif="ignore").encoded, channels=1).numpy()
    np.testing.assert_allclose(pixels[..., 0].astype(int), gradient(), atol=5)


def stored_image(upright: np.ndarray, orientation: int) -> Image.Image:
    """What the orientation turns into the upright one: EXIF 2.3, tag 274."""
    stored = {
        2: upright[:, ::-1],
        3: np.rot90(upright, 2),
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).T,
        8: np.rot90(upright, -1),
    }
    return Image.fromarray(stored[orientation].copy())


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_boxes_of_a_turned_image(tree, orientation, image_format):
    """A bright patch that is painted in the upright or in the stored frame lies in the box that is written in it."""
    upright = np.zeros((60, 40), np.uint8)
    upright[5:55, 10:30] = 255
    image = stored_image(upright, orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    extension = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif"}[image_format]
    swap_image("b", encoded(image, image_format, exif=exif), extension)(tree)
    for apply, drawn in ((True, upright), (False, np.asarray(image))):
        rows, columns = np.nonzero(drawn)
        box = (columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1)
        replace_xml(annotation_xml(object_xml(box=box), size=drawn.shape))(tree)
        example = read(tree, exif="auto" if orientation >= 5 else "apply" if apply else "ignore")
        assert (example.annotation.height, example.annotation.width) == drawn.shape
        pixels = tf.io.decode_jpeg(example.encoded, channels=1).numpy()[..., 0]
        ymin, xmin, ymax, xmax = map(int, example.annotation.boxes[0])
        inside = np.zeros(drawn.shape, bool)
        inside[ymin:ymax, xmin:xmax] = True
        np.testing.assert_array_equal(pixels > 128, inside)
        reasons = [finding.reason for finding in example.findings]
        assert ("exif_rotated" if apply else "exif_ignored") in reasons
        assert "size" not in reasons
        assert "scaled" not in reasons


WIDE, TALL = (40, 60), (60, 40)  # the image's size as stored, and as turned by an orientation of 5 to 8


@pytest.mark.parametrize(
    ("orientation", "size", "extent", "expected"),
    [
        (1, TALL, (60, 40), False),
        (2, WIDE, (40, 60), None),
        (3, (0, 0), (10, 10), None),
        (4, WIDE, None, False),
        (6, TALL, (60, 40), True),
        (6, WIDE, (40, 60), False),
        (6, (600, 400), (600, 400), True),  # labelled before the image was resized
        (6, (400, 600), (400, 600), False),
        (6, TALL, (20, 20), True),  # <size> decides where the boxes fit into both
        (6, WIDE, (60, 40), None),  # the boxes contradict <size>
        (6, TALL, (40, 60), None),
        (6, (0, 0), (60, 30), True),  # without <size> the boxes decide
        (6, (0, 0), (30, 60), False),
        (6, (0, 0), (41, 41), None),
        (6, (0, 0), (70, 70), None),
        (6, (0, 0), None, False),
        (6, TALL, None, True),
        (6, (60, 60), (10, 10), False),  # of another image, which is refused
    ],
)
def test_the_frame_is_decided_by_what_is_known(orientation, size, extent, expected):
    assert frame.is_turned(orientation, WIDE, frame.Frame(size, extent)) is expected


def test_the_frame_of_a_square_image():
    assert frame.is_turned(6, (50, 50), frame.Frame((50, 50), (10, 10))) is None
    assert frame.is_turned(6, (50, 51), frame.Frame((51, 50), (10, 10))) is True  # to the pixel


def test_the_flag_decides_against_size(tree):
    """A tool may write the size of the stored image, though it shows the turned one."""
    swap_image("b", with_orientation(picture(), 6))(tree)
    replace_xml(annotation_xml(object_xml(box=(11, 6, 30, 55)), size=WIDE))(tree)
    with pytest.raises(findings.Refused, match="--exif=apply") as refusal:
        read(tree)
    assert refusal.value.reason == "exif_unclear"
    assert read(tree, exif="apply").annotation.boxes == [(5, 10, 55, 30)]
    assert [finding.reason for finding in read(tree, exif="ignore").findings] == ["exif_ignored", "clipped_box"]


def test_truncation_at_any_byte_is_found(tree):
    """With a full decode and without one."""
    content = encoded(picture(), progressive=True)
    for length in range(1, len(content), 61):
        swap_image("b", content[:length])(tree)
        for verify in ("header", "decode"):
            with pytest.raises(findings.Refused) as refusal:
                read(tree, verify=verify)
            assert refusal.value.reason in ("damaged_image", "not_an_image")


def test_a_huge_image_is_refused_before_it_is_decoded(tree):
    """The header of a PNG says 100,000 x 100,000 pixels."""
    header = struct.pack(">II5B", 100_000, 100_000, 8, 2, 0, 0, 0)
    content = encoded(picture(), "PNG")
    bomb = content[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + content[33:]
    swap_image("b", bomb)(tree)
    with pytest.raises(findings.Refused, match="100000x100000, but --max_pixels is 100000000: raise it") as refusal:
        read(tree)
    assert refusal.value.reason == "too_many_pixels"


@pytest.mark.parametrize(
    ("start", "detail"),
    [
        (b"\0\0\0\x18ftypheic", "it is HEIC: convert it to JPEG"),
        (b"\0\0\0\x20ftypavif", "it is AVIF: convert it to JPEG"),
        (b"\0\0\0\x20ftypmp42", r"it starts with b'\x00\x00\x00 ftyp'"),
    ],
)
def test_formats_that_are_not_read(tree, start, detail):
    swap_image("b", start + bytes(16))(tree)
    with pytest.raises(findings.Refused) as refusal:
        read(tree)
    assert (refusal.value.reason, refusal.value.detail) == ("not_an_image", detail)


@pytest.mark.parametrize("degrees", ["0.0", "-360", "nan", "inf", "left", ""])
def test_what_is_no_rotation(tree, degrees):
    replace_xml(annotation_xml(object_xml(inner=rotation(degrees))))(tree)
    example = read(tree)
    assert (example.annotation.boxes, example.findings) == (GOOD, [])


def test_a_degenerate_box_stays_one_when_it_is_rotated(tree):
    replace_xml(annotation_xml(object_xml(box=(11, 6, 11, 25), inner=rotation("45")), object_xml()))(tree)
    assert [finding.reason for finding in read(tree).findings] == ["degenerate_box"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_an_encoding_that_is_declared_but_not_used(tree, mark):
    """As by C#, whose StringWriter declares its own."""
    replace_xml(f'{mark}<?xml version="1.0" encoding="utf-16"?>{annotation_xml(object_xml("chat noir é"))}')(tree)
    path = str(tree.annotations / "b.xml")
    assert voc_xml.class_names(path) == {"chat noir é"}
    assert not voc_xml.read_document(path).replaced


def test_external_entities_are_not_read(tree, tmp_path):
    (tmp_path / "secret").write_text("cat")
    replace_xml(EXTERNAL.replace("/etc/hostname", str(tmp_path / "secret")))(tree)
    assert voc_xml.class_names(str(tree.annotations / "b.xml")) == set()


def test_names_with_spaces_and_accents(tmp_path):
    tree = voc_tree.VocTree(tmp_path / "voc é")
    composed, decomposed = "caf\u00e9 1", "cafe\u0301 1"  # the same name, from Linux and from macOS
    tree.add(decomposed, annotation_xml(object_xml("chat noir"), filename=composed + ".jpg"))
    tree.image_set("some", composed)
    (tmp_path / "labels.txt").write_text("chat noir\n")
    config = ConvertConfig(output_dir=str(tmp_path / "out"), voc_dirs=(str(tree.root),), image_set="some", strict=True)
    (manifest,) = convert.convert(config, Workers(1))
    assert manifest.labels == ("chat noir",)
    assert manifest.noted.counts == {}
    (record,) = shards.read_annotations(shards.expand_glob(config.output_dir + "/some-*"))
    assert record.image_id == composed


def test_white_space_in_a_file_name_counts(tmp_path):
    """Also where only <filename> says which image it is; not that around it, as a tool that indents XML leaves it."""
    tree = voc_tree.VocTree(tmp_path / "my  set")
    for stem in ("a  b", "a b"):
        xml = annotation_xml(filename=f"\n  {stem}.jpg\n ").replace("JPEGImages", "my  set")
        tree.add(stem, xml)
        tree.add(f"other {stem}", xml)
        (tree.images / f"other {stem}.jpg").unlink()
    manifest = converted(tree)
    assert manifest.repaired.counts == {"image_name": 2}
    named = [finding.detail for finding in manifest.repaired.files]
    assert named == ["a  b.jpg for other a  b", "a b.jpg for other a b"]
    assert manifest.noted.counts.keys() == {"same_image"}


GREEN, RED = (encoded(Image.new("RGB", (60, 40), colour), "PNG") for colour in ("green", "red"))


def reds(folder: pathlib.Path) -> dict[str, bool]:
    """By image id, whether the record's image is red rather than green."""
    found = {}
    for path in folder.glob("*.tfrecord"):
        for serialized in tfrecord.read_records(str(path)):
            record = tfrecord.decode_example(serialized, frozenset(["image/source_id", "image/encoded"]))
            red, green, _ = np.asarray(Image.open(io.BytesIO(record["image/encoded"][0])))[20, 30]
            found[record["image/source_id"][0].decode()] = bool(red > green)
    return found


def test_of_two_images_of_one_stem_the_one_that_filename_names_is_used(tmp_path):
    """So `trainer.predict` writes them: a.xml for a.jpg, and a-2.xml for a.png."""
    tree = voc_tree.VocTree(tmp_path / "voc")
    for stem in ("cafe\u0301", "plain"):  # as macOS writes an accent
        (tree.images / f"{stem}.bmp").write_bytes(GREEN)
        (tree.images / f"{stem}.png").write_bytes(RED)
    for stem, filename in {
        "plain": "plain.bmp",
        "plain-2": "plain.png",
        "plain-3": "plain",
        "plain-4": "plain.jpg",
        "caf\u00e9": "caf\u00e9.bmp",
    }.items():
        (tree.annotations / f"{stem}.xml").write_text(annotation_xml(filename=filename), encoding="utf-8")
    manifest = converted(tree)
    red = reds(tree.root.parent / "found")
    assert red == {"plain": False, "plain-2": True, "plain-3": True, "plain-4": True, "caf\u00e9": False}
    left_out = [(finding.file, finding.detail) for finding in manifest.dropped.files]
    assert left_out == [("caf\u00e9.png", "caf\u00e9.bmp was used")]
    assert manifest.noted.counts.keys().isdisjoint({"no_annotation"})


def test_unreadable_file_is_named(tree, monkeypatch):
    """As root every file can be read, so the system's error is raised here."""

    def deny(path, flags):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", deny)
    with pytest.raises(findings.Refused) as refusal:
        read(tree)
    assert (refusal.value.reason, refusal.value.detail) == ("unreadable", "Permission denied")


def test_unknown_classes_dropped_as_asked(tree):
    """Their boxes become ignored regions, unless they shall be background."""
    replace_xml(annotation_xml(object_xml("cow", (31, 6, 40, 25)), object_xml()))(tree)
    manifest, records = convert_tree(tree, drop_unknown_classes=True, on_error="fail")
    assert manifest.dropped.counts == {"unknown_class_ignored": 1}
    assert (manifest.num_boxes, manifest.num_ignored) == (2, 1)
    np.testing.assert_allclose(records["b"].boxes, GOOD, atol=1e-5)
    np.testing.assert_allclose(records["b"].regions, [(5, 30, 25, 40)], atol=1e-5)
    assert records["b"].region_classes.tolist() == [-1]
    settings = {"drop_unknown_classes": True, "dropped_classes_as": "background", "overwrite": True}
    manifest, records = convert_tree(tree, on_error="fail", **settings)
    assert manifest.dropped.counts == {"unknown_class_dropped": 1}
    assert (manifest.num_boxes, manifest.num_ignored) == (2, 0)
    np.testing.assert_allclose(records["b"].boxes, GOOD, atol=1e-5)


def converted(tree: voc_tree.VocTree, **settings: Any) -> Manifest:
    """With the classes that are found."""
    out = str(tree.root.parent / "found")
    (manifest,) = convert.convert(ConvertConfig(output_dir=out, voc_dirs=(str(tree.root),), **settings), Workers(1))
    return manifest


KINDS_OF_B = [("cat", (11, 6, 30, 25)), ("Katze", (1, 1, 9, 9)), ("lorry", (40, 1, 50, 9)), ("ignore", (1, 30, 60, 40))]


def test_classes_are_renamed_and_joined(tree):
    replace_xml(annotation_xml(*(object_xml(name, box) for name, box in KINDS_OF_B)))(tree)
    manifest = converted(tree, rename=("Katze=cat", "lorry= big   truck"))
    assert manifest.boxes_per_class == {"big truck": 1, "cat": 3}
    assert manifest.settings["rename"] == ["Katze=cat", "lorry= big   truck"]
    assert (manifest.num_ignored, manifest.dropped.counts, manifest.repaired.counts) == (1, {}, {})


def test_ignored_classes_become_regions(tree):
    """So does what the annotators drew as `ignore`."""
    replace_xml(annotation_xml(*(object_xml(name, box) for name, box in KINDS_OF_B)))(tree)
    manifest = converted(tree, rename=("Katze=cat",), ignore_classes=("lorry",))
    assert manifest.labels == ("cat",)
    assert (manifest.num_boxes, manifest.num_ignored) == (3, 2)
    (record,) = (
        record
        for record in shards.read_annotations(shards.expand_glob(f"{tree.root.parent}/found/*.tfrecord"))
        if record.image_id == "b"
    )
    np.testing.assert_allclose(record.regions, [(0, 39, 9, 50), (29, 0, 40, 60)], atol=1e-5)
    assert record.region_classes.tolist() == [-1, -1]


def test_a_class_that_is_called_ignore_when_the_labels_say_so(tree):
    replace_xml(annotation_xml(object_xml("ignore")))(tree)
    labels = tree.root.parent / "mine.txt"
    labels.write_text("cat\nignore\n")
    manifest = converted(tree, labels_file=str(labels))
    assert (manifest.boxes_per_class, manifest.num_ignored) == ({"cat": 1, "ignore": 1}, 0)
    manifest = converted(tree, labels_file=str(labels), ignore_classes=("ignore",), overwrite=True)
    assert (manifest.boxes_per_class, manifest.num_ignored) == ({"cat": 1, "ignore": 0}, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rename": ("caat=cat",)}, "--rename: no object is of class 'caat'; there are: cat"),
        ({"ignore_classes": ("dog",)}, "--ignore_classes: no object is of class 'dog'; there are: cat"),
        ({"ignore_classes": ("cat",)}, "no class is left"),
        ({"rename": ("cat",)}, "--rename=cat: write OLD=NEW"),
        ({"rename": ("=cat",)}, "--rename==cat: write OLD=NEW"),
        ({"rename": ("cat=dog", "cat=cow")}, "--rename gives cat two new names"),
        ({"dropped_classes_as": "nothing"}, "choose ignore or background"),
    ],
)
def test_flags_of_classes_that_cannot_be_followed(tree, settings, message):
    with pytest.raises(ConversionError, match=message):
        converted(tree, **settings)


def test_a_misspelt_class_to_ignore_is_named_where_there_is_a_label_list(tree):
    """Of classes in the list and of regions nothing is said."""
    replace_xml(annotation_xml(*(object_xml(name, box) for name, box in KINDS_OF_B)))(tree)
    ignored = ("Cat", "dog", "lorry", "Katze")
    manifest, _ = convert_tree(tree, ignore_classes=ignored, on_error="fail")
    (finding,) = (finding for finding in manifest.noted.files if finding.reason == "unused_class")
    assert (finding.file, finding.detail) == ("some", "'Cat'")
    replace_xml(annotation_xml(object_xml("lorry")))(tree)
    manifest, _ = convert_tree(tree, ignore_classes=("lorry",), drop_empty=True, overwrite=True)
    assert manifest.noted.counts == {"dropped_empty": 1}


@pytest.mark.parametrize(
    ("written", "suspected"),
    [
        ([(0, 5, 59, 39)] * 5, True),
        ([(0, 5, 59, 39)] * 4, False),  # an annotator may slip
        ([(0, 5, 59, 39)] * 8 + [(1, 5, 60, 39)], False),  # pixel 60 of 60: counted from 1
        ([(1, 5, 59, 39)] * 8, False),
    ],
)
def test_zero_based_coordinates_are_suspected(tree, written, suspected):
    replace_xml(boxes(*((xmin, ymin + i, xmax, ymax) for i, (xmin, ymin, xmax, ymax) in enumerate(written))))(tree)
    manifest, _ = convert_tree(tree)
    assert manifest.noted.counts.get("maybe_zero_based", 0) == suspected
    if suspected:
        (finding,) = (finding for finding in manifest.noted.files if finding.reason == "maybe_zero_based")
        assert finding.detail.startswith("5 boxes")
    manifest, _ = convert_tree(tree, zero_based=True, overwrite=True)
    assert manifest.noted.counts == {}


def test_classes_that_differ_only_in_case_or_spaces(tree):
    replace_xml(annotation_xml(*map(object_xml, ("Cat", "traffic light", "trafficlight", "dog", "dogs"))))(tree)
    config = ConvertConfig(output_dir=str(tree.root.parent / "out"), voc_dirs=(str(tree.root),))
    (manifest,) = convert.convert(config, Workers(1))
    assert [(finding.file, finding.detail) for finding in manifest.noted.files] == [
        ("labels.txt", "'Cat' and 'cat'"),
        ("labels.txt", "'traffic light' and 'trafficlight'"),
    ]


def test_what_a_folder_holds_beside_its_annotated_images(tree):
    """Where an image set decides, nothing is left out."""
    for path in ("one/c.xml", "one/two/d.xml", "one/._d.xml", "one/notes.txt", ".hidden/e.xml"):
        (tree.annotations / path).parent.mkdir(parents=True, exist_ok=True)
        (tree.annotations / path).write_text(annotation_xml())
    (tree.annotations / "one" / "circle").symlink_to(tree.annotations / "one" / "two")
    (tree.images / "z.jpg").write_bytes(JPEG)
    out = str(tree.root.parent / "out")
    (manifest,) = convert.convert(ConvertConfig(output_dir=out, voc_dirs=(str(tree.root),)), Workers(1))
    left_out = [(kind, finding.file) for kind in findings.KINDS for finding in manifest.findings(kind).files]
    assert sorted(name for _, name in left_out) == ["one/c.xml", "one/circle/d.xml", "one/two/d.xml", "z.jpg"]
    assert manifest.noted.counts == {"no_annotation": 1}
    assert manifest.num_images == 2
    (some,) = convert.convert(ConvertConfig(output_dir=out, voc_dirs=(str(tree.root),), image_set="some"), Workers(1))
    assert some.noted.counts == {"same_image_elsewhere": 2}
    assert some.dropped.counts == {}


@pytest.mark.parametrize("together", [True, False])
def test_the_same_image_in_two_splits(tmp_path, together):
    """It is named in the split that is converted later, whether by the same command or not."""
    root = tmp_path / "set"
    for stem in ("train/a", "train/c", "val/b"):
        (root / stem).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{stem}.xml").write_text(annotation_xml())
        (root / f"{stem}.jpg").write_bytes(JPEG)
    out = str(tmp_path / "out")
    configs = [ConvertConfig(output_dir=out, voc_dirs=(str(root),))]
    if not together:
        configs = [ConvertConfig(output_dir=out, voc_dirs=(str(root / name),), split=name) for name in ("train", "val")]
    train, val = (manifest for config in configs for manifest in convert.convert(config, Workers(1)))
    found = [finding for manifest in (train, val) for finding in manifest.noted.files if "same" in finding.reason]
    assert found == [
        Finding("c", "c.jpg", "same_image", "as a"),
        Finding("b", "b.jpg", "same_image_elsewhere", "as a of train"),
    ]


@pytest.mark.parametrize("box", [(9, 9, 9, 20), (70, 6, 90, 25), ("nan", 6, 30, 25), (61, 6, 11, 25)])
def test_an_image_is_no_negative_because_its_objects_are_unreadable(tree, box):
    replace_xml(boxes(box, box))(tree)
    manifest, records = convert_tree(tree)
    (refused,) = manifest.refused.files
    (reason,) = {part.split(":")[0] for part in refused.detail.split("; ")}
    assert refused.reason == "all_objects_dropped"
    manifest, records = convert_tree(tree, drop_invalid_objects=True, overwrite=True)
    assert manifest.refused.counts == {}
    assert manifest.dropped.counts == {reason: 2}
    assert manifest.noted.counts == {"no_objects": 1}
    assert len(records["b"].boxes) == 0


def test_an_ignored_region_beside_unreadable_objects_makes_no_negative(tree):
    region = object_xml("ignore", (1, 30, 60, 40))
    replace_xml(annotation_xml(object_xml(box=(9, 9, 9, 20)), region))(tree)
    manifest, _ = convert_tree(tree)
    assert manifest.refused.counts == {"all_objects_dropped": 1}
    replace_xml(annotation_xml(region))(tree)
    manifest, _ = convert_tree(tree, overwrite=True)
    assert (manifest.refused.counts, manifest.noted.counts, manifest.num_ignored) == ({}, {"no_objects": 1}, 1)


def test_class_names_need_a_declared_encoding(tmp_path):
    """Otherwise both would be the same class, whether the labels are given or found."""
    tree = voc_tree.VocTree(tmp_path / "voc")
    xml = {
        stem: annotation_xml(object_xml(name), filename=f"{stem}.jpg") for stem, name in (("a", "café"), ("b", "cafè"))
    }
    for stem, text in xml.items():
        tree.add(stem, text.encode("latin-1"))
    tree.add("c")
    config = ConvertConfig(output_dir=str(tmp_path / "out"), voc_dirs=(str(tree.root),))
    with pytest.raises(ConversionError) as error:
        convert.convert(config, Workers(1))
    for line in ("a.xml: not_utf8: class 'caf\ufffd': declare the encoding", "b.xml: not_utf8"):
        assert line in str(error.value)
    for stem in "ab":
        tree.add(stem, ('<?xml version="1.0" encoding="iso-8859-1"?>' + xml[stem]).encode("latin-1"))
    (manifest,) = convert.convert(config, Workers(1))
    assert manifest.boxes_per_class == {"café": 1, "cafè": 1, "cat": 1}


def test_no_class_name_is_utf8(tree):
    for stem in "ab":
        (tree.annotations / f"{stem}.xml").write_bytes(annotation_xml(object_xml("caf\xe9")).encode("latin-1"))
    config = ConvertConfig(output_dir=str(tree.root.parent / "out"), voc_dirs=(str(tree.root),))
    with pytest.raises(ConversionError, match=r"a\.xml: not_utf8"):
        convert.convert(config, Workers(1))
    tree.add("negative", annotation_xml("", filename="negative.jpg"))
    with pytest.raises(ConversionError, match="no class name is UTF-8"):
        convert.convert(dataclasses.replace(config, on_error="skip"), Workers(1))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (replace_xml("a,b"), r"no annotation names a class \(b\.xml: not_xml: .*\): check"),
        (lambda tree: (tree.annotations / "b.xml").unlink(), r" class \(b\.xml: missing_annotation: .*\): check"),
        (replace_xml(annotation_xml("")), "no annotation names a class: check"),
    ],
)
def test_why_no_class_was_found(tree, damage, reason):
    (tree.annotations / "a.xml").write_text(annotation_xml("", filename="a.jpg"))
    damage(tree)
    with pytest.raises(ConversionError, match=reason):
        converted(tree, image_set="some")


def test_empty_images_dropped_as_asked(tree):
    replace_xml(annotation_xml(""))(tree)
    manifest, records = convert_tree(tree, drop_empty=True, on_error="fail")
    assert manifest.noted.counts == {"dropped_empty": 1}
    assert manifest.noted.files[0].image_id == "b"
    assert set(records) == {"a"}


def test_strict_makes_drops_errors(tree):
    replace_xml(boxes((11, 6, 30, 25), (9, 9, 9, 20)))(tree)
    with pytest.raises(ConversionError, match=r"1 problem:\nb\.xml: degenerate_box: .*xmin 9"):
        convert_tree(tree, strict=True, on_error="fail")
    manifest, records = convert_tree(tree, strict=True, on_error="skip")
    assert set(records) == {"a"}
    assert manifest.dropped.counts == {"degenerate_box": 1}


def test_strict_makes_repairs_errors(tree):
    replace_xml(boxes((-5, -5, 61, 41)))(tree)
    with pytest.raises(ConversionError, match=r"b\.xml: clipped_box: .*xmin -5"):
        convert_tree(tree, strict=True, on_error="fail")
    assert list(pathlib.Path(tree.root.parent / "out").glob("*.*")) == [tree.root.parent / "out" / ".some.partial"]
    manifest, records = convert_tree(tree, strict=True, on_error="skip")
    assert set(records) == {"a"}
    assert manifest.repaired.counts == {"clipped_box": 1}
