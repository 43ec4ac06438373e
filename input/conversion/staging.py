"""The shards of a split before they are published: planned, then written by workers into a hidden folder.

Every shard carries a key of all that decides its bytes. A later run takes over the shards whose key is still the same.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from input import files, shards, tfrecord
from input.conversion import tiling
from input.conversion.config import ConvertConfig, ImageOptions, ReadOptions
from input.conversion.example import Example, read_example
from input.conversion.findings import DROPPED, REPAIRED, Refused, Tally
from input.conversion.listing import shuffled
from input.conversion.source import Input, Listing, Source, name_key
from input.conversion.workers import Advance, Workers
from input.manifest import MANIFEST_VERSION, Finding

_RECORD_OVERHEAD = 2048  # bytes of a record beside its image, about
_MIN_SHARDS = 8
_EXTENSIONS = (".shard", ".findings", ".json")  # of the files of a shard, in the order in which they are finished


class ShardTask(NamedTuple):
    """What a worker needs to write one shard."""

    inputs: Sequence[Input]
    path: str  # of the shard and of its result, without extension
    key: str
    options: ReadOptions
    strict: bool
    drop_empty: bool


@dataclasses.dataclass(frozen=True)
class ShardResult:
    """What was written to one shard, and what was found on the way; stored beside the shard."""

    key: str
    num_records: int
    num_bytes: int
    sha256: str
    num_negatives: int
    num_difficult: int
    num_truncated: int
    num_ignored: int
    num_resized: int  # images that were made smaller
    source_pixels: int  # of the images' files
    source_bytes: int
    num_at_zero: int  # boxes with a coordinate of 0 though counted from 1
    num_at_end: int  # boxes that reach the image's right or lower edge
    boxes_per_class: dict[str, int]
    images_per_class: dict[str, int]
    ignored_classes: Sequence[str]  # of the ignored regions, also of images that are left out as empty
    digests: Sequence[str]  # of each input the start of the stored image's SHA-256; empty where it gave no record
    looks: Sequence[str]  # of each input the hash of how the image looks; empty where that was not decoded either
    findings: Sequence[Finding]  # of each reason the first few; a file beside the shard holds all
    finding_counts: dict[str, int]  # by reason
    finding_images: dict[str, int]  # by reason, how many images


_COUNTS = tuple(field.name for field in dataclasses.fields(ShardResult) if field.type == "int")


def staging_dir(output_dir: str, split: str) -> str:
    return os.path.join(output_dir, f".{split}.partial")


def num_shards(inputs: Sequence[Input], config: ConvertConfig) -> int:
    """By bytes, and never by the number of cores: the same input gives the same shards everywhere."""
    num_bytes = sum(item.num_bytes + _RECORD_OVERHEAD for item in inputs)
    wanted = config.num_shards or max(math.ceil(num_bytes / config.shard_bytes), _MIN_SHARDS)
    return min(wanted, len(inputs))


def stage(
    split: str, listing: Listing, labels: tuple[str, ...], config: ConvertConfig, workers: Workers
) -> tuple[list[Input], list[ShardResult]]:
    """Makes the shards of a split in its hidden folder; those that are already there are taken over.

    Returns:
      The inputs in the order of the shards, and the result of each shard.
    """
    inputs = listing.inputs
    if config.tile:
        tiling.check_ids(inputs)
    count = num_shards(inputs, config)
    folder = staging_dir(config.output_dir, split)
    files.make_dirs(folder)
    names = [shards.shard_name(split, index, count) for index in range(count)]
    paths = [os.path.join(folder, os.path.splitext(name)[0]) for name in names]
    useful = {os.path.basename(path) + extension for path in paths for extension in _EXTENSIONS}
    for name in set(files.names(folder)) - useful:  # half-written, or of another number of shards
        files.remove(os.path.join(folder, name))
    flags = {field.name: getattr(config, field.name) for field in dataclasses.fields(ImageOptions)}
    if config.drop_empty:
        flags["tile_negatives"] = 0.0
    options = ReadOptions(
        labels=labels,
        format=config.format,
        declared=listing.classes if config.format == "yolo" else (),
        box_first=listing.box_first,
        **flags,
    )
    order = shuffled(inputs, config.seed, "shards")
    results: dict[str, ShardResult] = {}
    tasks = []
    for index, (name, path) in enumerate(zip(names, paths)):
        members = order[index * len(order) // count : (index + 1) * len(order) // count]
        decides = [MANIFEST_VERSION, dataclasses.astuple(options), config.strict, config.drop_empty]
        decides += [(item.image_id, item.fingerprint) for item in members]
        task = ShardTask(
            inputs=members,
            path=path,
            key=hashlib.sha256(json.dumps(decides).encode()).hexdigest(),
            options=options,
            strict=config.strict,
            drop_empty=config.drop_empty,
        )
        if done := _finished(task, os.path.join(config.output_dir, name)):
            results[path] = done
        else:
            tasks.append(task)
    total = sum(len(task.inputs) for task in tasks)
    made = workers.map(write_shard, tasks, total, f"converting {split}")
    results.update(zip((task.path for task in tasks), made))
    return order, [results[path] for path in paths]


def _finished(task: ShardTask, final: str) -> ShardResult | None:
    """The result of a shard that an interrupted run finished, if everything it depends on is still the same."""
    try:
        fields = json.loads(files.read(task.path + ".json"))
        result = ShardResult(findings=[Finding(*finding) for finding in fields.pop("findings")], **fields)
    except (AttributeError, FileNotFoundError, KeyError, TypeError, ValueError):
        return None
    shard_is_there = any(
        files.exists(path) and files.size(path) == result.num_bytes for path in (task.path + ".shard", final)
    )
    return result if result.key == task.key and shard_is_there else None


def write_shard(task: ShardTask, advance: Advance) -> ShardResult:
    """Writes one shard and, last, its result beside it; tells `advance` of each image that is done."""
    counts: collections.Counter[str] = collections.Counter(dict.fromkeys(_COUNTS, 0))
    boxes_per_class: collections.Counter[str] = collections.Counter()
    images_per_class: collections.Counter[str] = collections.Counter()
    ignored_classes: set[str] = set()
    digests, looks = [], []
    digest, tally = hashlib.sha256(), Tally()
    with files.create(task.path + ".shard") as shard, files.create(task.path + ".findings") as lines:
        for item in task.inputs:
            example, records, found = _read(item.source, task)
            tally.add(found)
            lines.write(encode_findings(found))
            sha256 = hashlib.sha256(example.encoded).hexdigest() if example and records else ""
            digests.append(sha256[:16])
            looks.append(example.look if example and records else "")
            if example:
                ignored_classes.update(region.name for region in example.annotation.regions)
            if example and records:
                counts.update(_counts_of_image(example, found))
                for annotation, encoded, *_ in records:
                    own = sha256 if encoded is example.encoded else ""
                    record = tfrecord.frame_record(tfrecord.encode_example(annotation, encoded, own))
                    shard.write(record)
                    digest.update(record)
                    counts.update(num_bytes=len(record), **_counts_of_record(annotation))
                    boxes_per_class.update(annotation.class_names)
                    images_per_class.update(set(annotation.class_names))
            advance(1)
    result = ShardResult(
        key=task.key,
        sha256=digest.hexdigest(),
        boxes_per_class=dict(boxes_per_class),
        images_per_class=dict(images_per_class),
        ignored_classes=sorted(ignored_classes),
        digests=digests,
        looks=looks,
        findings=tally.kept,
        finding_counts=dict(tally.counts),
        finding_images=dict(tally.num_images),
        **counts,
    )
    with files.create(task.path + ".json") as file:
        file.write(json.dumps(vars(result), ensure_ascii=False).encode())
    return result


def _counts_of_image(example: Example, found: Sequence[Finding]) -> dict[str, int]:
    """What an image adds to the counts of a `ShardResult`, whether it is cut into tiles or not."""
    whole, (height, width) = example.annotation, example.source_size
    return {
        "num_resized": (height, width) != (whole.height, whole.width),
        "source_pixels": height * width,
        "source_bytes": example.source_bytes,
        "num_at_zero": sum(finding.reason == "zero_coordinate" for finding in found),
        "num_at_end": sum(ymax >= whole.height or xmax >= whole.width for _, _, ymax, xmax in whole.boxes),
    }


def _counts_of_record(annotation: tfrecord.Annotation) -> dict[str, int]:
    """What a record adds to the counts of a `ShardResult`."""
    return {
        "num_records": 1,
        "num_negatives": not annotation.boxes,
        "num_difficult": sum(annotation.difficult),
        "num_truncated": sum(annotation.truncated),
        "num_ignored": len(annotation.regions),
    }


def encode_findings(findings: Iterable[Finding]) -> bytes:
    """A line of JSON for each finding."""
    return "".join(f"{json.dumps(finding._asdict(), ensure_ascii=False)}\n" for finding in findings).encode()


def read_findings(output_dir: str, split: str) -> Iterator[bytes]:
    """All findings about the images of the staged shards, a line for each."""
    folder = staging_dir(output_dir, split)
    for name in sorted(files.names(folder)):
        if name.endswith(".findings"):
            with files.open(os.path.join(folder, name)) as file:
                yield from file


def _read(source: Source, task: ShardTask) -> tuple[Example | None, list[Example], list[Finding]]:
    """One source, if it can be used; the records to write: itself or its tiles; and what was found."""
    try:
        example = read_example(source, task.options)
        findings = example.findings
        empty = not example.annotation.boxes
        if empty:
            reason = "dropped_empty" if task.drop_empty else "no_objects"
            findings.append(Finding(source.image_id, example.annotation.filename, reason, ""))
        flawed = any(found.reason in REPAIRED or found.reason in DROPPED for found in findings)
        if (empty and task.drop_empty) or (task.strict and flawed):
            return example, [], findings
        return example, tiling.cut(example, task.options), findings
    except Refused as refusal:
        name = name_key(os.path.basename(refusal.path))
        return None, [], [Finding(source.image_id, name, refusal.reason, refusal.detail)]
