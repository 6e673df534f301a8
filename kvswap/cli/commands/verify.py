"""`kvswap verify`."""

from __future__ import annotations

from typing import Any

import click

from kvswap.cli.completing import ReferenceType
from kvswap.cli.objective import samples_option
from kvswap.cli.output import Output, reference, verb
from kvswap.core.errors import IntegrityError, UsageError
from kvswap.core.words import in_words


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
    name, text = reference(ref) if ref else (None, None)
    with output.progress() as progress:
        report = output.client.verify(name, store=store, level=level, samples=samples, text=text, on_event=progress)
    output.result(report, lambda: _shown(output, report))
    if store and not report["clean"]:
        raise IntegrityError(
            f"{report['quarantined']} wrong and {report['missing']} missing chunks; what was wrong is set aside",
            cause="the disk, or somebody, changed files",
            hint="kvswap fetch the incomplete artifacts again",
        )


def _shown(output: Output, report: dict[str, Any]) -> str:
    if "steps" not in report:
        return "\n".join(f"{name:22} {value}" for name, value in report.items())
    rows = [
        (s["step"][1:], in_words(s["step"]), s["verdict"], f"{s['seconds']:.3f} s", _about(s)) for s in report["steps"]
    ]
    lines = [report["artifact"], output.table(("LEVEL", "CHECK", "", "TOOK", ""), rows)]
    lines += [f"its publisher's word: {why}" for why in report["claims"].values()]
    for step, why in report["unchecked"].items():
        lines.append(f"not checked: {in_words(step)}, {in_words(why)}")
    if (seen := report["coverage"]) is not None:
        looked = f"{seen['readers']} audits looked at {seen['positions']} of {seen['tokens']} positions"
        one, span = (f"{seen[name]:.0%}" for name in ("one_position", "span_of_64"))
        lines.append(f"{looked}: they would have seen one changed position with {one}, a span of 64 with {span}")
    return "\n".join(lines)


def _about(step: dict[str, Any]) -> str:
    plain = ("step", "name", "verdict", "seconds", "why", "publisher")
    figures = ", ".join(f"{name} {value}" for name, value in step.items() if name not in plain)
    return "; ".join(part for part in (in_words(step["why"]), figures) if part)
