"""The objects of an annotation: their texts -> boxes as written -> boxes inside the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from input.conversion.config import IGNORE, ReadOptions
from input.conversion.findings import Note, Refused
from input.conversion.frame import Size
from input.conversion.source import Object
from input.conversion.voc_xml import Document, ObjectTexts
from input.tfrecord import CORNERS, Box

_MIN_SIDE = 0.01  # pixels; of a JPEG's 65535, the float32 of the records still tells this from nothing


def read_objects(document: Document, options: ReadOptions, path: str, note: Note) -> list[Object]:
    """The objects of the annotation at `path`, with their boxes as written; notes the reason for each that is dropped.

    Raises:
      Refused: a class is not in the label list.
    """
    objects = []
    for texts in document.objects:
        name = texts.name
        if texts.deleted:
            note("deleted_object", name)
            continue
        if not name:
            note("missing_name", "an <object> without <name>")
            continue
        kind = find_kind(name, options, path, note)
        if not kind:
            continue
        attributes = {"difficult": texts.difficult, "pose": texts.pose, "truncated": texts.truncated}
        if absent := [tag for tag, text in attributes.items() if text is None]:
            note("fields_absent", f"{name}: {', '.join(absent)}")
        if texts.has_parts:
            note("parts", name)
        if box := _read_box(texts, note):
            objects.append(
                Object(
                    name=kind.name,
                    box=box,
                    difficult=_flag(texts.difficult),
                    truncated=_flag(texts.truncated),
                    pose=texts.pose or "Unspecified",
                    ignored=kind.ignored,
                )
            )
    return objects


class Kind(NamedTuple):
    """What an object counts as."""

    name: str
    ignored: bool  # its box is an ignored region


def find_kind(name: str, options: ReadOptions, path: str, note: Note) -> Kind | None:
    """What an object of this class counts as; None, with the reason noted, where it is dropped.

    Raises:
      Refused: the class is not in the label list, and is not to be dropped.
    """
    name = options.new_names.get(name, name)
    if "\ufffd" in name:
        raise Refused(path, "not_utf8", f"class {name!r}: declare the encoding in the first line, or save it as UTF-8")
    if name in options.ignore_classes:
        return Kind(name, ignored=True)
    if name in options.classes:
        return Kind(name, ignored=False)
    if name == IGNORE:
        return Kind(name, ignored=True)
    if not options.drop_unknown_classes:
        raise Refused(path, "unknown_class", f"class {name!r} is not in the label list")
    if options.dropped_classes_as == "ignore":
        note("unknown_class_ignored", name)
        return Kind(name, ignored=True)
    note("unknown_class_dropped", name)
    return None


def scale_objects(objects: Sequence[Object], size: Size) -> list[Object]:
    """Objects whose boxes are shares of an image's sides -> with boxes in its pixels."""
    height, width = size
    scaled = []
    for item in objects:
        ymin, xmin, ymax, xmax = item.box
        scaled.append(item._replace(box=(ymin * height, xmin * width, ymax * height, xmax * width)))
    return scaled


def place_objects(
    objects: Sequence[Object], labelled_size: Size, image_size: Size, zero_based: bool, note: Note
) -> list[Object]:
    """The objects with their boxes inside the image; notes the reason for each that is dropped.

    Args:
      objects: with boxes as written, which refer to an image of `labelled_size`.
      zero_based: the boxes are edges counted from 0, not pixels counted from 1.
    """
    placed: dict[tuple[str, Box], Object] = {}
    for item in objects:
        box = _fit_box(item.box, labelled_size, image_size, zero_based, note)
        if not box:
            continue
        if (item.name, box) in placed:
            note("duplicate_box", item.name)
            continue
        placed[item.name, box] = item._replace(box=box)
    return list(placed.values())


def _flag(text: str | None) -> int:
    return int((text or "").lower() in ("1", "true", "yes"))


def _read_box(texts: ObjectTexts, note: Note) -> Box | None:
    """A box as written, or the upright one around a polygon or rotated box.

    Returns None, with the reason noted, if a number is absent or is none.
    """
    if texts.points:
        points = []
        for written in texts.points:
            point = _read_numbers(dict(zip("xy", written)), "xy", note)
            if not point:
                return None
            points.append(point)
        note("polygon", f"{texts.name} of {len(points)} points")
        return box_around([number for point in points for number in point])
    if texts.rotated:
        numbers = _read_numbers(texts.rotated, ("cx", "cy", "w", "h", "angle"), note)
        if not numbers:
            return None
        note("rotated_box", texts.name)
        return _box_around_rotated(*numbers)
    corners = _read_numbers(texts.corners, CORNERS, note)
    if not corners:
        return None
    ymin, xmin, ymax, xmax = corners
    return rotate((ymin, xmin, ymax, xmax), texts.rotation, texts.name, note)


