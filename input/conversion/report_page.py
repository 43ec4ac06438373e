"""The page of a report: one HTML file with plots and pictures in it; it loads no other file and runs no script.

It is well-formed XML as well, so that a strict parser can check it.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import html
import io
import math
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from input import palette, tfrecord
from input.conversion import report_words
from input.conversion.findings import DUPLICATES, KINDS
from input.conversion.report_words import Report
from input.manifest import Manifest

NUM_SAMPLES = 24  # random pictures
MAX_REPAIRED = 100  # pictures of images with repairs or dropped objects
MAX_DUPLICATES = 40  # pictures of duplicates
_MAX_FILES = 200  # files named for each kind of finding
_PICTURE_SIDE = 400  # px of the longer side of a picture
_MATCHED, _UNMATCHED, _SUGGESTED = "#4c78a8", "#d64545", "#2e8b57"
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 1120px; margin: 2em auto;
  padding: 0 1em; }
h1 { font-size: 1.7em; margin: 0; } h2 { font-size: 1.25em; margin: 2em 0 .5em; } p { margin: .5em 0; }
table { border-collapse: collapse; } th, td { padding: .15em .7em .15em 0; text-align: left; vertical-align: middle; }
th { font-weight: 600; color: #555; border-bottom: 1px solid #ccc; } .number { text-align: right; }
code { background: #f2f2f2; padding: .1em .35em; border-radius: 3px; overflow-wrap: anywhere; }
.poor { color: #b3261e; font-weight: 600; } td svg { vertical-align: middle; }
.plots { display: flex; flex-wrap: wrap; gap: 2em; } .plots svg { width: 520px; max-width: 100%; height: auto; }
.swatch { display: inline-block; width: .75em; height: .75em; margin-right: .35em; border-radius: 2px; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 1em; }
figure { margin: 0; font-size: 13px; overflow-wrap: anywhere; }
figure svg { display: block; width: 100%; height: 220px; background: #f2f2f2; }
figure rect { fill: none; stroke-width: 2px; vector-effect: non-scaling-stroke; } .difficult { stroke-dasharray: 5 3; }
figure rect.ignored { fill: #0007; stroke: #fff; stroke-dasharray: 2 2; }
svg text { font: 12px system-ui, sans-serif; fill: #444; }
summary { cursor: pointer; } ul { margin: .3em 0; padding-left: 1.4em; font-size: 13px; }
"""


def make_page(report: Report, training: tuple[str, str]) -> Iterator[str]:
    """The page in parts, so that only one picture is in memory at a time.

    Args:
      training: a sentence, and the command or flag that it is about; both may be empty.
    """
    manifest = report.manifest
    split = _escape(manifest.split)
    yield '<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml" lang="en"><head><meta charset="utf-8"/>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
    yield f"<title>{split}: report</title><style>{_STYLE}</style></head>\n<body><h1>{split}</h1>\n"
    for flaw in report_words.shared_flaws(manifest):
        yield f'<p class="poor">{html.escape(flaw)}</p>\n'
    num_bytes = sum(shard.num_bytes for shard in manifest.shards)
    facts = [
        f"{manifest.num_images:,} images, {manifest.num_negatives:,} of them without objects",
        f"{manifest.num_boxes:,} boxes in {len(manifest.labels):,} classes",
        *([f"{manifest.num_ignored:,} ignored regions"] if manifest.num_ignored else []),
        *(report_words.box_facts(report) if manifest.num_boxes else []),
        f"{len(manifest.shards)} shards of {num_bytes / 2**20:,.1f} MiB together",
    ]
    yield f"<p>{'; '.join(facts)}.</p>\n<p>{_escape(report_words.storage(report))}</p>\n"
    yield f"<p>{_escape(report_words.tiles(report))}</p>\n<h2>Classes</h2>\n"
    yield from _class_table(report)
    yield "<h2>Do anchors fit?</h2>\n"
    for line in filter(None, [report_words.too_many_boxes(report), *report_words.verdict(report)]):
        yield f"<p><code>{line}</code></p>\n" if line.startswith("--") else f"<p>{_escape(line)}</p>\n"
    if manifest.num_boxes:
        yield from _plots(report)
    yield f"<h2>{', '.join(KINDS).capitalize()}</h2>\n"
    yield from _findings(manifest)
    yield from _sheets(report)
    sentence, command = map(_escape, training)
    if command:
        yield f"<h2>Training</h2>\n<p>{sentence}</p>\n<p><code>{command}</code></p>\n"
    yield "</body></html>\n"


