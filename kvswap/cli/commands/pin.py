"""`kvswap pin` and `kvswap unpin`."""

from __future__ import annotations

import click

from kvswap.cli.output import Output, reference, verb


@click.command("pin", help="Keep REF whatever the quota says.")
@click.argument("ref")
@verb
def pin_command(output: Output, ref: str) -> None:
    done = output.client.pin(reference(ref)[0], True)
    output.result(done, f"pinned {done['artifact']}")


@click.command("unpin", help="Let REF go when room is needed.")
@click.argument("ref")
@verb
def unpin_command(output: Output, ref: str) -> None:
    done = output.client.pin(reference(ref)[0], False)
    output.result(done, f"unpinned {done['artifact']}")
