"""What a report says on the terminal and on the page alike: its data, and the words for them."""

from __future__ import annotations

import collections
import math
import os
import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from input import files
from input.config import AnchorConfig, InputConfig
from input.conversion import survey, tiling
from input.conversion.findings import KINDS
from input.manifest import Finding, Manifest, findings_path, manifest_path

FEW_IMAGES = 5000  # below this, training is advised to take the settings for small data sets
POOR = 0.9  # the anchors fit a class poorly if they match a smaller share of its boxes
WORTH_STORING = 0.5  # storing images smaller is suggested if it leaves at most this share of the pixels
_TILE_INPUT = 640  # px, the side of the network's input that recommended tiles are for
_MIN_TILE = 256  # px
HARMLESS = "folder"  # the reason of a note that says nothing about the data
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Report(NamedTuple):
    """All data of a report."""

    manifest: Manifest
    data: survey.Survey
    sides: np.ndarray  # f32 [n] px of the network's input, the square roots of the boxes' areas
    aspect_ratios: np.ndarray  # f32 [n], there too
    fits: list[survey.Fit]  # of the default anchors and of better ones, where there are any
    image_size: tuple[int, int]  # of the network's input
    suitable_size: tuple[int, int]  # that would suit this data
    output_dir: str
    shard_paths: list[str]
    class_pictures: int = 0  # random pictures of each class

    @property
    def size_name(self) -> str:
        """The size of the network's input as a flag has it: HxW."""
        return "x".join(map(str, self.image_size))


class ClassRow(NamedTuple):
    """One class in a table of all."""

    class_index: int  # 0-based
    label: str
    num_images: int
    num_boxes: int
    share: float  # num_boxes as a share of the most frequent class's
    median_side: float  # px of the network's input; NaN without boxes


def clean(text: str) -> str:
    """The text without the characters that control a terminal and those that XML forbids."""
    return _CONTROL.sub("\ufffd", text)


def percent(share: float) -> str:
    """The share as a percentage, rounded down, so that 100% means all; "-" for NaN."""
    return "-" if math.isnan(share) else f"{math.floor(share * 1000 + 1e-9) / 10:.1f}%"


def class_rows(report: Report) -> list[ClassRow]:
    """All classes, those with most boxes first."""
    labels = report.manifest.labels
    sides = survey.by_class(report.sides, report.data.classes, len(labels))
    most = max(map(len, sides))
    return [
        ClassRow(
            class_index=index,
            label=clean(labels[index]),
            num_images=report.manifest.images_per_class[labels[index]],
            num_boxes=len(sides[index]),
            share=len(sides[index]) / max(most, 1),
            median_side=float(np.median(sides[index])) if len(sides[index]) else math.nan,
        )
        for index in sorted(range(len(labels)), key=lambda index: -len(sides[index]))
    ]


def box_facts(report: Report) -> list[str]:
    """How many boxes an image has, and which shares of the boxes are difficult and truncated; there must be boxes."""
    manifest = report.manifest
    return [
        f"{manifest.num_boxes / manifest.num_images:.1f} boxes an image, {report.data.num_boxes.max()} at most",
        f"{percent(manifest.num_difficult / manifest.num_boxes)} difficult",
        f"{percent(manifest.num_truncated / manifest.num_boxes)} truncated",
    ]


def too_many_boxes(report: Report) -> str:
    """A sentence on images with more boxes than training keeps by default; empty if there are none."""
    kept, most = InputConfig.max_boxes, report.data.num_boxes.max()
    number = int((report.data.num_boxes > kept).sum())
    if not number:
        return ""
    images = "1 image holds" if number == 1 else f"{number:,} images hold"
    return f"{images} more than {kept} boxes, of which the smallest are not learnt; --max_boxes={most} keeps all."


def source_ids(report: Report) -> Iterator[str]:
    """For each record the id of the image that it was made from, which is what findings name."""
    return map(tiling.source_id if report.manifest.settings.get("tile") else str, report.data.image_ids)


