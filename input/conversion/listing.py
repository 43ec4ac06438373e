"""Which files each record of a split is made of."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence

from input import files
from input.conversion import coco, division, images, voc, yolo
from input.conversion.config import ConversionError, ConvertConfig
from input.conversion.source import Input, Listing
from input.conversion.workers import Workers

_READERS = {"voc": voc, "coco": coco, "yolo": yolo}


def list_inputs(config: ConvertConfig, workers: Workers) -> dict[str, Listing]:
    """The inputs of each split, in order of their ids.

    Args:
      config: what to convert.
      workers: processes that read annotations, where --val_fraction needs their classes.

    Raises:
      ConversionError: a folder, image set or file of annotations is missing or empty.
    """
    listings = {}
    for split, listing in _READERS[config.format].list_splits(config).items():
        inputs = sorted(listing.inputs, key=lambda item: item.image_id)
        _fill_in_stats(inputs, listing.classes)
        listings[split] = listing._replace(inputs=inputs)
    if not config.val_fraction:
        return listings
    if len(listings) > 1:
        raise ConversionError(f"--val_fraction divides a folder without splits, but there are {', '.join(listings)}.")
    (listed,) = listings.values()
    reader = _READERS[config.format]
    found = workers.map_chunks(reader.classes_of, listed.inputs, "finding classes")
    classes = {image_id: names for part in found for image_id, names in part.items()}
    hashes: dict[str, str] = {}
    if config.verify == "decode":  # otherwise no image is decoded
        find_looks = functools.partial(images.looks_of, max_pixels=config.max_pixels)
        for part in workers.map_chunks(find_looks, listed.inputs, "finding near duplicates"):
            hashes.update(part)
    order = shuffled(listed.inputs, config.seed, "val")
    val_ids = division.choose_val(order, classes, config.val_fraction, config.group_by, hashes)
    return {
        name: listed._replace(
            inputs=[item for item in listed.inputs if (item.image_id in val_ids) == (name == "val")],
            findings=[finding for finding in listed.findings if (finding.image_id in val_ids) == (name == "val")],
        )
        for name in ("train", "val")
    }


def describe_folders(config: ConvertConfig) -> list[str]:
    """Where the files were found, a line for each folder or file that is not where it would be expected.

    Raises:
      ConversionError: they were not found.
    """
    return _READERS[config.format].describe(config)


def _fill_in_stats(inputs: list[Input], classes: Sequence[str]) -> None:
    """Fills in `num_bytes` and `fingerprint`, in place, since a data set may have millions of images."""
    for start in range(0, len(inputs), 4096):
        part = slice(start, start + 4096)
        inputs[part] = _with_stats(inputs[part], classes)


def _with_stats(inputs: Sequence[Input], classes: Sequence[str]) -> list[Input]:
    sources = [item.source for item in inputs]
    annotation_stats = files.stats([source.annotation_path for source in sources])
    image_stats = files.stats([source.image_path for source in sources])
    done = []
    for item, annotation_stat, image_stat in zip(inputs, annotation_stats, image_stats):
        decides = repr((item.annotation_name, item.image_name, [annotation_stat, image_stat]))
        if item.document or classes:
            decides += repr((item.document, classes))
        digest = hashlib.sha256(decides.encode("utf-8", "surrogateescape")).hexdigest()
        num_bytes, _ = image_stat
        done.append(item._replace(num_bytes=num_bytes, fingerprint=digest[:8]))
    return done


def shuffled(inputs: Iterable[Input], seed: int, purpose: str) -> list[Input]:
    """The inputs in the order of a hash of their ids, the seed and the purpose, so that nothing else matters."""
    return sorted(inputs, key=lambda item: hashlib.sha256(f"{purpose} {seed} {item.image_id}".encode()).digest())
