"""For any files the converter gives a valid record or refuses them by name: there is no traceback and no hang.

Each of the tests with generated cases tries 400 of them, the same in every run. For a longer search,

    FUZZ_CASES=20000 pytest tests/test_fuzz_converter.py

tries that many in each, from a random start; `--hypothesis-seed=N` fixes the start.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import itertools
import json
import os
import pathlib
import re
import signal
import typing
import xml.etree.ElementTree
from xml.etree.ElementTree import Element
from xml.sax.saxutils import escape

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from voc_tree import annotation_xml, box_xml, encoded, object_xml, picture

from input import tfrecord
from input.conversion import findings, jpeg, voc_xml
from input.conversion.config import ReadOptions
from input.conversion.example import Example, read_example
from input.conversion.findings import Refused
from input.conversion.source import Source
from input.types import IGNORED

CASES = int(os.environ.get("FUZZ_CASES", "400"))
HANG = 120  # seconds; a case takes some milliseconds
LABELS = ("cat", "dog", "chat noir", "猫")
HEIGHT, WIDTH = 40, 60
JPEG = encoded(picture(HEIGHT, WIDTH))
# One of these is noted for every object that the record lacks.
DROPPED = {
    *("bad_number", "missing_corner", "missing_name", "unknown_class_dropped"),
    *("degenerate_box", "swapped_outside", "outside_box", "duplicate_box", "deleted_object"),
}


def fuzz(
    cases: st.SearchStrategy, check: typing.Callable[[typing.Any], str], num_cases: int = CASES
) -> collections.Counter[str]:
    """Calls `check` with every case, and counts what it returns."""
    outcomes: collections.Counter[str] = collections.Counter()

    @settings(
        max_examples=num_cases,
        derandomize="FUZZ_CASES" not in os.environ,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),  # they measure time
    )
    @given(cases)
    def try_case(case):
        outcomes[check(case)] += 1

    try_case()
    assert sum(outcomes.values()) >= num_cases
    return outcomes


class Files:
    """One annotation and one image on disk, and what the converter makes of them."""

    def __init__(self, folder: pathlib.Path):
        (folder / "JPEGImages").mkdir()
        self.xml_path = folder / "b.xml"
        self.xml_path.write_text(annotation_xml())
        self.set_image(JPEG)

    def set_image(self, content: bytes, extension: str = ".jpg"):
        self.image_path = self.xml_path.parent / "JPEGImages" / f"b{extension}"
        self.image_path.write_bytes(content)

    def check_texts(self):
        """What is read of the annotation alone agrees with what xml.etree reads."""
        path = str(self.xml_path)
        for text in {*voc_xml.class_names(path), voc_xml.named_image(path)}:
            as_json(text)
        data = self.xml_path.read_bytes()
        try:
            document = voc_xml.read_document(path)
        except Refused:
            return
        if not document.replaced and b"<!DOCTYPE" not in data:  # whose undefined entities xml.etree passes over
            assert document == read_with_xml_etree(data)

    def read(self, **settings: typing.Any) -> Example | str:
        """The record, or the reason why there is none, after every check that holds for any input."""
        options = ReadOptions(labels=LABELS, **{"max_pixels": 200_000, **settings})
        source = Source("b", str(self.xml_path), str(self.image_path))
        outcome = read_annotation(source, options)
        assert outcome == read_annotation(source, options)
        if isinstance(outcome, Example):
            check_record(outcome, options)
            return outcome
        path, reason, detail = outcome
        assert path in source
        assert reason in findings.REFUSED
        as_json(detail)
        return reason


def read_with_xml_etree(data: bytes) -> voc_xml.Document:
    def last(element: Element | None, tag: str) -> Element | None:
        found = [] if element is None else element.findall(tag)
        return found[-1] if found else None

    def text(element: Element | None, tag: str) -> str | None:
        found = last(element, tag)
        return None if found is None else " ".join((found.text or "").split())

    def name(tag: str) -> str:
        found = last(root, tag)
        return "" if found is None else (found.text or "").strip()

    def of_children(parent: Element | None) -> dict[str, str]:
        return {} if parent is None else {child.tag: text(parent, child.tag) or "" for child in parent}

    def points(item: Element) -> list[tuple[str, str]]:
        found = []
        for polygon in item.findall("polygon"):
            found += [(text(point, "x") or "", text(point, "y") or "") for point in polygon.findall("pt")]
            numbered = of_children(polygon)
            numbers = {tag[1:] for tag in numbered if tag[0] in "xy" and tag[1:].isdigit()}
            found += [(numbered.get("x" + n, ""), numbered.get("y" + n, "")) for n in sorted(numbers)]
        return found

    def object_texts(item: Element) -> voc_xml.ObjectTexts:
        corners = of_children(last(item, "bndbox"))
        has_box = any(corners.get(corner) for corner in ("xmin", "ymin", "xmax", "ymax"))
        return voc_xml.ObjectTexts(
            name=text(item, "name") or "",
            corners=corners,
            points=[] if has_box else points(item),
            rotated={} if has_box else of_children(last(item, "robndbox")),
            rotation=None,
            deleted=text(item, "deleted") == "1",
            difficult=text(item, "difficult"),
            truncated=text(item, "truncated"),
            pose=text(item, "pose"),
            has_parts=last(item, "part") is not None,
        )

    root = xml.etree.ElementTree.fromstring(data)
    other_case = False
    for child in root.iter():
        if child.tag != child.tag.lower() and child.tag.lower() in TAGS and child.tag.isascii():
            child.tag, other_case = child.tag.lower(), True
    size = last(root, "size")
    return voc_xml.Document(
        filename=name("filename"),
        folder=name("folder"),
        height=text(size, "height") or "",
        width=text(size, "width") or "",
        objects=[object_texts(item) for item in root.findall("object")],
        other_case=other_case,
        replaced=False,
    )


@contextlib.contextmanager
def no_hang():
    def hang(*_):
        raise AssertionError(f"no end after {HANG} s")

    signal.signal(signal.SIGALRM, hang)
    signal.alarm(HANG)
    try:
        yield
    finally:
        signal.alarm(0)


def read_annotation(source: Source, options: ReadOptions) -> Example | tuple[str, str, str]:
    try:
        with no_hang():
            return read_example(source, options)
    except Refused as refused:
        return refused.path, refused.reason, refused.detail


def as_json(text: str) -> bytes:
    """As the manifest stores it: fails for what is no text."""
    assert isinstance(text, str)
    return json.dumps(text, ensure_ascii=False).encode()


@functools.lru_cache(maxsize=64)
def trained_size(jpeg: bytes) -> tuple[int, int]:
    """(height, width) as TensorFlow decodes it; raises where it cannot decode all, or a part."""
    height, width, _ = tf.io.decode_jpeg(jpeg, channels=3).shape
    part = (height // 4, width // 4, height - height // 4, width - width // 4)
    assert tf.image.decode_and_crop_jpeg(jpeg, part, channels=3).shape == (*part[2:], 3)
    return height, width


parse_examples = tf.function(tfrecord.parse_examples, input_signature=[tf.TensorSpec([1], tf.string)], autograph=False)


def check_record(example: Example, options: ReadOptions, image_id: str = "b"):
    annotation = example.annotation
    height, width, count = annotation.height, annotation.width, len(annotation.boxes)
    if options.verify == "decode":
        assert trained_size(example.encoded) == (height, width)
    assert 0 < height * width <= options.max_pixels
    for finding in example.findings:
        assert finding.reason in {*findings.DROPPED, *findings.REPAIRED, *findings.NOTED}
        assert finding.image_id == image_id
        as_json(finding.file + finding.detail)
    for column in ("classes", "class_names", "difficult", "truncated", "poses"):
        assert len(getattr(annotation, column)) == count
    assert [options.labels[index] for index in annotation.classes] == list(annotation.class_names)
    assert min(annotation.classes, default=0) >= 0
    assert {*annotation.difficult, *annotation.truncated} <= {0, 1}

    serialized = tfrecord.encode_example(annotation, example.encoded)
    assert tfrecord.decode_example(serialized, frozenset(["image/source_id"])) == {
        "image/source_id": [image_id.encode()]
    }
    records = parse_examples(tf.constant([serialized]))
    assert records.images[0].numpy() == example.encoded
    np.testing.assert_array_equal(records.sizes[0], [height, width])
    regions = annotation.regions
    np.testing.assert_array_equal(records.classes[0], [*annotation.classes, *[IGNORED] * len(regions)])
    np.testing.assert_array_equal(records.difficult[0], np.bool_([*annotation.difficult, *[1] * len(regions)]))
    boxes = records.normalized_boxes[0].numpy()
    all_boxes = [*annotation.boxes, *(region.box for region in regions)]
    exact = np.reshape(all_boxes, (-1, 4)) / [height, width, height, width]
    np.testing.assert_allclose(boxes, exact, rtol=0, atol=1e-7)
    # As float32, in which training reads them; a NaN fails here.
    assert np.all(boxes >= 0)
    assert np.all(boxes <= 1)
    assert np.all(boxes[:, :2] < boxes[:, 2:])


def count_objects(data: str | bytes) -> int:
    return sum(child.tag.lower() == "object" for child in xml.etree.ElementTree.fromstring(data))


def check_no_object_vanishes(example: Example, num_objects: int):
    annotation = example.annotation
    dropped = sum(finding.reason in DROPPED for finding in example.findings)
    assert len(annotation.boxes) + len(annotation.regions) + dropped == num_objects


def name_of(outcome: Example | str) -> str:
    return outcome if isinstance(outcome, str) else "record"


@pytest.fixture
def files(tmp_path) -> Files:
    return Files(tmp_path)


# Annotations that are well-formed XML, of any structure.


def element(tag: str, *content: str) -> str:
    """`tag` may have attributes."""
    return f"<{tag}>{''.join(content)}</{tag.split()[0]}>"


ROOT = 'annotation xmlns:a="urn:a"'
ODD_NUMBERS = (
    *("", " ", "0", "-1", "-0", "+7", "007", " 12\n", "30,5", "1,234,5", "12.5", "1e1", "1e999", "1e-320", "-1e-9"),
    *("nan", "-NaN", "inf", "1_0", "0x10", "½", "²", "१२", "٣", "60.999999999", "5.0000001", "9" * 400, "1" * 77),
    *("twelve", "<b>5</b>", "<!-- 4 -->5", "5<!-- 4 -->", "<![CDATA[8]]>", "&#49;&#50;", "<?pi 3?>7"),
)
numbers = st.one_of(st.integers(1, 60).map(str), st.integers(-5, 99).map(str), st.sampled_from(ODD_NUMBERS))
texts = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff"), max_size=9)
TAGS = (
    *("annotation", "object", "name", "bndbox", "xmin", "ymin", "xmax", "ymax", "size", "width", "height", "filename"),
    *("folder", "part", "pose", "truncated", "difficult", "polygon", "xml-é", "a:object", "pt", "robndbox", "deleted"),
    *("Object", "BndBox", "XMin", "x", "y", "x1", "y1", "cx", "cy", "w", "h", "angle"),
)
content = st.one_of(numbers, texts.map(escape), st.sampled_from(LABELS))
tags = st.sampled_from(TAGS)
trees = st.recursive(
    st.builds(element, tags, content),
    lambda children: st.builds(element, tags, st.lists(children, max_size=5).map("".join)),
    max_leaves=12,
)
any_document = st.builds(
    element, st.sampled_from((ROOT, ROOT, ROOT, "object", "doc")), st.lists(trees, max_size=5).map("".join)
)


def test_any_tree_of_elements(files):
    def check(text):
        files.xml_path.write_text(text, encoding="utf-8")
        files.check_texts()
        example = files.read(drop_unknown_classes=True, drop_invalid_objects=True)
        if isinstance(example, Example):
            check_no_object_vanishes(example, count_objects(text))
        return name_of(example)

    outcomes = fuzz(any_document, check)
    assert min(outcomes["record"], outcomes["other_schema"]) > CASES // 20


class Document(typing.NamedTuple):
    xml: str
    sound: list[tuple[str, tuple[int, int, int, int]]]  # names and boxes (xmin ymin xmax ymax) without any flaw
    num_objects: int


class Object(typing.NamedTuple):
    xml: str
    sound: tuple[str, tuple[int, ...]] | None  # name and box (xmin ymin xmax ymax) of an object without any flaw


def shuffled(*strategies: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """The values of the strategies in any order, each perhaps left out."""
    parts = st.tuples(*(st.just("") | strategy for strategy in strategies))
    return st.builds(lambda items, rng: "".join(rng.sample(items, len(items))), parts, st.randoms(use_true_random=True))


def elements(tag: str, inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return inner.map(functools.partial(element, tag))


def sound_object(name: str, xs: list[int], ys: list[int], shape: str) -> Object:
    """An object whose box is between these edges, however it is written."""
    xmin, ymin, xmax, ymax = box = (min(xs), min(ys), max(xs), max(ys))
    middle = (xmin + xmax) / 2, (ymin + ymax) / 2
    points = [(xmin, middle[1]), (middle[0], ymin), (xmax, middle[1]), (middle[0], ymax)]
    rotated = zip(("cx", "cy", "w", "h", "angle"), (*middle, xmax - xmin, ymax - ymin, 0))
    written = {
        "box": box_xml(box),
        "swapped": box_xml((xmax, ymin, xmin, ymax)),
        "case": re.sub("<(/?)(.)", lambda match: f"<{match[1]}{match[2].upper()}", box_xml(box)),
        "pt": element("polygon", *(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in points)),
        "x1": element("polygon", *(f"<x{i}>{x}</x{i}><y{i}>{y}</y{i}>" for i, (x, y) in enumerate(points))),
        "rotated": element("robndbox", *(f"<{tag}>{value}</{tag}>" for tag, value in rotated)),
    }
    return Object(object_xml(name, box).replace(box_xml(box), written[shape]), (name, box))


SCALES = (1, 1, 1, 10, 1.5)  # of the size that was labelled, as a multiple of the image's; no box is outside of it


def size_xml(scale: float) -> str:
    return f"<size><width>{round(WIDTH * scale)}</width><height>{round(HEIGHT * scale)}</height></size>"


odd_corners = shuffled(*(elements(corner, numbers) for corner in ("xmin", "ymin", "xmax", "ymax")))
odd_points = shuffled(elements("x", numbers), elements("y", numbers))
odd_names = st.sampled_from((*LABELS, *LABELS, " cat\n", "", "<b/>", "cow", "ca<!-- -->t", "&#99;at"))
odd_flags = st.sampled_from(("0", "1", "yes", "2", "", "é"))
odd_objects = shuffled(
    elements("name", odd_names),
    elements("bndbox", odd_corners),
    st.one_of(*(st.just("") for _ in range(6)), elements("bndbox", odd_corners)),
    elements("polygon", st.lists(elements("pt", odd_points), max_size=4).map("".join)),
    elements("robndbox", shuffled(*(elements(tag, numbers) for tag in ("cx", "cy", "w", "h", "angle")))),
    *(elements(tag, odd_flags) for tag in ("difficult", "truncated", "pose")),
    trees,
)
objects = st.one_of(
    elements("object", odd_objects).map(lambda text: Object(text, None)),
    st.builds(
        sound_object,
        st.sampled_from(LABELS),
        st.lists(st.integers(1, WIDTH), min_size=2, max_size=2, unique=True),
        st.lists(st.integers(1, HEIGHT), min_size=2, max_size=2, unique=True),
        st.sampled_from(("box", "swapped", "case", "pt", "x1", "rotated")),
    ),
)
any_sizes = elements("size", shuffled(elements("width", numbers), elements("height", numbers), trees))
headers = shuffled(
    elements("filename", texts.map(escape)),
    elements("folder", texts.map(escape)),
    st.sampled_from(SCALES).map(size_xml) | any_sizes,
    st.just("<segmented/>"),
)


def scale_of(example: Example) -> float:
    """The image's size as a multiple of the size that its boxes refer to."""
    details = [finding.detail for finding in example.findings if finding.reason == "scaled"]
    return WIDTH / int(details[0].partition("x")[0]) if details else 1.0