def tiles(report: Report) -> str:
    """A sentence that recommends tiles; empty where objects are not small against their images.

    Small is what even the largest size that is recommended leaves below `survey.SMALL`: of some class a tenth.
    """
    data, labels = report.data, report.manifest.labels
    if not len(data.boxes) or report.manifest.settings.get("tile"):
        return ""
    image_size = report.suitable_size
    sides = survey.by_class(survey.box_sides(survey.input_boxes(data, image_size)), data.classes, len(labels))
    stored = survey.by_class(survey.box_sides(data.boxes), data.classes, len(labels))
    worst = min((index for index in range(len(labels)) if len(sides[index])), key=lambda i: np.quantile(sides[i], 0.1))
    # At this size a tile shows a tenth of that class's objects below SMALL, in an input of TILE_INPUT.
    tile = int(_TILE_INPUT * np.quantile(stored[worst], 0.1) / survey.SMALL / 32) * 32
    tile = max(tile, _MIN_TILE)
    if np.quantile(sides[worst], 0.1) >= survey.SMALL or np.median(data.sizes.max(axis=1)) < 2 * tile:
        return ""
    heights_and_widths = data.boxes[:, 2:] - data.boxes[:, :2]
    overlap = min(max(math.ceil(10 * np.quantile(heights_and_widths, 0.9) / tile) / 10, 0.1), 0.5)
    return (
        f"--tile={tile} --overlap={overlap:g} is recommended: a tenth of {clean(labels[worst])} has a side below "
        f"{np.quantile(sides[worst], 0.1):.1f} px even at {image_size[0]}x{image_size[1]}. The network then sees it "
        f"larger, at --image_size={_TILE_INPUT}; predict with tiles too."
    )


def storage(report: Report) -> str:
    """A sentence on what storing images smaller saved or would save; empty where that is not much."""
    manifest, sizes = report.manifest, report.data.sizes.astype(np.float64)
    pixels = sizes.prod(axis=1)
    if manifest.num_resized:
        before, after = (
            f"{number / 2**20:,.1f} MiB"
            for number in (manifest.source_bytes, sum(shard.num_bytes for shard in manifest.shards))
        )
        share = percent(pixels.sum() / manifest.source_pixels)
        return (
            f"{manifest.num_resized:,} images were made smaller: {before} of files became {after} of records, with "
            f"{share} of the pixels to decode."
        )
    if not manifest.num_boxes or tiles(report):
        return ""
    side = 2 * max(report.suitable_size)
    share = (pixels * np.minimum(side / sizes.max(axis=1), 1.0) ** 2).sum() / pixels.sum()
    if share > WORTH_STORING:
        return ""
    return (
        f"--store_max_side={side}, twice the side that suits this data, would leave {percent(share)} of the pixels to "
        "store and to decode."
    )


def verdict(report: Report) -> list[str]:
    """Sentences on whether anchors fit; flags to use instead, which start with --, are a line of their own."""
    if not len(report.sides):
        return ["No boxes, so nothing for anchors to match."]

    def matches(fit: survey.Fit) -> str:
        worst = f"{clean(report.manifest.labels[fit.worst])} {percent(fit.per_class[fit.worst])}"
        return f"{percent(fit.matched.mean())} of the boxes, of the worst class {worst}"

    default, last = report.fits[0], report.fits[-1]
    lines = [f"At {report.size_name} the default anchors match {matches(default)} (IoU >= {survey.THRESHOLD:g})."]
    if last is not default:
        lines += [f"These would match {matches(last)}:", _anchor_flags(last.anchor)]
    if last.per_class[last.worst] < POOR:
        side = np.median(report.sides[~last.matched])
        lines.append(
            f"Half of the boxes that even {'the default' if last is default else 'those'} anchors do not match have a "
            f"side below {side:.1f} px" + ("; try a larger --image_size." if side < 16 else ".")
        )
    return lines


def _anchor_flags(anchor: AnchorConfig) -> str:
    """The trainer's flags for these anchors."""
    values = {"anchor_sizes": anchor.sizes, "anchor_scales": anchor.scales, "aspect_ratios": anchor.aspect_ratios}
    return " ".join(f"--{flag}={','.join(f'{value:.6g}' for value in numbers)}" for flag, numbers in values.items())