def _escape(text: str) -> str:
    return html.escape(report_words.clean(text))


def _colour(index: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*palette.class_colour(index))


def _swatch(index: int) -> str:
    return f'<span class="swatch" style="background:{_colour(index)}"></span>'


def _bar(share: float, colour: str, width: int) -> str:
    return (
        f'<svg width="{width}" height="14" role="presentation"><rect width="{width}" height="14" fill="#f0f0f0"/>'
        f'<rect width="{share * width:.1f}" height="14" fill="{colour}"/></svg>'
    )


def _class_table(report: Report) -> Iterator[str]:
    yield '<table><tr><th>class</th><th class="number">images</th><th class="number">boxes</th><th></th>'
    yield f'<th class="number">median side at {report.size_name}</th>'
    for _, what in zip(report.fits, ("default", "suggested")):
        yield f'<th colspan="2">{what} anchors match</th>'
    for row in report_words.class_rows(report):
        side = f"{row.median_side:.1f} px" if row.num_boxes else "-"
        yield (
            f"</tr>\n<tr><td>{_swatch(row.class_index)}{html.escape(row.label)}</td>"
            f'<td class="number">{row.num_images:,}</td><td class="number">{row.num_boxes:,}</td>'
            f'<td>{_bar(row.share, _colour(row.class_index), 160)}</td><td class="number">{side}</td>'
        )
        for fit, colour in zip(report.fits, (_MATCHED, _SUGGESTED)):
            share = fit.per_class[row.class_index]
            bar = _bar(share, colour, 100) if row.num_boxes else ""
            style = "number poor" if share < report_words.POOR else "number"
            yield f'<td class="{style}">{report_words.percent(share)}</td><td>{bar}</td>'
    yield "</tr></table>\n"


def _plots(report: Report) -> Iterator[str]:
    fits = list(zip(("default", "new"), ("#666666", _SUGGESTED), (fit.anchor for fit in report.fits)))
    sizes = [(name, colour, np.outer(anchor.sizes, anchor.scales).ravel()) for name, colour, anchor in fits]
    ratios = [(name, colour, np.array(anchor.aspect_ratios)) for name, colour, anchor in fits]
    matched = report.fits[0].matched
    yield (
        "<p>An object that no anchor matches teaches the network next to nothing. Below: the boxes that the default "
        f'anchors <b style="color:{_MATCHED}">match</b> and <b style="color:{_UNMATCHED}">do not match</b>, by size '
        'and by shape; the dots are the anchors.</p>\n<div class="plots">'
    )
    title = f"side at {report.size_name}: square root of the area, px"
    yield _histogram(title, report.sides, matched, sizes)
    yield _histogram("aspect ratio: width / height", report.aspect_ratios, matched, ratios)
    yield "</div>\n"


def _histogram(
    title: str, values: np.ndarray, matched: np.ndarray, marks: Sequence[tuple[str, str, np.ndarray]]
) -> str:
    """A histogram over a logarithmic axis, four bins an octave; unmatched boxes stand on the matched ones.

    Args:
      title: of the axis.
      values: [n], positive.
      matched: bool [n].
      marks: name, colour and values of each row of anchors below the axis.
    """
    logs = np.log2(values)
    every = np.concatenate([logs, *(np.log2(points) for _, _, points in marks)])
    first, last = math.floor(every.min()), math.floor(every.max()) + 1
    edges = np.arange(first * 4, last * 4 + 1) / 4
    stacked = [np.histogram(logs[chosen], edges)[0] for chosen in (matched, ~matched)]
    highest = int(np.sum(stacked, axis=0).max())
    left, right, top, height = 60, 500, 10, 150
    step = (right - left) / (len(edges) - 1)

    def x(log: float) -> str:
        return f"{left + (log - first) * 4 * step:.1f}"

    parts = []
    for edge, *counts in zip(edges.tolist(), *(row.tolist() for row in stacked)):
        y = top + height
        for count, colour, what in zip(counts, (_MATCHED, _UNMATCHED), ("matched", "not matched")):
            if count:
                y -= count / highest * height
                parts.append(
                    f'<rect x="{x(edge)}" y="{y:.1f}" width="{step - 1:.1f}" height="{count / highest * height:.1f}" '
                    f'fill="{colour}"><title>{2**edge:.3g} to {2 ** (edge + 0.25):.3g}: {count:,} {what}</title></rect>'
                )
    parts.append(f'<path d="M{left} {top}V{top + height}H{right}" fill="none" stroke="#888"/>')
    parts.append(f'<text x="{left - 6}" y="{top + 10}" text-anchor="end">{highest:,}</text>')
    for octave in range(first, last + 1, math.ceil((last - first) / 10)):
        parts.append(f'<text x="{x(octave)}" y="{top + height + 16}" text-anchor="middle">{2.0**octave:g}</text>')
    y = top + height + 34
    for name, colour, points in marks:
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{name}</text>')
        parts += [f'<circle cx="{x(log)}" cy="{y}" r="3" fill="{colour}"/>' for log in np.log2(points).tolist()]
        y += 18
    parts.append(f'<text x="{(left + right) // 2}" y="{y + 8}" text-anchor="middle">{title}</text>')
    return f'<svg viewBox="0 0 520 {y + 14}" role="img" aria-label="{title}">{"".join(parts)}</svg>\n'


