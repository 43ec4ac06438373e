"""`RUN/report.html`: one page that shows a run while it goes on, and afterwards.

What no other file holds, the last evaluation with its pictures, is kept in `RUN/report.json`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import math
import os
import platform
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from input import files, memory, shards
from input.manifest import manifest_path, read_manifest
from trainer import evaluation_page, page, reporting, samples
from trainer.config import Config, flatten
from trainer.events import Hook

_EVERY_S = 60.0  # between two writings, unless an evaluation comes
_COLOURS = ("#4c78a8", "#d64545", "#2e8b57")
_PLOTS = {
    "loss": {"loss": "training", "eval/loss": "evaluation"},
    "class loss": {"class_loss": "training", "eval/class_loss": "evaluation"},
    "box loss": {"box_loss": "training", "eval/box_loss": "evaluation"},
    "average precision": {"eval/coco_ap": "COCO", "eval/coco_ap50": "IoU 0.5", "eval/coco_ap75": "IoU 0.75"},
    "learning rate": {"learning_rate": ""},
    "norm of the gradient": {"gradient_norm": ""},
    "loss scale": {"loss_scale": ""},
    "positive anchors of a step": {"positives": ""},
    "images a second": {"images_per_s": ""},
    "share of the time waiting for data": {"data_wait": ""},
}
_STYLE = """
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(500px, 1fr)); gap: 1em; }
.pairs img { width: 100%; display: block; } td.text { white-space: normal; overflow-wrap: anywhere; }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto; font-size: 12px; }
"""


class Report(Hook):
    """Writes the page at the start, after each evaluation, at the end, and every minute in between.

    Args:
      seconds: tells how long the run has gone on, over all its processes.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds

    def on_start(self, event: dict[str, Any]) -> None:
        self._run = event
        self._state_path = os.path.join(event["model_dir"], "report.json")
        self._state: dict[str, Any] = {"evaluation": None, "figures": []}
        if files.exists(self._state_path):
            with contextlib.suppress(ValueError):  # damaged: the next evaluation writes it anew
                self._state = json.loads(files.read(self._state_path))
        self._forget_later_evaluation(event["step"])
        self._environment = environment()
        self._data = list(_data_table(event["config"]["labels"], event["train_records"], event["val_records"]))
        self._latest: dict[str, Any] = {"step": event["step"], "train_steps": event["train_steps"]}
        self._write("running")

    def on_rollback(self, event: dict[str, Any]) -> None:
        self._forget_later_evaluation(event["step"])
        # The time left was that of the later step, so it is left out until the next log.
        self._latest = {"step": event["step"], "train_steps": self._latest["train_steps"]}
        self._write("running")

    def _forget_later_evaluation(self, step: int) -> None:
        """Forgets an evaluation of a later step than the one that the run goes on from."""
        if self._state["evaluation"] and self._state["evaluation"]["step"] > step:
            self._state.update(evaluation=None, figures=[])

    def on_log(self, event: dict[str, Any]) -> None:
        self._latest = event
        if time.monotonic() - self._written >= _EVERY_S:
            self._write("running")

    def on_evaluate(self, event: dict[str, Any]) -> None:
        chosen = event.pop("samples")
        self._state.update(evaluation=event, figures=list(self._figures(chosen)))
        self._write("running")

    def on_end(self, event: dict[str, Any]) -> None:
        # The last log may be of an earlier step.
        self._latest = {**self._latest, "step": event["step"], "train_steps": event["train_steps"]}
        if event["error"] is not None:
            self._write(f"failed: {event['error']}")
        elif event["stopped_by"] is None and event["step"] < event["train_steps"]:
            self._write("complete: ended by --patience")
        elif event["step"] < event["train_steps"]:
            self._write(f"stopped by {signal.Signals(event['stopped_by']).name}; the same command resumes it")
        else:
            self._write("complete")

    def _figures(self, chosen: Sequence[dict[str, Any]]) -> Iterator[str]:
        read = evaluation_page.record_reader(self._run["val_records"])
        for sample in chosen:
            pair = samples.draw(sample, read(sample["record"])["image/encoded"], self._run["config"]["labels"])
            name = page.escape(sample["image_id"])
            yield f'<figure><img src="{page.jpeg(pair)}" alt="{name}"/><figcaption>{name}</figcaption></figure>\n'

    def _write(self, state: str) -> None:
        self._written = time.monotonic()
        reporting.write_or_say(self._state_path, json.dumps(self._state) + "\n")
        reporting.write_or_say(os.path.join(self._run["model_dir"], "report.html"), "".join(self._page(state)))

    def _page(self, state: str) -> Iterator[str]:
        name = os.path.basename(self._run["model_dir"].rstrip("/"))
        yield page.head(f"{name}: training", _STYLE, refresh_s=_EVERY_S if state == "running" else None)
        yield f"<h1>{page.escape(name)}</h1>\n"
        metrics = read_metrics(self._run["model_dir"])
        yield from _table(self._status(state, metrics))
        yield '<h2>Curves</h2>\n<div class="plots">'
        yield from _plots(metrics, self._latest["train_steps"])
        yield "</div>\n"
        if self._state["evaluation"]:
            yield f"<h2>Average precision after step {self._state['evaluation']['step']:,}</h2>\n"
            yield from evaluation_page.metric_table(self._state["evaluation"])
            yield f"<h2>Objects, and what was found with a score of at least {samples.MIN_SCORE}</h2>\n"
            yield from ('<div class="pairs">', *self._state["figures"], "</div>\n")
        folder = os.path.join(self._run["model_dir"], "eval")
        for name in sorted(files.names(folder)) if files.is_dir(folder) else ():
            if name.endswith(".html"):
                path = page.escape(f"eval/{name}")
                yield f'<p><a href="{path}">Evaluation: {path}</a></p>\n'
        yield "<h2>Data</h2>\n"
        yield from self._data
        yield "<h2>Settings other than the default</h2>\n"
        yield from _table(_changed_settings(self._run["config"]))
        config = page.escape(json.dumps(self._run["config"], indent=1, ensure_ascii=False))
        yield f"<details><summary>All settings</summary><pre>{config}</pre></details>\n<h2>Environment</h2>\n"
        yield from _table(self._environment)
        yield "</body></html>\n"

    def _status(self, state: str, metrics: Sequence[dict[str, Any]]) -> dict[str, str]:
        step, last = self._latest["step"], self._latest["train_steps"]
        rows = {
            "state": f"{state} (written {datetime.datetime.now():%Y-%m-%d %H:%M:%S})",
            "step": f"{step:,} of {last:,}, in batches of {self._run['batch_size']:,}",
            "time so far": _duration(self._seconds()),
        }
        if evaluations_s := sum(line.get("eval/evaluation_s", 0.0) for line in metrics):
            share = evaluations_s / self._seconds()
            rows["evaluations"] = f"{_duration(evaluations_s)}, {100 * share:.1f}% of this time"
        if speed := self._latest.get("images_per_s"):
            if step < last:
                rows["time left"] = _duration(3600 * self._latest["hours_left"])
            rows["speed"] = f"{speed:,.1f} images/s, waiting for data {100 * self._latest['data_wait']:.0f}%"
        if price := self._run["config"]["train"].get("price_per_hour"):
            rows["cost so far"] = f"{price * self._seconds() / 3600:,.2f}"
            if cost_left := self._latest.get("cost_left"):
                rows["cost to come"] = f"{cost_left:,.2f}"
        return rows


