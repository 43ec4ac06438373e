"""Where a data set keeps its annotations and its images: found by what the folders hold, since names differ by tool."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from input import archives, files
from input.conversion.config import ConversionError
from input.conversion.images import IMAGE_EXTENSIONS
from input.conversion.source import name_key

# Names that tools give; they decide where several folders hold files of a kind.
_ANNOTATION_NAMES = ("annotations", "annotation", "annots", "annot", "labels", "label", "xml", "xmls")
_IMAGE_NAMES = ("jpegimages", "images", "image", "imgs", "img", "photos")
# A name with one of these is taken for that of a file, since to ask takes milliseconds in a bucket.
_FILE_EXTENSIONS = (*IMAGE_EXTENSIONS, ".xml", ".txt", ".json", ".yaml", ".yml", ".csv")
# `is_dir` takes archives for folders, but the files beside one were often unpacked from it.
_KNOWN_EXTENSIONS = (*_FILE_EXTENSIONS, ".zip", ".tar")
SPLIT_NAMES = {"train": "train", "valid": "val", "val": "val", "validation": "val", "test": "test"}


class Folders(NamedTuple):
    """The folders of one data set, or of one split of it."""

    split: str  # the split that the folder's name gives; empty where it gives none
    annotations: str
    images: str


def find_folders(voc_dir: str, annotations_dir: str = "", images_dir: str = "") -> list[Folders]:
    """The folders that hold a data set's XML files and images.

    Pascal VOC's own, `Annotations` and `JPEGImages`, come first. Otherwise those count that hold XML files or images,
    `voc_dir` itself included (XML beside the images); of several, one with a usual name. Where there is none, folders
    called train, valid (or val) and test are searched in the same way: one split each. Where there is one, these may
    hold unlabelled images, but no XML files. Where several folders hold XML files with their images, all of them do.

    Args:
      voc_dir: the data set's folder; may be empty where both others are given.
      annotations_dir, images_dir: used as they are, if given.

    Raises:
      ConversionError: nothing was found, or several folders fit.
    """
    voc_dir = unwrap(voc_dir)
    annotations = annotations_dir or _existing(voc_dir, "Annotations")
    images = images_dir or _existing(voc_dir, "JPEGImages")
    if annotations and images:
        return [Folders("", annotations, images)]
    if not files.is_dir(voc_dir):
        raise ConversionError(f"--voc_dir={voc_dir}: there is no such folder.")
    inside = [os.path.join(voc_dir, name) for name in sorted(files.names(voc_dir)) if not _is_hidden(name)]
    subfolders = [path for path in inside if _extension(path) not in _FILE_EXTENSIONS and files.is_dir(path)]
    splits = [path for path in subfolders if os.path.basename(path).lower() in SPLIT_NAMES]
    candidates = [voc_dir, *(path for path in subfolders if path not in splits)]
    with_xml = [path for path in candidates if _holds(path, (".xml",))]
    labelled = [path for path in splits if any(walk(path, (".xml",)))] if with_xml and not annotations_dir else []
    # Of a folder for each class, one may be called train.
    are_classes = not annotations and not images and len(with_xml) > 1 and _paired([*with_xml, *labelled])
    if labelled and not are_classes:
        raise ConversionError(
            f"{' and '.join(labelled)} hold XML files, and so does {' and '.join(with_xml)}: move one kind away, or "
            "convert one folder, named with --voc_dir or --annotations_dir and --images_dir."
        )
    if not annotations and not with_xml:
        if splits and any(walk(voc_dir, (".xml",))):
            return [_folders_of_split(path) for path in splits]
        raise ConversionError(
            f"{voc_dir}: neither it nor a folder in it holds an XML file; name the folder with --annotations_dir."
            + ask_format(voc_dir, ".yaml", ".json")
        )
    if are_classes:
        return [Folders("", voc_dir, voc_dir)]
    annotations = annotations or _choose(with_xml, _ANNOTATION_NAMES, "XML files", "--annotations_dir")
    if not images:
        with_images = [path for path in candidates if _holds(path, IMAGE_EXTENSIONS)]
        if not with_images:
            raise ConversionError(
                f"{voc_dir}: neither it nor a folder in it holds an image; name the folder with --images_dir."
            )
        images = _choose(with_images, _IMAGE_NAMES, "images", "--images_dir")
    return [Folders("", annotations, images)]


def ask_format(folder: str, *extensions: str) -> str:
    """A question on the flag of another format, where a folder holds a file as that format has it; otherwise empty."""
    flags = {".xml": "--voc_dir", ".yaml": "--yolo_dir", ".json": "--coco_json"}
    found = next(walk(folder, extensions), "")
    return f" It holds {found}: is {flags[_extension(found)]} meant?" if found else ""


def unwrap(folder: str) -> str:
    """The folder that alone is in an archive, where people often pack a folder rather than what is in it."""
    while archives.locate(folder):
        inside = [name for name in files.names(folder) if not _is_hidden(name)]
        if len(inside) != 1 or not files.is_dir(os.path.join(folder, inside[0])):
            break
        folder = os.path.join(folder, inside[0])
    return folder


def _folders_of_split(folder: str) -> Folders:
    (found, *others) = find_folders(folder)
    if others or found.split:
        raise ConversionError(f"{folder} holds splits itself: name one of them with --voc_dir, and --split.")
    return found._replace(split=SPLIT_NAMES[os.path.basename(folder).lower()])


def _existing(folder: str, name: str) -> str:
    path = os.path.join(folder, name)
    return path if files.is_dir(path) else ""


def _paired(folders: Sequence[str]) -> bool:
    """Whether each folder holds images beside its XML files, as where there is a folder for each class or day."""
    return all(_holds(path, IMAGE_EXTENSIONS) for path in folders)


def _holds(folder: str, extensions: Collection[str]) -> bool:
    return any(_extension(name) in extensions for name in files.names(folder))


def _choose(folders: Sequence[str], names: Sequence[str], what: str, flag: str) -> str:
    """The only folder, or the only one with a usual name."""
    usual = [path for path in folders if os.path.basename(path).lower() in names]
    for candidates in (folders, usual):
        if len(candidates) == 1:
            return candidates[0]
    raise ConversionError(f"{' and '.join(usual or folders)} hold {what}: choose one with {flag}.")


def split_of(path: str) -> str:
    """The split that the name of a file or else of its folder tells, as instances_train2017.json does; may be empty."""
    folder, name = os.path.split(path.lower())
    words = [*re.findall("[a-z]+", name), os.path.basename(folder)]
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")


def list_folder(
    path: str, extensions: Sequence[str], *, below: bool = False
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The names of files with one of the extensions, by stem.

    Of several with one stem the earlier extension wins, and the others are given apart.

    Args:
      below: those in subfolders too; names and stems then are paths from the folder.

    Raises:
      ConversionError: the folder cannot be read.
    """
    found: dict[str, tuple[int, str]] = {}
    others: dict[str, list[str]] = {}
    ranks = {extension: rank for rank, extension in enumerate(extensions)}
    try:
        for name in walk(path, extensions) if below else files.names(path):
            stem, dot, extension = name.rpartition(".")
            rank = ranks.get(dot + extension.lower())
            last = os.path.basename(stem)
            if rank is not None and last.strip(".") and not last.startswith("._"):  # macOS leaves those behind
                key = name_key(stem)
                best, *rest = sorted([(rank, name), *([found[key]] if key in found else [])])
                found[key] = best
                for _, other in rest:
                    others.setdefault(key, []).append(other)
    except OSError as error:
        raise ConversionError(f"{path}: {error.strerror}; check the flags that name folders.") from error
    return {key: name for key, (_, name) in found.items()}, {key: sorted(names) for key, names in others.items()}


def walk(folder: str, extensions: Sequence[str], below: str = "") -> Iterator[str]:
    """The files with one of the extensions in a folder and in its subfolders, each with its path from there."""
    for name in sorted(files.names(os.path.join(folder, below))):
        path = os.path.join(below, name)
        extension = _extension(name)
        if _is_hidden(name):
            continue
        if extension in extensions:
            yield path
        elif extension in _KNOWN_EXTENSIONS or path.count(os.sep) == 8:  # links may go round in circles
            continue
        elif files.is_dir(os.path.join(folder, path)):
            with contextlib.suppress(OSError):
                yield from walk(folder, extensions, path)


def _extension(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _is_hidden(name: str) -> bool:
    """Whether a file or folder is no data; macOS adds a folder of its own to the zip files that it makes."""
    return name.startswith(".") or name == "__MACOSX"
