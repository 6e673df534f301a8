"""`kvswap withdraw`."""

from __future__ import annotations

import click

from kvswap.cli.completing import ReferenceType
from kvswap.cli.output import Output, reference, verb


@click.command("withdraw", help="Take back what this node published of REF: nobody who hears of it uses it any more.")
@click.argument("ref", type=ReferenceType())
@click.option("--why", default="", help="For those who had it.")
@verb
def withdraw_command(output: Output, ref: str, why: str) -> None:
    """Withdraw what this node published of a reference."""
    done = output.client.withdraw(reference(ref)[0], why)
    output.result(done, f"withdrawn: {', '.join(done.withdrawn)}")
    output.taken_back(done.origins, done.still_at)
