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


# Finding the files.
class Input(NamedTuple):
    """The files of one record, a few hundred bytes for each: a name is empty where there is no such file."""

    image_id: str
    xml_dir: str  # with a separator at its end, as `image_dir`
    xml_name: str
    image_dir: str
    image_name: str
    num_bytes: int  # of the image
    fingerprint: str  # tells whether the files changed: of their sizes and modification times, as rsync does

    @property
    def source(self) -> voc.Source:
        xml_path = self.xml_dir + self.xml_name if self.xml_name else ""
        image_path = self.image_dir + self.image_name if self.image_name else ""
        return voc.Source(self.image_id, xml_path, image_path)


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
    try:
        text = files.read(path).decode("utf-8-sig")
    except FileNotFoundError:
        folder = os.path.dirname(path)
        there = sorted(os.path.splitext(name)[0] for name in files.names(folder)) if files.is_dir(folder) else []
        raise ConversionError(f"{path} is missing; image sets there: {', '.join(there) or 'none'}.") from None
    except UnicodeDecodeError:
        raise ConversionError(f"{path} is not UTF-8: save it again as UTF-8.") from None
    if not (lines := [voc.name_key(line.strip()) for line in io.StringIO(text, newline=None) if line.strip()]):
        raise ConversionError(f"{path} lists no image.")
    return lines


def _image_id(line: str, xml_files: dict[str, str]) -> str:
    """A line of an image set is an id, perhaps with VOC's -1, 0 or 1 for a class, or with an extension."""
    if line in xml_files:
        return line
    name, _, flag = line.rpartition(" ")
    if flag in ("-1", "0", "1") and name.strip():
        line = name.strip()
    stem, extension = os.path.splitext(line)
    return stem if extension.lower() in (".xml", *images.IMAGE_EXTENSIONS) else line


class Listing(NamedTuple):
    inputs: list[Input]  # in order of their ids
    findings: list[Finding]  # about the lists themselves


def list_inputs(config: ConvertConfig) -> dict[str, Listing]:
    """The inputs of each split.

    Raises:
      ConversionError: a folder or image set is missing or empty.
    """
    inputs: dict[str, Input] = {}
    findings = []
    for voc_dir in config.voc_dirs or ("",):
        xml_dir = os.path.join(config.annotations_dir or os.path.join(voc_dir, "Annotations"), "")
        image_dir = os.path.join(config.images_dir or os.path.join(voc_dir, "JPEGImages"), "")
        xml_files = _list_folder(os.path.dirname(xml_dir), (".xml",))
        image_files = _list_folder(os.path.dirname(image_dir), images.IMAGE_EXTENSIONS)
        set_file = config.image_set_file
        if not set_file and config.image_set:
            set_file = os.path.join(voc_dir, "ImageSets", "Main", config.image_set + ".txt")
        ids = [_image_id(line, xml_files) for line in _read_image_set(set_file)] if set_file else list(xml_files)
        counts = collections.Counter(ids)
        for image_id in counts:
            if counts[image_id] > 1:
                detail = f"{counts[image_id]} times in {os.path.basename(set_file)}"
                findings.append(Finding(image_id, image_id + ".xml", "listed_twice", detail))
            xml, image = xml_files.get(image_id, ""), image_files.get(image_id, "")
            if xml and not image:
                filename = voc.name_key(voc_xml.named_image(os.path.join(xml_dir, xml)))
                image = image_files.get(os.path.splitext(filename)[0]) or image_files.get(filename, "")
            if image_id in inputs:
                detail = f"{inputs[image_id].source.xml_path or image_id} has the same id; rename one, and its image"
                findings.append(Finding(image_id, image_id + ".xml", "duplicate_id", detail))
                continue
            inputs[image_id] = Input(image_id, xml_dir, xml, image_dir, image, 0, "")
    if not inputs:
        raise ConversionError(f"{xml_dir} holds no XML file.")
    listed = _add_stats([inputs[image_id] for image_id in sorted(inputs)])
    if config.val_fraction:
        num_val = round(config.val_fraction * len(listed))
        drawn = shuffled(listed, config.seed, "val")
        splits = {"train": drawn[num_val:], "val": drawn[:num_val]}
    else:
        splits = {config.image_set or os.path.splitext(os.path.basename(config.image_set_file))[0] or "all": listed}
    if not all(splits.values()):
        raise ConversionError(f"--val_fraction={config.val_fraction} of {len(listed)} images leaves a split empty.")
    ids = {name: {item.image_id for item in split} for name, split in splits.items()}
    return {
        name: Listing(
            sorted(split, key=lambda item: item.image_id),
            [finding for finding in findings if finding.image_id in ids[name]],
        )
        for name, split in splits.items()
    }


def _add_stats(inputs: Sequence[Input]) -> list[Input]:
    stats = iter(files.stats([path for item in inputs for path in item.source[1:]]))
    done = []
    for item, of_xml, of_image in zip(inputs, stats, stats):
        decides = repr((item.xml_name, item.image_name, [of_xml, of_image]))
        digest = hashlib.sha256(decides.encode("utf-8", "surrogateescape")).hexdigest()
        done.append(Input(*item[:5], of_image[0], digest[:8]))
    return done


def shuffled(inputs: Iterable[Input], seed: int, purpose: str) -> list[Input]:
    """In the order of a hash, so that it depends on nothing but the ids and the seed."""
    return sorted(inputs, key=lambda item: hashlib.sha256(f"{purpose} {seed} {item.image_id}".encode()).digest())
