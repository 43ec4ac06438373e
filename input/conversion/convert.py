"""A data set -> shards, labels and manifest: parallel, restartable and atomic.

Shards are made in a hidden folder inside the output folder. Only when all are there do they get their names, and the
manifest is written last.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import unicodedata
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

from input import files, shards
from input.conversion import looks, voc
from input.conversion.beam import SCRATCH
from input.conversion.config import IGNORE, ConversionError, ConvertConfig
from input.conversion.findings import KINDS, Tally
from input.conversion.listing import list_inputs
from input.conversion.source import Input, Listing, name_key
from input.conversion.staging import ShardResult, encode_findings, read_findings, stage, staging_dir
from input.conversion.workers import Workers
from input.manifest import (
    MANIFEST_VERSION,
    Finding,
    Findings,
    Manifest,
    ShardInfo,
    findings_path,
    manifest_path,
    read_manifest,
)

_MANY_ZEROS = 5  # boxes with a coordinate of 0
_READ_AGAIN = 100  # annotations, to say why none names a class
_SKIPPED_SHOWN = 5  # files, where all were skipped


def convert(config: ConvertConfig, workers: Workers) -> list[Manifest]:
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


@contextlib.contextmanager
def locked(directory: str) -> Iterator[None]:
    """Holds a lock on a local folder itself, which the system releases when the process ends, however it ends.

    Raises:
      ConversionError: another converter holds it.
    """
    if files.is_remote(directory):  # a bucket knows no locks
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


def _convert(config: ConvertConfig, workers: Workers) -> list[Manifest]:
    splits = list_inputs(config, workers)
    labels = _choose_labels(splits, config, workers)
    finished: dict[str, Manifest] = {}
    made: dict[str, Manifest] = {}
    problems = []
    for split, listing in splits.items():
        if done := _already_done(split, listing, labels, config):
            finished[split] = done
            files.remove_tree(staging_dir(config.output_dir, split))
            continue
        if config.overwrite:
            files.remove_tree(staging_dir(config.output_dir, split))
        known = [*finished.values(), *made.values(), *_other_manifests(splits, config.output_dir)]
        made[split] = _make_split(split, listing, labels, config, workers, known)
        problems += _problems(made[split], config)
    if problems:
        skip = ", or leave them out with --on_error=skip" if config.on_error == "fail" else ""
        remedy = f"Correct the files (shards without them are not made again){skip}."
        if any(" is not in the label list" in problem for problem in problems):
            remedy += " For classes that are not in the label list: --labels, --rename or --drop_unknown_classes."
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConversionError("\n".join([f"nothing was published; {count}:", *problems, remedy]))
    if not labels:
        raise ConversionError("no class name is UTF-8: declare the encoding in the first line of the XML files.")
    _write_labels(labels, config.output_dir)
    for manifest in made.values():
        _publish(manifest, config.output_dir)
    files.remove_tree(os.path.join(config.output_dir, SCRATCH))  # a killed Beam run leaves it
    return [{**finished, **made}[split] for split in splits]


def _other_manifest_names(splits: Container[str], output_dir: str) -> list[str]:
    """The manifests of the splits that the output folder holds beside these."""
    end = ".manifest.json"
    return sorted(name for name in files.names(output_dir) if name.endswith(end) and name[: -len(end)] not in splits)


def _other_manifests(splits: Container[str], output_dir: str) -> Iterator[Manifest]:
    for name in _other_manifest_names(splits, output_dir):
        with contextlib.suppress(ValueError):  # a damaged one is reported when its own split is used
            yield read_manifest(os.path.join(output_dir, name))


# The label list.


def _choose_labels(splits: dict[str, Listing], config: ConvertConfig, workers: Workers) -> tuple[str, ...]:
    existing = os.path.join(config.output_dir, shards.LABELS)
    others = _other_manifest_names(splits, config.output_dir)
    try:
        there = shards.parse_labels(existing) if files.exists(existing) else None
        given = shards.parse_labels(config.labels_file) if config.labels_file else None
    except ValueError as error:
        raise ConversionError(str(error)) from error
    if given and there and given != there and others:
        raise ConversionError(
            f"{config.labels_file} differs from {existing}, which {', '.join(others)} was made with: "
            "convert every split anew, into an empty folder."
        )
    replaced = any(files.exists(manifest_path(config.output_dir, split)) for split in splits)
    found = tuple(dict.fromkeys(label for listing in splits.values() for label in listing.labels))
    labels = given or (there if others or not (config.overwrite and replaced) else None)
    if labels:
        return labels
    if not found:
        found = find_classes([item for listing in splits.values() for item in listing.inputs], workers)
        return tuple(sorted(_kept_classes(found, config)))
    return _kept_classes(found, config)


def _kept_classes(found: Sequence[str], config: ConvertConfig) -> tuple[str, ...]:
    """The classes that are left after --rename and --ignore_classes.

    Raises:
      ConversionError: a flag names a class that was not found, or no class is left.
    """
    renamed = _renamed(found, config)
    _check_classes("rename", config.new_names, found)
    _check_classes("ignore_classes", config.ignore_classes, renamed)
    kept = tuple(name for name in renamed if name not in (*config.ignore_classes, IGNORE))
    if found and not kept:
        raise ConversionError("no class is left: take one out of --ignore_classes.")
    return kept


def _renamed(found: Sequence[str], config: ConvertConfig) -> tuple[str, ...]:
    """The classes after --rename."""
    return tuple(dict.fromkeys(config.new_names.get(name, name) for name in found))


def _check_classes(flag: str, names: Iterable[str], known: Sequence[str]) -> None:
    """Raises ConversionError if the flag names another class than those that are known."""
    if unknown := [name for name in names if name not in known]:
        raise ConversionError(f"--{flag}: no object is of class {unknown[0]!r}; there are: {', '.join(known)}.")


def find_classes(inputs: Sequence[Input], workers: Workers) -> tuple[str, ...]:
    """All class names in UTF-8, sorted; of XML files."""
    names = set().union(*workers.map_chunks(voc.all_classes, inputs, "finding classes"))
    if not names:
        refusal = voc.first_refusal(inputs[:_READ_AGAIN])
        example = (
            f" ({name_key(os.path.basename(refusal.path))}: {refusal.reason}: {refusal.detail})" if refusal else ""
        )
        raise ConversionError(f"no annotation names a class{example}: check --voc_dir, or give --labels.")
    return tuple(sorted(name for name in names if "\ufffd" not in name))  # the files with the others are refused


def _write_labels(labels: tuple[str, ...], output_dir: str) -> None:
    lines = "".join(f"{name}\n" for name in labels)
    for name, text in ((shards.LABEL_MAP, shards.label_map(labels)), (shards.LABELS, lines)):
        with files.create(os.path.join(output_dir, name), os.path.join(output_dir, f".{name}.partial")) as file:
            file.write(text.encode())


# One split.


def _make_split(
    split: str,
    listing: Listing,
    labels: tuple[str, ...],
    config: ConvertConfig,
    workers: Workers,
    known: Sequence[Manifest],
) -> Manifest:
    """Stages the shards of a split, without the images that yield no record, and a file of findings if there are many.

    Args:
      known: the manifests of other splits, whose images should not be here as well.
    """
    inputs, findings = listing.inputs, list(listing.findings)
    ignored_classes: set[str] = set()
    while True:
        order, results = stage(split, listing._replace(inputs=inputs), labels, config, workers)
        ignored_classes.update(*(result.ignored_classes for result in results))
        digests = zip(order, itertools.chain.from_iterable(result.digests for result in results))
        left_out = {item.image_id for item, digest in digests if not digest}
        inputs = [item for item in inputs if item.image_id not in left_out]
        if not inputs or all(result.num_records for result in results):
            break
        # A shard came out empty, so few images are left: they are divided into fewer shards.
        staged = (Finding(**json.loads(line)) for line in read_findings(config.output_dir, split))
        findings += [finding for finding in staged if finding.image_id in left_out]
    manifest = _make_manifest(split, listing, order, results, labels, config)
    findings += [*_maybe_zero_based(split, results), *_similar_classes(labels)]
    used = {*labels, *_renamed(listing.labels, config), *ignored_classes}
    unused = [name for name in config.ignore_classes if name not in used]  # perhaps they are misspelt
    findings += [Finding("", split, "unused_class", repr(name)) for name in unused]
    findings += [*_same_images(manifest, known, listing), *_similar_images(manifest, known, listing)]
    tally = Tally(findings)
    for result in results:
        tally.merge(result.finding_counts, result.finding_images, result.findings)
    if sum(tally.counts.values()) > len(tally.kept):
        with files.create(findings_path(staging_dir(config.output_dir, split), split)) as file:
            file.write(encode_findings(findings))
            file.writelines(read_findings(config.output_dir, split))
    found: dict[str, Any] = {kind: tally.of_kind(kind) for kind in KINDS}
    return dataclasses.replace(manifest, **found)


def _make_manifest(
    split: str,
    listing: Listing,
    order: Sequence[Input],
    results: Sequence[ShardResult],
    labels: tuple[str, ...],
    config: ConvertConfig,
) -> Manifest:
    """The manifest without findings."""

    def by_id(of_shards: Iterable[Sequence[str]]) -> dict[str, str]:
        texts = itertools.chain.from_iterable(of_shards)
        return {item.image_id: text for item, text in sorted(zip(order, texts)) if text}

    boxes_per_class = {label: sum(result.boxes_per_class.get(label, 0) for result in results) for label in labels}
    return Manifest(
        version=MANIFEST_VERSION,
        split=split,
        num_images=sum(result.num_records for result in results),
        num_boxes=sum(boxes_per_class.values()),
        num_negatives=sum(result.num_negatives for result in results),
        num_difficult=sum(result.num_difficult for result in results),
        num_truncated=sum(result.num_truncated for result in results),
        num_ignored=sum(result.num_ignored for result in results),
        num_resized=sum(result.num_resized for result in results),
        source_pixels=sum(result.source_pixels for result in results),
        source_bytes=sum(result.source_bytes for result in results),
        labels=labels,
        boxes_per_class=boxes_per_class,
        images_per_class={label: sum(result.images_per_class.get(label, 0) for result in results) for label in labels},
        settings=config.settings,
        shards=tuple(
            ShardInfo(
                name=shards.shard_name(split, index, len(results)),
                num_records=result.num_records,
                num_bytes=result.num_bytes,
                sha256=result.sha256,
            )
            for index, result in enumerate(results)
        ),
        inputs={item.image_id: item.fingerprint for item in listing.inputs},
        digests=by_id(result.digests for result in results),
        looks=by_id(result.looks for result in results),
        **{kind: Findings({}, ()) for kind in KINDS},
    )


def _maybe_zero_based(split: str, results: Sequence[ShardResult]) -> Iterator[Finding]:
    """Coordinates counted from 1 are never 0, but are the width or height about as often as they are 1."""
    num_at_zero = sum(result.num_at_zero for result in results)
    if num_at_zero >= _MANY_ZEROS and not any(result.num_at_end for result in results):
        detail = f"{num_at_zero} boxes have a coordinate of 0, none reaches the image's width or height"
        yield Finding("", split, "maybe_zero_based", detail)


def _similar_classes(labels: Sequence[str]) -> Iterator[Finding]:
    by_key: dict[str, str] = {}
    for label in labels:
        key = "".join(unicodedata.normalize("NFKC", label).casefold().split())
        if (first := by_key.setdefault(key, label)) != label:
            yield Finding("", shards.LABELS, "similar_classes", f"{first!r} and {label!r}")


def _same_images(manifest: Manifest, others: Iterable[Manifest], listing: Listing) -> Iterator[Finding]:
    """The images with the bytes of an earlier one, in this split or in another."""
    first: dict[str, str] = {}
    same: dict[str, str] = {}  # image id -> that of the earlier one
    for image_id, digest in manifest.digests.items():
        if first.setdefault(digest, image_id) != image_id:
            same[image_id] = first[digest]
    elsewhere = {
        first[digest]: f"{image_id} of {other.split}"
        for other in others
        for image_id, digest in reversed(other.digests.items())  # so that the first of several is named
        if digest in first
    }
    for item in listing.inputs:
        for reason, found in (("same_image", same), ("same_image_elsewhere", elsewhere)):
            if item.image_id in found:
                yield Finding(item.image_id, name_key(item.image_name), reason, f"as {found[item.image_id]}")


def _similar_images(manifest: Manifest, others: Iterable[Manifest], listing: Listing) -> list[Finding]:
    """The images that look like an earlier one, in this split or in another, but have other bytes."""
    ids, own = list(manifest.looks), list(manifest.looks.values())
    similar: dict[tuple[str, str], tuple[int, str]] = {}  # by image id and reason: the number of bits, and which image

    def keep_nearest(image_id: str, reason: str, bits: int, what: str) -> None:
        similar[image_id, reason] = min((bits, what), similar.get((image_id, reason), (bits, what)))

    for index, earlier, bits in looks.find_pairs(own):
        if manifest.digests[ids[index]] != manifest.digests[ids[earlier]]:
            keep_nearest(ids[index], "near_duplicate", bits, ids[earlier])
    for other in others:
        other_ids = list(other.looks)
        for index, theirs, bits in looks.find_pairs(own, list(other.looks.values())) if other_ids else ():
            if manifest.digests[ids[index]] != other.digests[other_ids[theirs]]:
                what = f"{other_ids[theirs]} of {other.split}"
                keep_nearest(ids[index], "near_duplicate_elsewhere", bits, what)
    found = {image_id for image_id, _ in similar}
    names = {item.image_id: name_key(item.image_name) for item in listing.inputs if item.image_id in found}
    return [
        Finding(image_id, names[image_id], reason, f"as {what}: {bits} of {looks.NUM_BITS} bits differ")
        for (image_id, reason), (bits, what) in similar.items()
    ]


def _problems(manifest: Manifest, config: ConvertConfig) -> list[str]:
    """Why the split cannot be published: each file that is in the way or, where all are skipped, that none is left."""
    kinds = [manifest.refused, *((manifest.dropped, manifest.repaired) if config.strict else ())]
    bad = [finding for found in kinds for finding in found.files]
    lines = sorted(f"{finding.file}: {finding.reason}: {finding.detail}" for finding in bad)
    if config.on_error == "skip":
        lines = lines[:_SKIPPED_SHOWN]
    if more := sum(sum(found.counts.values()) for found in kinds) - len(lines):
        lines.append(f"and {more:,} more such files in {manifest.split}")
    if lines and config.on_error == "fail":
        return lines
    none_left = f"{manifest.split}: no image is left to convert{':' if lines else '.'}"
    return [] if manifest.num_images else ["\n".join([none_left, *lines])]


def _publish(manifest: Manifest, output_dir: str) -> None:
    """Gives the staged shards their names, and last writes the manifest: it is what says that all is there."""
    split = manifest.split
    final = manifest_path(output_dir, split)
    for path in (final, shards.report_path(output_dir, split), findings_path(output_dir, split)):
        with contextlib.suppress(FileNotFoundError):
            files.remove(path)
    folder = staging_dir(output_dir, split)
    names = [shard.name for shard in manifest.shards]
    for stale in set(shards.shards_by_split(output_dir).get(split, ())) - set(names):
        files.remove(os.path.join(output_dir, stale))
    for name in names:
        staged = os.path.join(folder, name.replace(".tfrecord", ".shard"))
        if files.exists(staged):
            files.replace(staged, os.path.join(output_dir, name))
    staged = findings_path(folder, split)
    if files.exists(staged):
        files.replace(staged, findings_path(output_dir, split))
    with files.create(final, os.path.join(folder, "manifest.json")) as file:
        for part in manifest.json_parts():
            file.write(part.encode())
    files.remove_tree(folder)


# What an earlier run left.


def _already_done(split: str, listing: Listing, labels: tuple[str, ...], config: ConvertConfig) -> Manifest | None:
    """The manifest of a finished conversion of the same input; None where there is work to do.

    Raises:
      ConversionError: another conversion is there; names what differs.
    """
    path = manifest_path(config.output_dir, split)
    remedy = "--overwrite starts anew, or choose another --output_dir."
    if config.overwrite:
        return None
    if not files.exists(path):
        if split in shards.shards_by_split(config.output_dir) and not files.is_dir(
            staging_dir(config.output_dir, split)
        ):
            raise ConversionError(f"{config.output_dir} holds shards of {split} but no manifest: {remedy}")
        return None
    try:
        manifest = Manifest.from_json(files.read(path))
    except ValueError as error:
        raise ConversionError(f"{path} is not a sound manifest ({error}): {remedy}") from error
    if manifest.version != MANIFEST_VERSION:
        raise ConversionError(f"{path} was written by another version of this program: {remedy}")
    if changes := list(_changes(manifest, listing, labels, config)):
        raise ConversionError("\n".join([f"{path} is of another conversion:", *changes, remedy]))
    for shard in manifest.shards:
        shard_path = os.path.join(config.output_dir, shard.name)
        if not files.exists(shard_path) or files.size(shard_path) != shard.num_bytes:
            return None
    return manifest


def _changes(manifest: Manifest, listing: Listing, labels: tuple[str, ...], config: ConvertConfig) -> Iterator[str]:
    """What differs between a conversion that is there and the one that was asked for, a line for each difference."""
    for name, value in config.settings.items():
        if manifest.settings.get(name) != value:
            yield f"--{name}: {json.dumps(manifest.settings.get(name))} then, {json.dumps(value)} now"
    if manifest.labels != labels:
        yield f"labels: {', '.join(manifest.labels)} then, {', '.join(labels)} now"
    now = {item.image_id: item.fingerprint for item in listing.inputs}
    then = manifest.inputs
    for what, ids in (
        ("new", now.keys() - then.keys()),
        ("gone", then.keys() - now.keys()),
        ("changed", {image_id for image_id in now.keys() & then.keys() if now[image_id] != then[image_id]}),
    ):
        if ids:
            shown = sorted(ids)[:10]
            yield f"{len(ids)} {what}: {', '.join(shown)}{' ...' if len(ids) > len(shown) else ''}"
