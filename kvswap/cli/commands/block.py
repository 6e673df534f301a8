"""`kvswap block` and `kvswap unblock`."""

from __future__ import annotations

import click

from kvswap.cli.output import Output, verb


@click.command("block", help="Neither serve nor ask PEER from now on.")
@click.argument("peer")
@verb
def block_command(output: Output, peer: str) -> None:
    output.result(output.client.block(peer, True), f"blocked {peer}")


@click.command("unblock", help="Serve and ask PEER again; its failures and lies are forgiven.")
@click.argument("peer")
@verb
def unblock_command(output: Output, peer: str) -> None:
    output.result(output.client.block(peer, False), f"unblocked {peer}")
