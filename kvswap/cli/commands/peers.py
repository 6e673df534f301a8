"""`kvswap peers`."""

from __future__ import annotations

import click

from kvswap.cli.output import Output, size, verb


@click.command("peers", help="Peers and what was experienced with them.")
@verb
def peers_command(output: Output) -> None:
    """List the peers, and what was experienced with each."""
    from kvswap.api.peers import PeersResult

    rows = output.client.peers()

    def text() -> str:
        cells = [
            (
                r.peer,
                "relayed" if r.relayed else "yes" if r.connected else "no",
                size(r.bytes_in),
                size(r.bytes_out),
                f"{r.rate / 1e6:.1f} MB/s" if r.rate else "-",
                f"{r.latency * 1e3:.1f} ms" if r.latency else "-",
                "-" if r.ratio is None else f"{r.ratio:.2f}",
                r.failures,
                r.invalid_chunks,
                "blocked" if r.blocked else "",
            )
            for r in rows
        ]
        headers = ("PEER", "CONNECTED", "IN", "OUT", "RATE", "LATENCY", "RATIO", "FAILURES", "INVALID", "")
        return output.table(headers, cells)

    output.result(PeersResult(peers=rows), text)