def test_voc_documents(files):
    """Objects without a flaw are kept to the pixel, whatever stands beside them."""

    def check(case):
        header, members, zero_based, verify = case
        text = element(ROOT, header, *(member.xml for member in members))
        files.xml_path.write_text(text, encoding="utf-8")
        options = {"zero_based": zero_based, "verify": verify}
        example = files.read(drop_unknown_classes=True, drop_invalid_objects=True, **options)
        strictly = files.read(drop_unknown_classes=True, **options)
        if strictly == "all_objects_dropped":
            assert isinstance(example, Example)
            assert not example.annotation.boxes
        else:
            assert strictly == example
        if isinstance(example, Example):
            check_no_object_vanishes(example, len(members))
            first = 0 if zero_based else 1
            kept = [*zip(example.annotation.class_names, example.annotation.boxes)]
            scale = scale_of(example)
            sound = [member.sound for member in members if member.sound]
            for name, (xmin, ymin, xmax, ymax) in sound if scale <= 1 else ():  # otherwise <size> cuts the boxes off
                box = np.multiply((ymin - first, xmin - first, ymax, xmax), scale)
                assert any(name == other and np.allclose(box, written, rtol=0.05) for other, written in kept)
                if scale == 1:
                    assert (name, tuple(box)) in kept
        return name_of(example)

    cases = st.tuples(headers, st.lists(objects, max_size=6), st.booleans(), st.sampled_from(("header", "decode")))
    assert fuzz(cases, check)["record"] > CASES // 2


