"""`kvswap bench`: experiments; needs no daemon, it starts its own."""

from __future__ import annotations

from pathlib import Path

import click

from kvswap.cli.completing import ModelType
from kvswap.cli.output import Output, verb
from kvswap.core.defaults import COMPARED_TOKENS
from kvswap.core.files import check_place
from kvswap.core.limits import LIMITS


@click.group("bench", help="Experiments on this machine.")
def bench_command() -> None:
    """Run experiments on this machine."""


@bench_command.command("paper", help="The paper's table on any model, with fetching, loading and whole answers.")
@click.option("--model", type=ModelType(), help="Model name or directory (default: the default model).")
@click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), default="bfloat16", show_default=True)
@click.option(
    "--documents",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory of text files (default: modules of Python's library).",
)
@click.option(
    "--steps",
    type=click.IntRange(1, LIMITS.host_tokens),
    default=COMPARED_TOKENS,
    show_default=True,
    help="Tokens compared.",
)
@click.option("--quick", is_flag=True, help="Only lengths below 1000 tokens, and two documents.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a report with a picture there.")
@verb
def paper_command(
    output: Output, model: str | None, dtype: str, documents: Path | None, steps: int, quick: bool, html: Path | None
) -> None:
    """Run the paper's experiment on nodes of its own, and print its tables."""
    from kvswap.bench import page, paper
    from kvswap.bench.texts import read_texts
    from kvswap.core.settings import Settings
    from kvswap.model import catalogue

    if html is not None:
        check_place(html)
    settings = Settings.load()
    name = catalogue.typed(model, settings.models) if model else settings.model
    report = paper.run(
        name,
        catalogue.resolve(name, settings.models),
        read_texts(documents),
        dtype=dtype,
        lengths=[n for n in paper.LENGTHS if not quick or n < 1_000],
        steps=steps,
        documents=2 if quick else 5,
        note=output.note,
    )
    if html is not None:
        html.write_text(page.page(report))
        output.note(f"written: {html}")

    def text() -> str:
        parts = [
            (f"{report.model}, {report.dtype}; {report.machine}", page.TIMES, page.time_rows(report)),
            ("Whole answers", page.ANSWERS, page.answer_rows(report)),
            ("From the store and after prefilling in blocks", page.EQUAL, page.equal_rows(report)),
            (f"Sizes of {report.sized_tokens} tokens", page.SIZES, page.size_rows(report)),
        ]
        return "\n\n".join(f"{title}\n{output.table(headers, rows)}" for title, headers, rows in parts)

    output.result(report, text)
