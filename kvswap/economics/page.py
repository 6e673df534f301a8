"""The study as one HTML file: tables, and pictures as SVG.  It loads nothing from anywhere."""

from __future__ import annotations

from html import escape

from kvswap.economics.study import Study
from kvswap.report import bars, document, figure, lines, rate, table


def page(study: Study) -> str:
    """Render the study as an HTML file."""
    parts = [
        f"<p>The cost model of arXiv 2606.13361, recomputed with prices of {escape(study.date)}.</p>",
        "<h2>The paper's example</h2><p>80 million readers of one document, as published and as computed here.</p>",
        table(PAPER, paper_rows(study)),
        "<h2>Tariff and cost apart</h2><p>An API's tariff is not what prefill costs. Shipping is counted with one "
        "prefill, storage for a month, and egress at the example's price.</p>",
        table(WAYS, way_rows(study)),
        "<h2>The price of egress decides</h2>",
        figure(
            lines(
                {f"ship {name}": curve for name, curve in study.sweep.items()},
                "egress, $ a GB",
                "$ for all readers",
                levels=study.levels,
                unit=lambda dollars: f"${dollars:,.0f}",
            ),
            "Where a shipping line is below a level, shipping is cheaper than that way of computing.",
        ),
        table(EGRESS, egress_rows(study)),
        "<h2>From which link shipping is faster</h2>",
        f"<p>Above the link given, fetching is faster than prefilling: for raw KV, and for {escape(study.best)}. "
        "Loading is not counted. Below the price given, it is cheaper than the rented machine.</p>",
        table(WHERE, where_rows(study)),
        figure(
            bars([(f"{w.model}, {w.machine}", w.link_coded) for w in study.where]),
            f"Break-even link with {escape(study.best)}.",
        ),
    ]
    return document("kvswap economics", "What reuse of KV caches is worth", parts)


PAPER = ("way", "published", "computed", "off")
WAYS = ("way", "all readers", "a reader", "cheaper than the tariff from")
EGRESS = ("break-even, $ a GB", "against the tariff", "against a rented machine")
WHERE = ("model", "machine", "tokens/s", "link, raw", "link, coded", "egress $ a GB")


def paper_rows(study: Study) -> list[tuple[str, ...]]:
    """Format the rows of the table with the columns `PAPER`."""
    return [(x.what, f"${x.published:,.0f}", f"${x.computed:,.0f}", f"{x.off:+.1%}") for x in study.paper]


def way_rows(study: Study) -> list[tuple[str, ...]]:
    """Format the rows of the table with the columns `WAYS`."""
    rows: list[tuple[str, ...]] = []
    for way in study.ways:
        count = way.break_even_readers
        from_ = "" if not way.what.startswith("ship") else "never" if count is None else f"{count:,.2f} readers"
        rows.append((way.what, f"${way.dollars:,.0f}", f"${way.per_reader:.7f}", from_))
    return rows


def egress_rows(study: Study) -> list[tuple[str, ...]]:
    """Format the rows of the table with the columns `EGRESS`."""
    tariff, machine = study.break_even_egress["API tariff"], study.break_even_egress["rented machine"]
    return [(name, f"{tariff[name]:.4f}", f"{machine[name]:.6f}") for name in tariff]


def where_rows(study: Study) -> list[tuple[str, ...]]:
    """Format the rows of the table with the columns `WHERE`."""
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