# Damaged bytes.


class Spots(typing.NamedTuple):
    """Where damage has most effect: up to `reach` bytes after a match."""

    pattern: bytes
    reach: int


@st.composite
def damaged(
    draw, originals: typing.Sequence[tuple[str, bytes]], spots: Spots, tokens: typing.Sequence[bytes]
) -> tuple[str, bytes]:
    """The extension and the bytes of one of the `originals`, with one to four changes to the bytes."""
    rng = draw(st.randoms(use_true_random=True))  # every position is equally likely; Hypothesis prefers small ones
    extension, original = rng.choice(originals)
    data = bytearray(original)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        if rng.random() < 0.7 and (found := [match.end() for match in re.finditer(spots.pattern, data)]):
            at = min(rng.choice(found) + rng.randrange(spots.reach), len(data))
        change = rng.choice(("set", "set", "flip", "flip", "token", "token", "delete", "repeat", "cut"))
        end = at + rng.randint(1, rng.choice((1, 2, 40)) if change in ("delete", "repeat") else 1)
        if change == "set":
            data[at:end] = rng.randbytes(1)
        elif change == "flip":
            data[at:end] = bytes(byte ^ 1 << rng.randrange(8) for byte in data[at:end])
        elif change == "token":
            data[at:at] = rng.choice(tokens)
        elif change == "delete":
            del data[at:end]
        elif change == "repeat":
            data[at:at] = data[at:end]
        else:
            del data[rng.randint(at, len(data)) :]
    return extension, bytes(data)


