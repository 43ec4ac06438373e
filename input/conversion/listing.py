"""Which files each record of a split is made of."""

from __future__ import annotations

import collections
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from input import files
from input.conversion import images, voc, voc_xml
from input.conversion.config import ConversionError, ConvertConfig
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
    inputs: dict[str, Input] = {}
    findings: list[Finding] = []
    for voc_dir in config.voc_dirs or ("",):
        _list_voc_dir(voc_dir, config, inputs, findings)
    if not inputs:
        raise ConversionError(f"{config.annotations_dir or ', '.join(config.voc_dirs)} holds no XML file.")
    listed = _with_stats([inputs[image_id] for image_id in sorted(inputs)])
    if not config.val_fraction:
        name = config.image_set or os.path.splitext(os.path.basename(config.image_set_file))[0] or "all"
        return {name: Listing(listed, findings)}
    num_val = round(config.val_fraction * len(listed))
    if not 0 < num_val < len(listed):
        raise ConversionError(f"--val_fraction={config.val_fraction} of {len(listed)} images leaves a split empty.")
    val_ids = {item.image_id for item in shuffled(listed, config.seed, "val")[:num_val]}
    return {
        name: Listing(
            inputs=[item for item in listed if (item.image_id in val_ids) == (name == "val")],
            findings=[finding for finding in findings if (finding.image_id in val_ids) == (name == "val")],
        )
        for name in ("train", "val")
    }


def _list_voc_dir(voc_dir: str, config: ConvertConfig, inputs: dict[str, Input], findings: list[Finding]) -> None:
    """Adds what one VOC folder holds to `inputs`, by image id, and what is wrong with its lists to `findings`."""
    xml_dir = os.path.join(config.annotations_dir or os.path.join(voc_dir, "Annotations"), "")
    image_dir = os.path.join(config.images_dir or os.path.join(voc_dir, "JPEGImages"), "")
    xml_files = _list_folder(os.path.dirname(xml_dir), (".xml",))
    image_files = _list_folder(os.path.dirname(image_dir), images.IMAGE_EXTENSIONS)
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
        inputs[image_id] = Input(
            image_id=image_id, xml_dir=xml_dir, xml_name=xml_name, image_dir=image_dir, image_name=image_name
        )


def _list_folder(path: str, extensions: Sequence[str]) -> dict[str, str]:
    """The names of files with one of the extensions, by stem; of several with one stem the earlier extension wins."""
    found: dict[str, tuple[int, str]] = {}
    ranks = {extension: rank for rank, extension in enumerate(extensions)}
    try:
        for name in files.names(path):
            stem, dot, extension = name.rpartition(".")
            rank = ranks.get(dot + extension.lower())
            if rank is not None and stem.strip(".") and not stem.startswith("._"):  # macOS leaves those behind
                key = voc.name_key(stem)
                found[key] = min(found.get(key, (rank, name)), (rank, name))
    except OSError as error:
        raise ConversionError(f"{path}: {error.strerror}; check --voc_dir, --annotations_dir, --images_dir.") from error
    return {key: name for key, (_, name) in found.items()}


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