def read_metrics(model_dir: str) -> list[dict[str, Any]]:
    """The lines of `RUN/metrics.jsonl`; one that was cut off is left out."""
    path = os.path.join(model_dir, "metrics.jsonl")
    lines = files.read(path).decode().splitlines() if files.exists(path) else []
    metrics = []
    for line in lines:
        try:
            metrics.append(json.loads(line))
        except ValueError:
            continue
    return metrics


def environment() -> dict[str, str]:
    """What a run runs on."""
    gpus = tf.config.list_physical_devices("GPU")
    names = [str(tf.config.experimental.get_device_details(gpu).get("device_name", "unknown")) for gpu in gpus]
    return {
        "command": shlex.join(sys.argv),
        "GPUs": ", ".join(f"{names.count(name)} x {name}" for name in sorted(set(names))) or "none",
        "CPU": f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}",
        "memory": f"{memory.limit() / 2**30:.1f} GiB",
        "software": f"TensorFlow {tf.__version__}, Python {platform.python_version()}, {platform.system()}",
    }


def _plots(metrics: Sequence[dict[str, Any]], train_steps: int) -> Iterator[str]:
    for title, names in _PLOTS.items():
        lines = []
        for colour, (key, name) in zip(_COLOURS, names.items()):
            points = [(line["step"], line[key]) for line in metrics if math.isfinite(line.get(key, math.nan))]
            if points:
                x, y = np.array(points, np.float64).T
                lines.append(page.Line(colour, x, y, name))
        if lines:
            y_end = page.axis_end(np.concatenate([line.y for line in lines]))
            yield page.plot(title, "step", "", lines, x_end=train_steps, y_end=y_end)


def _data_table(labels: Sequence[str], train_paths: Sequence[str], val_paths: Sequence[str]) -> Iterator[str]:
    """Images and boxes of each split, by class where there is a manifest."""
    yield '<div class="wide"><table><tr><th></th>'
    yield page.cells(["shards", "images", "boxes", *map(page.escape, labels)], "th") + "</tr>\n"
    for use, paths in (("training", train_paths), ("evaluation", val_paths)):
        splits: dict[tuple[str, str], list[str]] = {}
        for path in paths:
            splits.setdefault((os.path.dirname(path), shards.split_name(path)), []).append(path)
        for (folder, split), members in splits.items():
            counts = [format(len(members), ","), format(sum(shards.count_records(members)), ",")]
            if files.exists(path := manifest_path(folder, split)):
                manifest = read_manifest(path)
                boxes = [manifest.num_boxes, *(manifest.boxes_per_class.get(label, 0) for label in labels)]
                counts += [format(count, ",") for count in boxes]
            yield f"<tr><td>{use}: {page.escape(split)}</td>{page.cells(counts)}</tr>\n"
    yield "</table></div>\n"


def _changed_settings(config: dict[str, Any]) -> dict[str, str]:
    """The settings that differ from the defaults, by their dotted names."""
    defaults = flatten(dataclasses.asdict(Config()))
    return {name: str(value) for name, value in flatten(config).items() if value != defaults.get(name)}


def _table(rows: dict[str, str]) -> Iterator[str]:
    yield "<table>"
    for name, value in rows.items():
        yield f'<tr><td>{page.escape(name)}</td><td class="text">{page.escape(value)}</td></tr>\n'
    yield "</table>\n"


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
