"""`kvswap economics`: needs neither daemon nor network."""

from __future__ import annotations

from pathlib import Path

import click

from kvswap.cli.objective import Finite
from kvswap.cli.output import Output, verb
from kvswap.core.files import check_place


@click.command("economics", help="The paper's cost model, recomputed: what prefilling, hosting and shipping cost.")
@click.option(
    "--figures",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file of prices and speeds (default: those that come with kvswap).",
)
@click.option("--readers", type=Finite(1, 1e15), help="Readers of the document, instead of the paper's.")
@click.option("--tokens", type=Finite(1, 1e15), help="Tokens of the document, instead of the paper's.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a report with pictures there.")
@verb
def economics_command(
    output: Output, figures: Path | None, readers: float | None, tokens: float | None, html: Path | None
) -> None:
    """Compute the paper's cost model from a file of prices, and print its tables."""
    import msgspec

    from kvswap.economics import page, read, study

    if html is not None:
        check_place(html)
    given = read(figures)
    changed = {k: v for k, v in (("readers", readers), ("tokens", tokens)) if v is not None}
    if changed:
        given = msgspec.structs.replace(given, example=msgspec.structs.replace(given.example, **changed))
    done = study(given)
    if html is not None:
        html.write_text(page.page(done))
        output.note(f"written: {html}")

    def text() -> str:
        parts = [
            (
                "The paper's example" + (" (changed, so the published column is not of this)" if changed else ""),
                page.PAPER,
                page.paper_rows(done),
            ),
            ("Tariff and cost apart", page.WAYS, page.way_rows(done)),
            ("Egress below which shipping wins", page.EGRESS, page.egress_rows(done)),
            (f"Links above which shipping is faster (coded: {done.best})", page.WHERE, page.where_rows(done)),
        ]
        return "\n\n".join(f"{title}\n{output.table(headers, rows)}" for title, headers, rows in parts)

    output.result(done, text)
