"""`kvswap verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    figures = ", ".join(f"{name} {value}" for name, value in check.more.items() if name != "publisher")
    return "; ".join(part for part in (in_words(check.why), figures) if part)
