"""The study as one HTML file: tables, and pictures as SVG drawn here.  Loads nothing from anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from kvswap.economics.study import Study

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 780, 380, 96, 50, 20, 190
_COLOURS = ("#0060a8", "#c04000", "#2a7a2a", "#7a4da0", "#808080", "#a08000")
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .2rem .8rem; text-align: right }
th:first-child, td:first-child { text-align: left } thead { border-bottom: 1px solid #888 }
figure { margin: 1.5rem 0 } figcaption { color: #555 } svg { max-width: 100%; height: auto }
"""


def page(study: Study) -> str:
    """The whole file."""
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>kvswap economics</title>",
        f"<style>{_STYLE}</style><h1>What reuse of KV caches is worth</h1>",
        f"<p>The cost model of arXiv 2606.13361, recomputed with prices of {escape(study.date)}.</p>",
        "<h2>The paper's example</h2><p>80 million readers of one document, as published and as computed here.</p>",
        table(PAPER, paper_rows(study)),
        "<h2>Tariff and cost apart</h2><p>An API's tariff is not what prefill costs. Shipping is counted with one "
        "prefill, storage for a month, and egress at the example's price.</p>",
        table(WAYS, way_rows(study)),
        "<h2>The price of egress decides</h2>",
        _figure(
            lines(study.sweep, study.levels, "egress, $ a GB", "$ for all readers"),
            "Where a shipping line is below a level, shipping is cheaper than that way of computing.",
        ),
        table(EGRESS, egress_rows(study)),
        "<h2>From which link shipping is faster</h2>",
        f"<p>Above the link given, fetching is faster than prefilling: for raw KV, and for {escape(study.best)}. "
        "Loading is not counted. Below the price given, it is cheaper than the rented machine.</p>",
        table(WHERE, where_rows(study)),
        _figure(
            bars([(f"{w.model}, {w.machine}", w.link_coded) for w in study.where]),
            f"Break-even link with {escape(study.best)}.",
        ),
        "</html>",
    ]
    return "\n".join(parts)


PAPER = ("way", "published", "computed", "off")
WAYS = ("way", "all readers", "a reader", "cheaper than the tariff from")
EGRESS = ("break-even, $ a GB", "against the tariff", "against a rented machine")
WHERE = ("model", "machine", "tokens/s", "link, raw", "link, coded", "egress $ a GB")


def paper_rows(study: Study) -> list[tuple[str, ...]]:
    """Text of `PAPER`'s columns."""
    return [(x.what, f"${x.published:,.0f}", f"${x.computed:,.0f}", f"{x.off:+.1%}") for x in study.paper]


def way_rows(study: Study) -> list[tuple[str, ...]]:
    """Text of `WAYS`'s columns."""
    rows: list[tuple[str, ...]] = []
    for way in study.ways:
        count = way.break_even_readers
        from_ = "" if not way.what.startswith("ship") else "never" if count is None else f"{count:,.2f} readers"
        rows.append((way.what, f"${way.dollars:,.0f}", f"${way.per_reader:.7f}", from_))
    return rows


def egress_rows(study: Study) -> list[tuple[str, ...]]:
    """Text of `EGRESS`'s columns."""
    tariff, machine = study.break_even_egress["API tariff"], study.break_even_egress["rented machine"]
    return [(name, f"{tariff[name]:.4f}", f"{machine[name]:.6f}") for name in tariff]


def where_rows(study: Study) -> list[tuple[str, ...]]:
    """Text of `WHERE`'s columns."""
    return [
        (
            w.model,
            w.machine,
            f"{w.tokens_per_second:,.0f}",
            rate(w.link_raw),
            rate(w.link_coded),
            "" if w.egress_per_gb is None else f"{w.egress_per_gb:.6f}",
        )
        for w in study.where
    ]


def rate(bits: float) -> str:
    """Bits a second, with three digits."""
    for unit, size in (("Tbit/s", 1e12), ("Gbit/s", 1e9), ("Mbit/s", 1e6)):
        if bits >= size:
            return f"{bits / size:.3g} {unit}"
    return f"{bits / 1e3:.3g} kbit/s"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in headers)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="12" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def lines(
    curves: Mapping[str, Sequence[tuple[float, float]]], levels: Mapping[str, float], across: str, up: str
) -> str:
    """Curves and levels over two logarithmic axes."""
    xs = [math.log10(x) for curve in curves.values() for x, _ in curve]
    ys = [math.log10(y) for curve in curves.values() for _, y in curve] + [math.log10(v) for v in levels.values()]
    x0, x1, y0, y1 = min(xs), max(xs), math.floor(min(ys)), math.ceil(max(ys))
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + wide * (math.log10(x) - x0) / (x1 - x0),
            _TOP + high * (1 - (math.log10(y) - y0) / (y1 - y0)),
        )

    out = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" font-family="system-ui, sans-serif" role="img">']
    for power in range(math.ceil(x0), math.floor(x1) + 1):
        x, _ = at(10.0**power, 10.0**y0)
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_TOP + high}" stroke="#ddd"/>')
        out.append(_text(x, _TOP + high + 18, f"{10.0**power:g}", "middle"))
    for power in range(y0, y1 + 1):
        _, y = at(10.0**x0, 10.0**power)
        out.append(f'<line x1="{_LEFT}" x2="{_LEFT + wide}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        out.append(_text(_LEFT - 6, y + 4, f"${10.0**power:,.0f}", "end"))
    out.append(_text(_LEFT + wide / 2, _HEIGHT - 10, across, "middle"))
    out.append(_text(_LEFT, _TOP - 6, up))
    last_curve = list(curves.values())[-1]
    for curve, colour in zip(curves.values(), _COLOURS, strict=False):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in curve))
        dash = ' stroke-dasharray="8 6"' if curve is last_curve else ""  # it may lie on another
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"{dash}/>')
    labels = [
        (at(*curve[-1])[1] + 4, f"ship {name}", c) for (name, curve), c in zip(curves.items(), _COLOURS, strict=False)
    ]
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
    """Bits a second on one logarithmic axis."""
    low = math.floor(math.log10(min(v for _, v in rows)))
    top = math.ceil(math.log10(max(v for _, v in rows)))
    left, step, wide = 330, 18, 340
    height = step * len(rows) + 40
    out = [f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" font-family="system-ui, sans-serif" role="img">']
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
