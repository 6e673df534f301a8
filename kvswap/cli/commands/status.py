"""`kvswap status`."""

from __future__ import annotations

import click

from kvswap.cli.output import Output, rates, size, verb


@click.command("status", help="State of the running node.")
@verb
def status_command(output: Output) -> None:
    """Print the state of the running node."""
    s = output.client.status()

    def text() -> str:
        model, loop = s.model, s.loop
        loaded = f"loaded (process {model.pid})" if model.pid else "not loaded"
        withheld = "".join(f", {n} {kind}" for n, kind in ((s.disputed, "disputed"), (s.wrong, "wrong")) if n)
        held = f"{s.artifacts} artifacts{withheld}"
        lines = [
            f"home       {s.home}",
            f"peer       {s.peer}, {s.peers} connected" if s.p2p else "peer       offline",
            f"publisher  {s.publisher}",
            f"store      {held}, {size(s.store_bytes)} of {size(s.quota_bytes)}",
            f"model      {model.default} {model.dtype} on {model.device}, {loaded}",
            f"traffic    {size(s.bytes_in)} in, {size(s.bytes_out)} out",
            f"loop       longest pause {loop.longest_pause_seconds * 1e3:.0f} ms, {loop.pauses} over 100 ms",
        ]
        lines += [f"codec      {name}: {rates(row)}" for name, row in s.codecs.items()]
        return "\n".join(lines + [f"degraded   {part}: {why}" for part, why in s.degraded.items()])

    output.result(s, text)
