"""Shards: their names, the label list beside them, what they hold, and whether they are sound."""

from __future__ import annotations

import array
import collections
import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from input import files
from input.manifest import Manifest, manifest_path, read_manifest
from input.tfrecord import CORNERS, DamagedShardError, count_records_in_file, decode_example, frame_record, read_records

LABELS = "labels.txt"
LABEL_MAP = "label_map.pbtxt"

_REMEDY = "delete this file and run prepare_tfrecords.py again."


# Names.


def shard_name(split: str, index: int, num_shards: int) -> str:
    return f"{split}-{index:05d}-of-{num_shards:05d}.tfrecord"


def split_name(path: str) -> str:
    """The split a shard belongs to: `train` of `DIR/train-00000-of-00008.tfrecord`, else the file's stem."""
    stem = os.path.basename(path).split(".tfrecord")[0]
    return re.sub(r"-\d+-of-\d+$", "", stem)


def report_path(directory: str, split: str) -> str:
    return os.path.join(directory, f"{split}.report.html")


def expand_glob(patterns: str | Iterable[str], split: str = "") -> list[str]:
    """The files that the patterns (comma separated, or several) match, sorted.

    A folder stands for its shards: those of `split` where there are any, otherwise those of its only split.

    Raises:
      FileNotFoundError: a pattern matches nothing.
      ValueError: a folder holds several splits.
    """
    paths: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for part in filter(None, (piece.strip() for piece in pattern.split(","))):
            matches = _shards_in(part, split) if files.is_dir(part) else files.glob(part)
            if not matches:
                raise FileNotFoundError(f"no file matches {part!r}: check the pattern, or convert the data first.")
            paths.update(matches)
    if not paths:
        raise FileNotFoundError(f"no file pattern given: {patterns!r}.")
    return sorted(paths)


def _shards_in(folder: str, split: str) -> list[str]:
    by_split = shards_by_split(folder)
    if split not in by_split and len(by_split) > 1:
        raise ValueError(
            f"{folder} holds shards of {', '.join(sorted(by_split))}: choose one with a pattern such as "
            f"'{os.path.join(folder, min(by_split))}-*.tfrecord'."
        )
    names = by_split.get(split) or [name for members in by_split.values() for name in members]
    return [os.path.join(folder, name) for name in names]


def shards_by_split(folder: str) -> dict[str, list[str]]:
    """The names of the shards in a folder, sorted, by split."""
    by_split: dict[str, list[str]] = {}
    for name in sorted(files.names(folder)):
        if re.search(r"-\d+-of-\d+\.tfrecord$", name):
            by_split.setdefault(split_name(name), []).append(name)
    return by_split


# The label list.


def read_labels(shard_paths: Iterable[str]) -> tuple[str, ...]:
    """The class names, from the labels.txt beside the shards; class i is entry i.

    Raises:
      FileNotFoundError: a folder of shards has no labels.txt.
      ValueError: the list is empty or names a class twice, or two folders disagree.
    """
    found: dict[str, tuple[str, ...]] = {}
    for directory in sorted({os.path.dirname(path) for path in shard_paths}):
        path = os.path.join(directory, LABELS)
        try:
            found[path] = parse_labels(path)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path} is missing: it belongs beside the shards; convert the data again."
            ) from None
    if not found:
        raise FileNotFoundError("no shards were given: a pattern such as 'OUT/train-*.tfrecord' names them.")
    if len(set(found.values())) > 1:
        raise ValueError(f"the label lists differ: {', '.join(found)}; convert one with --labels set to the other.")
    return next(iter(found.values()))


