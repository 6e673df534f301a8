"""`kvswap push`."""

from __future__ import annotations

import click

from kvswap.cli.commands.origin import place_options, url_of
from kvswap.cli.completing import GroupType, ReferenceType
from kvswap.cli.output import Output, reference, size, verb


@click.command("push", help="Put REF, which is in the store, at the origin URL; without one where you push by default.")
@click.argument("ref", type=ReferenceType())
@click.argument("url", required=False)
@place_options
@click.option("--group", metavar="NAME", type=GroupType(), help="Of a document: the artifact sealed for this group.")
@verb
def push_command(
    output: Output, ref: str, url: str | None, endpoint: str, region: str, profile: str, group: str | None
) -> None:
    """Push an artifact to an origin, which goes on where an earlier push broke off."""
    name = reference(ref)[0]
    with output.progress() as progress:
        done = output.client.push(
            name,
            url_of(url) if url is not None else None,
            endpoint=endpoint,
            region=region,
            profile=profile,
            group=group,
            on_event=progress,
        )
    new = f"{done.uploaded} of {done.files} files ({size(done.uploaded_bytes)}) were new"
    output.result(done, f"{done.artifact}\n  at {done.url}: {size(done.bytes)}, {new}, {done.seconds:.2f} s")
    if done.plain:
        output.note("it went over http: whoever is on the way can read it, and change what readers find")
    output.note(f"elsewhere:  kvswap origin add {done.url.partition(',')[0]} && kvswap fetch {name}")
