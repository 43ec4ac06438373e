"""YOLO: a text file for each image, with a line for each object, and the classes in data.yaml."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import PureWindowsPath
from typing import Any, NamedTuple, NoReturn

import yaml

from input import files
from input.conversion import images
from input.conversion.config import ConversionError, ConvertConfig, ReadOptions
from input.conversion.findings import Note, Refused
from input.conversion.layout import SPLIT_NAMES, ask_format, list_folder, unwrap, walk
from input.conversion.objects import box_around, find_kind, read_finite
from input.conversion.source import Input, Labels, Listing, Object, Source, clean_text, name_key
from input.conversion.workers import Advance
from input.manifest import Finding
from input.tfrecord import Box

_NO_LABELS = re.compile(r"(classes|train|val|valid|test|notes|readme.*|.*requirements)$", re.IGNORECASE)


def read(source: Source, options: ReadOptions, note: Note) -> Labels:
    """Reads one text file: `class x y width height` in a line (the centre and the sides), or `class x y x y ...`.

    Raises:
      Refused: it cannot be read, there is no image for it, or a class is not in the label list.
    """
    if not source.image_path:
        where = "in the image folder" if source.annotation_path else "though a list names it"
        raise Refused(source.path, "missing_image", f"no {source.image_id}.* {where}")
    objects: list[Object] = []
    if not source.annotation_path:
        note("no_label_file", "")
        return Labels((0, 0), objects, shares=True)
    try:
        text = files.read_regular(source.annotation_path).decode("utf-8-sig", "replace")
    except OSError as error:
        raise Refused(source.path, "unreadable", error.strerror or str(error)) from error
    for line in text.splitlines():
        index, *values = line.split() or ("",)
        if not index:
            continue
        name = _class_name(index, options.declared)
        if name is None:
            raise Refused(source.path, "unknown_class", f"class {index[:20]!r} has no name in the list of classes")
        kind = find_kind(name, options, source.path, note)
        if kind and (box := _read_box(name, values, options, note)):
            objects.append(Object(kind.name, box, ignored=kind.ignored))
    return Labels((0, 0), objects, shares=True)


def _class_name(index: str, names: tuple[str, ...]) -> str | None:
    number = re.fullmatch(r"\+?0*(\d{1,6})(\.0*)?", index, re.ASCII)
    return names[int(number[1])] or None if number and int(number[1]) < len(names) else None


def _read_box(name: str, values: list[str], options: ReadOptions, note: Note) -> Box | None:
    """The box of a line, as shares of the sides; None, with the reason noted, where it is unreadable."""
    if options.box_first:  # keypoints follow
        values = values[:4]
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        note("missing_corner", f"{name}: {len(values)} numbers")
        return None
    if not (numbers := read_finite(values, note)):
        return None
    if len(numbers) > 4:
        note("polygon", f"{name} of {len(numbers) // 2} points")
        return box_around(numbers)
    x, y, width, height = numbers
    return y - height / 2, x - width / 2, y + height / 2, x + width / 2


def classes_of(inputs: Sequence[Input], advance: Advance) -> dict[str, set[str]]:
    """By image id, the indexes of the classes in each text file, as they are written."""
    found = {}
    for item in inputs:
        try:
            text = files.read_regular(item.source.annotation_path) if item.annotation_name else b""
        except OSError:
            text = b""  # the conversion itself reports it
        lines = text.decode("utf-8-sig", "replace").splitlines()
        found[item.image_id] = {line.split()[0] for line in lines if line.split()}
        advance(1)
    return found


# Which files there are.


class _Unlabelled(ConversionError):
    """A split has no text file, or none of its images is there."""


class _Folders(NamedTuple):
    """Where the files of one split are."""

    split: str
    images: str  # a folder, or a text file that lists images
    labels: str  # empty for such a list: the folder of each image decides


def list_splits(config: ConvertConfig) -> dict[str, Listing]:
    """The inputs of each split. A test split that nobody labelled is left out, and noted with another split.

    Raises:
      ConversionError: the classes, the images or their text files were not found.
    """
    root = unwrap(config.yolo_dir)
    settings = _read_settings(root)
    classes = _read_classes(root, settings)
    listings: dict[str, Listing] = {}
    for folders in _find_folders(root, config, settings):
        try:
            listing = _list_split(folders) if folders.labels else _read_list(root, folders.images)
        except _Unlabelled as error:
            if folders.split != "test" or not listings:
                raise
            next(iter(listings.values())).findings.append(Finding("", "test", "unlabelled_split", str(error)))
            continue
        split = folders.split or config.split or "all"
        listings[split] = listing._replace(classes=classes, box_first="kpt_shape" in settings)
    return listings


def describe(config: ConvertConfig) -> list[str]:
    """Where the files were found, a line for each split."""
    root = unwrap(config.yolo_dir)
    return [
        f"{folders.split or config.split or 'all'}: images from {folders.images}, "
        f"labels from {folders.labels or 'beside each'}"
        for folders in _find_folders(root, config, _read_settings(root))
    ]


def _list_split(folders: _Folders) -> Listing:
    image_files, others = list_folder(folders.images, images.IMAGE_EXTENSIONS, below=True)
    label_files, _ = list_folder(folders.labels, (".txt",), below=True)
    findings = [
        Finding(stem, name_key(os.path.basename(name)), "same_stem", f"{name_key(image_files[stem])} was used")
        for stem, names in others.items()
        for name in names
    ]
    if not image_files:
        raise ConversionError(f"{folders.images} holds no image.")
    if label_files.keys().isdisjoint(image_files):
        _refuse_unlabelled(folders.images, len(image_files), folders.images)
    stray = [stem for stem in label_files if stem not in image_files and not _NO_LABELS.match(os.path.basename(stem))]
    inputs = [
        Input(
            image_id=stem,
            annotation_dir=os.path.join(folders.labels, ""),
            annotation_name=label_files.get(stem, ""),
            image_dir=os.path.join(folders.images, ""),
            image_name=image_files.get(stem, ""),
        )
        for stem in (*image_files, *stray)
    ]
    return Listing(inputs, findings)


def _read_list(root: str, path: str) -> Listing:
    """The images that a text file lists, as CVAT, Darknet and Ultralytics write it."""
    home = root if path.startswith(os.path.join(root, "")) else os.path.dirname(path)
    there = {name_key(name): name for name in walk(home, images.IMAGE_EXTENSIONS)}
    text = files.read_regular(path).decode("utf-8-sig", "surrogateescape")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    start = os.path.relpath(os.path.dirname(path), home)
    names = [_find_listed(line, start, there) for line in lines]
    folders = {os.path.dirname(name) for name in names if name}
    if not folders:
        raise _Unlabelled(f"{path} lists {len(lines)} images, and none of them is in {home}: correct its lines.")
    label_dirs = {folder: _labels_folder(os.path.join(home, folder)) for folder in folders}
    label_files = {folder: list_folder(label_dirs[folder], (".txt",))[0] for folder in folders}
    common = os.path.commonpath(folders) or os.curdir
    inputs: dict[str, Input] = {}
    findings = []
    for line, name in zip(lines, names):
        folder, base = os.path.split(name)
        image_id = name_key(os.path.splitext(os.path.relpath(name, common) if name else "/".join(_parts(line)))[0])
        if earlier := inputs.get(image_id):
            reason = "listed_twice" if earlier.image_name == base else "same_stem"
            findings.append(Finding(image_id, name_key(base or line), reason, f"in {os.path.basename(path)}"))
        elif not name:
            inputs[image_id] = Input(image_id, "", "", "", "")
        else:
            inputs[image_id] = Input(
                image_id=image_id,
                annotation_dir=os.path.join(label_dirs[folder], ""),
                annotation_name=label_files[folder].get(name_key(os.path.splitext(base)[0]), ""),
                image_dir=os.path.join(home, folder, ""),
                image_name=base,
            )
    if not any(item.annotation_name for item in inputs.values()):
        _refuse_unlabelled(path, len(inputs), os.path.join(home, min(folders)))
    return Listing(list(inputs.values()), findings)


def _find_listed(line: str, start: str, there: dict[str, str]) -> str:
    """The image that a line of a list means, as a path below the root; empty where it is not there.

    Args:
      start: the folder of the list, below the root; a path may begin there.
      there: by `name_key`, the images below the root, of which otherwise the last parts of the path count.
    """
    parts = _parts(line)
    paths = (os.path.normpath(os.path.join(start, *parts)), *_ends(parts))
    return next((there[key] for key in map(name_key, paths) if key in there), "")


def _refuse_unlabelled(what: str, count: int, image_folder: str) -> NoReturn:
    """Refuses a split of negatives only, as it would be where the folder of the text files is not found."""
    raise _Unlabelled(
        f"{what}: none of its {count} images has a text file in {' or '.join(_label_folders(image_folder))}: move the "
        "text files there or, where the images truly have no objects, make an empty text file for one of them."
    )


def _read_settings(folder: str) -> dict[str, Any]:
    """The content of data.yaml, or of the only YAML file that names classes; empty where there is none.

    Raises:
      ConversionError: there is no such folder, or the file cannot be read.
    """
    if not files.is_dir(folder):
        raise ConversionError(f"--yolo_dir={folder}: there is no such folder; name the one that holds data.yaml.")
    found = {}
    for name in sorted(files.names(folder)):
        if name.lower().endswith((".yaml", ".yml")):
            path = os.path.join(folder, name)
            try:  # BaseLoader leaves every value a text: otherwise a class called `no` would become False
                settings = yaml.load(files.read_regular(path), yaml.BaseLoader)
            except OSError as error:
                raise ConversionError(f"{path}: {error.strerror or error}.") from error
            except (yaml.YAMLError, ValueError, RecursionError) as error:
                reason = " ".join(str(error).split())[:200]
                raise ConversionError(f"{path} is not YAML ({reason}): correct it.") from error
            if isinstance(settings, dict) and "names" in settings:
                found[name] = settings
    if "data.yaml" not in found and len(found) > 1:
        raise ConversionError(f"{folder}: {' and '.join(found)} both name classes: call one of them data.yaml.")
    return found.get("data.yaml") or next(iter(found.values()), {})


def _read_classes(folder: str, settings: dict[str, Any]) -> tuple[str, ...]:
    """The class of each index.

    Raises:
      ConversionError: no file names the classes, or one has no name.
    """
    names = settings.get("names", {})
    if isinstance(names, dict) and all(str(key).isdecimal() for key in names) and names:
        numbered = {int(key): name for key, name in names.items()}
        names = [numbered.get(index) for index in range(min(max(numbered) + 1, 2 * len(numbered) + 1000))]
    elif not settings:
        names = _read_class_list(folder)
    if not isinstance(names, list) or not names or not any(isinstance(name, str) for name in names):
        raise ConversionError(
            f"{folder}: no file names the classes: write `names: [cat, dog]` to data.yaml."
            + ask_format(folder, ".xml", ".json")
        )
    return tuple(clean_text(name) if isinstance(name, str) else "" for name in names)


def _read_class_list(folder: str) -> list[str]:
    """The lines of classes.txt (labelImg, Label Studio) or obj.names (CVAT, Darknet), blank ones too."""
    for name in ("classes.txt", "obj.names", "labels/classes.txt"):
        path = os.path.join(folder, name)
        if files.exists(path):
            text = files.read_regular(path).decode("utf-8-sig", "replace")
            return text.rstrip().splitlines()
    return []


def _read_darknet(root: str) -> dict[str, Any]:
    """The lists that Darknet's obj.data names (CVAT's "YOLO 1.1" has it); without it, those beside obj.names."""
    path = os.path.join(root, "obj.data")
    if files.exists(path):
        pairs = [line.split("=", 1) for line in files.read_regular(path).decode("utf-8", "replace").splitlines()]
        named = {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}
        # Not every tool writes the lists that it names.
        return named if any(_resolve(root, None, named[key]) for key in SPLIT_NAMES if named.get(key)) else {}
    if files.exists(os.path.join(root, "obj.names")):
        return {name: f"{name}.txt" for name in SPLIT_NAMES if files.exists(os.path.join(root, f"{name}.txt"))}
    return {}


def _find_folders(root: str, config: ConvertConfig, settings: dict[str, Any]) -> list[_Folders]:
    """The folders or lists that data.yaml or obj.data names, or else the folders that are there."""
    file = "data.yaml" if settings else "obj.data"
    settings = settings or _read_darknet(root)
    found = []
    for key, split in SPLIT_NAMES.items():
        value = settings.get(key)
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, str) and part:
                place = _resolve(root, settings.get("path"), part)
                if split != "train" and place and _is_list(place) and not files.read_regular(place).strip():
                    continue  # it lists no image
                if place:
                    found.append(_Folders(split, place, "" if _is_list(place) else _labels_folder(place)))
                elif split != "test":  # Roboflow names a test set even where there is none
                    part = clean_text(part)
                    raise ConversionError(
                        f"{root}: {file} says {key}: {part}, but there is no such folder or list: correct it."
                    )
    if not found:
        found = _guess_folders(root)
    splits = [folders.split for folders in found]
    if len(set(splits)) < len(splits):
        raise ConversionError(f"{root}: there are several folders of one split ({', '.join(splits)}): join them.")
    if config.split and splits != [""]:
        raise ConversionError(f"{root} has folders of its splits ({', '.join(splits)}): leave out --split.")
    return found


def _resolve(root: str, base: Any, path: str) -> str:
    """The folder or list that is meant; paths often are those of another machine, of which the last parts count."""
    candidates = [os.path.join(root, end) for end in _ends(_parts(path))]
    if isinstance(base, str):
        elsewhere = os.path.normpath(os.path.join(root, base, path))
        around = os.path.join(os.path.abspath(elsewhere), "")
        if not os.path.abspath(root).startswith(around):  # it could be the whole disk
            candidates.append(elsewhere)
    return next(filter(files.exists if _is_list(path) else files.is_dir, candidates), "")


def _is_list(path: str) -> bool:
    return path.lower().endswith(".txt")


def _parts(path: str) -> list[str]:
    named = PureWindowsPath(path)  # takes both kinds of slashes
    return [part for part in named.parts if part not in (named.anchor, "..")]


def _ends(parts: list[str]) -> list[str]:
    """The path of all parts, of all but the first, and so on."""
    return [os.path.join(*parts[start:]) for start in range(len(parts))]


def _guess_folders(root: str) -> list[_Folders]:
    """ROOT/train/images, ROOT/images/train, ROOT/images, ROOT/obj_train_data, or ROOT itself."""
    for below, inside in (("", "images"), ("", ""), ("images", "")):
        found = []
        for name, split in {**SPLIT_NAMES, "obj_train_data": "train", "obj_valid_data": "val"}.items():
            folder = os.path.join(root, *filter(None, (below, name, inside)))
            if files.is_dir(folder):
                found.append(_Folders(split, folder, _labels_folder(folder)))
        if found:
            return found
    folder = os.path.join(root, "images")
    folder = folder if files.is_dir(folder) else root
    return [_Folders("", folder, _labels_folder(folder))]


def _labels_folder(image_folder: str) -> str:
    return next(filter(files.is_dir, _label_folders(image_folder)), image_folder)


def _label_folders(image_folder: str) -> list[str]:
    """Where the text files may be, the likeliest first: in `labels` in place of the last `images`, or among the images.

    A folder called `images` comes before a name that holds the word, as in images/coco_images.
    """
    folder = image_folder.rstrip("/")
    by_part = "/labels/".join(f"{folder}/".rsplit("/images/", 1)).rstrip("/")
    by_word = "labels".join(folder.rsplit("images", 1))
    return [*dict.fromkeys(path for path in (by_part, by_word) if path != folder), folder]
