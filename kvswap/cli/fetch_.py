"""`kvswap fetch`."""

from __future__ import annotations

import click

from kvswap.cli.output import Output, reference, size, verb


@click.command("fetch", help="Fetch the cache of REF: an artifact id, sha256:<hex>, or a text file.")
@click.argument("ref")
@click.option("--force", is_flag=True, help="Fetch although the plan says prefilling is better.")
@click.option("--tofu", is_flag=True, help="Trust this artifact's publisher from now on, if not known yet.")
@click.option("--inexact", is_flag=True, help="Take a cache that is not the model's own to the bit.")
@verb
def fetch_command(output: Output, ref: str, force: bool, tofu: bool, inexact: bool) -> None:
    with output.progress() as progress:
        artifact = output.client.fetch(reference(ref)[0], force=force, tofu=tofu, inexact=inexact, on_event=progress)
        report = artifact.report
    where = f"from {len(report['from'])} peer(s)" if report["from"] else "already here"
    output.result(
        report,
        f"{report['artifact']}\n  {report['tokens']} tokens, {size(report['wire_bytes'])} fetched {where}, "
        f"{report['seconds']:.2f} s, {report['codec']}, verified" + ("" if report["exact"] else ", INEXACT"),
    )
