"""COCO: one JSON file for all images. Which images it lists, and what it says about each."""

from __future__ import annotations

import collections
import itertools
import json
import os
import re
from collections.abc import Sequence
from pathlib import PureWindowsPath
from typing import Any, NamedTuple

from input import files
from input.conversion import images
from input.conversion.config import ConversionError, ConvertConfig, ReadOptions
from input.conversion.findings import Note, Refused
from input.conversion.frame import parse_size
from input.conversion.layout import list_folder, split_of
from input.conversion.objects import box_around, find_kind, read_finite, rotate
from input.conversion.source import Input, Labels, Listing, Object, Source, clean_name, clean_text, name_key
from input.conversion.workers import Advance
from input.manifest import Finding
from input.tfrecord import Box


class _Annotation(NamedTuple):
    """What is kept of one annotation; the rest, above all segmentations, would take gigabytes."""

    image_id: Any
    category_id: Any
    box: list | None  # x, y, width, height
    points: list | None  # x, y, x, y, ... of all polygons; only where there is no box
    rotation: Any  # of the box about its centre, in degrees, as CVAT writes it
    is_crowd: bool
    is_difficult: bool


def read(source: Source, options: ReadOptions, note: Note) -> Labels:
    """Reads what the file says about one image.

    Raises:
      Refused: there is no such image, or a class is not in the label list.
    """
    height, width, filename, items = json.loads(source.document)
    if not source.image_path:
        raise Refused(source.path, "missing_image", f"no {filename} in the image folder")
    name = source.name
    if name != filename:
        note("extension" if _stem(name) == _stem(filename) else "path_in_filename", filename)
    objects = []
    for class_name, corners, points, rotation, is_crowd, is_difficult in items:
        if not class_name:
            note("missing_name", "an annotation of no category")
        elif (kind := find_kind(class_name, options, source.path, note)) and (
            box := _read_box(class_name, corners, points, rotation, note)
        ):
            ignored = is_crowd or kind.ignored
            objects.append(Object(kind.name, box, difficult=int(is_difficult), ignored=ignored))
    return Labels(parse_size(str(height), str(width)), objects)


def _read_box(class_name: str, corners: list | None, points: list | None, rotation: Any, note: Note) -> Box | None:
    """The box, or the upright one around the polygons; None, with the reason noted, if it is unreadable."""
    values = corners or points or []
    if (len(values) != 4) if corners else (len(values) < 6 or len(values) % 2):
        note("missing_corner", f"{class_name}: {len(values)} numbers")
        return None
    if not (numbers := read_finite(values, note)):
        return None
    if not corners:
        note("polygon", f"{class_name} of {len(numbers) // 2} points")
        return box_around(numbers)
    x, y, width, height = numbers
    return rotate((y, x, y + height, x + width), rotation, class_name, note)


def classes_of(inputs: Sequence[Input], advance: Advance) -> dict[str, set[str]]:
    """By image id, the classes that the file names for each image."""
    found = {}
    for item in inputs:
        *_, objects = json.loads(item.document)
        found[item.image_id] = {name for name, *_ in objects if name}
        advance(1)
    return found


# Which images there are.


