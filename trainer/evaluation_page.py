"""The page of an evaluation: one HTML file with plots and pictures in it."""

from __future__ import annotations

import base64
import bisect
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from input import shards, tfrecord
from input.manifest import manifest_path, read_manifest
from trainer import diagnosis, drawing, formats, page
from trainer.diagnosis import Suspect
from trainer.metrics import Judgement

MAX_PICTURES = 12  # of each kind of mistake
MAX_SUSPECTS = 48
MAX_CLASSES = 60  # of the table of all confusions, which grows with their square: 400 classes take 10 MB
MAX_CONFUSIONS = 100  # pairs that are listed where there are more classes
_PICTURE_SIDE = 400  # px of the longer side of a picture
_OBJECT, _DETECTION, _REGION = "#2e8b57", "#d64545", "#888"
_TILE = re.compile(r"_x\d+_y\d+\.jpg$")  # how the converter calls a tile
_REGION_CLASS = "ignore"  # the class of an object by which the converter knows an ignored region
_STYLE = """
figure svg { display: block; width: 100%; height: 220px; background: #f2f2f2; }
figure rect { fill: none; stroke-width: 2px; vector-effect: non-scaling-stroke; } .seen { stroke-dasharray: 5 3; }
"""


class Evaluation(NamedTuple):
    """What the page shows."""

    result: dict[str, Any]  # of `metrics.summarize`, with `checkpoint` and `step`
    judgement: Judgement
    ground_truths: Sequence[shards.GroundTruth]
    record_indexes: Sequence[int]  # of these images
    paths: Sequence[str]  # the shards
    split: str


def make_page(evaluation: Evaluation) -> Iterator[str]:
    """The page in parts, so that only one picture is in memory at a time."""
    result, judgement = evaluation.result, evaluation.judgement
    curves = [diagnosis.threshold_curve(judgement, index) for index in range(len(judgement.labels))]
    yield page.head(f"{evaluation.split}: evaluation", _STYLE)
    yield f"<h1>{page.escape(evaluation.split)}</h1>\n"
    yield f"<p>{result['num_images']:,} images, {page.escape(result['checkpoint'])}</p>\n<h2>Average precision</h2>\n"
    yield from metric_table(result)
    yield "<h2>Precision and recall at an IoU of 0.5</h2>\n"
    yield from _plots(judgement, curves)
    yield "<h2>Score thresholds</h2>\n"
    yield from _threshold_table(judgement, curves)
    yield "<h2>Confusions</h2>\n"
    yield from _confusions(judgement, curves)
    locate = record_reader(evaluation.paths)
    suspects = diagnosis.find_suspects(judgement)
    yield f"<h2>{len(suspects):,} suspect labels</h2>\n"
    yield from _suspects(evaluation, suspects, locate)
    yield from _mistakes(evaluation, curves, locate)
    yield "</body></html>\n"


def metric_table(result: dict[str, Any]) -> Iterator[str]:
    """The average precisions of each class and of all, with their intervals where the result has them."""
    names = [name for name in result if "_ap" in name]
    yield f'<div class="wide"><table><tr><th></th>{page.cells([*names, "objects"], "th")}</tr>\n'
    total = sum(values["num_objects"] for values in result["per_class"].values())
    for label, values in [*result["per_class"].items(), ("all classes", {**result, "num_objects": total})]:
        cells = []
        for name in names:
            bounds = values.get("intervals", {}).get(name)
            interval = f'<span class="range">{bounds[0]:.3f} to {bounds[1]:.3f}</span>' if bounds else ""
            cells.append("-" if values[name] is None else f"{values[name]:.3f}{interval}")
        cells.append(format(values["num_objects"], ","))
        yield f"<tr><td>{page.escape(label)}</td>{page.cells(cells)}</tr>\n"
    yield "</table></div>\n"
    if "intervals" in result:
        yield "<p>Below each value: its 95% interval, as far as the choice of images goes.</p>\n"


