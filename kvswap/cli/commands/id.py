"""`kvswap id`."""

from __future__ import annotations

import click

from kvswap.cli.output import Output, verb


@click.command("id", help="This node's peer id, publisher id and addresses.")
@verb
def id_command(output: Output) -> None:
    """Print the ids and addresses of this node."""
    found = output.client.id()
    lines = [f"peer       {found.peer}", f"publisher  {found.publisher}"]
    output.result(found, "\n".join(lines + [f"address    {a}" for a in found.addresses]))