def list_splits(config: ConvertConfig) -> dict[str, Listing]:
    """The inputs of the only split.

    Raises:
      ConversionError: the file is not COCO's, its ids contradict each other, or the folder holds none of its images.
    """
    path = config.coco_json
    image_dir = config.images_dir or os.path.dirname(path) or "."
    file_name = name_key(os.path.basename(path))
    document = _load(path)
    annotations = [item for item in document["annotations"] if isinstance(item, _Annotation)]
    categories = _categories(path, document["categories"], annotations)
    if not categories:
        raise ConversionError(f"{path} names no category.")
    by_image: dict[Any, list[_Annotation]] = collections.defaultdict(list)
    for annotation in annotations:
        by_image[_key(annotation.image_id)].append(annotation)
    folder = _ImageFolder(image_dir)
    inputs: dict[str, Input] = {}
    filenames: dict[str, str] = {}  # by the image's id in the file
    findings = []
    for entry in document["images"]:
        fields = entry if isinstance(entry, dict) else {}
        filename, key = fields.get("file_name"), _key(fields.get("id"))
        filename = clean_name(filename) if isinstance(filename, str) else ""
        if not filename:
            findings.append(Finding("", file_name, "missing_image", f"image {key} has no file_name"))
            continue
        if fields.get("id") is not None and (first := filenames.setdefault(key, filename)) != filename:
            raise ConversionError(_repeated(path, "images", key, first, filename, "image_id"))
        relative, found = folder.find(filename)
        image_id = _stem(found or relative)
        if image_id in inputs:
            findings.append(Finding(image_id, name_key(os.path.basename(relative)), "duplicate_id", "listed before"))
            continue
        objects = [
            (
                categories.get(_key(item.category_id)),
                item.box,
                item.points,
                item.rotation,
                item.is_crowd,
                item.is_difficult,
            )
            for item in by_image.pop(key, [])
        ]
        shown = os.path.basename(relative) if relative == filename.replace("\\", "/") else filename
        about = (_scalar(fields.get("height")), _scalar(fields.get("width")), shown, objects)
        inputs[image_id] = Input(
            image_id=image_id,
            annotation_dir="",
            annotation_name="",
            image_dir=os.path.join(image_dir, ""),
            image_name=found,
            document=json.dumps(about, separators=(",", ":")).encode(),
        )
    if not any(item.image_name for item in inputs.values()):
        raise ConversionError(f"{image_dir} holds no image that {path} lists: name their folder with --images_dir.")
    if document["annotations"] and sum(map(len, by_image.values())) == len(annotations):
        image_id, named_id = (next(iter(ids), "missing") for ids in (filenames, by_image))
        raise ConversionError(
            f"{path}: no annotation belongs to one of the images: their id is, for instance, {image_id}, "
            f"and image_id of an annotation {named_id}; export the file again."
        )
    if by_image:
        detail = f"{sum(map(len, by_image.values()))} annotations, such as of image {next(iter(by_image))}"
        findings.append(Finding("", file_name, "no_such_image", detail))
    split = config.split or split_of(path) or "all"
    return {split: Listing(list(inputs.values()), findings, tuple(categories.values()))}


def describe(config: ConvertConfig) -> list[str]:
    return []


def _load(path: str) -> dict[str, list]:
    """The file's three lists."""
    try:
        document = json.loads(files.read_regular(path), object_hook=_shrink)
    except OSError as error:
        raise ConversionError(f"--coco_json={path}: {error.strerror or error}; name a JSON file.") from error
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path} is not JSON ({error}): export it again.") from error
    names = ("images", "annotations", "categories")
    if not isinstance(document, dict) or not all(isinstance(document.get(name), list) for name in names):
        raise ConversionError(f"{path} is not in COCO's format: it must hold the lists {', '.join(names)}.")
    return document


def _shrink(fields: dict[str, Any]) -> Any:
    """An annotation made small as soon as it is parsed; any other object is left as it is."""
    if "image_id" not in fields:
        return fields
    box, polygons = fields.get("bbox"), fields.get("segmentation")
    box = box if isinstance(box, list) and box else None
    parts = polygons if isinstance(polygons, list) and not box else []
    # A rotated box has no segmentation; around an ellipse, which CVAT writes as a mask, the box is upright already.
    attributes = fields.get("attributes") if box and not polygons else None
    return _Annotation(
        image_id=_scalar(fields["image_id"]),
        category_id=_scalar(fields.get("category_id")),
        box=[_scalar(value) for value in box] if box else None,
        points=[_scalar(value) for part in parts if isinstance(part, list) for value in part] or None,
        rotation=_scalar(attributes.get("rotation")) if isinstance(attributes, dict) else None,
        is_crowd=_scalar(fields.get("iscrowd")) in (1, "1"),
        is_difficult=_scalar(fields.get("ignore")) in (1, "1"),  # as converters from VOC write `difficult`
    )


