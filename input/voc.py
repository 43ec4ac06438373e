"""One Pascal VOC annotation and its image -> what a record holds; every malformed case is named, and refused or mended.

No TensorFlow here: worker processes start in a fraction of a second.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import operator
import os
import re
import stat
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from pathlib import PureWindowsPath
from typing import NamedTuple

import numpy as np
from lxml import etree
from PIL import Image, ImageOps

from input import files

# What may be wrong with a file -> what is done about it. A refused file yields no record; a mended one does, with
# something changed or left out; a note is for information, and the record is what the files say.
REFUSED = {
    "missing_annotation": "the image set lists it, but there is no such XML file",
    "empty_annotation": "the XML file is empty",
    "not_xml": "the XML cannot be parsed",
    "other_schema": "the XML is not a Pascal VOC annotation",
    "entities": "the XML defines entities, which are never expanded",
    "unknown_class": "a class is not in the label list",
    "not_utf8": "a class name or a file's name is not UTF-8",
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
    "disguised_image": "the image is of another format than its extension says; it is stored as JPEG",
    "exif_rotated": "the boxes are in the frame that the EXIF orientation gives; the rotation was baked in",
    "comma_number": "a coordinate has a decimal comma; read as a point",
    "bad_number": "a coordinate is no finite number; the box was dropped",
    "missing_corner": "a coordinate is absent; the box was dropped",
    "missing_name": "an object has no <name>; it was dropped",
    "unknown_class_dropped": "an object's class is not in the label list; it was dropped as asked",
    "degenerate_box": "a box has max = min as written, to 1/100 pixel; it was dropped",
    "swapped_box": "a box has max < min as written; it was dropped",
    "clipped_box": "a box reached out of the image; it was clipped",
    "outside_box": "a box lies wholly outside the image; it was dropped",
    "duplicate_box": "an object repeats another's class and box; it was dropped",
    "listed_twice": "the image set lists it more than once; it was taken once",
}
NOTED = {
    "folder": "<folder> names another folder; it is never used",
    "extension": "<filename> has no or another extension than the image",
    "reencoded": "the image was encoded anew as 8-bit RGB JPEG of quality 95",
    "grayscale": "the image has one channel; it was kept, and readers make three equal ones of it",
    "path_in_filename": "<filename> holds a folder; only its last part was used",
    "exif_ignored": "the EXIF orientation is not applied: the boxes are in the frame of the stored pixels",
    "exponent_number": "a coordinate is written with an exponent",
    "zero_coordinate": "a coordinate is 0, which 1-based data cannot have: see --zero_based",
    "fields_absent": "difficult, truncated or pose is absent; taken as 0, 0 and Unspecified",
    "parts": "an object has <part> boxes, which are not objects",
    "no_objects": "the image has no objects; it was kept as a negative",
    "dropped_empty": "the image has no objects; it was left out as asked",
}

_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".gif": "GIF", ".webp": "WEBP"}
_FORMATS |= {".tif": "TIFF", ".tiff": "TIFF"}
IMAGE_EXTENSIONS = tuple(_FORMATS)
_EXIF_ORIENTATION = 0x0112
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # the markers of a JPEG's frame headers
Image.MAX_IMAGE_PIXELS = None  # `max_pixels` is the limit, and is checked before anything is decoded

Box = tuple[float, float, float, float]  # ymin xmin ymax xmax
Note = Callable[[str, str], None]  # takes a reason and a detail


class Annotation(NamedTuple):
    """What one image shows; `n` objects."""

    image_id: str
    filename: str
    height: int  # of the stored image, in pixels
    width: int
    boxes: Sequence[Box]  # edges in pixels counted from 0, inside the image
    classes: Sequence[int]  # 0-based
    class_names: Sequence[str]
    difficult: Sequence[int]  # 0 or 1
    truncated: Sequence[int]  # 0 or 1
    poses: Sequence[str]


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
        super().__init__(path, reason, detail)
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

    @functools.cached_property
    def classes(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.labels)}

    def __post_init__(self):
        if self.verify not in ("header", "decode"):
            raise ValueError(f"--verify={self.verify}: choose header or decode.")


def name_key(name: str) -> str:
    """A file name that can be compared and stored.

    macOS writes accents as separate characters, which are joined here; bytes that are no UTF-8 become U+FFFD.
    """
    if name.isascii():
        return name
    return unicodedata.normalize("NFC", name.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


def read_file(path: str) -> bytes:
    try:
        if files.is_remote(path):
            return files.read(path)
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe under an image's name must not stop everything
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise Refused(path, "unreadable", "not a regular file")
            data = os.read(handle, status.st_size + 1)
            while len(data) != status.st_size and (more := os.read(handle, 1 << 24)):  # it grows, or is enormous
                data += more
            return data
        finally:
            os.close(handle)
    except OSError as error:
        raise Refused(path, "unreadable", error.strerror or str(error)) from error


# The annotation.


_PARSER_OPTIONS = {
    "resolve_entities": False,
    "no_network": True,
    "remove_comments": True,
    "remove_blank_text": True,
    "collect_ids": False,
}
_PARSER = etree.XMLParser(**_PARSER_OPTIONS)


_CORNERS = ("ymin", "xmin", "ymax", "xmax")


class _ObjectTexts(NamedTuple):
    """The texts of one <object> as they stand in the file; None where there is no such element."""

    ymin: str | None
    xmin: str | None
    ymax: str | None
    xmax: str | None
    name: str | None
    difficult: str | None
    truncated: str | None
    pose: str | None
    part: str | None


class _Document(NamedTuple):
    fields: dict[str, str]  # the texts of <annotation>'s children, by tag, and of those of <size>
    columns: Sequence[tuple[str | None, ...]]  # a column for each field of _ObjectTexts; none without objects
    replaced: bool  # bytes that are no text were replaced by U+FFFD


def _parse_xml(path: str) -> _Document:
    """Raises `Refused` where the file is not a readable VOC annotation."""
    data = read_file(path)
    return _parse_plain(data) or _parse_any(data, path)


def _parse_any(data: bytes, path: str) -> _Document:
    if not data or data.isspace():
        raise Refused(path, "empty_annotation", "the file is empty")
    if b"<!ENTITY" in (data.replace(b"\0", b"") if b"\0" in data else data):  # UTF-16 has zeros between
        raise Refused(path, "entities", "it defines entities; remove its <!DOCTYPE ...>")
    replaced = False
    try:
        root = etree.fromstring(data, _PARSER)
    except etree.XMLSyntaxError as error:
        text = data.decode("utf-8", "replace")
        try:
            if "\ufffd" not in text:
                raise error
            root = etree.fromstring(text.encode(), etree.XMLParser(**_PARSER_OPTIONS, encoding="utf-8"))
            replaced = True
        except etree.XMLSyntaxError as error:
            raise Refused(path, "not_xml", error.msg or "cannot be parsed") from error
    fields, objects = _read_fields(root), [_read_texts(child) for child in root if child.tag == "object"]
    if root.tag != "annotation" or not (objects or "filename" in fields or "size" in fields):
        raise Refused(path, "other_schema", f"<{root.tag}> is not the <annotation> of Pascal VOC")
    return _Document(fields, tuple(zip(*objects)), replaced)


def _read_fields(root: etree._Element) -> dict[str, str]:
    fields = {}
    for child in root:
        if child.tag != "object":
            fields[child.tag] = child.text or ""
            if child.tag == "size":
                fields.update((dimension.tag, dimension.text or "") for dimension in child)
    return fields


def _read_texts(item: etree._Element) -> _ObjectTexts:
    texts, corners = {}, {}
    for child in item:
        if child.tag == "bndbox":
            corners = {corner.tag: corner.text or "" for corner in child}
        else:
            texts[child.tag] = child.text or ""
    return _ObjectTexts(*map(corners.get, _CORNERS), *map(texts.get, _ObjectTexts._fields[4:]))


# Nearly all files are plain: ASCII, no attributes, comments or references, and every object with the same tags in the
# same order. What an order of tags means lxml is asked once: of a file where the text after the n-th tag is n, it tells
# where each text is to be found.

_PLAIN = bytes(set(range(0x20, 0x7F)) - set(b"<>&")) + b"\t\n\r"
_TAG = re.compile("/?[A-Za-z_][A-Za-z0-9_.-]*")
_DECLARATION = re.compile(r"""\?xml version=(["'])1\.0\1( encoding=(["'])(utf|UTF)-8\3)?\s*\?""")


def _split(text: str) -> tuple[tuple[str, ...], list[str]]:
    """Tags, and the texts that follow them."""
    pieces = text.replace(">", "<").split("<")
    return tuple(pieces[1::2]), pieces[2::2]


def _parse_order(tags: tuple[str, ...]) -> etree._Element | None:
    """None where these are no element's tags, or too many to be remembered."""
    if len(tags) > 64 or not all(map(_TAG.fullmatch, tags)):
        return None
    try:
        return etree.fromstring("".join(f"<{tag}>{n}" for n, tag in enumerate(tags)).rstrip("0123456789"), _PARSER)
    except etree.XMLSyntaxError:
        return None


@functools.lru_cache(maxsize=1024)
def _order_of_fields(tags: tuple[str, ...]) -> dict[str, int] | None:
    """Which texts are those that `_read_fields` takes, given all tags in front of the objects."""
    declared = _DECLARATION.fullmatch(tags[0]) is not None
    root = _parse_order((*tags[declared:], "/annotation"))
    return None if root is None else {tag: int(text) + declared for tag, text in _read_fields(root).items()}


@functools.lru_cache(maxsize=1024)
def _order_of_object(tags: tuple[str, ...]) -> tuple[re.Pattern, list[int]] | None:
    """A pattern of objects with these tags, and which groups are the fields of `_ObjectTexts`, all but `part`."""
    item = _parse_order(tags)
    *wanted, part = _ObjectTexts(*[None] * 9) if item is None else _read_texts(item)
    if None in wanted or part is not None:
        return None
    wanted = [int(text) for text in wanted]
    texts = ("([^<]*)" if n in wanted else "[^<]*" for n in range(len(tags)))
    pattern = "".join(f"<{re.escape(tag)}>{text}" for tag, text in zip(tags, texts))
    return re.compile(pattern), [sorted(wanted).index(n) for n in wanted]


def _parse_plain(data: bytes) -> _Document | None:
    """What `_parse_any` says, in a fraction of the time; None where it has to be asked."""
    num_tags = data.count(b"<")
    if len(data) > 1 << 20 or data.translate(None, _PLAIN) != b"<>" * num_tags:
        return None
    text = data.decode("ascii").rstrip()
    first = text.find("<object>")
    tags, texts = _split(text[: text.rfind("<") if first < 0 else first])
    fields = _order_of_fields(tags) if tags else None
    if (
        not fields
        or "filename" not in fields
        or texts[0].strip()
        or text[0] != "<"
        or not text.endswith("</annotation>")
    ):
        return None
    columns = ()
    if first >= 0:
        order = _split(text[first : text.find("</object>") + len("</object>")])[0]
        known = _order_of_object(order)
        if not known:
            return None
        pattern, groups = known
        found = list(zip(*pattern.findall(text, first)))
        columns = (*(found[group] for group in groups), (None,) * len(found[0]))
        num_tags -= len(found[0]) * len(order)
    if num_tags != len(tags) + 1:  # others than those before, of the objects as found, and the last
        return None
    return _Document({tag: texts[n] for tag, n in fields.items()}, columns, False)


@functools.lru_cache(maxsize=4096)  # the same few names, flags and poses in every file
def _clean(text: str | None) -> str:
    return " ".join((text or "").split())


def class_names(path: str) -> set[str]:
    """The classes that an annotation names; none where the file cannot be read, which converting it reports."""
    try:
        columns = _parse_xml(path).columns
        return set(map(_clean, columns[4])) - {""} if columns else set()
    except Refused:
        return set()


def named_image(path: str) -> str:
    """The last part of the <filename> that an annotation gives, or nothing."""
    try:
        return PureWindowsPath(_clean(_parse_xml(path).fields.get("filename"))).name
    except Refused:
        return ""


_FLAGS = {"0": 0, "1": 1}
_ATTRIBUTES = ("difficult", "pose", "truncated")
_MIN_SIDE = 0.01  # pixels; of a JPEG's 65535, the float32 of the records still tells this from nothing


def _read_box(texts: _ObjectTexts, note: Note) -> Box | None:
    """A box as written, or None with the reason noted."""
    cleaned = [_clean(text) for text in texts[:4]]
    if missing := [corner for corner, text in zip(_CORNERS, cleaned) if not text]:
        note("missing_corner", f"no {', '.join(missing)}")
        return None
    numbers = []
    for text in cleaned:
        if "," in text:
            note("comma_number", text)
        elif "e" in text.lower():
            note("exponent_number", text)
        try:
            number = math.nan if "_" in text else float(text.replace(",", "."))
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            note("bad_number", text)
            return None
        numbers.append(number)
    return tuple(numbers)


def _fit_box(box: Box, height: int, width: int, zero_based: bool, note: Note) -> Box | None:
    """A box as written -> edges in pixels from 0, clipped to the image; None where nothing is left."""
    ymin, xmin, ymax, xmax = box
    # VOC counts pixels from 1 and includes the last: pixel 1 reaches from edge 0 to edge 1.
    first = 0 if zero_based else 1
    written = f"xmin {xmin:g} ymin {ymin:g} xmax {xmax:g} ymax {ymax:g}"
    if xmax - xmin < _MIN_SIDE or ymax - ymin < _MIN_SIDE:
        note("swapped_box" if xmax < xmin or ymax < ymin else "degenerate_box", written)
        return None
    fitted = max(ymin - first, 0.0), max(xmin - first, 0.0), min(ymax, height), min(xmax, width)
    if fitted[2] - fitted[0] < _MIN_SIDE or fitted[3] - fitted[1] < _MIN_SIDE:
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


def _plain_jpeg_shape(data: bytes) -> tuple[int, int, int] | None:
    """(height, width, channels) of a JPEG that every decoder takes as it is: 8 bits, one or three components, no Exif.

    Anything else gives None, and Pillow has a closer look. See ITU-T T.81, annex B, for the markers.
    """
    at = 2 if data.startswith(b"\xff\xd8") else len(data)
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (0xC0, 0xC1, 0xC2):  # start of a frame, baseline or progressive
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            plain = height and width and data[at + 4] == 8 and data[at + 9] in (1, 3)
            return (height, width, data[at + 9]) if plain else None
        if marker == 0xE1 and data[at + 4 : at + 8] == b"Exif":
            return None
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _check_scan(data: bytes) -> None:
    """Looks at what Pillow left of a JPEG: it stops at the last pixel, where TensorFlow reads on to the image's end.

    An image of several scans (progressive, or a scan for each colour) is read to its end by Pillow as well.

    Raises:
      ValueError, IndexError: the end of the image does not follow the only scan. See ITU-T T.81, annex B.
    """
    at, num_components, progressive = 2, 0, False
    while (marker := data[at + 1]) != 0xDA:  # start of a scan
        if data[at] != 0xFF:
            raise ValueError("no marker where there should be one")
        if marker in _FRAMES:
            num_components, progressive = data[at + 9], marker & 3 == 2
        at += 1 if marker == 0xFF else 2 + (data[at + 2] << 8 | data[at + 3])  # 0xFF may be repeated
    several = progressive or data[at + 4] < num_components
    at += 2 + (data[at + 2] << 8 | data[at + 3])
    scan = np.frombuffer(data, np.uint8, offset=at)
    follow = scan[np.flatnonzero(scan[:-1] == 0xFF) + 1]
    markers = follow[(follow != 0) & (follow != 0xFF) & (follow & 0xF8 != 0xD0)]  # but for restarts within the scan
    if not several and (not len(markers) or markers[0] != 0xD9):
        raise ValueError("the image data is cut off or interrupted")


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB; of 16 bits the upper 8 are kept, and alpha is left out, as TensorFlow's decoders do."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _encode(image: Image.Image) -> StoredImage:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95)
    return StoredImage(out.getvalue(), image.height, image.width)


def read_image(path: str, annotated_size: tuple[int, int], options: ReadOptions, note: Note) -> StoredImage:
    """An image file -> the JPEG that is stored: the file's own bytes where possible.

    Args:
      annotated_size: (height, width) that the annotation gives, which tells whose frame the boxes are in.

    Raises:
      Refused: it cannot be read, decoded, or is too large.
    """
    data = read_file(path)
    if not data:
        raise Refused(path, "empty_image", "the file is empty")
    expected = _FORMATS.get(path[path.rfind(".") :].lower())
    shape = _plain_jpeg_shape(data)
    # A truncated file lacks the end-of-image marker, so that without it every byte is decoded in any case.
    if shape and options.verify == "header" and expected == "JPEG" and b"\xff\xd9" in data[-64:]:
        height, width, channels = shape
        _check_pixels(path, height, width, options)
        if channels == 1:
            note("grayscale", "JPEG L")
        return StoredImage(data, height, width)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters raises
            with Image.open(io.BytesIO(data), formats=tuple(_FORMATS.values())) as image:
                _check_pixels(path, image.height, image.width, options)
                return _store(image, data, shape is not None, expected, annotated_size, note)
    except Refused:
        raise
    except Image.UnidentifiedImageError as error:
        raise Refused(path, "not_an_image", f"it starts with {data[:8]!r}") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise Refused(path, "damaged_image", f"{type(error).__name__}: {error}") from error


def _check_pixels(path: str, height: int, width: int, options: ReadOptions) -> None:
    if height * width > options.max_pixels:
        raise Refused(path, "too_many_pixels", f"{width}x{height}: raise --max_pixels={options.max_pixels}")


def _store(
    image: Image.Image, data: bytes, plain: bool, expected: str | None, annotated_size: tuple[int, int], note: Note
) -> StoredImage:
    """Decodes the image to its end, and encodes it anew only where it must be."""
    actual = "JPEG" if image.format == "MPO" else image.format  # MPO: several JPEGs in one file; the first counts
    if actual != expected:
        note("disguised_image", f"{actual} {image.mode}")
    height, width = image.height, image.width
    # Pillow turns a TIFF by itself.
    orientation = 1 if plain or actual == "TIFF" else image.getexif().get(_EXIF_ORIENTATION, 1)
    if orientation in range(5, 9) and annotated_size == (width, height) != (height, width):
        note("exif_rotated", f"orientation {orientation}")
        return _encode(_to_rgb(ImageOps.exif_transpose(image)))
    if orientation in range(2, 9):
        note("exif_ignored", f"orientation {orientation}")
    if actual == "JPEG" and image.mode in ("L", "RGB"):
        # Decodes every coefficient, but computes few pixels. As grey, flaws in how colours are sampled would go unseen.
        image.draft(None, (max(width // 8, 1), max(height // 8, 1)))
        image.load()
        _check_scan(data)
        if image.mode == "L":
            note("grayscale", "JPEG L")
        return StoredImage(data, height, width)
    if actual == expected:
        note("reencoded", f"{actual} {image.mode}")
    return _encode(_to_rgb(image))


# Both together.


@functools.lru_cache(maxsize=4096)
def _pose(text: str | None) -> str:
    return _clean(text) or "Unspecified"


def _dimension(text: str | None) -> int:
    try:
        return int(float(text))
    except (TypeError, ValueError, OverflowError):
        return 0


@functools.lru_cache(maxsize=1024)
def _folder_agrees(folder: str, image_dir: str) -> bool:
    name = PureWindowsPath(folder).name
    return not name or name in os.path.abspath(image_dir).split(os.sep)[-2:]


def _check_names(source: Source, filename: str, folder: str, note: Note) -> None:
    """Notes where <filename> and <folder> disagree with the files that are used."""
    image_dir, _, image_name = source.image_path.rpartition(os.sep)
    image_name = name_key(image_name)
    if not _folder_agrees(folder, image_dir):
        note("folder", f"{folder}, but the image is in {os.path.basename(image_dir)}")
    stem = image_name.rpartition(".")[0]
    if stem != source.image_id:
        note("image_name", f"{image_name} for {source.image_id}")
    if filename == image_name:
        return
    name = PureWindowsPath(filename).name  # takes both kinds of slashes
    if name != filename:
        note("path_in_filename", filename)
    name = name_key(name)
    if stem == source.image_id and name not in ("", image_name):
        same_stem = name == stem or os.path.splitext(name)[0] == stem
        note("extension" if same_stem else "filename", f"{filename}, but the image is {image_name}")


def _read_usual_objects(columns: Sequence[tuple], image: StoredImage, options: ReadOptions) -> tuple | None:
    """Boxes, classes, names, difficult, truncated and poses of objects of which none is unusual; None for others.

    That is nearly all files. It gives what `_read_objects` gives, in a fraction of the time.
    """
    ymin, xmin, ymax, xmax, names, difficult, truncated, poses, parts = columns
    try:
        if None in poses or parts.count(None) < len(parts) or not "".join(ymin + xmin + ymax + xmax).isdecimal():
            return None
        ymin, xmin, ymax, xmax = (tuple(map(int, corners)) for corners in (ymin, xmin, ymax, xmax))
        classes = tuple(map(options.classes.__getitem__, names))
        difficult, truncated = (tuple(map(_FLAGS.__getitem__, flags)) for flags in (difficult, truncated))
    except (KeyError, TypeError, ValueError):
        return None
    first = 0 if options.zero_based else 1
    if min(ymin) < first or min(xmin) < first or max(ymax) > image.height or max(xmax) > image.width:
        return None
    if not all(map(operator.lt, ymin + xmin, ymax + xmax)):
        return None
    boxes = tuple([(y0 - first, x0 - first, y1, x1) for y0, x0, y1, x1 in zip(ymin, xmin, ymax, xmax)])
    if len(set(boxes)) < len(boxes):
        return None
    return boxes, classes, names, difficult, truncated, tuple(map(_pose, poses))


_Object = tuple[Box, int, str, int, int, str]  # box, class, name, difficult, truncated, pose


def _read_object(
    texts: _ObjectTexts, image: StoredImage, options: ReadOptions, path: str, replaced: bool, note: Note
) -> _Object | None:
    """Any object; None where it is to be dropped, with the reason noted."""
    name = _clean(texts.name)
    if not name:
        note("missing_name", "an <object> without <name>")
        return None
    if name not in options.classes:
        if replaced and "\ufffd" in name:
            raise Refused(path, "not_utf8", f"class {name!r}: declare the encoding in the first line")
        if not options.drop_unknown_classes:
            raise Refused(path, "unknown_class", f"class {name!r} is not in the label list")
        note("unknown_class_dropped", name)
        return None
    if absent := [tag for tag in _ATTRIBUTES if getattr(texts, tag) is None]:
        note("fields_absent", f"{name}: {', '.join(absent)}")
    if texts.part is not None:
        note("parts", name)
    box = _read_box(texts, note)
    fitted = box and _fit_box(box, image.height, image.width, options.zero_based, note)
    if not fitted:
        return None
    difficult, truncated = (int(_clean(text).lower() in ("1", "true", "yes")) for text in texts[5:7])
    return fitted, options.classes[name], name, difficult, truncated, _pose(texts.pose)


def _read_objects(
    columns: Sequence[tuple], image: StoredImage, options: ReadOptions, path: str, replaced: bool, note: Note
) -> tuple:
    """Boxes, classes, names, difficult, truncated and poses of any objects."""
    read: dict[tuple[Box, int], _Object] = {}
    for texts in map(_ObjectTexts._make, zip(*columns)):
        found = _read_object(texts, image, options, path, replaced, note)
        if found and read.setdefault(found[:2], found) is not found:
            note("duplicate_box", found[2])
    return tuple(zip(*read.values())) if read else ((),) * 6


def read_annotation(source: Source, options: ReadOptions) -> Example:
    """Reads and checks the two files of one record.

    Raises:
      Refused: they yield no record.
    """
    findings: list[Finding] = []
    xml_name, image_name = (name_key(path.rpartition(os.sep)[2]) for path in source[1:])

    def note_xml(reason: str, detail: str):
        findings.append(Finding(source.image_id, xml_name, reason, detail))

    def note_image(reason: str, detail: str):
        findings.append(Finding(source.image_id, image_name, reason, detail))

    if "\ufffd" in source.image_id:
        raise Refused(source.xml_path, "not_utf8", "the file's name is not UTF-8: rename it")
    if not source.xml_path:
        raise Refused(source.image_id + ".xml", "missing_annotation", "not in the annotation folder")
    document = _parse_xml(source.xml_path)
    if document.replaced:
        note_xml("encoding", "save it as UTF-8, or declare its encoding in the first line")
    fields = document.fields
    filename = " ".join((fields.get("filename") or "").split())
    if not source.image_path:
        looked_for = f"{source.image_id}.*" + (f" nor {filename}" if filename else "")
        raise Refused(source.xml_path, "missing_image", f"no {looked_for} in the image folder")
    _check_names(source, filename, _clean(fields.get("folder")), note_xml)

    annotated_size = _dimension(fields.get("height")), _dimension(fields.get("width"))
    image = read_image(source.image_path, annotated_size, options, note_image)
    if annotated_size != (image.height, image.width):
        note_xml("size", f"{annotated_size[1]}x{annotated_size[0]}, but the image is {image.width}x{image.height}")

    columns = document.columns and _read_usual_objects(document.columns, image, options)
    if not columns:
        columns = _read_objects(document.columns, image, options, source.xml_path, document.replaced, note_xml)
    annotation = Annotation(source.image_id, image_name, image.height, image.width, *columns)
    return Example(annotation, image.jpeg, findings)