XML_TOKENS = (
    *(b"<", b">", b"/>", b"&", b"]]>", b"<!--", b"<![CDATA[", b"\0", b"\x0b", b"\r", b"\xff", b"\xed\xa0\x80"),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"<!-- 5 -->", b"<![CDATA[6]]>", b"<?pi?>", b"&amp;", b"&#55;", b"<b c='d'>"),
    *(b"<size>", b"<width>7</width>", b"<filename>x</filename>", b"<name>cow</name>", b"<part/>", b"<bndbox/>"),
    *(b"<object>", b"</object>", b"<bndbox>", b"</bndbox>", b"<annotation>", b"</annotation>", b"<xmin>", b"</name>"),
    *(b'<!DOCTYPE a [<!ENTITY x "y">]>', b'<!DOCTYPE a SYSTEM "file:///dev/zero">', b"&x;", b"&#0;", b"&#xd800;"),
    *(b'<?xml version="1.0" encoding="utf-16"?>', b"<?xml-stylesheet?>", b"nan", b"1e999", b"-", b".", b",", b"0"),
)
LABELIMG = """<annotation>
\t<folder>JPEGImages</folder>
\t<filename>b.jpg</filename>
\t<path>C:\\Users\\anna\\JPEGImages\\b.jpg</path>
\t<source>
\t\t<database>Unknown</database>
\t</source>
\t<size>
\t\t<width>60</width>
\t\t<height>40</height>
\t\t<depth>3</depth>
\t</size>
\t<segmented>0</segmented>
\t<object>
\t\t<name>cat</name>
\t\t<pose>Unspecified</pose>
\t\t<truncated>0</truncated>
\t\t<difficult>0</difficult>
\t\t<bndbox>
\t\t\t<xmin>12</xmin>
\t\t\t<ymin>3</ymin>
\t\t\t<xmax>40</xmax>
\t\t\t<ymax>38</ymax>
\t\t</bndbox>
\t</object>
</annotation>
"""
PART = "<part><name>head</name><bndbox><xmin>9</xmin><ymin>2</ymin><xmax>20</xmax><ymax>9</ymax></bndbox></part>"
VOC = annotation_xml(
    "<source><database>The VOC2007 Database</database><image>flickr</image><flickrid>1</flickrid></source>",
    "<owner><flickrid>anna</flickrid><name>Änna</name></owner><segmented>1</segmented>",
    object_xml("dog", (8, 1, 60, 40), inner=PART),
    object_xml("猫", (1, 20, 17.5, 33)),
)


