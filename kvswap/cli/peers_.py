"""`kvswap peers`."""

from __future__ import annotations

import click

from kvswap.cli.output import Output, size, verb


@click.command("peers", help="Peers and what was experienced with them.")
@verb
def peers_command(output: Output) -> None:
    rows = output.client.peers()

    def text() -> str:
        cells = [
            (
                r["peer"],
                "yes" if r["connected"] else "no",
                size(r["bytes_in"]),
                size(r["bytes_out"]),
                f"{r['rate'] / 1e6:.1f} MB/s" if r["rate"] else "-",
                f"{r['latency'] * 1e3:.1f} ms" if r["latency"] else "-",
                r["failures"],
                r["lies"],
            )
            for r in rows
        ]
        return output.table(("PEER", "CONNECTED", "IN", "OUT", "RATE", "LATENCY", "FAILURES", "LIES"), cells)

    output.result({"peers": rows}, text)
