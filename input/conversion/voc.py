"""One Pascal VOC annotation and its image -> what a record holds. Every flaw is named, and refused or repaired.

There is no TensorFlow here, so that worker processes start in a fraction of a second.
"""

from __future__ import annotations

import math
import os
import unicodedata
from pathlib import PureWindowsPath
from typing import NamedTuple

from input.conversion import images, voc_xml
from input.conversion.config import ReadOptions
from input.conversion.findings import Note, Refused
from input.conversion.images import StoredImage
from input.shards import Finding
from input.tfrecord import CORNERS, Annotation, Box

_MIN_SIDE = 0.01  # pixels; of a JPEG's 65535, the float32 of the records still tells this from nothing


class Source(NamedTuple):
    """The two files of one record; a path is empty where there is no such file."""

    image_id: str
    xml_path: str
    image_path: str


class Example(NamedTuple):
    """What is written for one source."""

    annotation: Annotation
    jpeg: bytes
    findings: list[Finding]


class _Object(NamedTuple):
    name: str
    box: Box  # edges in pixels from 0, inside the image
    difficult: int
    truncated: int
    pose: str


def read_annotation(source: Source, options: ReadOptions) -> Example:
    """Reads and checks the two files of one record.

    Raises:
      Refused: the files give no record.
    """
    if "\ufffd" in source.image_id:
        raise Refused(source.xml_path, "not_utf8", "the file's name is not UTF-8: rename it")
    if not source.xml_path:
        raise Refused(source.image_id + ".xml", "missing_annotation", "not in the annotation folder")
    findings: list[Finding] = []
    xml_name = name_key(os.path.basename(source.xml_path))
    image_name = name_key(os.path.basename(source.image_path))

    def note_xml(reason: str, detail: str) -> None:
        findings.append(Finding(source.image_id, xml_name, reason, detail))

    def note_image(reason: str, detail: str) -> None:
        findings.append(Finding(source.image_id, image_name, reason, detail))

    document = voc_xml.read_document(source.xml_path)
    if document.replaced:
        note_xml("encoding", "save it as UTF-8, or declare its encoding in the first line")
    if not source.image_path:
        looked_for = f"{source.image_id}.*" + (f" nor {document.filename}" if document.filename else "")
        raise Refused(source.xml_path, "missing_image", f"no {looked_for} in the image folder")
    _check_names(source, document, note_xml)

    annotated_size = _dimension(document.height), _dimension(document.width)
    image = images.read_image(source.image_path, annotated_size, options, note_image)
    if annotated_size != (image.height, image.width):
        note_xml("size", f"{annotated_size[1]}x{annotated_size[0]}, but the image is {image.width}x{image.height}")

    objects = _read_objects(document, image, options, source.xml_path, note_xml)
    annotation = Annotation(
        image_id=source.image_id,
        filename=image_name,
        height=image.height,
        width=image.width,
        boxes=[item.box for item in objects],
        classes=[options.classes[item.name] for item in objects],
        class_names=[item.name for item in objects],
        difficult=[item.difficult for item in objects],
        truncated=[item.truncated for item in objects],
        poses=[item.pose for item in objects],
    )
    return Example(annotation, image.jpeg, findings)


