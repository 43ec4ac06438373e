"""Pascal VOC: an XML file for each image. Which files there are, and what each says. Every flaw is named.

There is no TensorFlow here, so that worker processes start in a fraction of a second.
"""

from __future__ import annotations

import collections
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PureWindowsPath

from input import files
from input.conversion import images, voc_xml
from input.conversion.config import ConversionError, ConvertConfig, ReadOptions
from input.conversion.findings import Note, Refused
from input.conversion.frame import parse_size
from input.conversion.layout import Folders, find_folders, list_folder, unwrap
from input.conversion.objects import read_objects
from input.conversion.source import Input, Labels, Listing, Source, name_key
from input.conversion.workers import Advance
from input.manifest import Finding


def read(source: Source, options: ReadOptions, note: Note) -> Labels:
    """Reads one annotation.

    Raises:
      Refused: it cannot be read, or there is no image for it.
    """
    document = _read_document(source)
    if document.replaced:
        note("encoding", "save it as UTF-8, or declare its encoding in the first line")
    if document.other_case:
        note("tag_case", "")
    if not source.image_path:
        looked_for = f"{source.image_id}.*"
        if os.path.splitext(document.filename)[0] not in ("", source.image_id):
            looked_for += f" nor {document.filename}"
        raise Refused(source.annotation_path, "missing_image", f"no {looked_for} in the image folder")
    _check_names(source, document, note)
    return Labels(
        size=parse_size(document.height, document.width),
        objects=read_objects(document, options, source.annotation_path, note),
        zero_based=options.zero_based,
    )


def _read_document(source: Source) -> voc_xml.Document:
    if not source.annotation_path:
        raise Refused(source.image_id + ".xml", "missing_annotation", "not in the annotation folder")
    return voc_xml.read_document(source.annotation_path)


def _check_names(source: Source, document: voc_xml.Document, note: Note) -> None:
    """Notes where <filename> and <folder> disagree with the files that are used."""
    image_dir, image_name = os.path.split(source.image_path)
    image_name = name_key(image_name)
    folder = PureWindowsPath(document.folder).name  # takes both kinds of slashes
    if folder and folder not in os.path.abspath(image_dir).split(os.sep)[-2:]:
        note("folder", f"{document.folder}, but the image is in {os.path.basename(image_dir)}")
    stem, own_stem = os.path.splitext(image_name)[0], os.path.basename(source.image_id)
    if stem != own_stem:
        note("image_name", f"{image_name} for {own_stem}")
    filename = document.filename
    if filename == image_name:
        return
    name = PureWindowsPath(filename).name
    if name != filename:
        note("path_in_filename", filename)
    name = name_key(name)
    if stem == own_stem and name not in ("", image_name):
        same_stem = stem in (name, os.path.splitext(name)[0])
        note("extension" if same_stem else "filename", f"{filename}, but the image is {image_name}")


def classes_of(inputs: Sequence[Input], advance: Advance) -> dict[str, set[str]]:
    """By image id, the classes that each annotation names."""
    found = {}
    for item in inputs:
        found[item.image_id] = voc_xml.class_names(item.source.annotation_path)
        advance(1)
    return found


def all_classes(inputs: Sequence[Input], advance: Advance) -> set[str]:
    """The classes that the annotations name."""
    return set().union(*classes_of(inputs, advance).values())


def first_refusal(inputs: Iterable[Input]) -> Refused | None:
    """Why the first annotation that is refused is so; None where all can be read."""
    for item in inputs:
        try:
            _read_document(item.source)
        except Refused as refusal:
            return refusal
    return None


# Which files there are.


def list_splits(config: ConvertConfig) -> dict[str, Listing]:
    """The inputs of each split.

    Raises:
      ConversionError: a folder or image set is missing or empty.
    """
    inputs: dict[str, dict[str, Input]] = {}
    findings: dict[str, list[Finding]] = {}
    for voc_dir, folders in _all_folders(config):
        split = folders.split or _split_name(config)
        _list_data_set(voc_dir, folders, config, inputs.setdefault(split, {}), findings.setdefault(split, []))
    if not all(inputs.values()):
        raise ConversionError(f"{config.annotations_dir or ', '.join(config.voc_dirs)} holds no XML file.")
    return {split: Listing(list(by_id.values()), findings[split]) for split, by_id in inputs.items()}


def describe(config: ConvertConfig) -> list[str]:
    """Where the files were found, a line for each data set whose folders are not those of Pascal VOC.

    Raises:
      ConversionError: they were not found.
    """
    lines = []
    for voc_dir, folders in _all_folders(config):
        of_voc = os.path.join(voc_dir, "Annotations"), os.path.join(voc_dir, "JPEGImages")
        if (folders.annotations, folders.images) != of_voc and not (config.annotations_dir and config.images_dir):
            split = f"{folders.split}: " if folders.split else ""
            lines.append(f"{split}annotations from {folders.annotations}, images from {folders.images}")
    return lines


def _all_folders(config: ConvertConfig) -> Iterator[tuple[str, Folders]]:
    """Each `voc_dir` with the folders of its data set, several times where it has folders of splits."""
    for voc_dir in map(unwrap, config.voc_dirs or ("",)):
        found = find_folders(voc_dir, config.annotations_dir, config.images_dir)
        if found[0].split and (config.split or config.image_set or config.image_set_file):
            splits = ", ".join(folders.split for folders in found)
            raise ConversionError(f"{voc_dir} has folders of its splits ({splits}): leave out --split and --image_set.")
        yield from ((voc_dir, folders) for folders in found)


