"""`kvswap pin` and `kvswap unpin`."""

from __future__ import annotations

import click

from kvswap.cli.completing import ReferenceType
from kvswap.cli.output import Output, reference, verb


@click.command("pin", help="Keep REF whatever the quota says.")
@click.argument("ref", type=ReferenceType())
@verb
def pin_command(output: Output, ref: str) -> None:
    """Pin an artifact, which then stays whatever room is needed."""
    done = output.client.pin(reference(ref)[0], True)
    output.result(done, f"pinned {done.artifact}")


@click.command("unpin", help="Let REF go when space is needed.")
@click.argument("ref", type=ReferenceType())
@verb
def unpin_command(output: Output, ref: str) -> None:
    """Unpin an artifact."""
    done = output.client.pin(reference(ref)[0], False)
    output.result(done, f"unpinned {done.artifact}")
