"""What our HTML pages share: style, tables and plots. A page loads no other file and runs no script.

Every part is well-formed XML as well, so that a strict parser can check a page.
"""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from input import palette

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_LEFT, _TOP, _SIDE = 44, 22, 240  # px of a plot's square
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 1120px; margin: 2em auto;
  padding: 0 1em; }
h1 { font-size: 1.7em; margin: 0; } h2 { font-size: 1.25em; margin: 2em 0 .5em; } p { margin: .5em 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
th, td { padding: .15em .7em .15em 0; text-align: left; vertical-align: middle; white-space: nowrap; }
th { font-weight: 600; color: #555; border-bottom: 1px solid #ccc; } .number { text-align: right; }
.range { color: #777; font-size: 12px; display: block; }
.swatch { display: inline-block; width: .75em; height: .75em; margin-right: .35em; border-radius: 2px; }
.plots { display: flex; flex-wrap: wrap; gap: 1em 2em; } .plots svg { width: 340px; height: auto; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 1em; }
figure { margin: 0; font-size: 13px; overflow-wrap: anywhere; }
svg text { font: 12px system-ui, sans-serif; fill: #444; }
"""


class Line(NamedTuple):
    """A line of a plot, or points to be joined."""

    colour: str
    x: np.ndarray  # f64 [n]
    y: np.ndarray  # f64 [n]
    name: str = ""


def head(title: str, style: str = "", *, refresh_s: float | None = None) -> str:
    """The start of a page, up to its headline; a browser reads it again after `refresh_s` seconds."""
    title = escape(title)
    refresh = f'<meta http-equiv="refresh" content="{refresh_s:.0f}"/>' if refresh_s else ""
    return (
        '<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml" lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"{refresh}<title>{title}</title><style>{STYLE}{style}</style></head>\n<body>"
    )


def escape(text: str) -> str:
    """The text as it may stand in a page, whatever it holds."""
    return html.escape(_CONTROL.sub("\ufffd", text))


def cells(values: Sequence[str], tag: str = "td") -> str:
    """Cells of numbers, in a table's row; the values are markup already."""
    return "".join(f'<{tag} class="number">{value}</{tag}>' for value in values)


def colour(index: int) -> str:
    """The colour of a class."""
    return "#{:02x}{:02x}{:02x}".format(*palette.class_colour(index))


def class_name(label: str, index: int) -> str:
    """The name of a class after a square of its colour."""
    return f'<span class="swatch" style="background:{colour(index)}"></span>{escape(label)}'


def jpeg(image: Image.Image) -> str:
    """The address under which a page holds a picture itself."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def plot(title: str, x_name: str, y_name: str, lines: Sequence[Line], *, x_end: float = 1.0, y_end: float = 1.0) -> str:
    """Lines over the square from 0 to `x_end` and `y_end`; what lies above it is drawn on its edge."""
    parts = [f'<text x="{_LEFT}" y="14">{escape(title)}']
    parts += [f' <tspan style="fill:{line.colour}">{escape(line.name)}</tspan>' for line in lines if line.name]
    parts.append("</text>")
    for share in (0.0, 0.5, 1.0):
        x, y = _LEFT + share * _SIDE, _TOP + (1 - share) * _SIDE
        parts.append(f'<path d="M{_LEFT} {y:.0f}h{_SIDE}M{x:.0f} {_TOP}v{_SIDE}" stroke="#e4e4e4" fill="none"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{_tick(share * y_end)}</text>')
        parts.append(f'<text x="{x:.0f}" y="{_TOP + _SIDE + 16}" text-anchor="middle">{_tick(share * x_end)}</text>')
    for line in lines:
        x_shares, y_shares = np.clip(line.x / x_end, 0, 1), np.clip(line.y / y_end, 0, 1)
        chosen = np.unique(np.linspace(0, len(x_shares) - 1, 300).astype(int)) if len(x_shares) else []
        points = " ".join(f"{_LEFT + x_shares[i] * _SIDE:.1f},{_TOP + (1 - y_shares[i]) * _SIDE:.1f}" for i in chosen)
        points += f" {points}" if len(chosen) == 1 else ""  # a line from a point to itself, which is a dot
        style = f'fill="none" stroke="{line.colour}" stroke-width="2" stroke-linecap="round"'
        parts.append(f'<polyline points="{points}" {style}/>')
    parts.append(f'<text x="{_LEFT + _SIDE / 2:.0f}" y="{_TOP + _SIDE + 34}" text-anchor="middle">{x_name}</text>')
    y = _TOP + _SIDE / 2
    parts.append(f'<text transform="rotate(-90 12 {y:.0f})" x="12" y="{y:.0f}" text-anchor="middle">{y_name}</text>')
    return (
        f'<svg viewBox="0 0 300 {_TOP + _SIDE + 42}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>\n'
    )


def _tick(value: float) -> str:
    if value >= 999.5:  # which three digits would round to 1e+03
        return f"{value:,.0f}"
    if 0 < value < 0.001:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:.3g}"


def axis_end(values: np.ndarray) -> float:
    """A round number at or above nearly all values: a loss begins so high that its course would not be seen."""
    values = values[np.isfinite(values)]
    highest = float(np.quantile(values, 0.98)) if len(values) else 0.0
    if highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return next(factor * power for factor in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if factor * power >= highest)