def _plots(judgement: Judgement, curves: Sequence[diagnosis.Curve]) -> Iterator[str]:
    yield '<div class="plots">'
    for index, curve in enumerate(curves):
        lines = [page.Line(page.colour(index), curve.recall, curve.precision)]
        yield page.plot(judgement.labels[index], "recall", "precision", lines)
    bins = diagnosis.calibration(judgement)
    bins = bins[bins[:, 2] > 0]
    diagonal = page.Line("#bbb", np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    right = page.Line("#4c78a8", bins[:, 0], bins[:, 1])
    yield page.plot("calibration", "score", "share of right ones", [diagonal, right])
    yield "</div>\n<p>Calibration: on the grey line, seven in ten of the detections that score 0.7 are right.</p>\n"


def _threshold_table(judgement: Judgement, curves: Sequence[diagnosis.Curve]) -> Iterator[str]:
    shown = np.arange(1, 10) / 10
    yield "<p>F1, the harmonic mean of precision and recall, of the detections from each score on.</p>\n"
    header = page.cells(["best F1", "from score", *(f"{score:.1f}" for score in shown)], "th")
    yield f'<div class="wide"><table><tr><th></th>{header}</tr>\n'
    for index, curve in enumerate(curves):
        best = diagnosis.best_threshold(curve)
        cells = [f"<b>{best[0]:.3f}</b>", f"<b>{best[1]:.3f}</b>"] if best else ["-", "-"]
        for score in shown:
            number = bisect.bisect_right((-curve.scores).tolist(), -score)  # scores at or above it
            cells.append(f"{curve.f1[number - 1]:.3f}" if number else "-")
        yield f"<tr><td>{page.class_name(judgement.labels[index], index)}</td>{page.cells(cells)}</tr>\n"
    yield "</table></div>\n"


def _thresholds(curves: Sequence[diagnosis.Curve]) -> np.ndarray:
    best = [diagnosis.best_threshold(curve) for curve in curves]
    return np.array([found[1] if found else 1.0 for found in best])


def _confusions(judgement: Judgement, curves: Sequence[diagnosis.Curve]) -> Iterator[str]:
    matrix = diagnosis.confusion_matrix(judgement, _thresholds(curves))
    if len(judgement.labels) > MAX_CLASSES:
        yield from _frequent_confusions(judgement.labels, matrix)
        return
    yield "<p>Rows: the class of the object; columns: what was found there, from the scores of the best F1 on.</p>\n"
    columns = [*(page.escape(label) for label in judgement.labels), "not found"]
    yield f'<div class="wide"><table><tr><th></th>{page.cells(columns, "th")}</tr>\n'
    rows = [*(page.class_name(judgement.labels[index], index) for index in range(len(judgement.labels))), "no object"]
    for row, (name, counts) in enumerate(zip(rows, matrix)):
        strengths = counts / max(1, counts.sum())
        cells = []
        for column, (count, strength) in enumerate(zip(counts.tolist(), strengths.tolist())):
            hue = "46,139,87" if row == column else "214,69,69"
            style = f'style="background:rgba({hue},{0.7 * strength:.2f})"'
            empty = row == column == len(judgement.labels)
            cells.append(f'<td class="number" {style}>{"" if empty else format(count, ",")}</td>')
        yield f"<tr><td>{name}</td>{''.join(cells)}</tr>\n"
    yield "</table></div>\n"


def _frequent_confusions(labels: Sequence[str], matrix: np.ndarray) -> Iterator[str]:
    """The pairs of classes that are confused most."""
    confused = matrix[: len(labels), : len(labels)].copy()
    np.fill_diagonal(confused, 0)
    most = np.argsort(-confused, axis=None, kind="stable")[:MAX_CONFUSIONS]
    rows, columns = (indexes.tolist() for indexes in np.unravel_index(most, confused.shape))
    totals = matrix.sum(axis=1).tolist()
    yield f"<p>With more than {MAX_CLASSES} classes, only the pairs of classes that are confused most are listed, at "
    yield f"most {MAX_CONFUSIONS}: the class of the object and what was found there, from the scores of the best F1 "
    yield "on. Objects that were not found and detections where there is no object are left out.</p>\n"
    yield f"<table><tr><th>object</th><th>found as</th>{page.cells(['objects', 'of all of its class'], 'th')}</tr>\n"
    for row, column in zip(rows, columns):
        if count := int(confused[row, column]):
            names = "".join(f"<td>{page.class_name(labels[index], index)}</td>" for index in (row, column))
            yield f"<tr>{names}{page.cells([format(count, ','), f'{100 * count / totals[row]:.1f}%'])}</tr>\n"
    yield "</table>\n"


def _suspects(evaluation: Evaluation, suspects: Sequence[Suspect], read: Callable[[int], dict]) -> Iterator[str]:
    if not suspects:
        yield "<p>The model contradicts no label.</p>\n"
        return
    counts = [f"{sum(suspect.kind == kind for suspect in suspects):,} {kind}" for kind in diagnosis.KINDS]
    only = f" The first {MAX_SUSPECTS} are shown." if len(suspects) > MAX_SUSPECTS else ""
    yield f"<p>Labels that a confident model contradicts, the most suspicious first: {', '.join(counts)}.{only} "
    yield "Green: the labels; red, dashed: what the model sees; grey: ignored regions. "
    yield "The XML file has all corrections of an image.</p>\n"
    by_image: dict[int, list[Suspect]] = {}
    for suspect in suspects:
        by_image.setdefault(suspect.image, []).append(suspect)
    judgement = evaluation.judgement
    find_settings = functools.lru_cache(conversion_settings)  # a manifest may be large
    yield '<div class="sheet">\n'
    for suspect in suspects[:MAX_SUSPECTS]:
        said = judgement.labels[judgement.objects.classes[suspect.item]] if suspect.item >= 0 else ""
        seen = judgement.labels[judgement.found.classes[suspect.detection]] if suspect.detection >= 0 else ""
        what = {
            "missing": f"missing: {seen}",
            "wrong class": f"wrong class: {said}, looks like {seen}",
            "shifted": f"shifted: {said}",
            "doubled": f"doubled: {said}",
        }[suspect.kind]
        record = read(evaluation.record_indexes[suspect.image])
        settings = find_settings(os.path.dirname(record["shard"]), shards.split_name(record["shard"]))
        objects = corrected_objects(evaluation, suspect.image, by_image[suspect.image])
        link = _link(evaluation.ground_truths[suspect.image], record["image/filename"], objects, settings)
        caption = [f"{page.escape(what)} ({suspect.suspicion:.2f})", link]
        yield _figure(evaluation, suspect.image, record, suspect.item, suspect.detection, caption)
    yield "</div>\n"


def conversion_settings(folder: str, split: str) -> dict[str, Any]:
    """The settings of the conversion that made a split; empty where no manifest tells them."""
    try:
        return read_manifest(manifest_path(folder, split)).settings
    except (OSError, ValueError):
        return {}


def _link(
    truth: shards.GroundTruth, filename: str, objects: Sequence[formats.LabelledBox], settings: dict[str, Any]
) -> str:
    """A link to an image's annotation with these objects, counted as the data set counts.

    Args:
      truth: what the record says.
      filename: of the image, as the record has it.
      objects: the corrected ones, in pixels of the record.
      settings: of the conversion.
    """
    if settings.get("tile") and _TILE.search(filename):
        return "a tile, which has no XML of its own"
    name = re.sub(r"\.[^.]*$", "", filename.replace("\\", "/").rsplit("/", 1)[-1])
    zero_based = bool(settings.get("zero_based"))
    xml = formats.voc_xml(filename, truth.width, truth.height, objects, zero_based=zero_based)
    source = f"data:application/xml;base64,{base64.b64encode(xml.encode()).decode()}"
    link = f'<a href="{source}" download="{page.escape(name)}.xml">corrected XML</a>'
    if max(truth.height, truth.width) == settings.get("store_max_side"):  # the file's own size is not kept
        link += f" in the {truth.width}x{truth.height} pixels that are stored"
    return link


def corrected_objects(evaluation: Evaluation, image: int, suspects: Sequence[Suspect]) -> list[formats.LabelledBox]:
    """The objects of an image with the corrections that its suspects ask for."""
    judgement, truth = evaluation.judgement, evaluation.ground_truths[image]
    objects: list[formats.LabelledBox | None] = [
        formats.LabelledBox(judgement.labels[index], box, difficult)
        for index, box, difficult in zip(truth.classes.tolist(), truth.boxes.tolist(), truth.difficult.tolist())
    ]
    first = int(np.searchsorted(judgement.objects.images, image))  # objects lie image by image
    objects += [formats.LabelledBox(_REGION_CLASS, box) for box in truth.regions.tolist()]
    for suspect in suspects:
        here = suspect.item - first
        seen = formats.LabelledBox("", ())
        if suspect.detection >= 0:
            label = judgement.labels[judgement.found.classes[suspect.detection]]
            seen = formats.LabelledBox(label, judgement.found.boxes[suspect.detection].tolist())
        if suspect.kind == "missing":
            objects.append(seen)
        elif suspect.kind == "doubled":
            objects[here] = None
        else:
            old = objects[here]
            assert old is not None  # an object is a suspect once
            objects[here] = old._replace(label=seen.label) if suspect.kind == "wrong class" else seen
    return [item for item in objects if item is not None]


def _mistakes(evaluation: Evaluation, curves: Sequence[diagnosis.Curve], read: Callable[[int], dict]) -> Iterator[str]:
    judgement = evaluation.judgement
    found, objects, verdicts = judgement.found, judgement.objects, judgement.voc
    false = np.flatnonzero(verdicts.counted[0] & ~verdicts.hits[0])[:MAX_PICTURES]
    shown = found.scores >= _thresholds(curves)[found.classes]
    pairs = diagnosis.any_class_pairs(found, objects, diagnosis.HIT_IOU)
    own_class = found.classes[pairs.detections] == objects.classes[pairs.objects]
    missed = verdicts.to_find[0].copy()
    missed[pairs.objects[own_class & shown[pairs.detections]]] = False
    areas = np.prod(objects.boxes[:, 2:] - objects.boxes[:, :2], axis=1)
    largest = sorted(np.flatnonzero(missed).tolist(), key=lambda row: -areas[row])[:MAX_PICTURES]
    of_object = own_class & ~objects.difficult[pairs.objects]
    hits = np.flatnonzero(of_object & verdicts.hits[0][pairs.detections] & shown[pairs.detections])
    loose = hits[np.argsort(pairs.ious[hits], kind="stable")][:MAX_PICTURES]
    loose_rows = zip(pairs.objects[loose].tolist(), pairs.detections[loose].tolist(), pairs.ious[loose].tolist())
    sheets = {
        "Most confident false detections": [
            (-1, row, f"{judgement.labels[found.classes[row]]} {found.scores[row]:.2f}") for row in false.tolist()
        ],
        "Largest objects that were not found": [(row, -1, judgement.labels[objects.classes[row]]) for row in largest],
        "Hits with the lowest IoU": [
            (item, row, f"{judgement.labels[found.classes[row]]}, IoU {iou:.2f}") for item, row, iou in loose_rows
        ],
    }
    for title, rows in sheets.items():
        yield f"<h2>{title}</h2>\n"
        yield '<div class="sheet">\n' if rows else "<p>There are none.</p><div>\n"
        for item, detection, text in rows:
            image = int(objects.images[item] if item >= 0 else found.images[detection])
            yield _figure(
                evaluation, image, read(evaluation.record_indexes[image]), item, detection, [page.escape(text)]
            )
        yield "</div>\n"


def record_reader(paths: Sequence[str]) -> Callable[[int], dict]:
    """A function from a record's index, counted over all shards, to its image, file name and `shard`."""
    ends = list(itertools.accumulate(shards.count_records(paths)))

    def read(index: int) -> dict[str, Any]:
        shard = bisect.bisect_right(ends, index)
        record = next(tfrecord.read_records(paths[shard], start=index - (ends[shard - 1] if shard else 0)))
        features = tfrecord.decode_example(record, frozenset(["image/encoded", "image/filename", "image/source_id"]))
        names = features.get("image/filename") or features.get("image/source_id") or [b""]
        filename = names[0].decode("utf-8", "replace")
        return {"image/encoded": features["image/encoded"][0], "image/filename": filename, "shard": paths[shard]}

    return read


def _figure(
    evaluation: Evaluation, image: int, record: dict[str, Any], item: int, detection: int, caption: Sequence[str]
) -> str:
    """A picture with all labels in green, the one in question thicker, and what the model sees there in red."""
    truth, judgement = evaluation.ground_truths[image], evaluation.judgement
    scale = min(1.0, _PICTURE_SIDE / max(truth.height, truth.width))
    height, width = max(round(truth.height * scale), 1), max(round(truth.width * scale), 1)
    small = drawing.shrink(record["image/encoded"], height, width)
    drawn = [f'<image href="{page.jpeg(small)}" width="{width}" height="{height}"/>']

    def rectangle(box: Sequence[float], style: str, title: str) -> None:
        ymin, xmin, ymax, xmax = (edge * scale for edge in box)
        drawn.append(
            f'<rect {style} x="{xmin:.1f}" y="{ymin:.1f}" width="{max(xmax - xmin, 0):.1f}" '
            f'height="{max(ymax - ymin, 0):.1f}"><title>{page.escape(title)}</title></rect>'
        )

    for box in truth.regions.tolist():
        rectangle(box, f'class="seen" stroke="{_REGION}"', "ignored region")
    first = int(np.searchsorted(judgement.objects.images, image))
    for number, (box, category) in enumerate(zip(truth.boxes.tolist(), truth.classes.tolist()), first):
        thick = ' style="stroke-width:4px"' if number == item else ' opacity="0.7"'
        rectangle(box, f'stroke="{_OBJECT}"{thick}', judgement.labels[category])
    if detection >= 0:
        label = f"{judgement.labels[judgement.found.classes[detection]]} {judgement.found.scores[detection]:.2f}"
        rectangle(judgement.found.boxes[detection].tolist(), f'class="seen" stroke="{_DETECTION}"', label)
    name = page.escape(truth.image_id)
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{name}">{"".join(drawn)}</svg>'
        f"<figcaption><b>{name}</b><br/>{'<br/>'.join(caption)}</figcaption></figure>\n"
    )
