"""`kvswap manifest check`: judge a manifest file; needs neither daemon nor network."""

from __future__ import annotations

import time
from pathlib import Path

import click

from kvswap.cli.output import Output, verb
from kvswap.core.errors import MalformedManifest
from kvswap.core.limits import LIMITS


@click.group("manifest", help="Judge a manifest file.")
def manifest_command() -> None:
    pass


@manifest_command.command(
    "check",
    help="Check FILE: 0 valid, 4 expired or not yet issued, 6 signature or digest, 7 malformed or another version.",
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--at", type=int, help="Unix time to judge its life at (default: now).")
@click.option(
    "--chunks",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory with chunk files named by CID: check and decode them as well.",
)
@verb
def check(output: Output, file: Path, at: int | None, chunks: Path | None) -> None:
    from kvswap.trust import verify_envelope

    if file.stat().st_size > LIMITS.manifest_bytes:
        raise MalformedManifest(f"{file} has {file.stat().st_size} bytes, over the cap of {LIMITS.manifest_bytes}")
    statement = verify_envelope(file.read_bytes(), int(time.time()) if at is None else at)
    manifest = statement.manifest
    checked = 0
    if chunks is not None:
        from kvswap.artifact.assembly import load
        from kvswap.artifact.tensors import verify_tensors

        tensors = load(manifest, lambda cid: (chunks / str(cid)).read_bytes())
        verify_tensors(manifest, tensors)
        checked = len(manifest.chunks)
    output.result(
        {"valid": True, "artifact": str(statement.artifact), "chunks_checked": checked, "manifest": manifest.to_json()},
        f"valid: {statement.artifact}\n  signed by {manifest.publisher}, {manifest.prefix.tokens} tokens, "
        f"{len(manifest.chunks)} chunks" + (f", {checked} checked" if checked else ""),
    )