def rotate(box: Box, rotation: Any, name: str, note: Note) -> Box:
    """The upright box around one of class `name` that is rotated about its centre, by degrees.

    CVAT writes the box as it was before, and `rotation` beside it as an attribute, which users may also define for
    themselves: then it may be anything, and only numbers count.
    """
    try:
        degrees = float(rotation)
    except (OverflowError, TypeError, ValueError):
        return box
    ymin, xmin, ymax, xmax = box
    width, height = xmax - xmin, ymax - ymin
    if not math.isfinite(degrees) or degrees % 360 == 0 or min(abs(width), abs(height)) < _MIN_SIDE:
        return box
    note("rotated_box", name)
    return _box_around_rotated((xmin + xmax) / 2, (ymin + ymax) / 2, width, height, math.radians(degrees))


def _box_around_rotated(x: float, y: float, width: float, height: float, angle: float) -> Box:
    """The upright box around one with this centre that is rotated about it by `angle`, in radians."""
    cos, sin = abs(math.cos(angle)) / 2, abs(math.sin(angle)) / 2
    half_width, half_height = abs(width) * cos + abs(height) * sin, abs(width) * sin + abs(height) * cos
    return y - half_height, x - half_width, y + half_height, x + half_width


def box_around(numbers: Sequence[float]) -> Box:
    """The upright box around points, which are given as x and y in turn."""
    xs, ys = numbers[::2], numbers[1::2]
    return min(ys), min(xs), max(ys), max(xs)


def _read_numbers(texts: dict[str, str], tags: Sequence[str], note: Note) -> list[float]:
    """The numbers with these tags; none, with the reason noted, if one is absent or is no number."""
    if missing := [tag for tag in tags if not texts.get(tag)]:
        note("missing_corner", f"no {', '.join(missing)}")
        return []
    return read_finite([texts[tag] for tag in tags], note)


def read_finite(values: Sequence[Any], note: Note) -> list[float]:
    """The numbers, some of which may be written as text; none, with the reason noted, if one is not finite."""
    numbers = []
    for value in values:
        try:
            number = _read_number(value, note) if isinstance(value, str) else float(value)
        except (OverflowError, TypeError):
            number = math.nan
        if not math.isfinite(number) or isinstance(value, bool):
            note("bad_number", str(value)[:20])
            return []
        numbers.append(number)
    return numbers


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


def _fit_box(box: Box, labelled_size: Size, image_size: Size, zero_based: bool, note: Note) -> Box | None:
    """A box as written -> edges in pixels of the image from 0, clipped to the image.

    Returns None, with the reason noted, if the box is dropped.
    """
    height, width = labelled_size
    image_height, image_width = image_size
    first = 0 if zero_based else 1  # VOC counts pixels from 1 and includes the last: pixel 1 is between edges 0 and 1
    # The smallest sides that are still a box, both as written and in the image.
    least_height, least_width = _MIN_SIDE * max(height / image_height, 1), _MIN_SIDE * max(width / image_width, 1)
    (ymin, ymax), (xmin, xmax) = sorted(box[::2]), sorted(box[1::2])
    if xmax - xmin < least_width or ymax - ymin < least_height:
        note("degenerate_box", _as_written(box))
        return None
    if (ymin, xmin, ymax, xmax) != box:
        inside = ymin >= 0 and xmin >= 0 and ymax <= height and xmax <= width
        note("swapped_box" if inside else "swapped_outside", f"{_as_written(box)} in {width}x{height}")
        if not inside:
            return None
    top, left, bottom, right = max(ymin - first, 0.0), max(xmin - first, 0.0), min(ymax, height), min(xmax, width)
    if bottom - top < least_height or right - left < least_width:
        note("outside_box", f"{_as_written(box)} in {width}x{height}")
        return None
    # Less than this is a rounding error of shares or of widths, not a box that reaches out.
    if min(ymin, xmin) < -_MIN_SIDE or ymax > height + _MIN_SIDE or xmax > width + _MIN_SIDE:
        note("clipped_box", f"{_as_written(box)} in {width}x{height}")
    elif not zero_based and min(ymin, xmin) < 1:
        note("zero_coordinate", _as_written(box))
    if labelled_size == image_size:
        return top, left, bottom, right
    # Divided first: the largest share is then exactly 1.
    return (
        top / height * image_height,
        left / width * image_width,
        bottom / height * image_height,
        right / width * image_width,
    )


def _as_written(box: Box) -> str:
    ymin, xmin, ymax, xmax = box
    return f"xmin {xmin:g} ymin {ymin:g} xmax {xmax:g} ymax {ymax:g}"
