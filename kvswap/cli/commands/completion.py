"""`kvswap completion`: the script that lets a shell complete verbs, options and their values."""

from __future__ import annotations

import click

from kvswap.cli.output import Output, verb
from kvswap.cli.shells import SHELLS, script


@click.command(
    "completion",
    help="Print the script that lets SHELL complete verbs, options, models, peers and "
    "references; its first lines say how to switch it on.",
)
@click.argument("shell", type=click.Choice(sorted(SHELLS)))
@verb
def completion_command(output: Output, shell: str) -> None:
    """Print the completion script of a shell."""
    from kvswap.api.machine import CompletionScript

    text = script(shell)
    output.result(CompletionScript(shell=shell, script=text), text.rstrip())
