"""`kvswap fetch`."""

from __future__ import annotations

import click

from kvswap.cli.objective import group_option, lossy_option, plan_options, samples_option, untrusted_option
from kvswap.cli.output import Output, reference, size, verb
from kvswap.cost import Objective


@click.command("fetch", help="Fetch the cache of REF: an artifact id, sha256:<hex>, or a text file.")
@click.argument("ref")
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
    where = f"from {len(report['from'])} peer(s)" if report["from"] else "already here"
    output.result(
        report,
        f"{report['artifact']}\n  {report['tokens']} tokens, {size(report['wire_bytes'])} fetched {where}, "
        f"{report['seconds']:.2f} s, {report['codec']}, verified {', '.join(report['verification']['passed'])}"
        + ("" if report["verification"]["trusted"] else ", its publisher is not trusted")
        + ("" if report["exact"] else ", INEXACT"),
    )
    left = list(report["verification"]["unchecked"])
    if left:
        output.note(f"not checked: {', '.join(left)} (kvswap verify {report['artifact']} --level N)")
