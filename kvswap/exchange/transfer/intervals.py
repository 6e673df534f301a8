"""What V5 of intervals needs beside a fetch: the draw is told, and what is held at the intervals' ends is fetched.

Who fetches an artifact gets what a reader of its end needs.  Windows and states before that are fetched once they are
drawn.  A peer that sees which are asked for can keep them back; so where some are elsewhere the same ones are drawn
every time, and who asks again is no luckier.
"""

from __future__ import annotations

import asyncio

from blake3 import blake3

from kvswap.api.events import IntervalsEvent
from kvswap.core.errors import KvswapError
from kvswap.exchange.discovery.lookup import holders
from kvswap.exchange.node.node import Node
from kvswap.exchange.request import Progress
from kvswap.exchange.transfer.download import download
from kvswap.trust import Statement
from kvswap.trust.intervals import drawn, files_of, needs_intervals
from kvswap.trust.sampling import new_seed

_DRAWING = b"kvswap intervals 1\n"


async def prepare_draw(node: Node, statement: Statement, samples: int, progress: Progress) -> bytes:
    """Return the seed that V5 draws from; tell cost and chance, and fetch what is lacking, where it draws intervals.

    What cannot be fetched is left to the check, which says so.
    """
    manifest = statement.manifest
    if not needs_intervals(manifest):
        return new_seed()
    every = [file.id for file in manifest.files]
    whole = not await asyncio.to_thread(node.store.missing, every)
    seed = new_seed() if whole else _own_seed(node, statement)
    draw = drawn(manifest, seed, bytes(statement.artifact), samples)
    await progress(
        IntervalsEvent(
            artifact=str(statement.artifact),
            intervals=len(draw.intervals),
            of=draw.of,
            cost=round(draw.cost, 4),
            chance=round(draw.chance, 4),
        )
    )
    if not whole:
        await _fetch(node, statement, files_of(manifest, draw), progress)
    return seed


async def _fetch(node: Node, statement: Statement, files: list[int], progress: Progress) -> None:
    try:
        peers = await holders(node, statement.artifact, statement.manifest.ids_of(files))
        if peers:
            await download(node, statement, files, peers, progress)
    except KvswapError as error:
        node.events.add("intervals_not_fetched", artifact=str(statement.artifact), reason=error.message)


def _own_seed(node: Node, statement: Statement) -> bytes:
    """Return a seed that is always the same for an artifact and known to this node alone."""
    return blake3(node.identity.publisher.sign(_DRAWING + bytes(statement.artifact))).digest()
