"""`kvswap events`."""

from __future__ import annotations

import json
import time

import click

from kvswap.cli import streams
from kvswap.cli.output import Output, verb
from kvswap.core.text import printable


@click.command("events", help="What the node did lately; with -f, also what it does from now on.")
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C.")
@verb
def events_command(output: Output, follow: bool) -> None:
    """Print the node's events, a line each."""
    for event in output.client.events(follow):
        if output.as_json:
            streams.answer(json.dumps(event.to_json()))
            continue
        rest = " ".join(f"{name}={value}" for name, value in event.more.items())
        at = time.strftime("%H:%M:%S", time.localtime(event.time))
        streams.answer(printable(f"{at} {event.kind:14} {rest}"))
