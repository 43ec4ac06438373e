"""Shards: their names, the label list and the manifest beside them, what they hold, and whether they are sound."""

from __future__ import annotations

import array
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from input import files
from input.tfrecord import CORNERS, DamagedShardError, decode_example, frame_record, read_records, walk_records

LABELS = "labels.txt"


class GroundTruth(NamedTuple):
    """What one record says is in its image."""

    image_id: str
    height: int  # of the original image, in pixels
    width: int
    boxes: np.ndarray  # f32 [n, 4], ymin xmin ymax xmax in pixels of the original image
    classes: np.ndarray  # i32 [n], 0-based
    difficult: np.ndarray  # bool [n]


_GROUND_TRUTH_KEYS = frozenset(
    (
        "image/source_id",
        "image/height",
        "image/width",
        "image/object/class/label",
        "image/object/difficult",
        *(f"image/object/bbox/{corner}" for corner in CORNERS),
    )
)


def read_annotations(paths: Iterable[str]) -> list[GroundTruth]:
    """The ground truth of every record, in record order; images are neither decoded nor kept.

    Raises:
      DamagedShardError: a shard is damaged, or holds something else than these records.
    """
    annotations = []
    for path in paths:
        for index, record in enumerate(read_records(path)):
            try:
                features = decode_example(record, _GROUND_TRUTH_KEYS)
                height, width = features["image/height"][0], features["image/width"][0]
                labels = array.array("i", features.get("image/object/class/label", ()))  # fails beyond 32 bits
                classes = np.asarray(labels) - 1
                corners = [features.get(f"image/object/bbox/{corner}", ()) for corner in CORNERS]
                boxes = np.asarray(corners, np.float64).T * (height, width, height, width)
                difficult = features.get("image/object/difficult") or [0] * len(classes)
                if not len(boxes) == len(classes) == len(difficult):
                    raise ValueError("lists of different lengths")
                annotations.append(
                    GroundTruth(
                        image_id=features.get("image/source_id", [b""])[0].decode(),
                        height=height,
                        width=width,
                        boxes=boxes.astype(np.float32),
                        classes=classes,
                        difficult=np.asarray(difficult, np.bool_),
                    )
                )
            except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
                raise DamagedShardError(
                    f"{path}: record {index} is not a detection record ({error}); convert the data again."
                ) from error
    return annotations


# Names, and the files beside the shards.
def shard_name(split: str, index: int, num_shards: int) -> str:
    return f"{split}-{index:05d}-of-{num_shards:05d}.tfrecord"


def split_name(path: str) -> str:
    """The split a shard belongs to: `train` of `DIR/train-00000-of-00008.tfrecord`, else the file's stem."""
    stem = os.path.basename(path).split(".tfrecord")[0]
    return re.sub(r"-\d+-of-\d+$", "", stem)


def manifest_path(directory: str, split: str) -> str:
    return os.path.join(directory, f"{split}.manifest.json")


def report_path(directory: str, split: str) -> str:
    return os.path.join(directory, f"{split}.report.html")


def expand_glob(patterns: str | Iterable[str]) -> list[str]:
    """The files that the patterns (comma separated, or several) match, sorted.

    Raises:
      FileNotFoundError: a pattern matches nothing.
    """
    paths: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for part in filter(None, (piece.strip() for piece in pattern.split(","))):
            matches = files.glob(part)
            if not matches:
                raise FileNotFoundError(f"no file matches {part!r}: check the pattern, or convert the data first.")
            paths.update(matches)
    if not paths:
        raise FileNotFoundError(f"no file pattern given: {patterns!r}.")
    return sorted(paths)


def read_labels(records_paths: Iterable[str]) -> tuple[str, ...]:
    """The class names, from the labels.txt beside the shards; class i is entry i.

    Raises:
      FileNotFoundError: a folder of shards has no labels.txt.
      ValueError: the list is empty or names a class twice, or two folders disagree.
    """
    found: dict[str, tuple[str, ...]] = {}
    for directory in sorted({os.path.dirname(path) for path in records_paths}):
        path = os.path.join(directory, LABELS)
        try:
            found[path] = parse_labels(path)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path} is missing: it belongs beside the shards; convert the data again."
            ) from None
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


def read_manifest(path: str) -> dict[str, Any]:
    """A manifest, from its own path or from that of a shard beside it.

    Raises:
      FileNotFoundError: there is none.
      ValueError: the file is not a manifest.
    """
    if not path.endswith(".json"):
        path = manifest_path(os.path.dirname(path), split_name(path))
    data = files.read(path)
    try:
        manifest = json.loads(data)
        for shard in manifest["shards"]:
            if [type(shard[key]) for key in ("name", "num_records", "num_bytes", "sha256")] != [str, int, int, str]:
                raise TypeError
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is not a manifest: delete it and run prepare_tfrecords.py again.") from None
    return manifest


