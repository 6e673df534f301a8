"""`kvswap ls`."""

from __future__ import annotations

import gc

import click

from kvswap.cli.output import Output, size, verb
from kvswap.core.words import STANDINGS

_USUAL = ("own", "trusted")


@click.command("ls", help="List artifacts in the store.")
@verb
def ls_command(output: Output) -> None:
    """List the artifacts in the store, without a pause of the garbage collector."""
    gc.disable()  # of the many thousand rows that may come none is garbage
    try:
        _list(output)
    finally:
        gc.enable()


def _list(output: Output) -> None:
    rows = output.client.ls()

    def text() -> str:
        cells = [
            (
                r.artifact,
                (r.document or "private")[:19],
                r.label,
                r.tokens,
                size(r.wire_bytes),
                f"{r.raw_bytes / r.wire_bytes:.2f}x" if r.raw_bytes else "",
                ("complete" if r.complete else "partial")
                + ("" if r.standing in _USUAL else f", {STANDINGS[r.standing]}")
                + (", pinned" if r.pinned else "")
                + (f", for {r.group}" if r.group else ""),
            )
            for r in rows
        ]
        return output.table(("ARTIFACT", "DOCUMENT", "MODEL", "TOKENS", "SIZE", "RATIO", "STATE"), cells)

    from kvswap.api.store import ArtifactsResult  # while the node was at work it has been imported

    output.result(ArtifactsResult(artifacts=rows), text)
