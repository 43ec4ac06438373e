"""One Pascal VOC annotation and its image -> what a record holds; every malformed case is named, and refused or mended.

No TensorFlow here: worker processes start in a fraction of a second.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import unicodedata
from pathlib import PureWindowsPath
from typing import NamedTuple

import numpy as np
from lxml import etree
from PIL import Image, ImageOps

# What may be wrong with a file -> what is done about it. A refused file yields no record; a mended one does, with
# something changed or left out; a note is for information, and the record is what the files say.
REFUSED = {
    "missing_annotation": "the image set lists it, but there is no such XML file",
    "empty_annotation": "the XML file is empty",
    "not_xml": "the XML cannot be parsed",
    "other_schema": "the XML is not a Pascal VOC annotation",
    "entities": "the XML defines entities, which are never expanded",
    "unknown_class": "a class is not in the label list",
    "not_utf8": "a class name or file name is not in the encoding that the XML declares",
    "duplicate_id": "another folder has a file of this name; image ids must be unique",
    "missing_image": "the image folder holds neither the XML's name nor its <filename>",
    "empty_image": "the image file is empty",
    "not_an_image": "the image is no JPEG, PNG, BMP, GIF, WebP or TIFF",
    "damaged_image": "the image cannot be decoded to its end",
    "too_many_pixels": "the image exceeds --max_pixels",
    "unreadable": "the system cannot read the file",
}
MENDED = {
    "encoding": "bytes that are not UTF-8, outside of names, were replaced",
    "size": "<size> is absent or differs from the image; the image wins",
    "filename": "<filename> names another image; the image with the XML's name was used",
    "image_name": "no image has the XML's name; the one that <filename> names was used",
    "reencoded": "the image was encoded anew as JPEG of quality 95",
    "exif_rotated": "the boxes are in the frame that the EXIF orientation gives; the rotation was baked in",
    "comma_number": "a coordinate has a decimal comma; read as a point",
    "bad_number": "a coordinate is no finite number; the box was dropped",
    "missing_corner": "a coordinate is absent; the box was dropped",
    "missing_name": "an object has no <name>; it was dropped",
    "unknown_class_dropped": "an object's class is not in the label list; it was dropped as asked",
    "degenerate_box": "a box has max = min as written; it was dropped",
    "swapped_box": "a box has max < min as written; it was dropped",
    "clipped_box": "a box reached out of the image; it was clipped",
    "outside_box": "a box lies wholly outside the image; it was dropped",
    "duplicate_box": "an object repeats another's class and box; it was dropped",
    "listed_twice": "the image set lists it more than once; it was taken once",
}
NOTED = {
    "folder": "<folder> names another folder; it is never used",
    "extension": "<filename> has no or another extension than the image",
    "path_in_filename": "<filename> holds a folder; only its last part was used",
    "exif_ignored": "the EXIF orientation is not applied: the boxes are in the frame of the stored pixels",
    "exponent_number": "a coordinate is written with an exponent",
    "zero_coordinate": "a coordinate is 0, which 1-based data cannot have: see --zero_based",
    "fields_absent": "difficult, truncated or pose is absent; taken as 0, 0 and Unspecified",
    "parts": "an object has <part> boxes, which are not objects",
    "no_objects": "the image has no objects; it was kept as a negative",
    "dropped_empty": "the image has no objects; it was left out as asked",
}

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "GIF", "WEBP", "TIFF")
_EXIF_ORIENTATION = 0x0112


class Annotation(NamedTuple):
    """What one image shows; `n` objects."""

    image_id: str
    filename: str
    height: int  # of the stored image, in pixels
    width: int
    boxes: list[tuple[float, float, float, float]]  # ymin xmin ymax xmax: edges in pixels from 0, inside the image
    classes: list[int]  # 0-based
    class_names: list[str]
    difficult: list[int]  # 0 or 1
    truncated: list[int]  # 0 or 1
    poses: list[str]


class Finding(NamedTuple):
    """One thing that was found wrong, or worth a note, in a file."""

    image_id: str
    file: str  # the file's name, without its folder
    reason: str  # a key of REFUSED, MENDED or NOTED
    detail: str


class Example(NamedTuple):
    annotation: Annotation
    jpeg: bytes
    findings: list[Finding]


class Refused(Exception):
    """The files yield no record."""

    def __init__(self, path: str, reason: str, detail: str):
        super().__init__(f"{path}: {detail}")
        self.path, self.reason, self.detail = path, reason, detail


class Source(NamedTuple):
    """The two files of one record; a path is empty where there is no such file."""

    image_id: str
    xml_path: str
    image_path: str


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    labels: tuple[str, ...]
    zero_based: bool = False  # coordinates are edges counted from 0, not pixels counted from 1
    verify: str = "decode"  # or "header": what is looked at of a JPEG that is stored as it is
    max_pixels: int = 100_000_000
    drop_unknown_classes: bool = False

    def __post_init__(self):
        if self.verify not in ("header", "decode"):
            raise ValueError(f"--verify={self.verify}: choose header or decode.")


def name_key(name: str) -> str:
    """Names that look the same are the same: macOS writes accents as separate characters."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def read_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise Refused(path, "unreadable", error.strerror or str(error)) from error


