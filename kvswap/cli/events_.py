"""`kvswap events`."""

from __future__ import annotations

import json
import time

import click

from kvswap.cli.output import Output, verb


@click.command("events", help="What the node did lately; with -f, also what it does from now on.")
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C.")
@verb
def events_command(output: Output, follow: bool) -> None:
    for event in output.client.events(follow):
        if output.as_json:
            print(json.dumps(event), flush=True)
            continue
        rest = " ".join(f"{k}={v}" for k, v in event.items() if k not in ("id", "time", "event"))
        print(f"{time.strftime('%H:%M:%S', time.localtime(event['time']))} {event['event']:14} {rest}", flush=True)
