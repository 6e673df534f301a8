"""`python -m tests.swarm.liar KIND …`: a real daemon whose answers to chunk requests are wrong."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from kvswap.cli.main import main
from kvswap.exchange import serve


def install(kind: str) -> None:
    honest = serve._chunk

    async def lie(node: Any, peer: str, text: str) -> bytes:
        data = await honest(node, peer, text)
        if kind == "flip":
            return bytes([data[0] ^ 1]) + data[1:]
        if kind == "truncate":
            return data[: len(data) // 2]
        if kind == "silent":
            await asyncio.sleep(3600)
        return data

    serve._chunk = lie


if __name__ == "__main__":
    install(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