# The annotation.

_PARSER = dict(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True)


def parse_xml(path: str) -> tuple[etree._Element, bool]:
    """The <annotation> element of a file, and whether bytes that are not text had to be replaced.

    Raises:
      Refused: the file is not a readable VOC annotation.
    """
    data = read_file(path)
    if not data.strip():
        raise Refused(path, "empty_annotation", "the file is empty")
    if b"<!ENTITY" in (data.replace(b"\0", b"") if b"\0" in data else data):  # UTF-16 has zeros between
        raise Refused(path, "entities", "it defines entities; remove its <!DOCTYPE ...>")
    replaced = False
    try:
        root = etree.fromstring(data, etree.XMLParser(**_PARSER))
    except etree.XMLSyntaxError as error:
        text = data.decode("utf-8", "replace")
        try:
            if "\ufffd" not in text:
                raise error
            root = etree.fromstring(text.encode(), etree.XMLParser(**_PARSER, encoding="utf-8"))
            replaced = True
        except etree.XMLSyntaxError as error:
            raise Refused(path, "not_xml", str(error.msg)) from error
    if root.tag != "annotation" or all(root.find(tag) is None for tag in ("filename", "size", "object")):
        raise Refused(path, "other_schema", f"its root <{root.tag}> is not a Pascal VOC <annotation>")
    return root, replaced


def _text(element: etree._Element | None) -> str:
    return " ".join((element.text or "").split()) if element is not None else ""


def class_names(path: str) -> set[str]:
    """The classes that an annotation names; none where the file cannot be read, which converting it reports."""
    try:
        root, _ = parse_xml(path)
    except Refused:
        return set()
    return {name for item in root.iterchildren("object") if (name := _text(item.find("name")))}


def filename_in(path: str) -> str:
    """The last part of the <filename> an annotation gives, or nothing."""
    try:
        return PureWindowsPath(_text(parse_xml(path)[0].find("filename"))).name
    except Refused:
        return ""


def _flag(text: str) -> int:
    return int(text.lower() in ("1", "true", "yes"))


def _read_number(text: str, note) -> float:
    if "," in text:
        note("comma_number", text)
        text = text.replace(",", ".")
    elif "e" in text.lower():
        note("exponent_number", text)
    return math.nan if "_" in text else float(text)


def _read_box(bndbox: etree._Element | None, note) -> tuple[float, float, float, float] | None:
    """ymin xmin ymax xmax as written, or None with the reason noted."""
    texts = {} if bndbox is None else {child.tag: (child.text or "").strip() for child in bndbox}
    box = []
    for corner in ("ymin", "xmin", "ymax", "xmax"):
        text = texts.get(corner)
        if not text:
            note("missing_corner", f"no <{corner}>")
            return None
        try:
            number = _read_number(text, note)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            note("bad_number", f"<{corner}>{text}</{corner}>")
            return None
        box.append(number)
    return tuple(box)


