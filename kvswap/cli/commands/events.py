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
            streams.answer(json.dumps(event))
            continue
        rest = " ".join(f"{k}={v}" for k, v in event.items() if k not in ("id", "time", "event"))
        at = time.strftime("%H:%M:%S", time.localtime(event["time"]))
        streams.answer(printable(f"{at} {event['event']:14} {rest}"))
