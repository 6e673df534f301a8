"""`kvswap advise`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvswap.cli.completing import ModelType
from kvswap.cli.output import Output, verb

if TYPE_CHECKING:
    from kvswap.api import AdviceResult, PrefixAdvice, SharingBreak

_MOST = 1_000


@click.command(
    "advise", help="Say from LOG, a request a line, which prefixes are worth publishing, and what breaks them."
)
@click.argument("log", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", type=ModelType(), help="The model whose template and tokens count (default: the daemon's).")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Write the texts there, to be published.")
@click.option("--most", type=click.IntRange(1, _MOST), default=10, show_default=True, help="Prefixes, and breaks.")
@verb
def advise_command(output: Output, log: Path, model: str | None, out: Path | None, most: int) -> None:
    """Read a log of requests, and say what publishing would save.  No daemon is asked, and nothing is computed."""
    from kvswap.advice.study import AdviceScope, advise
    from kvswap.core.settings import Settings
    from kvswap.model import catalogue, needs
    from kvswap.model.chat import read_format

    needs.require("kvswap advise")
    settings = Settings.load(output.home)
    name = catalogue.typed(model, settings.models) if model else settings.model
    directory = catalogue.resolve(name, settings.models)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    wanted = AdviceScope(settings.block_tokens, most, most, out)
    made = advise(read_format(directory), catalogue.label_of(directory, settings.models), log, wanted)
    output.result(made, lambda: _text(output, made))
    if made.skipped:
        output.note(f"{made.skipped} lines were passed over; the first, {made.why_skipped}")
    if out is not None and made.prefixes:
        output.note(f"now:  kvswap publish {made.prefixes[0].file}")


def _text(output: Output, made: AdviceResult) -> str:
    share = made.saved_tokens / made.tokens if made.tokens else 0.0
    lines = [
        f"{made.requests} requests, {made.tokens} tokens of {made.model}; {made.distinct_tokens} when each prefix is "
        "counted once",
        "",
        f"Worth publishing: {share:.0%} of all prefill",
        output.table(("SAVES", "TOKENS", "REQUESTS", "MESSAGES", "LINE", "ENDS WITH"), [_row(p) for p in made.prefixes])
        if made.prefixes
        else "nothing: no two requests begin with the same block of tokens",
    ]
    if made.breaks:
        breaks = [_break(place) for place in made.breaks]
        lines += ["", "What breaks sharing", output.table(("LOST", "REQUESTS", "KIND", "WHERE", "TEXT"), breaks)]
    return "\n".join(lines)


def _row(prefix: PrefixAdvice) -> tuple[int | str, ...]:
    end = " ".join(prefix.ends.split())[-40:]
    return prefix.saved_tokens, prefix.tokens, prefix.requests, prefix.messages, prefix.line, end


def _break(place: SharingBreak) -> tuple[int | str, ...]:
    where = f"message {place.message + 1} ({place.role}), line {place.line}"
    one, other = (" ".join(text.split())[:30] for text in (place.one, place.other))
    return place.lost_tokens, place.requests, place.kind, where, f"…{place.before[-20:]!r} {one!r}, earlier {other!r}"
