"""`kvswap block` and `kvswap unblock`."""

from __future__ import annotations

import click

from kvswap.cli.completing import PeerType
from kvswap.cli.output import Output, verb


@click.command("block", help="Neither serve nor ask PEER from now on.")
@click.argument("peer", type=PeerType(kinds=("peers",)))
@verb
def block_command(output: Output, peer: str) -> None:
    """Block a peer, which is then neither served nor asked."""
    output.result(output.client.block(peer, True), f"blocked {peer}")


@click.command("unblock", help="Serve and ask PEER again; its failures and its invalid data no longer count.")
@click.argument("peer", type=PeerType(kinds=("peers",)))
@verb
def unblock_command(output: Output, peer: str) -> None:
    """End the block of a peer, and forget its failures."""
    output.result(output.client.block(peer, False), f"unblocked {peer}")