def count_records(paths: Iterable[str]) -> list[int]:
    """The number of records of each shard.

    Taken from the manifest beside a shard when that names the shard with its present size, otherwise counted.

    Raises:
      DamagedShardError: names the damaged file.
    """
    manifests: dict[str, dict[str, dict[str, int]]] = {}
    counts = []
    for path in paths:
        manifest = manifest_path(os.path.dirname(path), split_name(path))
        if manifest not in manifests:
            shards = read_manifest(manifest)["shards"] if files.exists(manifest) else []
            manifests[manifest] = {shard["name"]: shard for shard in shards}
        shard = manifests[manifest].get(os.path.basename(path))
        known = shard is not None and shard["num_bytes"] == files.size(path)
        counts.append(shard["num_records"] if known else walk_records(path))
    return counts


def check_shard(path: str) -> int:
    """Reads a whole shard, compares it with the manifest beside it where there is one, and returns its record count.

    Raises:
      DamagedShardError: names the file, and the first damaged record or what differs from the manifest.
    """
    count, digest = 0, hashlib.sha256()
    for record in read_records(path):
        digest.update(frame_record(record))
        count += 1
    if files.exists(manifest_path(os.path.dirname(path), split_name(path))):
        shards = {shard["name"]: shard for shard in read_manifest(path)["shards"]}
        expected = shards.get(os.path.basename(path))
        remedy = "delete this file and run prepare_tfrecords.py again."
        if expected is None:
            raise DamagedShardError(f"{path}: the manifest does not name it; {remedy}")
        if count != expected["num_records"]:
            raise DamagedShardError(f"{path}: {count} records, but {expected['num_records']} were written; {remedy}")
        if digest.hexdigest() != expected["sha256"]:
            raise DamagedShardError(f"{path}: sha256 differs from that in the manifest; {remedy}")
    return count


# What training asks of the records beforehand, and how it names them.
_LABELS_KEY = frozenset(["image/object/class/label"])


def read_classes(paths: Iterable[str], num_classes: int) -> list[list[int]]:
    """The classes (0-based) of every record's objects, in record order.

    Raises:
      DamagedShardError: a shard is damaged, or holds something else than these records.
      ValueError: a label is beyond the list of `num_classes` names.
    """
    classes = []
    for path in paths:
        for index, record in enumerate(read_records(path)):
            try:
                labels = decode_example(record, _LABELS_KEY).get("image/object/class/label", [])
            except ValueError as error:
                raise DamagedShardError(
                    f"{path}: record {index} is not a detection record; convert the data again."
                ) from error
            if bad := [label for label in labels if not 1 <= label <= num_classes]:
                raise ValueError(
                    f"{path}: record {index} has the label {bad[0]}, but labels.txt names {num_classes} classes: "
                    "put the label list of these records there, or convert the data again."
                )
            classes.append([label - 1 for label in labels])
    return classes


def check_classes(paths: Sequence[str], num_classes: int) -> None:
    """Refuses records whose labels go beyond the list; reads only the shards that no manifest vouches for.

    Raises:
      DamagedShardError, ValueError: as `read_classes`.
    """
    vouched: dict[str, set[str]] = {}
    for path in paths:
        manifest = manifest_path(os.path.dirname(path), split_name(path))
        if manifest not in vouched:
            content = read_manifest(manifest) if files.exists(manifest) else {}
            fits = content and len(content.get("labels", ())) <= num_classes
            vouched[manifest] = {shard["name"] for shard in content["shards"]} if fits else set()
        if os.path.basename(path) not in vouched[manifest]:
            read_classes([path], num_classes)


def name_records(paths: Sequence[str], indexes: Iterable[int]) -> list[str]:
    """The image ids of records by their position in all shards read in order, each with its shard."""
    wanted, names, first = sorted(set(indexes)), [], 0
    for path, count in zip(paths, count_records(paths)):
        here = {index - first for index in wanted if first <= index < first + count}
        for position, record in enumerate(read_records(path) if here else ()):
            if position in here:
                try:
                    found = decode_example(record, frozenset(["image/source_id"]))
                    image_id = found.get("image/source_id", [b""])[0].decode("utf-8", "replace")
                except (IndexError, ValueError):
                    image_id = ""
                names.append(f"{image_id or 'without image id'} (record {position} of {path})")
        first += count
    return names
