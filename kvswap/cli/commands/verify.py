"""`kvswap verify`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from kvswap.cli.completing import ReferenceType
from kvswap.cli.objective import samples_option
from kvswap.cli.output import Output, reference, verb
from kvswap.core.errors import IntegrityError, UsageError
from kvswap.core.words import in_words

if TYPE_CHECKING:
    from kvswap.api import Check, VerifyResult


@click.command("verify", help="Check REF, which is in the store, level by level.  Or --store.")
@click.argument("ref", required=False, type=ReferenceType())
@click.option("--store", is_flag=True, help="Hash every file of the store; adopt, set aside, report.")
@click.option(
    "--level",
    type=click.IntRange(0, 7),
    help="0 signature, 1 chunks, 2 structure, 3 layer 0 of every token, 4 probe, 5 sampled positions of every layer, "
    "6 other publishers, 7 everything.  Default: 4, and 6 where the publisher is not trusted.",
)
@samples_option("Positions for level 5.")
@verb
def verify_command(output: Output, ref: str | None, store: bool, level: int | None, samples: int) -> None:
    """Check an artifact level by level, or hash every file of the store.

    Raises `IntegrityError` where the store was not clean.
    """
    if (ref is None) == (not store):
        raise UsageError("give a reference, or --store")
    if ref is None:
        _store(output)
        return
    name, text = reference(ref)
    with output.progress() as progress:
        report = output.client.verify(name, level=level, samples=samples, text=text, on_event=progress)
    output.result(report, lambda: _shown(output, report))


def _store(output: Output) -> None:
    """Hash every file of the store.  Raises `IntegrityError` where it was not clean."""
    with output.progress() as progress:
        report = output.client.verify(store=True, on_event=progress)
    output.result(report, lambda: "\n".join(f"{name:22} {value}" for name, value in report.to_json().items()))
    if not report.clean:
        raise IntegrityError(
            f"{report.quarantined} wrong and {report.missing} missing chunks; what was wrong is set aside",
            cause="the disk, or somebody, changed files",
            hint="kvswap fetch the incomplete artifacts again",
        )


def _shown(output: Output, report: VerifyResult) -> str:
    rows = [
        (check.level[1:], in_words(check.level), check.verdict, f"{check.seconds:.3f} s", _about(check))
        for check in report.checks
    ]
    lines = [report.artifact, output.table(("LEVEL", "CHECK", "", "TOOK", ""), rows)]
    lines += [f"its publisher's word: {why}" for why in report.claims.values()]
    for step, why in report.unchecked.items():
        lines.append(f"not checked: {in_words(step)}, {in_words(why)}")
    if (seen := report.coverage) is not None:
        looked = f"{seen.readers} audits looked at {seen.positions} of {seen.tokens} positions"
        one, span = (f"{chance:.0%}" for chance in (seen.one_position, seen.span_of_64))
        lines.append(f"{looked}: they would have seen one changed position with {one}, a span of 64 with {span}")
    return "\n".join(lines)


def _about(check: Check) -> str:
    """Say in words why a check ended as it did, and what it measured."""
    said = (_WORDS.get(name, lambda value, name=name: f"{name} {value}")(value) for name, value in check.more.items())
    return "; ".join(part for part in (in_words(check.why), ", ".join(filter(None, said))) if part)


def _yes(words: str, otherwise: str = "") -> Callable[[Any], str]:
    return lambda value: words if value else otherwise


# By name in JSON, of what a check measured; what is none of these is shown by its name.
_WORDS: dict[str, Callable[[Any], str]] = {
    "publisher": lambda _: "",  # it is in the reason, where it matters
    "withdrawals": lambda value: "" if value == "none" else f"withdrawals: {value}",
    "files": lambda value: f"{value} files",
    "tensors": lambda value: f"{value} tensors",
    "positions": lambda value: f"{value} positions",
    "wrong": lambda value: f"{value or 'none'} wrong",
    "worst": lambda value: f"the farthest off by {value:g} times what rounding or honest noise explains",
    "margin": lambda value: f"up to {value:g} counts as right",
    "bitwise": _yes("the same bits"),
    "read_back": _yes("tokens read from layer 0, as no text was given"),
    "tokens_equal": _yes("the same tokens", "other tokens"),
    "logits_equal": _yes("the same logits", "other logits"),
    "same_environment": _yes("computed as on the publisher's machine", "computed otherwise than on the publisher's"),
    "publishers": lambda value: f"{value} other publishers",
    "trusted": lambda value: f"{value} of them trusted",
    "agreeing": lambda value: f"{value} agree",
    "disputed_with": lambda value: f"disputed with {', '.join(value)}",
    "intervals": lambda value: f"{value} intervals",
    "of_intervals": lambda value: f"of {value}",
    "chance": lambda value: f"a wrong one is found with {value:.0%}",
}