@pytest.mark.parametrize("unknown", ["refused", "ignore", "background"])
def test_damaged_annotations(files, unknown):
    originals = [(".xml", text.encode()) for text in (LABELIMG, LABELIMG, VOC, VOC)]
    originals += [(".xml", LABELIMG.encode("utf-8-sig")), (".xml", VOC.encode("utf-16"))]

    def check(case):
        _, data = case
        files.xml_path.write_bytes(data)
        files.check_texts()
        how = {"drop_unknown_classes": True, "dropped_classes_as": unknown} if unknown != "refused" else {}
        example = files.read(**how)
        if isinstance(example, Example) and all(finding.reason != "encoding" for finding in example.findings):
            check_no_object_vanishes(example, count_objects(data))
        return name_of(example)

    outcomes = fuzz(damaged(originals, Spots(b">", 2), XML_TOKENS), check)
    assert min(outcomes["record"], outcomes["not_xml"]) > CASES // 20


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


JPEG_TOKENS = (
    *(b"\xff\xd8", b"\xff\xd9", b"\xff\x00", b"\xff\xff", b"\xff\xda", b"\xff\xd0", b"\xff\xc4", b"\xff\xdb", b"\0\0"),
    *(b"\xff\xe1\x00\x20Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0", b"\xff\xdd\x00\x04\x00\x01"),
    b"\xff\xee\x00\x0eAdobe\x00\x64\0\0\0\0\x00",
)
PICTURE = picture(HEIGHT, WIDTH)
JPEGS = [
    (".jpg", content)
    for content in (
        JPEG,
        encoded(PICTURE, progressive=True),
        encoded(PICTURE, subsampling=0, restart_marker_blocks=2),
        encoded(PICTURE, exif=with_orientation(6)),
        encoded(PICTURE.convert("L")),
        encoded(PICTURE.convert("CMYK")),
        encoded(picture(3, 5)),
    )
]
DEEP = Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 20)
OTHERS = [
    (".png", encoded(PICTURE, "PNG")),
    (".png", encoded(PICTURE.convert("P"), "PNG", exif=with_orientation(8))),
    (".png", encoded(DEEP, "PNG")),
    (".jpg", encoded(PICTURE.convert("RGBA"), "PNG")),
    (".gif", encoded(PICTURE, "GIF")),
    (".bmp", encoded(PICTURE, "BMP")),
    (".webp", encoded(PICTURE, "WEBP")),
    (".tif", encoded(PICTURE, "TIFF", exif=with_orientation(6))),
    (".tif", encoded(DEEP, "TIFF", compression="tiff_lzw")),
    (".jpg", encoded(PICTURE, "MPO", save_all=True, append_images=[PICTURE.convert("L")])),
]


