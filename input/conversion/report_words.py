"""What a report says on the terminal and on the page alike: its data, and the words for them."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np

from input.config import AnchorConfig
from input.conversion import survey
from input.conversion.findings import KINDS
from input.shards import Finding, Manifest

POOR = 0.9  # the anchors fit a class poorly if they match a smaller share of its boxes
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Report(NamedTuple):
    """All data of a report."""

    manifest: Manifest
    data: survey.Survey
    boxes: np.ndarray  # f32 [n, 4] px of the network's input
    fits: list[survey.Fit]  # of the default anchors and, if those fit poorly, of better ones where there are any
    image_size: tuple[int, int]
    shard_paths: list[str]

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
    sides = survey.by_class(survey.box_sides(report.boxes), report.data.classes, len(labels))
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


def verdict(report: Report) -> list[str]:
    """Sentences on whether anchors fit; flags to use instead, which start with --, are a line of their own."""
    if not len(report.boxes):
        return ["No boxes, so nothing for anchors to match."]

    def matches(fit: survey.Fit) -> str:
        worst = f"{clean(report.manifest.labels[fit.worst])} {percent(fit.per_class[fit.worst])}"
        return f"{percent(fit.matched.mean())} of the boxes, of the worst class {worst}"

    default, last = report.fits[0], report.fits[-1]
    lines = [f"At {report.size_name} the default anchors match {matches(default)} (IoU >= {survey.THRESHOLD:g})."]
    if last is not default:
        lines += [f"These would match {matches(last)}:", _anchor_flags(last.anchor)]
    if last.per_class[last.worst] < POOR:
        side = np.median(survey.box_sides(report.boxes[~last.matched]))
        lines.append(
            f"Half of the boxes that even {'the default' if last is default else 'those'} anchors do not match have a "
            f"side below {side:.1f} px" + ("; try a larger --image_size." if side < 16 else ".")
        )
    return lines


def _anchor_flags(anchor: AnchorConfig) -> str:
    """The trainer's flags for these anchors."""
    values = {"anchor_sizes": anchor.sizes, "anchor_scales": anchor.scales, "aspect_ratios": anchor.aspect_ratios}
    return " ".join(f"--{flag}={','.join(f'{value:.6g}' for value in numbers)}" for flag, numbers in values.items())


def finding_rows(manifest: Manifest) -> list[tuple[str, str, int, str]]:
    """What was found: its kind (refused, repaired or noted), the reason, how often, and what the reason means."""
    return [
        (kind, reason, count, meanings[reason])
        for kind, meanings in KINDS.items()
        for reason, count in manifest.findings(kind).counts.items()
    ]


def describe_finding(finding: Finding) -> str:
    return clean(": ".join(filter(None, (finding.file, finding.reason, finding.detail))))
