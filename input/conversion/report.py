"""The report on a converted split: text for the terminal, and `SPLIT.report.html` beside the shards.

Everything is read back from the shards, so that what is shown is what was stored.
"""

from __future__ import annotations

import json
import math
import os
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from input import files, shards
from input.config import AnchorConfig
from input.conversion import report_page, survey

if TYPE_CHECKING:
    from input.conversion.workers import Workers

_MAX_CLASSES = 20  # rows of the table
_MAX_FILES = 8  # files named


def write_report(output_dir: str, manifest: Any, image_size: tuple[int, int], workers: Workers) -> tuple[str, str]:
    """Writes the page; the same shards give the same bytes.

    Args:
      output_dir: the folder of the shards.
      manifest: the manifest of the split.
      image_size: (height, width) of the network's input that the anchors are judged at.
      workers: processes to read the shards with.

    Returns:
      The report for the terminal, and the page's path.

    Raises:
      tfrecord.DamagedShardError: a shard cannot be read back.
    """
    manifest = json.loads(manifest.to_json())
    split = manifest["split"]
    paths = [os.path.join(output_dir, shard["name"]) for shard in manifest["shards"]]
    data = survey.take_survey(paths, workers, manifest["num_images"], f"reporting {split}")
    boxes, num_classes = survey.input_boxes(data, image_size), len(manifest["labels"])
    fits = [survey.measure_fit(boxes, data.classes, num_classes, AnchorConfig(), image_size)]
    if fits[0].per_class[fits[0].worst] < report_page.POOR:
        suggested = survey.suggest_anchors(boxes, data.classes, num_classes, image_size)
        if suggested:
            fits.append(survey.measure_fit(boxes, data.classes, num_classes, suggested, image_size))
    report = report_page.Report(manifest, data, boxes, fits, image_size, paths)
    path = shards.report_path(output_dir, split)
    with files.create(path, os.path.join(output_dir, f".{split}.report.html.partial")) as file:
        for part in report_page.make_page(report):
            file.write(part.encode())
    return "\n".join(_lines(report)), path


def _lines(report: report_page.Report) -> Iterator[str]:
    """About 40 lines at most, of some 110 columns."""
    manifest, num_boxes = report.manifest, report.manifest["num_boxes"]
    yield (
        f"{report_page.clean(manifest['split'])}: {manifest['num_images']:,} images "
        f"({manifest['num_negatives']:,} without objects), {num_boxes:,} boxes, {len(manifest['shards'])} shards"
    )
    if num_boxes:
        yield from _class_table(report)
        per_image, difficult, truncated = report_page.box_facts(report)
        yield f"  {per_image}; {difficult}, {truncated}"
        header = ["side in px", "least", "5%", "half", "95%", "most"]
        stored = ["  as stored", *_quantiles(survey.box_sides(report.data.boxes))]
        resized = [f"  at {report_page.size_name(report)}", *_quantiles(survey.box_sides(report.boxes))]
        yield from _table([header, stored, resized], "<>>>>>")
    yield from report_page.verdict(report)
    yield from _findings(manifest)


def _class_table(report: report_page.Report) -> Iterator[str]:
    manifest, labels = report.manifest, report.manifest["labels"]
    sides = survey.by_class(survey.box_sides(report.boxes), report.data.classes, len(labels))
    counts = np.array([len(members) for members in sides])
    shown = np.argsort(-counts, kind="stable")[:_MAX_CLASSES].tolist()
    rows = [["class", "images", "boxes", "", f"median side at {report_page.size_name(report)}", "matched"]]
    for index in shown:
        rows.append(
            [
                _shorten(report_page.clean(labels[index]), 30),
                f"{manifest['images_per_class'][labels[index]]:,}",
                f"{counts[index]:,}",
                _bar(counts[index] / counts.max()),
                f"{np.median(sides[index]):.1f}" if counts[index] else "-",
                report_page.percent(report.fits[0].per_class[index]),
            ]
        )
    yield from _table(rows, "<>><>>")
    if len(shown) < len(labels):
        rest = counts.sum() - counts[shown].sum()
        yield f"  and {len(labels) - len(shown):,} more classes with {rest:,} boxes"


def _findings(manifest: dict[str, Any]) -> Iterator[str]:
    rows, files = [], []
    for kind, meanings in report_page.KINDS.items():
        rows += [[kind, why, f"{count:,}", meanings[why]] for why, count in manifest[kind]["counts"].items()]
        if kind != "noted":
            files += manifest[kind]["files"]
    if rows:
        yield from _table(rows, "<<><")
    yield from (_shorten(f"    {report_page.describe_finding(line)}", 110) for line in files[:_MAX_FILES])
    if len(files) > _MAX_FILES:
        yield f"    and {len(files) - _MAX_FILES:,} more, which the manifest names"


def _columns(text: str) -> int:
    """The columns that a terminal takes for a text: two for wide characters of East Asia, none for combining ones."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _shorten(text: str, columns: int) -> str:
    if _columns(text) <= columns:
        return text
    while _columns(text) >= columns:
        text = text[:-1]
    return text + "…"


def _table(rows: Sequence[Sequence[str]], sides: str) -> Iterator[str]:
    """Rows with aligned columns; `sides` has < or > for each."""
    widths = [max(map(_columns, column)) for column in zip(*rows)]
    for row in rows:
        spaces = [" " * (width - _columns(cell)) for cell, width in zip(row, widths)]
        cells = (cell + space if side == "<" else space + cell for cell, space, side in zip(row, spaces, sides))
        yield ("  " + "  ".join(cells)).rstrip()


def _bar(share: float, length: int = 24) -> str:
    eighths = math.ceil(share * length * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _quantiles(sides: np.ndarray) -> list[str]:
    return [f"{value:,.1f}" for value in np.quantile(sides, (0, 0.05, 0.5, 0.95, 1))]
