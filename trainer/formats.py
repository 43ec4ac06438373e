"""Boxes written as other programs read them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from lxml import etree

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class LabelledBox(NamedTuple):
    """An object, or a detection, which has a score."""

    label: str
    box: Sequence[float]  # ymin xmin ymax xmax, edges in px
    difficult: bool = False
    score: float = 1.0


def voc_xml(filename: str, width: int, height: int, objects: Sequence[LabelledBox], *, zero_based: bool = False) -> str:
    """An annotation in Pascal VOC's format, which `prepare_tfrecords.py` and labelling tools read.

    VOC names the first and the last pixel of a box, counted from 1: edges at 0 and 10 are the pixels 1 to 10. With
    `zero_based` the edges themselves are written, as the converter's flag of this name reads them. Edges are rounded to
    whole pixels inside the image, and a box has at least one pixel.
    """
    first = 0 if zero_based else 1
    root = etree.Element("annotation")

    def add(parent: etree._Element, tag: str, text: object = "") -> etree._Element:
        child = etree.SubElement(parent, tag)
        child.text = _NOT_IN_XML.sub("\ufffd", str(text)) if text != "" else None
        return child

    add(root, "filename", filename)
    size = add(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 3)):
        add(size, tag, value)
    for item in objects:
        ymin, xmin, ymax, xmax = item.box
        left, top = min(max(round(xmin), 0), width - 1), min(max(round(ymin), 0), height - 1)
        right, bottom = min(max(round(xmax), left + 1), width), min(max(round(ymax), top + 1), height)
        element = add(root, "object")
        for tag, text in (("name", item.label), ("difficult", int(item.difficult))):
            add(element, tag, text)
        corners = add(element, "bndbox")
        for tag, value in (("xmin", left + first), ("ymin", top + first), ("xmax", right), ("ymax", bottom)):
            add(corners, tag, value)
    return etree.tostring(root, encoding="unicode", pretty_print=True)


def yolo_txt(width: int, height: int, objects: Sequence[LabelledBox], labels: Sequence[str]) -> str:
    """A line for each box: class index from 0, then centre x, centre y, width and height as shares of the image."""
    lines = []
    for item in objects:
        ymin, xmin, ymax, xmax = item.box
        shares = ((xmin + xmax) / 2 / width, (ymin + ymax) / 2 / height, (xmax - xmin) / width, (ymax - ymin) / height)
        lines.append(" ".join([str(labels.index(item.label)), *(f"{share:.6f}" for share in shares)]))
    return "".join(f"{line}\n" for line in lines)


def coco_row(image_id: str, class_index: int, box: Sequence[float], score: float) -> dict[str, Any]:
    """A detection in COCO's format of results; `category_id` is the line in `labels.txt`, counted from 1.

    Args:
      image_id: of the image.
      class_index: counted from 0.
      box: ymin xmin ymax xmax, edges in px.
      score: 0 to 1.
    """
    ymin, xmin, ymax, xmax = box
    return {
        "image_id": image_id,
        "category_id": class_index + 1,
        "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
        "score": score,
    }
