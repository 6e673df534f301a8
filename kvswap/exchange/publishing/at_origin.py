"""What is written to an origin beside artifacts, and how one is opened for writing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kvswap.core.errors import KvswapError, OriginError
from kvswap.core.origin_settings import OriginSettings
from kvswap.exchange.node.node import Node
from kvswap.exchange.verification.status_records import status_records_of
from kvswap.origins.origin import Origin
from kvswap.origins.port import Changed
from kvswap.trust.status_record import read_status_record

_TRIES = 8


@asynccontextmanager
async def opened(node: Node, settings: OriginSettings) -> AsyncIterator[Origin]:
    """Give the node's own origin of this URL, or one for this use alone."""
    if settings.url in node.origins and node.origins.get(settings.url).settings.endpoint == settings.endpoint:
        yield node.origins.get(settings.url)
        return
    origin = Origin(settings)
    try:
        yield origin
    finally:
        await origin.close()


def writer_of(node: Node) -> str:
    """Return the name under which this node writes where writers cannot share an index: no other node has it."""
    return f"{node.identity.own} {node.transport.peer}"


async def put_status_record(node: Node, origin: Origin, publisher: str) -> None:
    """Put the newest status record of a publisher at an origin, unless a newer one is there."""
    known = await asyncio.to_thread(status_records_of, node, [publisher])
    mine = next((r for r in map(read_status_record, known) if r.record.publisher == publisher), None)
    if mine is None:
        return
    for _ in range(_TRIES):
        there = await origin.status_record(publisher)
        try:
            record = read_status_record(there.data).record if there.data else None
        except KvswapError:
            record = None  # damaged, or something else: it is replaced
        if record is not None and record.publisher == publisher and record.sequence >= mine.record.sequence:
            return
        try:
            await origin.put_status_record(publisher, mine.envelope, there.tag)
            return
        except Changed:
            continue
    raise OriginError(f"{origin.url}: the status record of {publisher} is written by others all the time")
