"""Tables, and pictures as SVG, for reports that are one HTML file and load nothing from anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 780, 380, 96, 50, 20, 190
_COLOURS = ("#0060a8", "#c04000", "#2a7a2a", "#7a4da0", "#808080", "#a08000")
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .2rem .8rem; text-align: right }
th:first-child, td:first-child { text-align: left } thead { border-bottom: 1px solid #888 }
figure { margin: 1.5rem 0 } figcaption { color: #555 } svg { max-width: 100%; height: auto }
"""


def document(title: str, heading: str, parts: Sequence[str]) -> str:
    """Assemble an HTML file from its parts, which are HTML already; `title` and `heading` are escaped."""
    head = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(title)}</title>"
    return "\n".join([head, f"<style>{_STYLE}</style><h1>{escape(heading)}</h1>", *parts, "</html>\n"])


def rate(bits: float) -> str:
    """Format a rate in bits per second with three digits and a unit."""
    for unit, size in (("Tbit/s", 1e12), ("Gbit/s", 1e9), ("Mbit/s", 1e6)):
        if bits >= size:
            return f"{bits / size:.3g} {unit}"
    return f"{bits / 1e3:.3g} kbit/s"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render an HTML table; the cells are escaped."""
    head = "".join(f"<th>{escape(h)}</th>" for h in headers)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def figure(svg: str, caption: str) -> str:
    """Render an SVG picture with a caption, neither of which is escaped."""
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="12" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _svg(height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
        'font-family="system-ui, sans-serif" role="img">'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Return round values on a logarithmic axis: powers of ten, and where these are few 2 and 5 times them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high < 100 * low else (1,)
    every = [step * 10.0**power for power in powers for step in steps]
    return [value for value in every if 0.999 * low <= value <= 1.001 * high]


def lines(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    across: str,
    up: str,
    *,
    levels: Mapping[str, float] | None = None,
    unit: Callable[[float], str] = "{:g}".format,
) -> str:
    """Draw curves and horizontal levels over two logarithmic axes, as SVG.

    `across` and `up` label the axes; `unit` formats the values of the vertical one.
    """
    levels = levels or {}
    xs = [math.log10(x) for curve in curves.values() for x, _ in curve]
    ys = [math.log10(y) for curve in curves.values() for _, y in curve] + [math.log10(v) for v in levels.values()]
    x0, x1, y0, y1 = min(xs), max(xs), math.floor(min(ys)), math.ceil(max(ys))
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + wide * (math.log10(x) - x0) / (x1 - x0),
            _TOP + high * (1 - (math.log10(y) - y0) / (y1 - y0)),
        )

    out = [_svg(_HEIGHT)]
    for value in _ticks(10**x0, 10**x1):
        x, _ = at(value, 10.0**y0)
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_TOP + high}" stroke="#ddd"/>')
        out.append(_text(x, _TOP + high + 18, f"{value:g}", "middle"))
    for power in range(y0, y1 + 1):
        _, y = at(10.0**x0, 10.0**power)
        out.append(f'<line x1="{_LEFT}" x2="{_LEFT + wide}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        out.append(_text(_LEFT - 6, y + 4, unit(10.0**power), "end"))
    out.append(_text(_LEFT + wide / 2, _HEIGHT - 10, across, "middle"))
    out.append(_text(_LEFT, _TOP - 6, up))
    last_curve = list(curves.values())[-1]
    for curve, colour in zip(curves.values(), _COLOURS, strict=False):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in curve))
        dash = ' stroke-dasharray="8 6"' if curve is last_curve else ""  # dashed, as it may cover another curve
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"{dash}/>')
    labels = [(at(*curve[-1])[1] + 4, name, c) for (name, curve), c in zip(curves.items(), _COLOURS, strict=False)]
    for name, value in levels.items():
        _, y = at(10.0**x0, value)
        out.append(
            f'<line x1="{_LEFT}" x2="{_LEFT + wide}" y1="{y:.1f}" y2="{y:.1f}" stroke="#555" stroke-dasharray="5 4"/>'
        )
        labels.append((y + 4, name, "#555"))
    last = -math.inf
    for y, name, colour in sorted(labels):
        last = max(y, last + 14)  # labels do not cover each other
        out.append(_text(_LEFT + wide + 8, last, name, colour=colour))
    return "".join([*out, "</svg>"])


def bars(rows: Sequence[tuple[str, float]]) -> str:
    """Draw rates in bits per second as bars over one logarithmic axis, as SVG; `rows` are (label, rate)."""
    low = math.floor(math.log10(min(v for _, v in rows)))
    top = math.ceil(math.log10(max(v for _, v in rows)))
    left, step, wide = 330, 18, 340
    height = step * len(rows) + 40
    out = [_svg(height)]
    for power in range(low, top + 1):
        x = left + wide * (power - low) / (top - low)
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="10" y2="{height - 24}" stroke="#ddd"/>')
        if (power - low) % 2 == 0:
            out.append(_text(x, height - 8, rate(10.0**power), "middle"))
    for number, (name, value) in enumerate(rows):
        y = 14 + step * number
        length = wide * (math.log10(value) - low) / (top - low)
        out.append(_text(left - 8, y + 10, name, "end"))
        out.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="12" fill="#0060a8"/>')
        out.append(_text(left + length + 6, y + 10, rate(value)))
    return "".join([*out, "</svg>"])
