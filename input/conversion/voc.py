"""One Pascal VOC annotation and its image -> what a record holds. Every flaw is named, and refused or repaired.

There is no TensorFlow here, so that worker processes start in a fraction of a second.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import PureWindowsPath
from typing import NamedTuple

from input.conversion import images, voc_xml
from input.conversion.config import ReadOptions
from input.conversion.findings import INVALID_OBJECTS, Note, Refused
from input.conversion.frame import Frame, labelled_size, parse_size
from input.conversion.objects import place_objects, read_objects
from input.shards import Finding
from input.tfrecord import Annotation


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
    if document.other_case:
        note_xml("tag_case", "")
    if not source.image_path:
        looked_for = f"{source.image_id}.*" + (f" nor {document.filename}" if document.filename else "")
        raise Refused(source.xml_path, "missing_image", f"no {looked_for} in the image folder")
    _check_names(source, document, note_xml)

    written = read_objects(document, options, source.xml_path, note_xml)
    ends = [max(column) for column in zip(*(item.box for item in written))]  # of ymin, xmin, ymax, xmax
    frame = Frame(
        size=parse_size(document.height, document.width),
        extent=(max(ends[::2]), max(ends[1::2])) if ends else None,
    )
    image = images.read_image(source.image_path, frame, options, note_image)
    size = labelled_size(frame.size, image.size, image.swappable, source.xml_path, note_xml)
    objects = place_objects(written, size, image.size, options.zero_based, note_xml)
    invalid = [finding for finding in findings if finding.reason in INVALID_OBJECTS]
    if invalid and not objects and not options.drop_invalid_objects:
        flaws = "; ".join(f"{finding.reason}: {finding.detail}" for finding in invalid[:3])
        more = f"; and {len(invalid) - 3} more" if len(invalid) > 3 else ""
        raise Refused(source.xml_path, "all_objects_dropped", f"{flaws}{more}")
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
