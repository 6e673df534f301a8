"""`kvswap show`."""

from __future__ import annotations

import click

from kvswap.cli.completing import ReferenceType
from kvswap.cli.output import Output, reference, size, verb
from kvswap.core.words import STANDINGS, in_words


@click.command("show", help="Show the manifest of REF, which must be in the store.  --json prints all of it.")
@click.argument("ref", type=ReferenceType())
@verb
def show_command(output: Output, ref: str) -> None:
    """Print the manifest of an artifact in the store, or with `--json` all of it."""
    from kvswap.api.store import ShownArtifact

    row = output.client.show(reference(ref)[0])
    manifest = row.manifest

    def text() -> str:
        document, prefix, numerics = manifest["document"] or {}, manifest["prefix"], manifest["numerics"]
        lines = {
            "artifact": row.artifact,
            "document": "sha256:" + document["sha256"] if document else "private",
            "model": f"{manifest['model']['label']} ({manifest['model']['identity'][:16]})",
            "tokens": f"{prefix['tokens']} in {len(prefix['chain'])} blocks of {prefix['block_tokens']}",
            "layout": f"{len(manifest['layout']['layers'])} layers, {manifest['layout']['dtype']}",
            "size": f"{size(row.raw_bytes)} raw, {size(row.wire_bytes)} in {len(manifest['chunks'])} chunks",
            "numerics": f"{numerics['device']} {numerics['isa']}, torch {numerics['torch']}, claim {numerics['claim']}",
            "publisher": manifest["publisher"],
            "readers": f"group {row.group}" if row.group else "everybody",
            "expires": f"{manifest['life']['expires']} (Unix time)",
            "state": ("complete" if row.complete else "incomplete") + (", pinned" if row.pinned else ""),
            "standing": STANDINGS[row.standing] + (f": {in_words(row.why)}" if row.why else ""),
        }
        return "\n".join(f"{name:10} {value}" for name, value in lines.items())

    shown = ShownArtifact(
        more=manifest,
        artifact=row.artifact,
        complete=row.complete,
        pinned=row.pinned,
        standing=row.standing,
        why=row.why,
        disputed_with=row.disputed_with,
    )
    output.result(shown, text)
