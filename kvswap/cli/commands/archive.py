"""`kvswap export` and `kvswap import`: an artifact as one file."""

from __future__ import annotations

import sys
from typing import IO

import click

from kvswap.cli.completing import GroupType, ReferenceType
from kvswap.cli.output import Output, reference, size, verb
from kvswap.core.errors import UsageError
from kvswap.core.words import STANDINGS


@click.command("export", help="Write REF, which is in the store, as one file: a plain tar, for kvswap import.")
@click.argument("ref", type=ReferenceType())
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--group", metavar="NAME", type=GroupType(), help="Of a document: the artifact sealed for this group.")
@verb
def export_command(output: Output, ref: str, file: str, group: str | None) -> None:
    """Write an artifact as an archive into FILE, or for `-` to standard output."""
    name = reference(ref)[0]
    to: str | IO[bytes] = file
    if file == "-":
        to = _binary(sys.stdout, "an archive is no text for a terminal", f"kvswap export {name} FILE")
    with output.progress() as progress:
        done = output.client.export(name, to, group=group, on_event=None if file == "-" else progress)
    lacks = f", without {done.left_out} that no reader needs" if done.left_out else ""
    said = f"{done.artifact}\n  {size(done.bytes)}, {done.files} files{lacks}\n  archive sha256:{done.sha256}"
    if file == "-":  # standard output is the archive
        output.note(said)
    else:
        output.result(done, said)
        output.note(f"elsewhere:  kvswap import {file}")


@click.command("import", help="Take the artifact in FILE, which kvswap export wrote, into the store, verified.")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@verb
def import_command(output: Output, file: str) -> None:
    """Read an archive from FILE, or for `-` from standard input, and list its artifact."""
    source: str | IO[bytes] = file
    if file == "-":
        source = _binary(sys.stdin, "an archive is read from a file or a pipe", "kvswap import FILE")
    with output.progress() as progress:
        done = output.client.import_(source, on_event=progress)
    output.result(
        done,
        f"{done.artifact}\n  {done.tokens} tokens for {done.label}, {size(done.bytes)}, {done.files} files, "
        f"{done.new_files} of them new; signed by {done.publisher}, every file unchanged"
        + (f"; for group {done.group}" if done.group else ""),
    )
    if not done.trusted:
        output.note(f"it is {STANDINGS[done.standing]}, and not used before you trust its publisher:")
        output.note(
            f"kvswap trust add {done.publisher}   or let kvswap fetch {done.artifact} --allow-untrusted verify it"
        )


def _binary(stream: IO[str] | None, why: str, hint: str) -> IO[bytes]:
    """Return the bytes behind a standard stream.  Raises `UsageError` for a terminal."""
    if stream is None or stream.isatty():
        raise UsageError(why, cause="the standard stream is a terminal, or closed", hint=hint)
    return stream.buffer  # type: ignore[attr-defined, no-any-return]
