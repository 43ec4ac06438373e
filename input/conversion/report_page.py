"""The page of a report: one file of HTML, with plots and pictures in it, that needs nothing else, scripts included.

It is well-formed XML too, so that a strict parser can check it.
"""

from __future__ import annotations

import base64
import colorsys
import hashlib
import html
import io
import math
import os
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from input import files, tfrecord
from input.config import AnchorConfig
from input.conversion import findings, survey

POOR = 0.9  # a class that anchors match less of is poorly covered
NUM_SAMPLES = 24  # random pictures
MAX_MENDED = 100  # pictures of mended images
_MAX_FILES = 200  # files named, of a kind of finding
_PICTURE_SIDE = 400  # px of the longer side of a picture
KINDS = findings.KINDS


class Report(NamedTuple):
    """All that a report tells."""

    manifest: dict[str, Any]
    data: survey.Survey
    boxes: np.ndarray  # f32 [n, 4] px of the network's input
    fits: list[survey.Fit]  # of the default anchors and, if those fit poorly and there are better ones, of these
    image_size: tuple[int, int]
    shards: list[str]  # paths


# Words that the page and the terminal share.

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """Without the characters that steer a terminal or that no page may hold."""
    return _CONTROL.sub("\ufffd", text)


def percent(share: float) -> str:
    """Rounded down, so that 100% means all."""
    return "-" if math.isnan(share) else f"{math.floor(share * 1000 + 1e-9) / 10:.1f}%"


def size_name(report: Report) -> str:
    return "x".join(map(str, report.image_size))


def describe_finding(line: dict[str, str]) -> str:
    return clean(f"{line['file']}: {line['reason']}" + (f": {line['detail']}" if line["detail"] else ""))


def box_facts(report: Report) -> list[str]:
    manifest, num_boxes = report.manifest, report.manifest["num_boxes"]
    return [
        f"{num_boxes / manifest['num_images']:.1f} boxes an image, {report.data.num_boxes.max()} at most",
        *(f"{percent(manifest[f'num_{flag}'] / num_boxes)} {flag}" for flag in ("difficult", "truncated")),
    ]


def anchor_flags(anchor: AnchorConfig) -> str:
    """The trainer's flags for these anchors."""
    values = {"anchor_sizes": anchor.sizes, "anchor_scales": anchor.scales, "aspect_ratios": anchor.aspect_ratios}
    return " ".join(f"--{flag}={','.join(f'{value:.6g}' for value in numbers)}" for flag, numbers in values.items())


def verdict(report: Report) -> list[str]:
    """Whether anchors fit, in sentences; flags to use instead stand on a line of their own."""
    if not len(report.boxes):
        return ["No boxes, so nothing for anchors to match."]

    def matches(fit: survey.Fit) -> str:
        worst = f"{clean(report.manifest['labels'][fit.worst])} {percent(fit.per_class[fit.worst])}"
        return f"{percent(fit.matched.mean())} of the boxes, of the worst class {worst}"

    default, last = report.fits[0], report.fits[-1]
    lines = [f"At {size_name(report)} the default anchors match {matches(default)} (IoU >= {survey.THRESHOLD:g})."]
    if last is not default:
        lines += [f"These would match {matches(last)}:", anchor_flags(last.anchor)]
    if last.per_class[last.worst] < POOR:
        side = np.median(survey.box_sides(report.boxes[~last.matched]))
        lines.append(
            f"Half of the boxes that even {'the default' if last is default else 'those'} anchors do not match have a "
            f"side below {side:.1f} px" + ("; try a larger --image_size." if side < 16 else ".")
        )
    return lines


# Pictures.


class Picture(NamedTuple):
    """A stored image made small."""

    jpeg: bytes  # empty where the image cannot be decoded
    height: int
    width: int


def choose_samples(image_ids: Sequence[str], seed: int) -> list[int]:
    """Indices of random images, in the order of a hash, so that nothing but the ids and the seed matters."""

    def draw(index: int) -> bytes:
        return hashlib.sha256(f"report {seed} {image_ids[index]}".encode()).digest()

    return sorted(range(len(image_ids)), key=draw)[:NUM_SAMPLES]