def _categories(path: str, entries: list, annotations: list[_Annotation]) -> dict[str, str]:
    """The class of each category, in the order of the ids.

    Roboflow writes the name of the whole set as a category too, which has no objects and is the others' supercategory.

    Raises:
      ConversionError: two categories have one id.
    """
    used = {_key(item.category_id) for item in annotations}
    known = [item for item in entries if isinstance(item, dict) and _text(item.get("name"))]
    groups = {group for item in known if (group := _text(item.get("supercategory"))) != _text(item["name"])}
    numbered = [(_scalar(item.get("id")), _text(item["name"])) for item in known]
    numbered.sort(key=lambda item: (0, item[0], "") if isinstance(item[0], (int, float)) else (1, 0, str(item[0])))
    classes: dict[str, str] = {}
    for number, name in numbered:
        if (first := classes.setdefault(_key(number), name)) != name:
            raise ConversionError(_repeated(path, "categories", _key(number), first, name, "category_id"))
    return {key: name for key, name in classes.items() if key in used or name not in groups}


def _repeated(path: str, what: str, key: str, first: str, second: str, field: str) -> str:
    return (
        f"{path}: the {what} {first!r} and {second!r} have one id, {key}, as where files were joined: "
        f"number the {what} anew, and with them {field} of the annotations."
    )


class _ImageFolder:
    """Where the images are; each folder is listed once."""

    def __init__(self, path: str):
        self._path = path
        self._listed: dict[str, dict[str, str]] = {}

    def find(self, filename: str) -> tuple[str, str]:
        """The name of an image as a path from the folder, and that of its file; "" where there is none.

        Of the folders in the name those at its end count that are there: the others may be of another machine, or lead
        to the folder itself. None leads out of it.
        """
        path = PureWindowsPath(filename)  # takes both kinds of slashes
        parts = [part for part in path.parts if part != path.anchor]
        while ".." in parts:
            del parts[: parts.index("..") + 1]
        folders, last = parts[:-1], name_key(parts[-1]) if parts else filename
        candidates = [os.path.join(*folders[start:]) for start in range(len(folders))]
        below = next((candidate for candidate in candidates if self._names(candidate)), "")
        names = self._names(below)
        found = names.get(last) or names.get(_stem(last), "")
        return os.path.join(below, last), os.path.join(below, found) if found else ""

    def _names(self, below: str) -> dict[str, str]:
        """The images of a folder, by name and by stem; empty where there is no such folder."""
        if below not in self._listed:
            path = os.path.join(self._path, below) if below else self._path
            stems, others = list_folder(path, images.IMAGE_EXTENSIONS) if files.is_dir(path) else ({}, {})
            every_name = itertools.chain(stems.values(), *others.values())
            self._listed[below] = {**stems, **{name_key(name): name for name in every_name}}
        return self._listed[below]


def _stem(name: str) -> str:
    """A file's name without its extension; `frame.2` has none."""
    stem, extension = os.path.splitext(name)
    return name if extension[1:].isdigit() else stem


def _scalar(value: Any) -> Any:
    """A number or text as it is; None for anything else."""
    return value if isinstance(value, (int, float, str)) else None


def _key(identity: Any) -> str:
    """An id in the form in which ids are compared: some tools write 7 in one place, and 7.0 or "7" in another."""
    identity = int(identity) if isinstance(identity, float) and identity.is_integer() else identity
    return re.sub("[\x00-\x1f\ud800-\udfff]", "\ufffd", str(_scalar(identity)))[:80]


def _text(value: Any) -> str:
    return clean_text(value) if isinstance(value, str) else ""