def _findings(manifest: Manifest) -> Iterator[str]:
    rows = report_words.finding_rows(manifest)
    if not rows:
        yield "<p>Nothing was found.</p>\n"
        return
    yield '<table><tr><th></th><th>reason</th><th class="number">times</th><th>meaning</th></tr>\n'
    for kind, reason, count, meaning in rows:
        yield f'<tr><td>{kind}</td><td>{reason}</td><td class="number">{count:,}</td>'
        yield f"<td>{html.escape(meaning)}</td></tr>\n"
    yield "</table>\n"
    for kind in KINDS:
        if named := manifest.findings(kind).files:
            yield f"<details><summary>{kind}: which files</summary><ul>\n"
            yield from (
                f"<li>{html.escape(report_words.describe_finding(finding))}</li>\n" for finding in named[:_MAX_FILES]
            )
            if (more := sum(manifest.findings(kind).counts.values()) - _MAX_FILES) > 0:
                yield f"<li>and {more:,} more, which {report_words.where_all_are_named(manifest)} names</li>\n"
            yield "</ul></details>\n"


def _sheets(report: Report) -> Iterator[str]:
    manifest = report.manifest
    samples = choose_samples(report.data.image_ids, manifest.settings["seed"], NUM_SAMPLES)
    yield f"<h2>{len(samples)} random images</h2>\n<p>As stored; dashed: difficult; darkened: ignored.</p>\n"
    yield '<div class="sheet">\n'
    yield from (_figure(report, index, []) for index in samples)
    yield "</div>\n"
    yield from _class_sheets(report)
    yield from _duplicates(report)
    remarks: dict[str, list[str]] = {}
    for finding in report_words.changed_files(manifest):
        remarks.setdefault(finding.image_id, []).append(report_words.describe_finding(finding))
    ids = enumerate(report_words.source_ids(report))
    repaired = sorted((image_id, index) for index, image_id in ids if image_id in remarks)
    if repaired:
        only = f", the first {MAX_REPAIRED} of them" if len(repaired) > MAX_REPAIRED else ""
        cut = any(sum(found.counts.values()) > len(found.files) for found in (manifest.dropped, manifest.repaired))
        number = f"{'At least ' if cut else ''}{len(repaired):,}"
        yield f'<h2>{number} images with repairs or dropped objects{only}</h2>\n<div class="sheet">\n'
        yield from (_figure(report, index, remarks[image_id]) for image_id, index in repaired[:MAX_REPAIRED])
        yield "</div>\n"


def _class_sheets(report: Report) -> Iterator[str]:
    """Random images of each class, if that was asked for."""
    data, labels = report.data, report.manifest.labels
    image_of_box = np.repeat(np.arange(len(data.image_ids)), data.num_boxes)
    for index, label in enumerate(labels) if report.class_pictures else ():
        members = np.unique(image_of_box[data.classes == index])
        chosen = choose_samples(data.image_ids[members], report.manifest.settings["seed"], report.class_pictures)
        yield f'<h2>{_swatch(index)}{_escape(label)}: {len(chosen)} random images</h2>\n<div class="sheet">\n'
        yield from (_figure(report, int(members[sample]), []) for sample in chosen)
        yield "</div>\n"


