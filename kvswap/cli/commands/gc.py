"""`kvswap gc`."""

from __future__ import annotations

import click

from kvswap.cli.output import Output, size, verb


@click.command("gc", help="Remove chunks that no artifact needs; with --to also the artifacts used longest ago.")
@click.option("--to", "target", type=click.IntRange(0), help="Go on until the store holds at most so many bytes.")
@verb
def gc_command(output: Output, target: int | None) -> None:
    """Collect what the store need not keep, and say how much room that made."""
    done = output.client.gc(target)
    output.result(done, f"{size(done.freed_bytes)} freed, {size(done.store_bytes)} in use")
