"""Which files each record of a split is made of."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from input import files
from input.conversion import images, voc, voc_xml
from input.conversion.config import ConversionError, ConvertConfig
from input.conversion.layout import Folders, find_folders
from input.shards import Finding


class Input(NamedTuple):
    """The files of one record. A name is empty where there is no such file.

    There is one of these for every image of the data set; they share their folders' names, to save memory.
    """

    image_id: str
    xml_dir: str  # with a separator at its end, as `image_dir`
    xml_name: str
    image_dir: str
    image_name: str
    num_bytes: int = 0  # of the image
    fingerprint: str = ""  # of the sizes and modification times of the files: when it differs, they changed

    @property
    def source(self) -> voc.Source:
        return voc.Source(
            image_id=self.image_id,
            xml_path=self.xml_dir + self.xml_name if self.xml_name else "",
            image_path=self.image_dir + self.image_name if self.image_name else "",
        )


class Listing(NamedTuple):
    inputs: list[Input]  # in order of their ids
    findings: list[Finding]  # about the lists themselves


def list_inputs(config: ConvertConfig) -> dict[str, Listing]:
    """The inputs of each split.

    Raises:
      ConversionError: a folder or image set is missing or empty.
    """
    inputs: dict[str, dict[str, Input]] = {}
    findings: dict[str, list[Finding]] = {}
    for voc_dir, folders in _all_folders(config):
        split = folders.split or _split_name(config)
        _list_data_set(voc_dir, folders, config, inputs.setdefault(split, {}), findings.setdefault(split, []))
    listings = {}
    for split, by_id in inputs.items():
        if not by_id:
            raise ConversionError(f"{config.annotations_dir or ', '.join(config.voc_dirs)} holds no XML file.")
        listings[split] = Listing(_with_stats([by_id[image_id] for image_id in sorted(by_id)]), findings[split])
    if not config.val_fraction:
        return listings
    if len(listings) > 1:
        raise ConversionError(f"--val_fraction divides a folder without splits, but there are {', '.join(listings)}.")
    ((listed, found),) = listings.values()
    num_val = round(config.val_fraction * len(listed))
    if not 0 < num_val < len(listed):
        raise ConversionError(f"--val_fraction={config.val_fraction} of {len(listed)} images leaves a split empty.")
    val_ids = {item.image_id for item in shuffled(listed, config.seed, "val")[:num_val]}
    return {
        name: Listing(
            inputs=[item for item in listed if (item.image_id in val_ids) == (name == "val")],
            findings=[finding for finding in found if (finding.image_id in val_ids) == (name == "val")],
        )
        for name in ("train", "val")
    }


def describe_folders(config: ConvertConfig) -> list[str]:
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
    for voc_dir in config.voc_dirs or ("",):
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
    xml_files, other_xml = _list_folder(os.path.dirname(xml_dir), (".xml",))
    image_files, other_images = _list_folder(os.path.dirname(image_dir), images.IMAGE_EXTENSIONS)
    used = set()
    set_file = config.image_set_file
    if not set_file and config.image_set:
        set_file = os.path.join(voc_dir, "ImageSets", "Main", config.image_set + ".txt")
    ids = [_image_id(line, xml_files) for line in _read_image_set(set_file)] if set_file else list(xml_files)
    for image_id, count in collections.Counter(ids).items():
        if count > 1:
            detail = f"{count} times in {os.path.basename(set_file)}"
            findings.append(Finding(image_id, image_id + ".xml", "listed_twice", detail))
        if image_id in inputs:
            detail = f"{inputs[image_id].source.xml_path or image_id} has the same id; rename one, and its image"
            findings.append(Finding(image_id, image_id + ".xml", "duplicate_id", detail))
            continue
        xml_name, image_name = xml_files.get(image_id, ""), image_files.get(image_id, "")
        if xml_name and not image_name:
            filename = voc.name_key(voc_xml.named_image(xml_dir + xml_name))
            image_name = image_files.get(os.path.splitext(filename)[0]) or image_files.get(filename, "")
        used.add(image_name)
        for name in other_xml.get(image_id, []) + other_images.get(os.path.splitext(image_name)[0], []):
            findings.append(Finding(image_id, name, "same_stem", f"{xml_name} and {image_name} were used"))
        inputs[image_id] = Input(
            image_id=image_id, xml_dir=xml_dir, xml_name=xml_name, image_dir=image_dir, image_name=image_name
        )
    if not set_file:
        for stem, name in image_files.items():
            if name not in used:
                findings.append(Finding(stem, voc.name_key(name), "no_annotation", ""))
        for name in _xml_below(os.path.dirname(xml_dir)):
            stem = os.path.splitext(os.path.basename(name))[0]
            findings.append(Finding(voc.name_key(stem), voc.name_key(name), "in_subfolder", ""))


def _list_folder(path: str, extensions: Sequence[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The names of files with one of the extensions, by stem.

    Of several with one stem the earlier extension wins, and the others are given apart.
    """
    found: dict[str, tuple[int, str]] = {}
    others: dict[str, list[str]] = {}
    ranks = {extension: rank for rank, extension in enumerate(extensions)}
    try:
        for name in files.names(path):
            stem, dot, extension = name.rpartition(".")
            rank = ranks.get(dot + extension.lower())
            if rank is not None and stem.strip(".") and not stem.startswith("._"):  # macOS leaves those behind
                key = voc.name_key(stem)
                best, *rest = sorted([(rank, name), *([found[key]] if key in found else [])])
                found[key] = best
                for _, other in rest:
                    others.setdefault(key, []).append(voc.name_key(other))
    except OSError as error:
        raise ConversionError(f"{path}: {error.strerror}; check --voc_dir, --annotations_dir, --images_dir.") from error
    return {key: name for key, (_, name) in found.items()}, {key: sorted(names) for key, names in others.items()}


def _xml_below(folder: str, below: str = "") -> Iterator[str]:
    """The XML files in the subfolders of a folder, each with its path from there."""
    for name in sorted(files.names(os.path.join(folder, below))):
        path = os.path.join(below, name)
        extension = os.path.splitext(name)[1]
        if name.startswith((".", "__")):
            continue
        if extension[1:].isalpha():  # a file; a bucket would take milliseconds to say so
            if below and extension.lower() == ".xml":
                yield path
        elif path.count(os.sep) < 8 and files.is_dir(os.path.join(folder, path)):  # links may go round in circles
            with contextlib.suppress(OSError):
                yield from _xml_below(folder, path)


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
    lines = [voc.name_key(line.strip()) for line in io.StringIO(text, newline=None) if line.strip()]
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


def _with_stats(inputs: Sequence[Input]) -> list[Input]:
    """The inputs with `num_bytes` and `fingerprint` filled in."""
    sources = [item.source for item in inputs]
    xml_stats = files.stats([source.xml_path for source in sources])
    image_stats = files.stats([source.image_path for source in sources])
    done = []
    for item, xml_stat, image_stat in zip(inputs, xml_stats, image_stats):
        decides = repr((item.xml_name, item.image_name, [xml_stat, image_stat]))
        digest = hashlib.sha256(decides.encode("utf-8", "surrogateescape")).hexdigest()
        num_bytes, _ = image_stat
        done.append(item._replace(num_bytes=num_bytes, fingerprint=digest[:8]))
    return done


def shuffled(inputs: Iterable[Input], seed: int, purpose: str) -> list[Input]:
    """The inputs in the order of a hash of their ids, the seed and the purpose, so that nothing else matters."""
    return sorted(inputs, key=lambda item: hashlib.sha256(f"{purpose} {seed} {item.image_id}".encode()).digest())