def _split_name(config: ConvertConfig) -> str:
    """The name of the split where no folder gives it."""
    set_file = os.path.splitext(os.path.basename(config.image_set_file))[0]
    return config.split or config.image_set or set_file or "all"


def _list_data_set(
    voc_dir: str, folders: Folders, config: ConvertConfig, inputs: dict[str, Input], findings: list[Finding]
) -> None:
    """Adds what one data set holds to `inputs`, by image id, and what is wrong with its lists to `findings`."""
    xml_dir, image_dir = os.path.join(folders.annotations, ""), os.path.join(folders.images, "")
    every_xml, other_xml = list_folder(os.path.dirname(xml_dir), (".xml",), below=True)
    image_files, other_images = list_folder(os.path.dirname(image_dir), images.IMAGE_EXTENSIONS, below=True)
    # An XML file in a subfolder counts if its image is in the subfolder of the same name: others are often old copies.
    xml_files = {stem: name for stem, name in every_xml.items() if not os.path.dirname(stem) or stem in image_files}
    used: dict[str, str] = {}  # by the name of an image, the image id
    set_file = config.image_set_file
    if not set_file and config.image_set:
        set_file = os.path.join(voc_dir, "ImageSets", "Main", config.image_set + ".txt")
    ids = [_image_id(line, xml_files) for line in _read_image_set(set_file)] if set_file else list(xml_files)
    for image_id, count in collections.Counter(ids).items():
        if count > 1:
            detail = f"{count} times in {os.path.basename(set_file)}"
            findings.append(Finding(image_id, image_id + ".xml", "listed_twice", detail))
        if image_id in inputs:
            detail = f"{inputs[image_id].source.annotation_path or image_id} has the same id; rename one, and its image"
            findings.append(Finding(image_id, image_id + ".xml", "duplicate_id", detail))
            continue
        xml_name, image_name = xml_files.get(image_id, ""), image_files.get(image_id, "")
        if xml_name and (not image_name or image_id in other_images):
            image_name = _find_image(image_id, xml_dir + xml_name, image_files, other_images)
        used[image_name] = image_id
        for name in other_xml.get(image_id, []):
            findings.append(Finding(image_id, name_key(name), "same_stem", f"{name_key(xml_name)} was used"))
        inputs[image_id] = Input(
            image_id=image_id,
            annotation_dir=xml_dir,
            annotation_name=xml_name,
            image_dir=image_dir,
            image_name=image_name,
        )
    for stem, names in other_images.items():
        of_stem = [image_files[stem], *names]
        if chosen := next((name for name in of_stem if name in used), ""):
            detail = f"{name_key(chosen)} was used"
            unused = [name for name in of_stem if name not in used]
            findings += [Finding(used[chosen], name_key(name), "same_stem", detail) for name in unused]
    if not set_file:
        of_inputs = {"", *map(os.path.dirname, used)}
        for stem, name in image_files.items():
            of_stem = [name, *other_images.get(stem, [])]
            if used.keys().isdisjoint(of_stem) and os.path.dirname(name) in of_inputs:
                findings.append(Finding(stem, name_key(name), "no_annotation", ""))
        for stem, name in every_xml.items():
            if stem not in xml_files:
                findings.append(Finding(os.path.basename(stem), name_key(name), "in_subfolder", ""))


def _find_image(image_id: str, xml_path: str, image_files: dict[str, str], other_images: dict[str, list[str]]) -> str:
    """The image with the XML's name or else with that of <filename>; of several, the one that <filename> names exactly.

    Args:
      image_files, other_images: what `list_folder` found.
    """
    own = image_files.get(image_id, "")
    filename = name_key(voc_xml.named_image(xml_path))
    stem = image_id if own else os.path.splitext(filename)[0]
    of_stem = (image_files.get(stem, ""), *other_images.get(stem, []))
    exact = next((name for name in of_stem if name_key(os.path.basename(name)) == filename), "")
    return exact or own or image_files.get(filename) or image_files.get(stem, "")


def _read_image_set(path: str) -> list[str]:
    """The lines of an image set that are not blank."""
    try:
        text = files.read(path).decode("utf-8-sig")
    except FileNotFoundError:
        folder = os.path.dirname(path)
        there = sorted(os.path.splitext(name)[0] for name in files.names(folder)) if files.is_dir(folder) else []
        raise ConversionError(f"{path} is missing; image sets there: {', '.join(there) or 'none'}.") from None
    except UnicodeDecodeError:
        raise ConversionError(f"{path} is not UTF-8: save it again as UTF-8.") from None
    lines = [name_key(line.strip()) for line in io.StringIO(text, newline=None) if line.strip()]
    if not lines:
        raise ConversionError(f"{path} lists no image.")
    return lines


def _image_id(line: str, xml_files: dict[str, str]) -> str:
    """The image id in a line of an image set, which may also have an extension, or VOC's -1, 0 or 1 for a class."""
    if line in xml_files:
        return line
    name, _, flag = line.rpartition(" ")
    if flag in ("-1", "0", "1") and name.strip():
        line = name.strip()
    stem, extension = os.path.splitext(line)
    return stem if extension.lower() in (".xml", *images.IMAGE_EXTENSIONS) else line
