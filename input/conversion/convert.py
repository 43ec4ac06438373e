"""VOC folders -> shards, labels and manifest: parallel, restartable and atomic.

Every shard is made by one worker, in a hidden folder inside the output folder, and carries a key of all that decides
its bytes. A later run takes over the shards whose key still holds; only when all are there do they get their names.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from input import files, shards, tfrecord
from input.conversion import voc, voc_xml
from input.conversion.config import ConversionError, ConvertConfig, ReadOptions
from input.conversion.findings import KINDS, MENDED, REFUSED, Finding, Refused
from input.conversion.listing import Input, Listing, list_inputs, shuffled
from input.conversion.workers import Workers

_RECORD_OVERHEAD = 2048  # bytes of a record beside its image, about
_MIN_SHARDS = 8
SCRATCH = ".beam.partial"  # folder of `beam.BeamWorkers` in the output folder
_VERSION = 1  # of the records and the manifest: raised when the same input no longer gives the same bytes


# One shard, in a worker.
class ShardTask(NamedTuple):
    index: int
    inputs: list[Input]
    staged: str  # path without extension of the shard and its result
    key: str
    options: ReadOptions
    strict: bool
    drop_empty: bool


def _read(source: voc.Source, task: ShardTask) -> tuple[voc.Example | None, list[Finding]]:
    """What to write for one source, if anything, and what was found."""
    try:
        example = voc.read_annotation(source, task.options)
    except Refused as refusal:
        name = voc.name_key(os.path.basename(refusal.path))
        return None, [Finding(source.image_id, name, refusal.reason, refusal.detail)]
    findings = example.findings
    empty = not example.annotation.boxes
    if empty:
        reason = "dropped_empty" if task.drop_empty else "no_objects"
        findings.append(Finding(source.image_id, example.annotation.filename, reason, ""))
    unwanted = (empty and task.drop_empty) or (task.strict and any(found.reason in MENDED for found in findings))
    return None if unwanted else example, findings


def convert_shard(task: ShardTask, advance) -> dict[str, Any]:
    """Writes one shard and, last, its result beside it; tells `advance` now and then how many more images are done."""
    counts = dict.fromkeys(("num_records", "num_bytes", "num_negatives", "num_difficult", "num_truncated"), 0)
    of_boxes: list[str] = []  # their classes, image after image
    of_images: list[str] = []
    findings: list[Finding] = []
    left_out = []
    digest = hashlib.sha256()
    with files.create(task.staged + ".shard") as shard:
        for count, item in enumerate(task.inputs, 1):
            example, found = _read(item.source, task)
            findings += found
            if example:
                annotation = example.annotation
                for piece in tfrecord.frame_example(annotation, example.jpeg):
                    shard.write(piece)
                    digest.update(piece)
                    counts["num_bytes"] += len(piece)
                of_boxes += annotation.class_names
                of_images += set(annotation.class_names)
                counts["num_records"] += 1
                counts["num_negatives"] += not annotation.boxes
                counts["num_difficult"] += sum(annotation.difficult)
                counts["num_truncated"] += sum(annotation.truncated)
            else:
                left_out.append(item.image_id)
            if count % 16 == 0 or count == len(task.inputs):
                advance((count - 1) % 16 + 1)
    result = {
        "key": task.key,
        "sha256": digest.hexdigest(),
        **counts,
        "boxes_per_class": dict(collections.Counter(of_boxes)),
        "images_per_class": dict(collections.Counter(of_images)),
        "left_out": left_out,
        "findings": findings,
    }
    _write_json(task.staged + ".json", result)
    return result


def _write_json(path: str, value: Any) -> None:
    with files.create(path) as file:
        file.write((json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def _class_names(inputs: Sequence[Input], advance) -> set[str]:
    names = set()
    for item in inputs:
        names |= voc_xml.class_names(item.source.xml_path)
        advance(1)
    return names


def find_classes(inputs: Sequence[Input], workers: Workers) -> tuple[str, ...]:
    """All class names, sorted."""
    chunks = [inputs[start : start + 256] for start in range(0, len(inputs), 256)]
    labels = tuple(sorted(set().union(*workers.map(_class_names, chunks, len(inputs), "finding classes"))))
    if not labels:
        raise ConversionError("no annotation names a class: check --voc_dir, or give --labels.")
    return labels


# One split.
def num_shards(inputs: Sequence[Input], config: ConvertConfig) -> int:
    """By bytes, and never by the number of cores: the same input gives the same shards everywhere."""
    num_bytes = sum(item.num_bytes + _RECORD_OVERHEAD for item in inputs)
    wanted = config.num_shards or max(math.ceil(num_bytes / config.shard_bytes), _MIN_SHARDS)
    return min(wanted, len(inputs))


def _stage(
    split: str, inputs: Sequence[Input], labels: tuple[str, ...], config: ConvertConfig, workers: Workers
) -> list[dict[str, Any]]:
    """Makes the shards in the hidden folder; takes over those that are there already."""
    count = num_shards(inputs, config)
    folder = _staging_dir(config.output_dir, split)
    files.make_dirs(folder)
    names = [shards.shard_name(split, index, count) for index in range(count)]
    bases = [os.path.join(folder, os.path.splitext(name)[0]) for name in names]
    useful = {os.path.basename(base) + extension for base in bases for extension in (".shard", ".json")}
    for name in set(files.names(folder)) - useful:  # half-written, or of another number of shards
        files.remove(os.path.join(folder, name))
    options = ReadOptions(labels, config.zero_based, config.verify, config.max_pixels, config.drop_unknown_classes)
    order = shuffled(inputs, config.seed, "shards")
    results: dict[int, dict[str, Any]] = {}
    tasks = []
    for index, (name, base) in enumerate(zip(names, bases)):
        members = order[index * len(order) // count : (index + 1) * len(order) // count]
        decides = [_VERSION, dataclasses.astuple(options), config.strict, config.drop_empty]
        decides += [(item.image_id, item.fingerprint) for item in members]
        key = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
        task = ShardTask(index, members, base, key, options, config.strict, config.drop_empty)
        if done := _finished(task, os.path.join(config.output_dir, name)):
            results[index] = done
        else:
            tasks.append(task)
    total = sum(len(task.inputs) for task in tasks)
    made = workers.map(convert_shard, tasks, total, f"converting {split}")
    results.update(zip((task.index for task in tasks), made))
    return [results[index] for index in range(count)]


def _finished(task: ShardTask, final: str) -> dict[str, Any] | None:
    """The result of a shard that an interrupted run finished, if everything it depends on is still the same."""
    try:
        result = json.loads(files.read(task.staged + ".json"))
    except (FileNotFoundError, ValueError):
        return None
    if result["key"] == task.key:
        for path in (task.staged + ".shard", final):
            if files.exists(path) and files.size(path) == result["num_bytes"]:
                return {**result, "findings": [Finding(*finding) for finding in result["findings"]]}
    return None


def _staging_dir(output_dir: str, split: str) -> str:
    return os.path.join(output_dir, f".{split}.partial")


def _manifest(
    split: str,
    listing: Listing,
    findings: list[Finding],
    results: list[dict[str, Any]],
    labels: tuple[str, ...],
    config: ConvertConfig,
) -> dict[str, Any]:
    def total(name: str) -> int:
        return sum(result[name] for result in results)

    def per_class(name: str) -> dict[str, int]:
        return {label: sum(result[name].get(label, 0) for result in results) for label in labels}

    boxes_per_class = per_class("boxes_per_class")
    manifest: dict[str, Any] = {
        "version": _VERSION,
        "split": split,
        "num_images": total("num_records"),
        "num_boxes": sum(boxes_per_class.values()),
        "num_negatives": total("num_negatives"),
        "num_difficult": total("num_difficult"),
        "num_truncated": total("num_truncated"),
        "labels": list(labels),
        "boxes_per_class": boxes_per_class,
        "images_per_class": per_class("images_per_class"),
        "settings": config.settings,
        "shards": [
            {
                "name": shards.shard_name(split, index, len(results)),
                **{name: result[name] for name in ("num_records", "num_bytes", "sha256")},
            }
            for index, result in enumerate(results)
        ],
    }
    for kind, reasons in KINDS.items():
        members = sorted(finding for finding in findings if finding.reason in reasons)
        manifest[kind] = {
            "counts": dict(collections.Counter(finding.reason for finding in members)),
            "files": [dict(zip(Finding._fields, finding)) for finding in members],
        }
    manifest["inputs"] = {item.image_id: item.fingerprint for item in listing.inputs}
    return manifest


def _publish(split: str, manifest: dict[str, Any], config: ConvertConfig) -> None:
    """Gives the staged shards their names, and last writes the manifest: it is what says that all is there."""
    final = shards.manifest_path(config.output_dir, split)
    for path in (final, shards.report_path(config.output_dir, split)):
        with contextlib.suppress(FileNotFoundError):
            files.remove(path)
    folder = _staging_dir(config.output_dir, split)
    names = [shard["name"] for shard in manifest["shards"]]
    for stale in _shards_of(config.output_dir, split) - set(names):
        files.remove(os.path.join(config.output_dir, stale))
    for name in names:
        staged = os.path.join(folder, name.replace(".tfrecord", ".shard"))
        if files.exists(staged):
            files.replace(staged, os.path.join(config.output_dir, name))
    _write_json(os.path.join(folder, "manifest.json"), manifest)
    files.replace(os.path.join(folder, "manifest.json"), final)
    files.remove_tree(folder)


def _shards_of(output_dir: str, split: str) -> set[str]:
    return {
        name
        for name in files.names(output_dir)
        if name.endswith(".tfrecord") and shards.split_name(name) == split and name != f"{split}.tfrecord"
    }


# The whole.
def _choose_labels(splits: dict[str, Listing], config: ConvertConfig, workers: Workers) -> tuple[str, ...]:
    existing = os.path.join(config.output_dir, shards.LABELS)
    others = [
        name
        for name in files.names(config.output_dir)
        if name.endswith(".manifest.json") and name[: -len(".manifest.json")] not in splits
    ]
    try:
        there = shards.parse_labels(existing) if files.exists(existing) else None
        given = shards.parse_labels(config.labels_file) if config.labels_file else None
    except (OSError, ValueError) as error:
        raise ConversionError(str(error)) from error
    if given and there and given != there and others:
        raise ConversionError(
            f"{config.labels_file} differs from {existing}, which {', '.join(sorted(others))} was made with: "
            "convert every split anew, into an empty folder."
        )
    if given:
        return given
    replaced = any(files.exists(shards.manifest_path(config.output_dir, split)) for split in splits)
    if there and (others or not (config.overwrite and replaced)):
        return there
    return find_classes([item for listing in splits.values() for item in listing.inputs], workers)


def _already_done(split: str, listing: Listing, labels: tuple[str, ...], config: ConvertConfig) -> dict | None:
    """The manifest of a finished conversion of the same input; None where there is work to do.

    Raises:
      ConversionError: another conversion is there; names what differs.
    """
    path = shards.manifest_path(config.output_dir, split)
    remedy = "--overwrite starts anew, or choose another --output_dir."
    if config.overwrite:
        return None
    if not files.exists(path):
        if _shards_of(config.output_dir, split) and not files.is_dir(_staging_dir(config.output_dir, split)):
            raise ConversionError(f"{config.output_dir} holds shards of {split} but no manifest: {remedy}")
        return None
    try:
        manifest = shards.read_manifest(path)
    except ValueError as error:
        raise ConversionError(f"{path} is not a manifest: {remedy}") from error
    if manifest.get("version") != _VERSION:
        raise ConversionError(f"{path} was written by another version of this program: {remedy}")
    expected = _manifest(split, Listing([], []), [], [], labels, config)
    damaged = [key for key, value in expected.items() if type(manifest.get(key)) is not type(value)]
    damaged = damaged or [kind for kind in KINDS if manifest[kind].keys() != expected[kind].keys()]
    if damaged:
        raise ConversionError(f"{path} is damaged: look at {', '.join(damaged)}, or {remedy}")
    changes = [
        f"--{name}: {json.dumps(manifest['settings'].get(name))} then, {json.dumps(value)} now"
        for name, value in config.settings.items()
        if manifest["settings"].get(name) != value
    ]
    if manifest["labels"] != list(labels):
        changes.append(f"labels: {', '.join(manifest['labels'])} then, {', '.join(labels)} now")
    now = {item.image_id: item.fingerprint for item in listing.inputs}
    then = manifest["inputs"]
    for what, ids in (
        ("new", now.keys() - then.keys()),
        ("gone", then.keys() - now.keys()),
        ("changed", {image_id for image_id in now.keys() & then.keys() if now[image_id] != then[image_id]}),
    ):
        if ids:
            shown = sorted(ids)[:10]
            changes.append(f"{len(ids)} {what}: {', '.join(shown)}{' ...' if len(ids) > len(shown) else ''}")
    if changes:
        raise ConversionError("\n".join([f"{path} is of another conversion:", *changes, remedy]))
    for shard in manifest["shards"]:
        shard_path = os.path.join(config.output_dir, shard["name"])
        if not files.exists(shard_path) or files.size(shard_path) != shard["num_bytes"]:
            return None
    return manifest


@contextlib.contextmanager
def locked(directory: str) -> Iterator[None]:
    """Holds a local folder itself locked: the system lets go of it when the process ends, however it ends."""
    if files.is_remote(directory):  # where nothing of the kind exists
        yield
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConversionError(f"another converter is at work on {directory}: wait for it, or stop it.") from None
        yield
    finally:
        os.close(handle)


def convert(config: ConvertConfig, workers: Workers) -> list[dict[str, Any]]:
    """Converts, and returns the manifest of each split.

    Raises:
      ConversionError: bad input, or an output folder that holds something else; nothing is published then.
    """
    try:
        files.make_dirs(config.output_dir)
        with locked(config.output_dir):
            return _convert(config, workers)
    except OSError as error:
        raise ConversionError(
            f"{error.filename or config.output_dir}: {error.strerror or error}; "
            "put that right, then the same command continues."
        ) from error
    except concurrent.futures.BrokenExecutor as error:
        raise ConversionError(
            "a worker process was killed, perhaps for want of memory: try fewer --num_workers; "
            "the same command continues."
        ) from error


def _convert(config: ConvertConfig, workers: Workers) -> list[dict[str, Any]]:
    splits = list_inputs(config)
    labels = _choose_labels(splits, config, workers)
    manifests, problems = {}, []
    finished = set()
    for split, listing in splits.items():
        if done := _already_done(split, listing, labels, config):
            manifests[split] = done
            finished.add(split)
            files.remove_tree(_staging_dir(config.output_dir, split))
            continue
        if config.overwrite:
            files.remove_tree(_staging_dir(config.output_dir, split))
        inputs, findings = listing.inputs, list(listing.findings)
        while True:
            results = _stage(split, inputs, labels, config, workers)
            found = [finding for result in results for finding in result["findings"]]
            left_out = {image_id for result in results for image_id in result["left_out"]}
            inputs = [item for item in inputs if item.image_id not in left_out]
            if not inputs or all(result["num_records"] for result in results):
                findings += found
                break
            # A shard came out empty: so few images are left that they want fewer shards.
            findings += [finding for finding in found if finding.image_id in left_out]
        manifests[split] = _manifest(split, listing, findings, results, labels, config)
        bad = [finding for finding in findings if finding.reason in REFUSED]
        if config.strict:
            bad += [finding for finding in findings if finding.reason in MENDED]
        if bad and config.on_error == "fail":
            problems += sorted(f"{finding.file}: {finding.reason}: {finding.detail}" for finding in bad)
        elif not inputs:
            problems.append(f"{split}: no image is left to convert.")
    if problems:
        remedy = "Correct the files (shards without them are not made again), or leave them out with --on_error=skip."
        raise ConversionError("\n".join([f"nothing was published; {len(problems)} problems:", *problems, remedy]))
    _write_labels(labels, config.output_dir)
    for split, manifest in manifests.items():
        if split not in finished:
            _publish(split, manifest, config)
    files.remove_tree(os.path.join(config.output_dir, SCRATCH))
    return list(manifests.values())


def _write_labels(labels: tuple[str, ...], output_dir: str) -> None:
    path = os.path.join(output_dir, shards.LABELS)
    with files.create(path, os.path.join(output_dir, f".{shards.LABELS}.partial")) as file:
        file.write("".join(f"{name}\n" for name in labels).encode())
