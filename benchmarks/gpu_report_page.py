"""The page of a GPU report, and the figures that have a goal. One HTML file that loads no other; well-formed XML."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 1120px; margin: 2em auto;
  padding: 0 1em; }
h1 { font-size: 1.7em; margin: 0; } h2 { font-size: 1.25em; margin: 2em 0 .5em; }
table { border-collapse: collapse; } th, td { padding: .2em 1.2em .2em 0; text-align: left; vertical-align: middle;
  white-space: nowrap; }
th { font-weight: 600; color: #555; border-bottom: 1px solid #ccc; } .number { text-align: right; }
td[colspan] { white-space: normal; }
.bar { display: inline-block; height: .7em; background: #4c78a8; border-radius: 2px; } .poor { color: #b3261e; }
.met { color: #2e7d32; } code { background: #f2f2f2; padding: .1em .35em; border-radius: 3px; }
"""
_BAR_WIDTH = 180  # px
_GOOD_SCALING = 7 / 8  # of the replicas; TensorFlow's DLE EfficientDet reaches 6.82 of 8 on A100s
_GOOD_INPUT = 0.97


def goals(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures that have a goal: name, value (None where it was not measured), goal, and whether it is met."""
    sections = report["sections"]
    noise, real = (row.get("images_per_s") for row in sections["Images read from disk, against noise"])
    rates = {row["num_replicas"]: row.get("images_per_s") for row in sections["Replicas"]}
    found = [_at_least("real_to_synthetic", real / noise if real and noise else None, _GOOD_INPUT)]
    if len(rates) > 1:
        most = max(rates)
        speedup = rates[most] / rates[1] if rates[most] and rates[1] else None
        found.append(_at_least(f"speedup_of_{most}_replicas", speedup, most * _GOOD_SCALING))
    errors = [
        row["peak_bytes"] / row["estimated_bytes"]
        for rows in sections.values()
        for row in rows
        if row.get("peak_bytes") and row["estimated_bytes"]
    ]
    largest = max(errors) if errors else None
    met = None if largest is None else largest <= 1 / 0.9  # --print_model leaves a tenth of the memory free
    found.append({"name": "largest_peak_to_estimate", "value": largest, "goal": "at most 1.11", "met": met})
    resumed = report["resume"].get("resumed")
    found.append({"name": "resumed_after_a_kill", "value": resumed, "goal": "true", "met": resumed})
    return found


def _at_least(name: str, value: float | None, goal: float) -> dict[str, Any]:
    return {"name": name, "value": value, "goal": f"at least {goal:g}", "met": None if value is None else value >= goal}


def make_page(report: dict[str, Any]) -> str:
    return "".join(_parts(report))


def _parts(report: dict[str, Any]) -> Iterator[str]:
    devices = report["machine"].get("devices") or ["CPU"]
    versions = ", ".join(f"{name} {version}" for name, version in report["machine"].get("versions", {}).items())
    title = f"Training on {len(devices)} x {devices[0]}"
    yield '<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml" lang="en"><head><meta charset="utf-8"/>'
    yield f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n"
    if report["rehearsal"]:
        yield '<p class="poor">A rehearsal with a tiny network on logical CPUs: the figures mean nothing.</p>\n'
    yield f"<p>{html.escape(versions)}; {html.escape(report['date'])}; <code>{html.escape(report['network'])}</code>, "
    yield f"{report['images_per_replica']} images a replica. Without other words, images are noise that is already in "
    yield "memory.</p>\n<h2>Goals</h2>\n<table><tr><th>figure</th><th>value</th><th>goal</th></tr>\n"
    for goal in report["goals"]:
        value = goal["value"]
        shown = "not measured" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value).lower()
        kind = {None: "", True: "met", False: "poor"}[goal["met"]]
        name = goal["name"].replace("_", " ")
        yield f'<tr><td>{name}</td><td class="{kind}">{shown}</td><td>{goal["goal"]}</td></tr>\n'
    yield "</table>\n"
    fastest = max((row.get("images_per_s", 0.0) for rows in report["sections"].values() for row in rows), default=0.0)
    for heading, rows in report["sections"].items():
        yield f"<h2>{html.escape(heading)}</h2>\n"
        yield from _table(rows, fastest)
    yield "<h2>A kill and a resume</h2>\n<table>\n"
    for name, value in report["resume"].items():
        shown = f"{value:.1f}" if isinstance(value, float) else str(value).lower() if value is True else str(value)
        yield f"<tr><td>{name.replace('_', ' ')}</td><td>{html.escape(shown)}</td></tr>\n"
    yield "</table>\n<p>The first step includes starting TensorFlow, tracing and compiling. Memory is the peak of the "
    yield "first replica; estimated is what <code>--print_model</code> says of the same case.</p>\n</body></html>\n"


def _table(rows: list[dict[str, Any]], fastest: float) -> Iterator[str]:
    heads = ("images/s", "of the first", "", "first step", "waiting for data", "peak memory", "estimated")
    yield '<table><tr><th>case</th><th class="number">' + '</th><th class="number">'.join(heads) + "</th></tr>\n"
    first = rows[0].get("images_per_s")
    for row in rows:
        yield f"<tr><td>{html.escape(_name(row))}</td>"
        if "images_per_s" not in row:
            reason = row.get("error") or row.get("skipped") or "no result"
            yield f'<td class="poor" colspan="{len(heads)}">{html.escape(reason)}</td></tr>\n'
            continue
        rate = row["images_per_s"]
        cells = [
            f"{rate:.1f}",
            f"{rate / first:.2f}" if first else "",
            f'<span class="bar" style="width: {_BAR_WIDTH * rate / fastest:.0f}px"></span>',
            f"{row['first_step_s']:.0f} s",
            f"{100 * row['data_wait']:.0f}%",
            _gigabytes(row["peak_bytes"]),
            _gigabytes(row["estimated_bytes"]),
        ]
        for index, cell in enumerate(cells):
            yield f"<td>{cell}</td>" if index == 2 else f'<td class="number">{cell}</td>'
        yield "</tr>\n"
    yield "</table>\n"


def _name(row: dict[str, Any]) -> str:
    parts = [f"{row['image_size']}x{row['image_size']}", row["precision"].replace("mixed_", ""), f"norm {row['norm']}"]
    if row["num_replicas"] > 1:
        parts.append(f"{row['num_replicas']} replicas")
    if not row["compile_stages"]:
        parts.append("stages not compiled")
    if row["real_images"]:
        parts.append("images from disk")
    return ", ".join(parts)


def _gigabytes(num_bytes: float | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / 1e9:.2f} GB"