def parse_labels(path: str) -> tuple[str, ...]:
    """The class names of a label file, one a line.

    Raises:
      ValueError: the file is empty, is not UTF-8, or names a class twice.
    """
    try:
        text = files.read(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8: save it again as UTF-8.") from None
    labels = tuple(filter(None, (" ".join(line.split()) for line in io.StringIO(text, newline=None))))
    if not labels:
        raise ValueError(f"{path} names no class: write one class name a line.")
    if repeated := [name for name in labels if labels.count(name) > 1]:
        raise ValueError(f"{path} names {repeated[0]!r} twice.")
    return labels


def label_map(labels: Iterable[str]) -> str:
    """The label list as a `StringIntLabelMap`, which the tools of the TF Object Detection API read; ids start at 1."""
    quoted = (label.replace("\\", "\\\\").replace('"', '\\"') for label in labels)
    return "".join(f'item {{\n  id: {index}\n  name: "{label}"\n}}\n' for index, label in enumerate(quoted, 1))


# What shards hold.


class GroundTruth(NamedTuple):
    """What one record says is in its image."""

    image_id: str
    height: int  # of the original image, in pixels
    width: int
    boxes: np.ndarray  # f32 [n, 4], ymin xmin ymax xmax in pixels of the original image
    classes: np.ndarray  # i32 [n], 0-based
    difficult: np.ndarray  # bool [n]
    regions: np.ndarray = np.zeros((0, 4), np.float32)  # f32 [r, 4], ignored regions, as `boxes`
    region_classes: np.ndarray = np.zeros(0, np.int32)  # i32 [r], 0-based; -1 where every class is ignored


def read_annotations(paths: Iterable[str]) -> list[GroundTruth]:
    """The ground truth of every record, in record order; see `iterate_annotations`."""
    return list(iterate_annotations(paths))


def iterate_annotations(paths: Iterable[str]) -> Iterator[GroundTruth]:
    """The ground truth of one record after another; images are neither decoded nor kept.

    Raises:
      DamagedShardError: a shard is damaged, or its records are no detection records.
    """
    keys = ["image/source_id", "image/height", "image/width"]
    keys += [f"image/object/{name}" for name in ("class/label", "difficult", "is_crowd")]
    keys += [f"image/object/bbox/{corner}" for corner in CORNERS]
    for path in paths:
        for index, record in enumerate(read_records(path)):
            try:
                yield _ground_truth(decode_example(record, frozenset(keys)))
            except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
                raise _not_a_detection_record(path, index, error) from error


def _ground_truth(features: dict[str, list]) -> GroundTruth:
    height, width = features["image/height"][0], features["image/width"][0]
    labels = array.array("i", features.get("image/object/class/label", ()))  # fails beyond 32 bits
    classes = np.asarray(labels) - 1
    corners = [features.get(f"image/object/bbox/{corner}", ()) for corner in CORNERS]
    boxes = np.asarray(corners, np.float64).T * (height, width, height, width)
    difficult, is_crowd = (
        np.asarray(features.get(f"image/object/{name}") or [0] * len(classes), np.bool_)
        for name in ("difficult", "is_crowd")
    )
    if not len(boxes) == len(classes) == len(difficult) == len(is_crowd):
        raise ValueError("lists of different lengths")
    boxes = boxes.astype(np.float32)
    return GroundTruth(
        image_id=features.get("image/source_id", [b""])[0].decode(),
        height=height,
        width=width,
        boxes=boxes[~is_crowd],
        classes=classes[~is_crowd],
        difficult=difficult[~is_crowd],
        regions=boxes[is_crowd],
        region_classes=classes[is_crowd],
    )


def _not_a_detection_record(path: str, index: int, error: Exception) -> DamagedShardError:
    return DamagedShardError(f"{path}: record {index} is not a detection record ({error}); convert the data again.")


def read_classes(paths: Iterable[str], num_classes: int) -> list[list[int]]:
    """The classes (0-based) of every record's objects, in record order; ignored regions are no objects.

    Raises:
      DamagedShardError: a shard is damaged, or its records are no detection records.
      ValueError: a label is beyond the list of `num_classes` names.
    """
    label_key, crowd_key = "image/object/class/label", "image/object/is_crowd"
    classes = []
    for path in paths:
        for index, record in enumerate(read_records(path)):
            try:
                features = decode_example(record, frozenset([label_key, crowd_key]))
            except ValueError as error:
                raise _not_a_detection_record(path, index, error) from error
            labels = features.get(label_key, [])
            is_crowd = features.get(crowd_key) or [0] * len(labels)
            labels = [label for label, ignored in zip(labels, is_crowd) if not ignored]
            if bad := [label for label in labels if not 1 <= label <= num_classes]:
                raise ValueError(
                    f"{path}: record {index} has the label {bad[0]}, but labels.txt names {num_classes} classes: "
                    "put the label list of these records there, or convert the data again."
                )
            classes.append([label - 1 for label in labels])
    return classes


def count_objects(paths: Sequence[str], labels: Sequence[str]) -> collections.Counter[str]:
    """How many objects of each class the records hold; reads only the shards that no manifest names.

    Args:
      paths: whole sets of shards.
      labels: the class names.

    Raises:
      DamagedShardError, ValueError: as `read_classes`.
    """
    counts: collections.Counter[str] = collections.Counter()
    counted = set()
    for path, manifest in _with_manifests(paths):
        if manifest and len(manifest.labels) <= len(labels) and manifest.shard(os.path.basename(path)):
            if id(manifest) not in counted:
                counted.add(id(manifest))
                # By index, as the records know them: a name in labels.txt may have been corrected since.
                names = zip(labels, manifest.labels)
                counts.update({label: manifest.boxes_per_class.get(name, 0) for label, name in names})
        else:
            for classes in read_classes([path], len(labels)):
                counts.update(labels[index] for index in classes)
    return counts


class RecordName(NamedTuple):
    """What people know a record by; as text, a phrase for a message."""

    image_id: str
    path: str
    record_index: int  # in that shard

    def __str__(self) -> str:
        return f"{self.image_id} (record {self.record_index} of {self.path})"


def name_records(paths: Sequence[str], indexes: Iterable[int]) -> list[RecordName]:
    """The names of the records with these indexes, counted over all shards read in order; sorted by index."""
    wanted, names, first = sorted(set(indexes)), [], 0
    for path, count in zip(paths, count_records(paths)):
        here = [index - first for index in wanted if first <= index < first + count]
        for index in here:
            record = next(read_records(path, start=index))
            try:
                found = decode_example(record, frozenset(["image/source_id"]))
                image_id = found.get("image/source_id", [b""])[0].decode("utf-8", "replace")
            except (IndexError, ValueError):
                image_id = ""
            names.append(RecordName(image_id or "without image id", path, index))
        first += count
    return names


# Counting and checking.


def _with_manifests(paths: Iterable[str]) -> Iterator[tuple[str, Manifest | None]]:
    """Each shard's path and the manifest beside it, None where there is none; reads each manifest once."""
    manifests: dict[str, Manifest | None] = {}
    for path in paths:
        beside = manifest_path(os.path.dirname(path), split_name(path))
        if beside not in manifests:
            manifests[beside] = read_manifest(beside) if files.exists(beside) else None
        yield path, manifests[beside]


def count_records(paths: Iterable[str]) -> list[int]:
    """The number of records of each shard.

    It is taken from the manifest beside the shard if that gives the shard's present size, otherwise counted.

    Raises:
      DamagedShardError: names the damaged file.
    """
    counts = []
    for path, manifest in _with_manifests(paths):
        info = manifest.shard(os.path.basename(path)) if manifest else None
        known = info is not None and info.num_bytes == files.size(path)
        counts.append(info.num_records if info and known else count_records_in_file(path))
    return counts


def find_wrong_sets(paths: Iterable[str]) -> dict[str, str]:
    """What is wrong with the sets of shards that these belong to, a sentence for each wrong file; no shard is read.

    The manifest of a split says which shards its folder must hold, and of what size. An empty file is never sound.
    """
    problems: dict[str, str] = {}
    named: dict[str, None] = {}  # every shard that the manifests name, in order
    for path, manifest in _with_manifests(paths):
        folder, name = os.path.split(path)
        info = manifest.shard(name) if manifest else None
        size = files.size(path)
        if manifest and not info:
            problems[path] = f"{path}: {manifest.split}.manifest.json does not name it; move it to another folder."
        elif info and size != info.num_bytes:
            problems[path] = f"{path}: it has {size} bytes, but {info.num_bytes} were written; {_REMEDY}"
        elif not size:
            problems[path] = f"{path}: it is empty; {_REMEDY}"
        named.update((os.path.join(folder, shard.name), None) for shard in (manifest.shards if manifest else ()))
    for path in named:
        if not files.exists(path):
            problems[path] = f"{path}: it is missing, but the manifest names it; run prepare_tfrecords.py again."
    return problems


def require_whole_sets(paths: Iterable[str]) -> None:
    """Refuses shards of a set that lacks one, holds a stranger, or has one of another size than was written.

    Raises:
      DamagedShardError: names the files.
    """
    if problems := find_wrong_sets(paths):
        raise DamagedShardError("\n".join(problems.values()))


def check_shard(path: str) -> int:
    """Reads a whole shard, compares it with the manifest beside it where there is one, and returns its record count.

    Raises:
      DamagedShardError: names the file, and the first damaged record or what differs from the manifest.
    """
    ((_, manifest),) = _with_manifests([path])
    info = manifest.shard(os.path.basename(path)) if manifest else None
    if not info and ".tfrecord" not in os.path.basename(path):
        raise DamagedShardError(f"{path}: it is no shard; give a pattern such as 'OUT/train-*.tfrecord'.")
    count, digest = 0, hashlib.sha256()
    for record in read_records(path):
        digest.update(frame_record(record))
        count += 1
    if info and count != info.num_records:
        raise DamagedShardError(f"{path}: {count} records, but {info.num_records} were written; {_REMEDY}")
    if info and digest.hexdigest() != info.sha256:
        raise DamagedShardError(f"{path}: its sha256 differs from that in the manifest; {_REMEDY}")
    return count
