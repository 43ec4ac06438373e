"""The report on a converted split: text for the terminal, and `SPLIT.report.html` beside the shards.

All numbers are read back from the shards and their manifest, so that the report shows what was stored.
"""

from __future__ import annotations

import collections
import math
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from input import files, shards
from input.conversion import report_page, report_words, survey
from input.conversion.findings import NAMED_NOTES
from input.conversion.report_words import Report
from input.manifest import Manifest, manifest_path, read_manifest

if TYPE_CHECKING:
    from input.conversion.workers import Workers

_MAX_CLASSES = 20  # rows of the table
_MAX_FILES = 8  # files named


def write_report(
    output_dir: str,
    split: str,
    image_size: tuple[int, int],
    workers: Workers,
    class_pictures: int = 0,
) -> tuple[str, str]:
    """Writes the page; the same shards in the same folder give the same bytes.

    Args:
      output_dir: the folder of the shards.
      split: its name.
      image_size: (height, width) of the network's input for which the anchors are judged.
      workers: processes to read the shards with.
      class_pictures: how many random pictures of each class the page shows.

    Returns:
      The report for the terminal, and the page's path.

    Raises:
      tfrecord.DamagedShardError: a shard cannot be read back.
      ValueError: the manifest cannot.
    """
    manifest = read_manifest(manifest_path(output_dir, split))
    paths = [os.path.join(output_dir, shard.name) for shard in manifest.shards]
    data = survey.take_survey(paths, workers, manifest.num_images, f"reporting {split}")
    num_classes = len(manifest.labels)
    suitable_size = survey.choose_image_size(data, num_classes)
    boxes = survey.input_boxes(data, image_size)
    fits = survey.measure_fits(boxes, data.classes, num_classes, image_size)
    report = Report(
        manifest=manifest,
        data=data,
        sides=survey.box_sides(boxes),
        aspect_ratios=survey.aspect_ratios(boxes),
        fits=fits,
        image_size=image_size,
        suitable_size=suitable_size,
        output_dir=output_dir,
        shard_paths=paths,
        class_pictures=class_pictures,
    )
    del boxes  # they are large
    training = report_words.training_advice(report)
    path = shards.report_path(output_dir, split)
    with files.create(path, os.path.join(output_dir, f".{split}.report.html.partial")) as file:
        for part in report_page.make_page(report, training):
            file.write(part.encode())
    return "\n".join(_lines(report, training)), path


def _lines(report: Report, training: Iterable[str]) -> Iterator[str]:
    """At most about 40 lines of about 110 columns, but for the command at the end."""
    manifest = report.manifest
    split = report_words.clean(manifest.split)
    yield from (f"{split}: {flaw}" for flaw in report_words.shared_flaws(manifest))
    ignored = f"{manifest.num_ignored:,} ignored regions, " if manifest.num_ignored else ""
    yield (
        f"{split}: {manifest.num_images:,} images ({manifest.num_negatives:,} without "
        f"objects), {manifest.num_boxes:,} boxes, {ignored}{len(manifest.shards)} shards"
    )
    if manifest.num_boxes:
        yield from _class_table(report)
        per_image, difficult, truncated = report_words.box_facts(report)
        yield f"  {per_image}; {difficult}, {truncated}"
        header = ["side in px", "least", "5%", "half", "95%", "most"]
        stored = ["  as stored", *_quantiles(survey.box_sides(report.data.boxes))]
        resized = [f"  at {report.size_name}", *_quantiles(report.sides)]
        yield from _table([header, stored, resized], "<>>>>>")
    sentences = [
        report_words.storage(report),
        report_words.tiles(report),
        report_words.too_many_boxes(report),
        *report_words.verdict(report),
    ]
    yield from filter(None, sentences)
    yield from _findings(manifest)
    yield from filter(None, training)


def _class_table(report: Report) -> Iterator[str]:
    classes = report_words.class_rows(report)
    rows = [["class", "images", "boxes", "", f"median side at {report.size_name}", "matched"]]
    for row in classes[:_MAX_CLASSES]:
        rows.append(
            [
                _shorten(row.label, 30),
                f"{row.num_images:,}",
                f"{row.num_boxes:,}",
                _bar(row.share),
                f"{row.median_side:.1f}" if row.num_boxes else "-",
                report_words.percent(report.fits[0].per_class[row.class_index]),
            ]
        )
    yield from _table(rows, "<>><>>")
    if rest := classes[_MAX_CLASSES:]:
        yield f"  and {len(rest):,} more classes with {sum(row.num_boxes for row in rest):,} boxes"


def _findings(manifest: Manifest) -> Iterator[str]:
    rows = report_words.finding_rows(manifest)
    if rows:
        yield from _table([[kind, reason, f"{count:,}", meaning] for kind, reason, count, meaning in rows], "<<><")
    named = [*manifest.refused.files, *report_words.changed_files(manifest)]
    named += [finding for finding in manifest.noted.files if finding.reason in NAMED_NOTES]
    num_named = sum(count for kind, reason, count, _ in rows if kind != "noted" or reason in NAMED_NOTES)
    seen: collections.Counter[str] = collections.Counter()

    def rank(index: int) -> int:
        seen[named[index].reason] += 1
        return seen[named[index].reason]

    for index in sorted(sorted(range(len(named)), key=rank)[:_MAX_FILES]):  # the first of every reason before others
        yield _shorten(f"    {report_words.describe_finding(named[index])}", 110)
    if num_named > _MAX_FILES:
        yield f"    and {num_named - _MAX_FILES:,} more, which {report_words.where_all_are_named(manifest)} names"


def _columns(text: str) -> int:
    """The columns that a text takes on a terminal: two for a wide East Asian character, none for a combining one."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _shorten(text: str, columns: int) -> str:
    if _columns(text) <= columns:
        return text
    while _columns(text) >= columns:
        text = text[:-1]
    return text + "…"


def _table(rows: Sequence[Sequence[str]], sides: str) -> Iterator[str]:
    """Rows with aligned columns; `sides` has < (left) or > (right) for each."""
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