@pytest.mark.parametrize(
    ("originals", "spots"),
    [(JPEGS, Spots(rb"\xff[\xc0-\xfe]", 20)), (OTHERS, Spots(rb"\A", 100))],  # segments, the file's header
    ids=["jpeg", "others"],
)
def test_damaged_images(files, originals, spots):
    def check(case):
        extension, data = case
        files.set_image(data, extension)
        options = {"exif": ("auto", "apply", "ignore")[len(data) % 3]}
        header, decode = files.read(verify="header", **options), files.read(**options)
        if decode not in ("damaged_image", "not_an_image"):  # only decoded images are compared by their looks
            assert header == (decode if isinstance(decode, str) else decode._replace(look=header.look))
        return name_of(decode)

    outcomes = fuzz(damaged(originals, spots, JPEG_TOKENS), check)
    assert min(outcomes["record"], outcomes["damaged_image"]) > CASES // 10


def test_the_shape_of_plain_jpegs_agrees_with_pillow():
    plain = 0
    for _, data in (*JPEGS, *OTHERS):
        shape = jpeg.plain_shape(data)
        image = Image.open(io.BytesIO(data))
        assert shape in (None, (image.height, image.width, len(image.getbands())))
        is_plain = image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB") and not image.getexif()
        assert (shape is not None) == is_plain
        plain += is_plain
    assert plain == 6