def read_picture(report: Report, index: int) -> Picture:
    """The image with this index in the survey."""
    shard, place = report.data.place(index)
    record = _read_record(report.shards[shard], place)
    encoded = tfrecord.decode_example(record, frozenset(["image/encoded"]))["image/encoded"][0]
    height, width = report.data.sizes[index].tolist()
    scale = min(1.0, _PICTURE_SIDE / max(height, width))
    height, width = max(round(height * scale), 1), max(round(width * scale), 1)
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.draft("RGB", (width, height))
            small = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    except Exception:  # Pillow raises almost anything on an image that was verified by its header alone
        return Picture(b"", height, width)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80)
    return Picture(out.getvalue(), height, width)


def _read_record(path: str, index: int) -> bytes:
    """One record, without its checksums: the survey has verified them."""
    with files.open(path) as file:
        for _ in range(index):
            file.seek(struct.unpack("<Q", file.read(12)[:8])[0] + 4, os.SEEK_CUR)
        return file.read(struct.unpack("<Q", file.read(12)[:8])[0])


# The page.

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
svg text { font: 12px system-ui, sans-serif; fill: #444; }
summary { cursor: pointer; } ul { margin: .3em 0; padding-left: 1.4em; font-size: 13px; }
"""
_MATCHED, _UNMATCHED, _SUGGESTED = "#4c78a8", "#d64545", "#2e8b57"


def make_page(report: Report) -> Iterator[str]:
    """The page, piece by piece, so that no more than one picture is held."""
    manifest = report.manifest
    split = _escape(manifest["split"])
    yield '<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml" lang="en"><head><meta charset="utf-8"/>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
    yield f"<title>{split}: report</title><style>{_STYLE}</style></head>\n<body><h1>{split}</h1>\n"
    num_bytes = sum(shard["num_bytes"] for shard in manifest["shards"])
    facts = [
        f"{manifest['num_images']:,} images, {manifest['num_negatives']:,} of them without objects",
        f"{manifest['num_boxes']:,} boxes in {len(manifest['labels']):,} classes",
        *(box_facts(report) if manifest["num_boxes"] else []),
        f"{len(manifest['shards'])} shards of {num_bytes / 2**20:,.1f} MiB together",
    ]
    yield f"<p>{'; '.join(facts)}.</p>\n<h2>Classes</h2>\n"
    yield from _class_table(report)
    yield "<h2>Do anchors fit?</h2>\n"
    for line in verdict(report):
        yield f"<p><code>{line}</code></p>\n" if line.startswith("--") else f"<p>{_escape(line)}</p>\n"
    if manifest["num_boxes"]:
        yield from _plots(report)
    yield "<h2>Refused, mended, noted</h2>\n"
    yield from _findings(manifest)
    yield from _sheets(report)
    yield "</body></html>\n"


def _escape(text: str) -> str:
    return html.escape(clean(text))


def class_colour(index: int) -> str:
    """#rrggbb; hues a golden section apart, in three brightnesses."""
    rgb = colorsys.hsv_to_rgb((0.58 + index * 0.618034) % 1, 0.9, (0.95, 0.75, 0.6)[index % 3])
    return "#" + "".join(f"{round(value * 255):02x}" for value in rgb)


def _swatch(index: int) -> str:
    return f'<span class="swatch" style="background:{class_colour(index)}"></span>'


def _bar(share: float, colour: str, width: int) -> str:
    return (
        f'<svg width="{width}" height="14" role="presentation"><rect width="{width}" height="14" fill="#f0f0f0"/>'
        f'<rect width="{share * width:.1f}" height="14" fill="{colour}"/></svg>'
    )


def _class_table(report: Report) -> Iterator[str]:
    manifest, labels = report.manifest, report.manifest["labels"]
    sides = survey.by_class(survey.box_sides(report.boxes), report.data.classes, len(labels))
    counts = np.array([len(members) for members in sides])
    yield '<table><tr><th>class</th><th class="number">images</th><th class="number">boxes</th><th></th>'
    yield f'<th class="number">median side at {size_name(report)}</th>'
    for _, what in zip(report.fits, ("default", "suggested")):
        yield f'<th colspan="2">{what} anchors match</th>'
    for index in np.argsort(-counts, kind="stable").tolist():
        side = f"{np.median(sides[index]):.1f} px" if counts[index] else "-"
        yield (
            f"</tr>\n<tr><td>{_swatch(index)}{_escape(labels[index])}</td>"
            f'<td class="number">{manifest["images_per_class"][labels[index]]:,}</td>'
            f'<td class="number">{counts[index]:,}</td>'
            f"<td>{_bar(counts[index] / max(counts.max(), 1), class_colour(index), 160)}</td>"
            f'<td class="number">{side}</td>'
        )
        for fit, colour in zip(report.fits, (_MATCHED, _SUGGESTED)):
            share = fit.per_class[index]
            bar = _bar(share, colour, 100) if counts[index] else ""
            yield f'<td class="number{" poor" if share < POOR else ""}">{percent(share)}</td><td>{bar}</td>'
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
    title = f"side at {size_name(report)}: square root of the area, px"
    yield _histogram(title, survey.box_sides(report.boxes), matched, sizes)
    yield _histogram("aspect ratio: width / height", survey.aspect_ratios(report.boxes), matched, ratios)
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
    highest = int(sum(stacked).max())
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


def _findings(manifest: dict[str, Any]) -> Iterator[str]:
    if not any(manifest[kind]["counts"] for kind in KINDS):
        yield "<p>Nothing was refused, mended or noted.</p>\n"
        return
    yield '<table><tr><th></th><th>reason</th><th class="number">times</th><th>meaning</th></tr>\n'
    for kind, meanings in KINDS.items():
        for reason, count in manifest[kind]["counts"].items():
            meaning = _escape(meanings[reason])
            yield f'<tr><td>{kind}</td><td>{reason}</td><td class="number">{count:,}</td><td>{meaning}</td></tr>\n'
    yield "</table>\n"
    for kind in KINDS:
        if files := manifest[kind]["files"]:
            yield f"<details><summary>{kind}: which files</summary><ul>\n"
            yield from (f"<li>{html.escape(describe_finding(line))}</li>\n" for line in files[:_MAX_FILES])
            if len(files) > _MAX_FILES:
                yield f"<li>and {len(files) - _MAX_FILES:,} more, which the manifest names</li>\n"
            yield "</ul></details>\n"


def _sheets(report: Report) -> Iterator[str]:
    samples = choose_samples(report.data.image_ids, report.manifest["settings"]["seed"])
    yield f'<h2>{len(samples)} random images</h2>\n<p>As stored; dashed: difficult.</p>\n<div class="sheet">\n'
    yield from (_figure(report, index, []) for index in samples)
    yield "</div>\n"
    remarks: dict[str, list[str]] = {}
    for line in report.manifest["repaired"]["files"]:
        remarks.setdefault(line["image_id"], []).append(describe_finding(line))
    mended = sorted((image_id, index) for index, image_id in enumerate(report.data.image_ids) if image_id in remarks)
    if mended:
        only = f", the first {MAX_MENDED} of them" if len(mended) > MAX_MENDED else ""
        yield f'<h2>{len(mended):,} mended images{only}</h2>\n<div class="sheet">\n'
        yield from (_figure(report, index, remarks[image_id]) for image_id, index in mended[:MAX_MENDED])
        yield "</div>\n"


def _figure(report: Report, index: int, remarks: Sequence[str]) -> str:
    """One picture, its boxes drawn over the JPEG, and what there is to say about it."""
    data, labels = report.data, report.manifest["labels"]
    picture, members = read_picture(report, index), data.of_image(index)
    height, width = data.sizes[index].tolist()
    classes = data.classes[members].tolist()
    boxes = data.boxes[members] * np.tile((picture.height / height, picture.width / width), 2)
    if picture.jpeg:
        source = f"data:image/jpeg;base64,{base64.b64encode(picture.jpeg).decode()}"
        drawn = [f'<image href="{source}" width="{picture.width}" height="{picture.height}"/>']
    else:
        drawn = [f'<text x="4" y="{picture.height // 2}">cannot be decoded</text>']
    for (ymin, xmin, ymax, xmax), label, difficult in zip(boxes.tolist(), classes, data.difficult[members].tolist()):
        drawn.append(
            f'<rect class="{"difficult" if difficult else "plain"}" x="{xmin:.1f}" y="{ymin:.1f}" '
            f'width="{xmax - xmin:.1f}" height="{ymax - ymin:.1f}" stroke="{class_colour(label)}">'
            f"<title>{_escape(labels[label])}</title></rect>"
        )
    shown = [f"{_swatch(label)}{_escape(labels[label])} {classes.count(label)}" for label in sorted(set(classes))]
    name = _escape(data.image_ids[index])
    caption = [f"<b>{name}</b> {width} x {height}", ", ".join(shown) or "no objects", *map(html.escape, remarks)]
    return (
        f'<figure><svg viewBox="0 0 {picture.width} {picture.height}" role="img" aria-label="{name}">'
        f"{''.join(drawn)}</svg><figcaption>{'<br/>'.join(caption)}</figcaption></figure>\n"
    )