def _duplicates(report: Report) -> Iterator[str]:
    """The images that equal others or look like them, each after the one it is like, if that is in this split."""
    found = [finding for finding in report.manifest.noted.files if finding.reason in DUPLICATES]
    if not found:
        return
    count = sum(report.manifest.noted.counts.get(reason, 0) for reason in DUPLICATES)
    only = f", the first {MAX_DUPLICATES} of them" if count > MAX_DUPLICATES else ""
    yield f"<h2>{count:,} images that equal others or look like them{only}</h2>\n"
    yield "<p>Where one is in another split, an evaluation there measures memory.</p>\n"
    yield '<div class="sheet">\n'
    found = found[:MAX_DUPLICATES]
    others = [finding.detail[len("as ") :].rpartition(":")[0] or finding.detail[len("as ") :] for finding in found]
    shown = {*others, *(finding.image_id for finding in found)}
    index_of = {name: index for index, name in enumerate(report_words.source_ids(report)) if name in shown}
    for finding, other in zip(found, others):
        if other in index_of:
            yield _figure(report, index_of[other], [])
        if finding.image_id in index_of:
            yield _figure(report, index_of[finding.image_id], [report_words.describe_finding(finding)])
    yield "</div>\n"


def choose_samples(image_ids: np.ndarray, seed: int, count: int) -> list[int]:
    """Indices of `count` random images, in the order of a hash, so that the ids and the seed alone decide."""

    def order(index: int) -> bytes:
        return hashlib.sha256(f"report {seed} {image_ids[index]}".encode()).digest()

    return heapq.nsmallest(count, range(len(image_ids)), key=order)


def _figure(report: Report, index: int, remarks: Sequence[str]) -> str:
    """One picture with its boxes drawn over the JPEG, and its caption."""
    data, labels, members = report.data, report.manifest.labels, report.data.boxes_of(index)
    original_height, original_width = data.sizes[index].tolist()
    scale = min(1.0, _PICTURE_SIDE / max(original_height, original_width))
    height, width = max(round(original_height * scale), 1), max(round(original_width * scale), 1)
    classes = data.classes[members].tolist()
    shares = np.tile((height / original_height, width / original_width), 2)
    boxes, regions = data.boxes[members] * shares, data.regions[data.regions_of(index)] * shares
    if jpeg := _read_jpeg(report, index, height, width):
        source = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
        drawn = [f'<image href="{source}" width="{width}" height="{height}"/>']
    else:
        drawn = [f'<text x="4" y="{height // 2}">cannot be decoded</text>']
    for (ymin, xmin, ymax, xmax), label, difficult in zip(boxes.tolist(), classes, data.difficult[members].tolist()):
        drawn.append(
            f'<rect class="{"difficult" if difficult else "plain"}" {_place(ymin, xmin, ymax, xmax)} '
            f'stroke="{_colour(label)}"><title>{_escape(labels[label])}</title></rect>'
        )
    drawn += [f'<rect class="ignored" {_place(*region)}><title>ignored</title></rect>' for region in regions.tolist()]
    shown = [f"{_swatch(label)}{_escape(labels[label])} {classes.count(label)}" for label in sorted(set(classes))]
    name = _escape(data.image_ids[index])
    size = f"{original_width} x {original_height}"
    caption = [f"<b>{name}</b> {size}", ", ".join(shown) or "no objects", *map(html.escape, remarks)]
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{name}">'
        f"{''.join(drawn)}</svg><figcaption>{'<br/>'.join(caption)}</figcaption></figure>\n"
    )


def _place(ymin: float, xmin: float, ymax: float, xmax: float) -> str:
    """The attributes that place an SVG rectangle."""
    return f'x="{xmin:.1f}" y="{ymin:.1f}" width="{xmax - xmin:.1f}" height="{ymax - ymin:.1f}"'


def _read_jpeg(report: Report, index: int, height: int, width: int) -> bytes:
    """The image with this index in the survey, made small; empty if it cannot be decoded."""
    shard, position = report.data.locate(index)
    record = next(tfrecord.read_records(report.shard_paths[shard], start=position))
    encoded = tfrecord.decode_example(record, frozenset(["image/encoded"]))["image/encoded"][0]
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.draft("RGB", (width, height))
            small = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    except Exception:  # Pillow raises almost any exception on an image whose header alone was verified
        return b""
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80)
    return out.getvalue()
