"""`kvswap fetch`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kvswap.cli.completing import ReferenceType
from kvswap.cli.objective import group_option, lossy_option, plan_options, samples_option, untrusted_option
from kvswap.cli.output import Output, reference, size, sources, verb
from kvswap.core.words import verified
from kvswap.cost import Objective

if TYPE_CHECKING:
    from kvswap.api import Verification


@click.command("fetch", help="Fetch the cache of REF: an artifact id, sha256:<hex>, or a text file.")
@click.argument("ref", type=ReferenceType())
@click.option("--force", is_flag=True, help="Fetch although the plan says prefilling is better.")
@click.option("--tofu", is_flag=True, help="Trust this artifact's publisher from now on, if not known yet.")
@untrusted_option()
@samples_option("Positions for that.")
@lossy_option()
@group_option()
@plan_options
@verb
def fetch_command(
    output: Output,
    ref: str,
    force: bool,
    tofu: bool,
    allow_untrusted: bool,
    samples: int,
    allow_lossy: bool,
    group: str | None,
    objective: Objective,
) -> None:
    """Fetch an artifact, and say what was checked of it and what was not."""
    name, text = reference(ref)
    with output.progress() as progress:
        report = output.client.fetch(
            name,
            force=force,
            tofu=tofu,
            allow_untrusted=allow_untrusted,
            samples=samples,
            allow_lossy=allow_lossy,
            group=group,
            text=text if allow_untrusted else None,
            objective=objective,
            on_event=progress,
        ).report
    where = f"from {sources(report.peers)}" if report.peers else "already here"
    output.result(
        report,
        f"{report.artifact}\n  {report.tokens} tokens, {size(report.wire_bytes)} fetched {where}, "
        f"{report.seconds:.2f} s, {report.codec}"
        + ("" if report.lossless else ", LOSSY")
        + f"\n  {_checked(report.verification)}",
    )
    if report.verification.unchecked:
        output.note(f"more checks: kvswap verify {report.artifact} --level N")


def _checked(verification: Verification) -> str:
    """Say what was checked and what was not, in words."""
    if verification.own:
        return "signed by this node, every chunk unchanged"
    who = verification.label or verification.publisher
    return verified(verification.passed, who, trusted=verification.trusted)
