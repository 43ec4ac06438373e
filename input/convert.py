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
import gc
import hashlib
import io
import json
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from input import files, tfrecord, voc

_RECORD_OVERHEAD = 2048  # bytes of a record beside its image, about
_MIN_SHARDS = 8
_KINDS = {"refused": voc.REFUSED, "mended": voc.MENDED, "noted": voc.NOTED}
SCRATCH = ".beam.partial"  # folder of `beam.BeamWorkers` in the output folder
_VERSION = 1  # of the records and the manifest: raised when the same input no longer gives the same bytes


class ConversionError(Exception):
    """The conversion cannot be done; the message says why and what to do, a line for each problem."""


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """What to convert, and how. Folders left empty follow from `voc_dirs`."""

    output_dir: str
    voc_dirs: tuple[str, ...] = ()  # each holds Annotations/, JPEGImages/, ImageSets/Main/*.txt
    annotations_dir: str = ""
    images_dir: str = ""
    image_set: str = ""
    image_set_file: str = ""
    val_fraction: float = 0.0
    labels_file: str = ""
    on_error: str = "fail"  # or "skip"
    strict: bool = False
    zero_based: bool = False
    drop_empty: bool = False
    drop_unknown_classes: bool = False
    verify: str = "decode"
    max_pixels: int = 100_000_000
    num_shards: int = 0  # 0: by shard_bytes
    shard_bytes: int = 128 << 20
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self):
        if not self.voc_dirs and not (self.annotations_dir and self.images_dir):
            raise ConversionError("give --voc_dir, or both --annotations_dir and --images_dir.")
        if len(self.voc_dirs) > 1 and (self.annotations_dir or self.images_dir or self.image_set_file):
            raise ConversionError("--annotations_dir, --images_dir and --image_set_file go with one --voc_dir only.")
        if self.val_fraction and (self.image_set or self.image_set_file):
            raise ConversionError("--val_fraction divides a folder without image sets; leave out --image_set.")
        if not 0 <= self.val_fraction < 1:
            raise ConversionError(f"--val_fraction={self.val_fraction} must be at least 0 and below 1.")
        if self.on_error not in ("fail", "skip"):
            raise ConversionError(f"--on_error={self.on_error}: choose fail or skip.")
        if self.num_shards < 0 or min(self.shard_bytes, self.max_pixels) < 1:
            raise ConversionError("--num_shards, --shard_mb and --max_pixels must be positive.")

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the outcome beside the files and the labels."""
        names = (
            *("on_error", "strict", "zero_based", "drop_empty", "drop_unknown_classes", "verify", "max_pixels"),
            *("num_shards", "shard_bytes", "seed", "val_fraction"),
        )
        return {name: getattr(self, name) for name in names}


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
    return stem if extension.lower() in (".xml", *voc.IMAGE_EXTENSIONS) else line


class Listing(NamedTuple):
    inputs: list[Input]  # in order of their ids
    findings: list[voc.Finding]  # about the lists themselves


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
        image_files = _list_folder(os.path.dirname(image_dir), voc.IMAGE_EXTENSIONS)
        set_file = config.image_set_file
        if not set_file and config.image_set:
            set_file = os.path.join(voc_dir, "ImageSets", "Main", config.image_set + ".txt")
        ids = [_image_id(line, xml_files) for line in _read_image_set(set_file)] if set_file else list(xml_files)
        counts = collections.Counter(ids)
        for image_id in counts:
            if counts[image_id] > 1:
                detail = f"{counts[image_id]} times in {os.path.basename(set_file)}"
                findings.append(voc.Finding(image_id, image_id + ".xml", "listed_twice", detail))
            xml, image = xml_files.get(image_id, ""), image_files.get(image_id, "")
            if xml and not image:
                filename = voc.name_key(voc.named_image(os.path.join(xml_dir, xml)))
                image = image_files.get(os.path.splitext(filename)[0]) or image_files.get(filename, "")
            if image_id in inputs:
                detail = f"{inputs[image_id].source.xml_path or image_id} has the same id; rename one, and its image"
                findings.append(voc.Finding(image_id, image_id + ".xml", "duplicate_id", detail))
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


# One shard, in a worker.


class ShardTask(NamedTuple):
    index: int
    inputs: list[Input]
    staged: str  # path without extension of the shard and its result
    key: str
    options: voc.ReadOptions
    strict: bool
    drop_empty: bool


def _read(source: voc.Source, task: ShardTask) -> tuple[voc.Example | None, list[voc.Finding]]:
    """What to write for one source, if anything, and what was found."""
    try:
        example = voc.read_annotation(source, task.options)
    except voc.Refused as refusal:
        name = voc.name_key(os.path.basename(refusal.path))
        return None, [voc.Finding(source.image_id, name, refusal.reason, refusal.detail)]
    findings = example.findings
    empty = not example.annotation.boxes
    if empty:
        reason = "dropped_empty" if task.drop_empty else "no_objects"
        findings.append(voc.Finding(source.image_id, example.annotation.filename, reason, ""))
    unwanted = (empty and task.drop_empty) or (task.strict and any(found.reason in voc.MENDED for found in findings))
    return None if unwanted else example, findings


def convert_shard(task: ShardTask, advance) -> dict[str, Any]:
    """Writes one shard and, last, its result beside it; tells `advance` now and then how many more images are done."""
    counts = dict.fromkeys(("num_records", "num_bytes", "num_negatives", "num_difficult", "num_truncated"), 0)
    of_boxes: list[str] = []  # their classes, image after image
    of_images: list[str] = []
    findings: list[voc.Finding] = []
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


# Workers.

_progress = None  # in a worker: the shared count of images done


def _start_worker(progress) -> None:
    global _progress
    _progress = progress
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    gc.freeze()
    gc.set_threshold(100_000)  # images leave no circles behind, so that there is next to nothing to collect

    def leave_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _advance(count: int) -> None:
    with _progress.get_lock():
        _progress.value += count


def _work(function, argument) -> Any:
    return function(argument, _advance)


class Workers:
    """Up to `num_workers` processes that apply a function to arguments; started when first needed.

    They are spawned, never forked: the caller may run TensorFlow.
    """

    def __init__(self, num_workers: int):
        self._num_workers = num_workers
        self._num_started = 0
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, exception_type, *_) -> None:
        if self._pool:
            processes = list(self._pool._processes.values())
            self._pool.shutdown(wait=exception_type is None, cancel_futures=True)
            if exception_type is not None:
                for process in processes:
                    process.kill()

    def _start(self, wanted: int) -> None:
        if self._pool:
            self._pool.shutdown()
        context = multiprocessing.get_context("spawn")
        self._progress = context.Value("q", 0)
        self._pool = concurrent.futures.ProcessPoolExecutor(wanted, context, _start_worker, (self._progress,))
        self._num_started = wanted

    def map(self, function, arguments: Sequence[Any], total: int, what: str) -> list[Any]:
        """`function(argument, advance)` of each argument; shows how many of `total` images are done."""
        wanted = min(self._num_workers, len(arguments))
        with tqdm(total=total, desc=what, unit=" images", disable=None) as bar:
            if wanted <= 1:
                return [function(argument, bar.update) for argument in arguments]
            if wanted > self._num_started:
                self._start(wanted)
            start = self._progress.value
            futures = [self._pool.submit(_work, function, argument) for argument in arguments]
            waiting: Iterable = futures
            while waiting:
                done, waiting = concurrent.futures.wait(waiting, 0.2, concurrent.futures.FIRST_EXCEPTION)
                bar.update(self._progress.value - start - bar.n)
                for future in done:
                    future.result()
            return [future.result() for future in futures]


def _class_names(inputs: Sequence[Input], advance) -> set[str]:
    names = set()
    for item in inputs:
        names |= voc.class_names(item.source.xml_path)
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
    names = [tfrecord.shard_name(split, index, count) for index in range(count)]
    bases = [os.path.join(folder, os.path.splitext(name)[0]) for name in names]
    useful = {os.path.basename(base) + extension for base in bases for extension in (".shard", ".json")}
    for name in set(files.names(folder)) - useful:  # half-written, or of another number of shards
        files.remove(os.path.join(folder, name))
    options = voc.ReadOptions(labels, config.zero_based, config.verify, config.max_pixels, config.drop_unknown_classes)
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
                return {**result, "findings": [voc.Finding(*finding) for finding in result["findings"]]}
    return None


def _staging_dir(output_dir: str, split: str) -> str:
    return os.path.join(output_dir, f".{split}.partial")


def _manifest(
    split: str,
    listing: Listing,
    findings: list[voc.Finding],
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
                "name": tfrecord.shard_name(split, index, len(results)),
                **{name: result[name] for name in ("num_records", "num_bytes", "sha256")},
            }
            for index, result in enumerate(results)
        ],
    }
    for kind, reasons in _KINDS.items():
        members = sorted(finding for finding in findings if finding.reason in reasons)
        manifest[kind] = {
            "counts": dict(collections.Counter(finding.reason for finding in members)),
            "files": [dict(zip(voc.Finding._fields, finding)) for finding in members],
        }
    manifest["inputs"] = {item.image_id: item.fingerprint for item in listing.inputs}
    return manifest


def _publish(split: str, manifest: dict[str, Any], config: ConvertConfig) -> None:
    """Gives the staged shards their names, and last writes the manifest: it is what says that all is there."""
    final = tfrecord.manifest_path(config.output_dir, split)
    for path in (final, tfrecord.report_path(config.output_dir, split)):
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
        if name.endswith(".tfrecord") and tfrecord.split_name(name) == split and name != f"{split}.tfrecord"
    }


# The whole.


def _choose_labels(splits: dict[str, Listing], config: ConvertConfig, workers: Workers) -> tuple[str, ...]:
    existing = os.path.join(config.output_dir, tfrecord.LABELS)
    others = [
        name
        for name in files.names(config.output_dir)
        if name.endswith(".manifest.json") and name[: -len(".manifest.json")] not in splits
    ]
    try:
        there = tfrecord.parse_labels(existing) if files.exists(existing) else None
        given = tfrecord.parse_labels(config.labels_file) if config.labels_file else None
    except (OSError, ValueError) as error:
        raise ConversionError(str(error)) from error
    if given and there and given != there and others:
        raise ConversionError(
            f"{config.labels_file} differs from {existing}, which {', '.join(sorted(others))} was made with: "
            "convert every split anew, into an empty folder."
        )
    if given:
        return given
    replaced = any(files.exists(tfrecord.manifest_path(config.output_dir, split)) for split in splits)
    if there and (others or not (config.overwrite and replaced)):
        return there
    return find_classes([item for listing in splits.values() for item in listing.inputs], workers)


def _already_done(split: str, listing: Listing, labels: tuple[str, ...], config: ConvertConfig) -> dict | None:
    """The manifest of a finished conversion of the same input; None where there is work to do.

    Raises:
      ConversionError: another conversion is there; names what differs.
    """
    path = tfrecord.manifest_path(config.output_dir, split)
    remedy = "--overwrite starts anew, or choose another --output_dir."
    if config.overwrite:
        return None
    if not files.exists(path):
        if _shards_of(config.output_dir, split) and not files.is_dir(_staging_dir(config.output_dir, split)):
            raise ConversionError(f"{config.output_dir} holds shards of {split} but no manifest: {remedy}")
        return None
    try:
        manifest = tfrecord.read_manifest(path)
    except ValueError as error:
        raise ConversionError(f"{path} is not a manifest: {remedy}") from error
    if manifest.get("version") != _VERSION:
        raise ConversionError(f"{path} was written by another version of this program: {remedy}")
    expected = _manifest(split, Listing([], []), [], [], labels, config)
    damaged = [key for key, value in expected.items() if type(manifest.get(key)) is not type(value)]
    damaged = damaged or [kind for kind in _KINDS if manifest[kind].keys() != expected[kind].keys()]
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


def available_cores() -> int:
    """The cores that this process may use; a container often allows fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        bad = [finding for finding in findings if finding.reason in voc.REFUSED]
        if config.strict:
            bad += [finding for finding in findings if finding.reason in voc.MENDED]
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
    path = os.path.join(output_dir, tfrecord.LABELS)
    with files.create(path, os.path.join(output_dir, f".{tfrecord.LABELS}.partial")) as file:
        file.write("".join(f"{name}\n" for name in labels).encode())
