"""The bytes of a Pascal VOC annotation -> its texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PureWindowsPath
from typing import NamedTuple

from lxml import etree

from input import files
from input.conversion.findings import Refused
from input.tfrecord import CORNERS

_PARSER_OPTIONS = {"resolve_entities": False, "no_network": True, "remove_comments": True, "remove_pis": True}
_PARSER = etree.XMLParser(**_PARSER_OPTIONS)
_UTF8_PARSER = etree.XMLParser(**_PARSER_OPTIONS, encoding="utf-8")  # whatever the file declares
# The tags that are read, whatever the case of their letters.
_TAGS = {
    *("annotation", "filename", "folder", "size", "height", "width", "object", "name", "bndbox", *CORNERS),
    *("difficult", "truncated", "pose", "part", "polygon", "pt", "robndbox", "deleted"),
}
_UPPER_CASE_TAG = re.compile(rb"<\w*[A-Z]")


class ObjectTexts(NamedTuple):
    """The texts of one <object>, white space normalised."""

    name: str
    corners: dict[str, str]  # of the children of <bndbox>, by tag
    # Of the <polygon>, x and y of each point; empty where <bndbox> gives a corner, as the one that follows.
    points: list[tuple[str, str]]
    rotated: dict[str, str]  # of the children of <robndbox>, by tag
    rotation: str | None  # of <bndbox> about its centre, in degrees, as CVAT writes it
    deleted: bool
    difficult: str | None  # None where there is no such element, as in the two that follow
    truncated: str | None
    pose: str | None
    has_parts: bool


class Document(NamedTuple):
    """The texts of one annotation, white space normalised; empty where there is no such element."""

    filename: str  # white space inside it is kept, as in `folder`
    folder: str
    height: str
    width: str
    objects: list[ObjectTexts]
    other_case: bool  # a tag was in another case
    replaced: bool  # bytes that are not UTF-8 were replaced by U+FFFD


def read_document(path: str) -> Document:
    """Reads an annotation.

    Raises:
      Refused: the file is not a readable VOC annotation.
    """
    try:
        data = files.read_regular(path)
    except OSError as error:
        raise Refused(path, "unreadable", error.strerror or str(error)) from error
    if not data or data.isspace():
        raise Refused(path, "empty_annotation", "the file is empty")
    without_zeros = data.replace(b"\0", b"")  # UTF-16 has zeros between the letters
    if b"<!ENTITY" in without_zeros:
        raise Refused(path, "entities", "it defines entities; remove its <!DOCTYPE ...>")
    try:
        root, replaced = _parse(data)
    except etree.XMLSyntaxError as error:
        raise Refused(path, "not_xml", error.msg or "cannot be parsed") from error
    other_case = bool(_UPPER_CASE_TAG.search(without_zeros)) and _lower_tags(root)
    texts, size = _texts(root), _texts(_last_child(root, "size"))
    if root.tag != "annotation" or texts.keys().isdisjoint(("object", "filename", "size")):
        raise Refused(path, "other_schema", f"<{root.tag}> is not the <annotation> of Pascal VOC")
    objects = list(root.iterchildren("object"))
    if deeper := sum(1 for _ in root.iter("object")) - len(objects):
        raise Refused(path, "other_schema", f"{deeper} <object> not directly in <annotation>, where they are read")
    return Document(
        filename=_name(root, "filename"),
        folder=_name(root, "folder"),
        height=size.get("height", ""),
        width=size.get("width", ""),
        objects=[_read_object(element, path) for element in objects],
        other_case=other_case,
        replaced=replaced,
    )


def _parse(data: bytes) -> tuple[etree._Element, bool]:
    """The root element; and whether bytes that are not UTF-8 had to be replaced before the XML could be parsed.

    Another encoding that was declared is not believed where it did not work: C# writes `utf-16` into files in UTF-8.
    """
    try:
        return etree.fromstring(data, _PARSER), False
    except etree.XMLSyntaxError:
        if b"\0" in data:  # it is UTF-16, or no text
            raise
        text = data.decode("utf-8", "replace")
        return etree.fromstring(text.encode(), _UTF8_PARSER), "\ufffd" in text


def _lower_tags(root: etree._Element) -> bool:
    """Puts the tags that are read in lower case; whether there was such a tag in another case."""
    found = False
    for element in root.iter(etree.Element):
        lower = element.tag.lower()
        if element.tag != lower and lower in _TAGS:
            element.tag, found = lower, True
    return found


def _texts(element: etree._Element | None) -> dict[str, str]:
    """The text of each child by its tag; of several with one tag, the last."""
    return {} if element is None else {child.tag: " ".join((child.text or "").split()) for child in element}


def _name(root: etree._Element, tag: str) -> str:
    """The name of a file or folder, inside of which white space counts."""
    element = _last_child(root, tag)
    return "" if element is None else (element.text or "").strip()


def _last_child(element: etree._Element, tag: str) -> etree._Element | None:
    return next(element.iterchildren(tag, reversed=True), None)


def _read_object(element: etree._Element, path: str) -> ObjectTexts:
    texts = _texts(element)
    boxes = list(element.iterchildren("bndbox"))
    if len(boxes) > 1:
        raise Refused(path, "other_schema", f"an <object> with {len(boxes)} <bndbox>: write an <object> for each")
    corners = _texts(boxes[0]) if boxes else {}
    has_box = any(corners.get(corner) for corner in CORNERS)
    return ObjectTexts(
        name=texts.get("name", ""),
        corners=corners,
        points=[] if has_box else list(_points(element)),
        rotated={} if has_box else _texts(_last_child(element, "robndbox")),
        rotation=_attributes(element).get("rotation") if "attributes" in texts else None,
        deleted=texts.get("deleted") == "1",
        difficult=texts.get("difficult"),
        truncated=texts.get("truncated"),
        pose=texts.get("pose"),
        has_parts="part" in texts,
    )


def _attributes(element: etree._Element) -> dict[str, str]:
    """CVAT's attributes of an object, by name."""
    found = [_texts(attribute) for attribute in element.iterfind("attributes/attribute")]
    return {texts["name"]: texts.get("value", "") for texts in found if "name" in texts}


def _points(element: etree._Element) -> Iterator[tuple[str, str]]:
    """The points of all polygons of an object: <pt><x/><y/></pt> for each, or <x1/><y1/><x2/><y2/>..."""
    for polygon in element.iterchildren("polygon"):
        for point in polygon.iterchildren("pt"):
            texts = _texts(point)
            yield texts.get("x", ""), texts.get("y", "")
        texts = _texts(polygon)
        for number in sorted({tag[1:] for tag in texts if re.fullmatch(r"[xy]\d+", str(tag))}):
            yield texts.get("x" + number, ""), texts.get("y" + number, "")


def class_names(path: str) -> set[str]:
    """The classes that an annotation names; none if the file is refused, which the conversion itself reports."""
    try:
        return {item.name for item in read_document(path).objects if item.name}
    except Refused:
        return set()


def named_image(path: str) -> str:
    """The last part of the <filename> that an annotation gives; empty if there is none or the file is refused."""
    try:
        return PureWindowsPath(read_document(path).filename).name
    except Refused:
        return ""
