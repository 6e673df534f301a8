"""The report of the experiment, as text and as one HTML file."""

from __future__ import annotations

from html import escape

from kvswap.bench.paper import Report
from kvswap.report import document, figure, lines, table

TIMES = (
    "tokens",
    "KV MB",
    "wire MB",
    "prefill, one shot s",
    "prefill, blocks s",
    "fetch s",
    "verify, decode, load s",
    "resident step s",
    "first token from store s",
    "against one shot",
    "prefill / step (the paper's)",
)
ANSWERS = ("tokens", "answer", "prefill, one shot s", "from store s", "from a peer s", "faster")
EQUAL = ("document", "tokens", "steps", "equal tokens", "logits")
SIZES = ("codec", "MB", "smaller", "exact")


def time_rows(report: Report) -> list[tuple[str, ...]]:
    """Format the rows of the table with the columns `TIMES`."""
    return [
        (
            f"{row.tokens}",
            f"{row.raw_bytes / 1e6:.1f}",
            f"{row.wire_bytes / 1e6:.1f}",
            f"{row.one_shot.prefill:.2f}",
            f"{row.blocks.prefill:.2f}",
            f"{row.fetch_seconds:.3f}",
            f"{row.stored.load:.3f}",
            f"{row.stored.step:.3f}",
            f"{row.stored.seconds[1]:.3f}",
            f"{row.speed_up:.1f}x",
            f"{row.limit:.1f}x",
        )
        for row in report.rows
    ]


def answer_rows(report: Report) -> list[tuple[str, ...]]:
    """Format the rows of the table with the columns `ANSWERS`."""
    return [
        (
            f"{row.tokens}",
            f"{count} token{'s' if count > 1 else ''}",
            f"{row.one_shot.seconds[count]:.2f}",
            f"{row.stored.seconds[count]:.2f}",
            f"{row.fetched.seconds[count]:.2f}",
            f"{row.one_shot.seconds[count] / row.stored.seconds[count]:.1f}x",
        )
        for row in report.rows
        for count in row.stored.seconds
    ]


def equal_rows(report: Report) -> list[tuple[str, ...]]:
    """Format the rows of the table with the columns `EQUAL`."""
    return [
        (e.document, f"{e.tokens}", f"{e.steps}", f"{e.equal}", "identical" if e.logits else "differ")
        for e in report.equality
    ]


def size_rows(report: Report) -> list[tuple[str, ...]]:
    """Format the rows of the table with the columns `SIZES`."""
    raw = report.sizes["raw"]
    return [
        (codec, f"{size / 1e6:.1f}", f"{raw / size:.3f}x", "NO, lossy" if codec == "int8" else "yes")
        for codec, size in report.sizes.items()
    ]


def page(report: Report) -> str:
    """Render the report as an HTML file."""
    title = f"{report.model}, {report.dtype}: prefill against a fetched KV cache"
    curves = {
        "prefill, one shot": [(float(r.tokens), r.one_shot.seconds[1]) for r in report.rows],
        "from a peer": [(float(r.tokens), r.fetched.seconds[1]) for r in report.rows],
        "from the store": [(float(r.tokens), r.stored.seconds[1]) for r in report.rows],
        "one resident step": [(float(r.tokens), r.stored.step) for r in report.rows],
    }
    parts = [
        f"<p>{escape(report.machine)}; {escape(report.date)}. First token of an answer to a short question.</p>",
        figure(lines(curves, "tokens of the document", "seconds"), "The resident step is the limit of all reuse."),
        table(TIMES, time_rows(report)),
        "<h2>Whole answers</h2>",
        table(ANSWERS, answer_rows(report)),
        "<h2>The same answers</h2><p>From the store and after prefilling in blocks, on this machine.</p>",
        table(EQUAL, equal_rows(report)),
        f"<h2>Sizes of {report.sized_tokens} tokens</h2>",
        table(SIZES, size_rows(report)),
    ]
    return document("kvswap bench paper", title, parts)
