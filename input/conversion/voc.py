"""One Pascal VOC annotation and its image -> what a record holds; every malformed case is named, and refused or mended.

No TensorFlow here: worker processes start in a fraction of a second.
"""

from __future__ import annotations

import functools
import math
import os
import unicodedata
from collections.abc import Sequence
from pathlib import PureWindowsPath
from typing import NamedTuple

from input.conversion import images, voc_xml
from input.conversion.config import ReadOptions
from input.conversion.findings import Note, Refused
from input.conversion.images import StoredImage
from input.shards import Finding
from input.tfrecord import Annotation, Box


class Example(NamedTuple):
    annotation: Annotation
    jpeg: bytes
    findings: list[Finding]


class Source(NamedTuple):
    """The two files of one record; a path is empty where there is no such file."""

    image_id: str
    xml_path: str
    image_path: str


def name_key(name: str) -> str:
    """A file name that can be compared and stored.

    macOS writes accents as separate characters, which are joined here; bytes that are no UTF-8 become U+FFFD.
    """
    if name.isascii():
        return name
    return unicodedata.normalize("NFC", name.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


_ATTRIBUTES = ("difficult", "pose", "truncated")
_MIN_SIDE = 0.01  # pixels; of a JPEG's 65535, the float32 of the records still tells this from nothing


def _read_box(texts: voc_xml.ObjectTexts, note: Note) -> Box | None:
    """A box as written, or None with the reason noted."""
    cleaned = [voc_xml.clean(text) for text in texts[:4]]
    if missing := [corner for corner, text in zip(voc_xml.CORNERS, cleaned) if not text]:
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


# Both together.
@functools.lru_cache(maxsize=4096)
def _pose(text: str | None) -> str:
    return voc_xml.clean(text) or "Unspecified"


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


_Object = tuple[Box, int, str, int, int, str]  # box, class, name, difficult, truncated, pose


def _read_object(
    texts: voc_xml.ObjectTexts, image: StoredImage, options: ReadOptions, path: str, replaced: bool, note: Note
) -> _Object | None:
    """Any object; None where it is to be dropped, with the reason noted."""
    name = voc_xml.clean(texts.name)
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
    difficult, truncated = (int(voc_xml.clean(text).lower() in ("1", "true", "yes")) for text in texts[5:7])
    return fitted, options.classes[name], name, difficult, truncated, _pose(texts.pose)


def _read_objects(
    columns: Sequence[tuple], image: StoredImage, options: ReadOptions, path: str, replaced: bool, note: Note
) -> tuple:
    """Boxes, classes, names, difficult, truncated and poses of any objects."""
    read: dict[tuple[Box, int], _Object] = {}
    for texts in map(voc_xml.ObjectTexts._make, zip(*columns)):
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
    document = voc_xml.read_document(source.xml_path)
    if document.replaced:
        note_xml("encoding", "save it as UTF-8, or declare its encoding in the first line")
    fields = document.fields
    filename = " ".join((fields.get("filename") or "").split())
    if not source.image_path:
        looked_for = f"{source.image_id}.*" + (f" nor {filename}" if filename else "")
        raise Refused(source.xml_path, "missing_image", f"no {looked_for} in the image folder")
    _check_names(source, filename, voc_xml.clean(fields.get("folder")), note_xml)

    annotated_size = _dimension(fields.get("height")), _dimension(fields.get("width"))
    image = images.read_image(source.image_path, annotated_size, options, note_image)
    if annotated_size != (image.height, image.width):
        note_xml("size", f"{annotated_size[1]}x{annotated_size[0]}, but the image is {image.width}x{image.height}")

    columns = _read_objects(document.columns, image, options, source.xml_path, document.replaced, note_xml)
    annotation = Annotation(source.image_id, image_name, image.height, image.width, *columns)
    return Example(annotation, image.jpeg, findings)
