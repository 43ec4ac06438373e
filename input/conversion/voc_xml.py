"""The bytes of a Pascal VOC annotation -> its texts."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import PureWindowsPath
from typing import NamedTuple

from lxml import etree

from input.conversion.findings import Refused, read_file

# The annotation.
_PARSER_OPTIONS = {
    "resolve_entities": False,
    "no_network": True,
    "remove_comments": True,
    "remove_blank_text": True,
    "collect_ids": False,
}
_PARSER = etree.XMLParser(**_PARSER_OPTIONS)
CORNERS = ("ymin", "xmin", "ymax", "xmax")


class ObjectTexts(NamedTuple):
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


class Document(NamedTuple):
    fields: dict[str, str]  # the texts of <annotation>'s children, by tag, and of those of <size>
    columns: Sequence[tuple[str | None, ...]]  # a column for each field of ObjectTexts; none without objects
    replaced: bool  # bytes that are no text were replaced by U+FFFD


def read_document(path: str) -> Document:
    """Raises `Refused` where the file is not a readable VOC annotation."""
    data = read_file(path)
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
    return Document(fields, tuple(zip(*objects)), replaced)


def _read_fields(root: etree._Element) -> dict[str, str]:
    fields = {}
    for child in root:
        if child.tag != "object":
            fields[child.tag] = child.text or ""
            if child.tag == "size":
                fields.update((dimension.tag, dimension.text or "") for dimension in child)
    return fields


def _read_texts(item: etree._Element) -> ObjectTexts:
    texts, corners = {}, {}
    for child in item:
        if child.tag == "bndbox":
            corners = {corner.tag: corner.text or "" for corner in child}
        else:
            texts[child.tag] = child.text or ""
    return ObjectTexts(*map(corners.get, CORNERS), *map(texts.get, ObjectTexts._fields[4:]))


@functools.lru_cache(maxsize=4096)  # the same few names, flags and poses in every file
def clean(text: str | None) -> str:
    return " ".join((text or "").split())


def class_names(path: str) -> set[str]:
    """The classes that an annotation names; none where the file cannot be read, which converting it reports."""
    try:
        columns = read_document(path).columns
        return set(map(clean, columns[4])) - {""} if columns else set()
    except Refused:
        return set()


def named_image(path: str) -> str:
    """The last part of the <filename> that an annotation gives, or nothing."""
    try:
        return PureWindowsPath(clean(read_document(path).fields.get("filename"))).name
    except Refused:
        return ""