def frame_header(data: bytes) -> int:
    """The offset of the start-of-frame segment of a baseline JPEG: ITU-T T.81, B.2.2."""
    return data.index(b"\xff\xc0\x00\x11\x08")


def test_damaged_frame_header(files):
    """The bytes that say how a JPEG is decoded are changed: what Pillow accepts, TensorFlow must accept as well."""
    files.xml_path.write_text(annotation_xml(size=None))  # which any height and width agree with
    outcomes = collections.Counter()
    start = frame_header(JPEG)
    values = (*range(0, 5), 8, 0x11, 0x21, 0x22, 0x7F, 0x80, *range(0xC0, 0xD0), 0xD9, 0xFF)
    for at, value in itertools.product(range(start, start + 19), values):
        files.set_image(JPEG[:at] + bytes([value]) + JPEG[at + 1 :])
        outcomes[name_of(files.read())] += 1
    assert min(outcomes["record"], outcomes["damaged_image"]) > 50


def test_odd_colour_sampling(files):
    """Sampling factors that cannot be decoded at full size, though perhaps as grey or at an eighth of the size."""
    outcomes = collections.Counter()
    data, start = bytearray(JPEG), frame_header(JPEG)
    for data[start + 11], data[start + 14], data[start + 17] in itertools.product(
        (0x11, 0x21, 0x12, 0x22, 0x31, 0x13, 0x41), repeat=3
    ):
        files.set_image(bytes(data))
        outcomes[name_of(files.read())] += 1
    assert min(outcomes["record"], outcomes["damaged_image"]) > 50


@pytest.mark.parametrize("original", [JPEGS[0][1], JPEGS[2][1]], ids=["plain", "restarts"])
def test_marker_within_the_image_data(files, original):
    """Pillow stops at the last pixel; TensorFlow reads on and fails on a marker before the end of the file."""
    at = len(original) - 50
    for marker in range(0x01, 0xFF):
        files.set_image(original[:at] + bytes([0xFF, marker]) + original[at:])
        # A restart is legal there, and an early end is one that every decoder takes.
        assert name_of(files.read()) == ("record" if 0xD0 <= marker <= 0xD7 or marker == 0xD9 else "damaged_image")