def _fit_box(box, height: int, width: int, zero_based: bool, note) -> tuple[float, float, float, float] | None:
    """A box as written -> edges in pixels from 0, clipped to the image; None where nothing is left."""
    ymin, xmin, ymax, xmax = box
    written = f"[xmin {xmin:g}, ymin {ymin:g}, xmax {xmax:g}, ymax {ymax:g}]"
    if xmax <= xmin or ymax <= ymin:
        note("swapped_box" if xmax < xmin or ymax < ymin else "degenerate_box", written)
        return None
    # VOC counts pixels from 1 and includes the last: pixel 1 reaches from edge 0 to edge 1.
    first = 0 if zero_based else 1
    fitted = (max(ymin - first, 0.0), max(xmin - first, 0.0), min(ymax, height), min(xmax, width))
    if fitted[2] <= fitted[0] or fitted[3] <= fitted[1]:
        note("outside_box", f"{written} in {width}x{height}")
        return None
    if ymin < 0 or xmin < 0 or ymax > height or xmax > width:
        note("clipped_box", f"{written} in {width}x{height}")
    elif not zero_based and min(ymin, xmin) < 1:
        note("zero_coordinate", written)
    return fitted


# The image.


class StoredImage(NamedTuple):
    jpeg: bytes
    height: int
    width: int


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB; of 16 bits the upper 8 are kept, and alpha is left out, as TensorFlow's decoders do."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _encode(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95)
    return out.getvalue()


