"""`kvswap rm`."""

from __future__ import annotations

import sys

import click

from kvswap.cli.completing import ReferenceType
from kvswap.cli.output import Output, reference, size, verb
from kvswap.core.errors import UsageError


@click.command("rm", help="Remove REF from the store.")
@click.argument("ref", type=ReferenceType())
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--keep-pushed", is_flag=True, help="Leave what kvswap push put at origins.")
@verb
def rm_command(output: Output, ref: str, yes: bool, dry_run: bool, keep_pushed: bool) -> None:
    """Remove an artifact from the store, after a question."""
    row = output.client.show(reference(ref)[0])
    what = f"{row.artifact} ({row.tokens} tokens, {size(row.wire_bytes)})"
    if dry_run:
        from kvswap.api.store import RemovalPreview

        output.result(RemovalPreview(would_remove=row.artifact, wire_bytes=row.wire_bytes), f"would remove {what}")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("removing needs a yes", hint=f"kvswap rm -y {row.artifact}")
        click.confirm(f"remove {what}?", abort=True, err=True)
    done = output.client.rm(row.artifact, keep_pushed=keep_pushed)
    output.result(done, f"removed {done.removed}, {size(done.freed_bytes)} freed")
    output.taken_back(done.origins, done.still_at)