def name_key(name: str) -> str:
    """A file's name in the form in which names are compared and stored.

    macOS writes an accent as a character of its own, which is joined to its letter here. Bytes that are not UTF-8
    become U+FFFD.
    """
    if name.isascii():
        return name
    return unicodedata.normalize("NFC", name.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


def _check_names(source: Source, document: voc_xml.Document, note: Note) -> None:
    """Notes where <filename> and <folder> disagree with the files that are used."""
    image_dir, image_name = os.path.split(source.image_path)
    image_name = name_key(image_name)
    folder = PureWindowsPath(document.folder).name  # takes both kinds of slashes
    if folder and folder not in os.path.abspath(image_dir).split(os.sep)[-2:]:
        note("folder", f"{document.folder}, but the image is in {os.path.basename(image_dir)}")
    stem = os.path.splitext(image_name)[0]
    if stem != source.image_id:
        note("image_name", f"{image_name} for {source.image_id}")
    filename = document.filename
    if filename == image_name:
        return
    name = PureWindowsPath(filename).name
    if name != filename:
        note("path_in_filename", filename)
    name = name_key(name)
    if stem == source.image_id and name not in ("", image_name):
        same_stem = stem in (name, os.path.splitext(name)[0])
        note("extension" if same_stem else "filename", f"{filename}, but the image is {image_name}")


def _read_objects(
    document: voc_xml.Document, image: StoredImage, options: ReadOptions, path: str, note: Note
) -> list[_Object]:
    """The objects of the annotation at `path`; the reason is noted for each that is dropped.

    Raises:
      Refused: a class is not in the label list.
    """
    objects: dict[tuple[str, Box], _Object] = {}
    for texts in document.objects:
        name = texts.name
        if not name:
            note("missing_name", "an <object> without <name>")
            continue
        if name not in options.classes:
            if document.replaced and "\ufffd" in name:
                raise Refused(path, "not_utf8", f"class {name!r}: declare the encoding in the first line")
            if not options.drop_unknown_classes:
                raise Refused(path, "unknown_class", f"class {name!r} is not in the label list")
            note("unknown_class_dropped", name)
            continue
        attributes = {"difficult": texts.difficult, "pose": texts.pose, "truncated": texts.truncated}
        if absent := [tag for tag, text in attributes.items() if text is None]:
            note("fields_absent", f"{name}: {', '.join(absent)}")
        if texts.has_parts:
            note("parts", name)
        written = _read_box(texts.corners, note)
        box = written and _fit_box(written, image, options.zero_based, note)
        if not box:
            continue
        if (name, box) in objects:
            note("duplicate_box", name)
            continue
        objects[name, box] = _Object(
            name=name,
            box=box,
            difficult=_flag(texts.difficult),
            truncated=_flag(texts.truncated),
            pose=texts.pose or "Unspecified",
        )
    return list(objects.values())


def _flag(text: str | None) -> int:
    return int((text or "").lower() in ("1", "true", "yes"))


def _read_box(corners: dict[str, str], note: Note) -> Box | None:
    """A box as written; None, with the reason noted, if a corner is absent or no number."""
    if missing := [corner for corner in CORNERS if not corners.get(corner)]:
        note("missing_corner", f"no {', '.join(missing)}")
        return None
    numbers = []
    for corner in CORNERS:
        number = _read_number(corners[corner], note)
        if not math.isfinite(number):
            note("bad_number", corners[corner])
            return None
        numbers.append(number)
    ymin, xmin, ymax, xmax = numbers
    return ymin, xmin, ymax, xmax


def _read_number(text: str, note: Note) -> float:
    """A coordinate; NaN if it is no number."""
    if "," in text:
        note("comma_number", text)
    elif "e" in text.lower():
        note("exponent_number", text)
    try:
        return math.nan if "_" in text else float(text.replace(",", "."))  # Python takes 1_000 for a number
    except ValueError:
        return math.nan


def _fit_box(box: Box, image: StoredImage, zero_based: bool, note: Note) -> Box | None:
    """A box as written -> edges in pixels from 0, clipped to the image.

    Returns None, with the reason noted, if the box is dropped.
    """
    ymin, xmin, ymax, xmax = box
    height, width = image.height, image.width
    first = 0 if zero_based else 1  # VOC counts pixels from 1 and includes the last: pixel 1 is between edges 0 and 1
    if xmax - xmin < _MIN_SIDE or ymax - ymin < _MIN_SIDE:
        note("swapped_box" if xmax < xmin or ymax < ymin else "degenerate_box", _as_written(box))
        return None
    top, left, bottom, right = max(ymin - first, 0.0), max(xmin - first, 0.0), min(ymax, height), min(xmax, width)
    if bottom - top < _MIN_SIDE or right - left < _MIN_SIDE:
        note("outside_box", f"{_as_written(box)} in {width}x{height}")
        return None
    if ymin < 0 or xmin < 0 or ymax > height or xmax > width:
        note("clipped_box", f"{_as_written(box)} in {width}x{height}")
    elif not zero_based and min(ymin, xmin) < 1:
        note("zero_coordinate", _as_written(box))
    return top, left, bottom, right


def _as_written(box: Box) -> str:
    ymin, xmin, ymax, xmax = box
    return f"xmin {xmin:g} ymin {ymin:g} xmax {xmax:g} ymax {ymax:g}"


def _dimension(text: str) -> int:
    """A side of the image in pixels; 0 if it is not given as a number."""
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        return 0