def read_image(path: str, annotated_size: tuple[int, int], options: ReadOptions, note) -> StoredImage:
    """An image file -> the JPEG that is stored: the file's own bytes where possible.

    Args:
      annotated_size: (height, width) that the annotation gives, which tells whose frame the boxes are in.

    Raises:
      Refused: it cannot be read, decoded, or is too large.
    """
    data = read_file(path)
    if not data:
        raise Refused(path, "empty_image", "the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > options.max_pixels:
                raise Refused(path, "too_many_pixels", f"{width}x{height}; raise --max_pixels={options.max_pixels}")
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
            if (
                orientation != 1
                and height != width
                and annotated_size == (width, height)
                and orientation in range(5, 9)
            ):
                note("exif_rotated", f"orientation {orientation}")
                upright = _to_rgb(ImageOps.exif_transpose(image))
                return StoredImage(_encode(upright), upright.height, upright.width)
            if orientation in range(2, 9):
                note("exif_ignored", f"orientation {orientation}")
            if image.format not in ("JPEG", "MPO") or image.mode not in ("L", "RGB"):
                note("reencoded", f"{image.format} {image.mode}")
                return StoredImage(_encode(_to_rgb(image)), height, width)
            # A truncated file lacks the end-of-image marker; without it, and where asked, every byte is decoded.
            if options.verify == "decode" or b"\xff\xd9" not in data[-64:]:
                image.draft("L", (width // 8, height // 8))  # decodes everything, but computes few pixels
                image.load()
    except Refused:
        raise
    except Image.UnidentifiedImageError as error:
        raise Refused(path, "not_an_image", f"it starts with {data[:8]!r}") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise Refused(path, "damaged_image", f"{type(error).__name__}: {error}") from error
    return StoredImage(data, height, width)


# Both together.


def _dimension(size: etree._Element | None, tag: str) -> int:
    try:
        return int(float(_text(size.find(tag))))
    except (AttributeError, ValueError, OverflowError):
        return 0


def read_annotation(source: Source, options: ReadOptions) -> Example:
    """Reads and checks the two files of one record.

    Raises:
      Refused: they yield no record.
    """
    findings: list[Finding] = []
    xml_name, image_name = os.path.basename(source.xml_path), os.path.basename(source.image_path)

    def note_xml(reason: str, detail: str):
        findings.append(Finding(source.image_id, xml_name, reason, detail))

    def note_image(reason: str, detail: str):
        findings.append(Finding(source.image_id, image_name, reason, detail))

    if not source.xml_path:
        raise Refused(source.image_id, "missing_annotation", "no such file in the annotation folder")
    root, replaced = parse_xml(source.xml_path)
    if replaced:
        note_xml("encoding", "declare the encoding in the XML's first line, or save as UTF-8")
    filename = _text(root.find("filename"))
    if not source.image_path:
        raise Refused(
            source.xml_path, "missing_image", f"no image called {source.image_id}.* or {filename!r} in the image folder"
        )
    _check_names(source, root, filename, note_xml)

    size = root.find("size")
    annotated_size = (_dimension(size, "height"), _dimension(size, "width"))
    image = read_image(source.image_path, annotated_size, options, note_image)
    if annotated_size != (image.height, image.width):
        note_xml("size", f"{annotated_size[1]}x{annotated_size[0]}, but the image is {image.width}x{image.height}")

    objects: dict[tuple, tuple[int, int, str]] = {}
    for item in root.iterchildren("object"):
        fields = {child.tag: child for child in item}
        name = _text(fields.get("name"))
        if not name:
            note_xml("missing_name", "an <object> without <name>")
            continue
        if replaced and "\ufffd" in name:
            raise Refused(source.xml_path, "not_utf8", f"class {name!r}: declare the encoding in the XML's first line")
        if name not in options.labels:
            if not options.drop_unknown_classes:
                raise Refused(source.xml_path, "unknown_class", f"class {name!r} is not in the label list")
            note_xml("unknown_class_dropped", name)
            continue
        if absent := [tag for tag in ("difficult", "truncated", "pose") if tag not in fields]:
            note_xml("fields_absent", f"{name}: {', '.join(absent)}")
        if "part" in fields:
            note_xml("parts", name)
        box = _read_box(fields.get("bndbox"), note_xml)
        if box and (box := _fit_box(box, image.height, image.width, options.zero_based, note_xml)):
            if (name, box) in objects:
                note_xml("duplicate_box", name)
            else:
                pose = _text(fields.get("pose")) or "Unspecified"
                flags = (_flag(_text(fields.get(tag))) for tag in ("difficult", "truncated"))
                objects[name, box] = (*flags, pose)
    if not objects:
        note_xml("no_objects", "")

    names = [name for name, _ in objects]
    attributes = list(objects.values())
    annotation = Annotation(
        image_id=source.image_id,
        filename=image_name,
        height=image.height,
        width=image.width,
        boxes=[box for _, box in objects],
        classes=[options.labels.index(name) for name in names],
        class_names=names,
        difficult=[difficult for difficult, _, _ in attributes],
        truncated=[truncated for _, truncated, _ in attributes],
        poses=[pose for _, _, pose in attributes],
    )
    return Example(annotation, image.jpeg, findings)


def _check_names(source: Source, root: etree._Element, filename: str, note) -> None:
    """Notes where <filename> and <folder> disagree with the files that are used."""
    image_name = name_key(os.path.basename(source.image_path))
    named = PureWindowsPath(filename)  # takes both kinds of slashes
    if named.name != filename:
        note("path_in_filename", filename)
    stem, extension = os.path.splitext(image_name)
    name = name_key(named.name)
    if stem != source.image_id:
        note("image_name", f"{image_name} for {source.image_id}")
    elif name and name != image_name:
        if name == stem or os.path.splitext(name)[0] == stem:
            note("extension", f"{filename}, but the image is {image_name}")
        else:
            note("filename", f"{filename}, but the image is {image_name}")
    folder = PureWindowsPath(_text(root.find("folder"))).name
    parents = os.path.abspath(source.image_path).split(os.sep)[-3:-1]
    if folder and folder not in parents:
        note("folder", f"{folder}, but the image is in {parents[-1]}")