def training_advice(report: Report) -> tuple[str, str]:
    """A sentence and the command to train on a split, or the flag to evaluate on it if it is `val` or `test`.

    docs/RECIPES.md explains the rules. Both are empty without boxes.
    """

    manifest, data = report.manifest, report.data

    def records(flag: str, split: str) -> str:
        return f"--{flag}={shlex.quote(os.path.join(report.output_dir, f'{clean(split)}-*.tfrecord'))}"

    split, num_images, num_classes = manifest.split, manifest.num_images, len(manifest.labels)
    if not manifest.num_boxes:
        return "", ""
    if split in ("val", "test"):
        return "This flag evaluates a run on this split while it trains:", records("val_records", split)
    held_out = ["test"] if split == "trainval" else ["val", "test"]
    watched = [name for name in held_out if files.exists(manifest_path(report.output_dir, name))]
    image_size, fits = report.suitable_size, report.fits
    if image_size != report.image_size:
        fits = survey.measure_fits(survey.input_boxes(data, image_size), data.classes, num_classes, image_size)
    batch_size = 8 if num_images < FEW_IMAGES else 16
    steps = max(500, math.ceil(30 * num_images / batch_size / 100) * 100)
    settings = ["--backbone=resnet18", "--head_norm=group", "--box_loss=giou"]
    settings += ["--optimizer=adamw", "--learning_rate=0.001", "--weight_decay=0.01"]
    command = [
        "python -m trainer.task",
        records("train_records", split),
        *(records("val_records", name) for name in watched[:1]),
        "--model_dir=RUN",
        f"--image_size={'x'.join(map(str, image_size))}",
        _anchor_flags(fits[-1].anchor),
        *([f"--max_boxes={data.num_boxes.max()}"] if data.num_boxes.max() > InputConfig.max_boxes else []),
        f"--batch_size={batch_size}",
        f"--train_steps={steps}",
        *(settings if num_images < FEW_IMAGES else []),
    ]
    return "To train on this data (docs/RECIPES.md explains the numbers):", " ".join(command)


def shared_flaws(manifest: Manifest) -> list[str]:
    """A line for each flaw that several images, and more than a tenth of all, share; the most frequent comes first."""
    kinds = [manifest.findings(kind) for kind in KINDS]
    named = {finding.image_id for found in kinds for finding in found.files if finding.image_id}
    counts = collections.Counter(
        {reason: count for found in kinds for reason, count in sorted(found.num_images.items())}
    )
    num_images = max(len(manifest.inputs) + len(named - manifest.inputs.keys()), *counts.values(), 0)
    del counts[HARMLESS]
    meanings = {reason: meaning for of_kind in KINDS.values() for reason, meaning in of_kind.items()}
    return [
        f"{count:,} of {num_images:,} images: {meanings[reason]} ({reason})."
        for reason, count in counts.most_common()
        if count > max(1, num_images / 10)
    ]


def finding_rows(manifest: Manifest) -> list[tuple[str, str, int, str]]:
    """What was found: its kind, the reason, how often, and what the reason means; the harmless note comes last."""
    rows = [
        (kind, reason, count, meanings[reason])
        for kind, meanings in KINDS.items()
        for reason, count in manifest.findings(kind).counts.items()
    ]
    return sorted(rows, key=lambda row: HARMLESS in row)


def changed_files(manifest: Manifest) -> list[Finding]:
    """The findings about images whose records differ from what their files say."""
    return [finding for kind in KINDS if kind not in ("refused", "noted") for finding in manifest.findings(kind).files]


def where_all_are_named(manifest: Manifest) -> str:
    """The file that names all findings."""
    kinds = [manifest.findings(kind) for kind in KINDS]
    whole = all(sum(found.counts.values()) == len(found.files) for found in kinds)
    return "the manifest" if whole else os.path.basename(findings_path("", clean(manifest.split)))


def describe_finding(finding: Finding) -> str:
    return clean(": ".join(filter(None, (finding.file, finding.reason, finding.detail))))
