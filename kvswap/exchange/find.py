"""Looking up: connected peers, what was announced, provider records, and whom those refer to.

Peers are asked all at once.  The first offer starts a short grace in which other connected peers may
still answer; a referral that has to be dialled first is worth waiting for only while there is no offer.
Without one, and once everybody known has answered, waiting is for peers yet to be met: worth a few
seconds to a node that just started, half a second to one that has been there for a while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from kvswap.core.errors import KvswapError
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.exchange.audits import hear_audits
from kvswap.exchange.heads import hear_heads
from kvswap.exchange.node import Node, document_key
from kvswap.net import PeerAddress, messages

_GRACE_SECONDS = 0.15
_POLL_SECONDS = 0.1
_NEIGHBOURS_FIRST_SECONDS = 0.05
_PATIENCE_SECONDS = 0.5
_YOUNG_SECONDS = 15.0  # a node this young may still be finding its first peers
_MAX_PEERS = 64


@dataclass(frozen=True, slots=True)
class Offer:
    """A peer says it has an artifact.  Unverified."""

    peer: str
    found: messages.Found


async def find(
    node: Node, query: messages.Find, seconds: float = LIMITS.lookup_seconds, only: Sequence[str] | None = None
) -> list[Offer]:
    """Offers for a document, an artifact, or a chain of digests.  Empty when nobody answered.

    `only`: ask these peers and no others.
    """
    if node.transport is None or not node.p2p:
        return []
    return await _Lookup(node, query, only).run(seconds)


class _Lookup:
    def __init__(self, node: Node, query: messages.Find, only: Sequence[str] | None) -> None:
        assert node.transport is not None  # noqa: S101 - find() checked
        self._node = node
        self._transport = node.transport
        self._query = query
        self._only = only
        self._asked: set[str] = {node.transport.peer}
        self._offers: list[Offer] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking = 0
        self._near: set[str] = set()  # connected peers that have been asked and have not answered
        self._records_read = False
        self._over = False

    async def run(self, seconds: float) -> list[Offer]:
        deadline = time.monotonic() + seconds
        young = time.time() - self._node.counters.started < _YOUNG_SECONDS
        patience = seconds if young and self._only is None else _PATIENCE_SECONDS
        first_at: float | None = None
        last_busy = time.monotonic()
        reference = self._query.document or self._query.artifact
        self._records_read = reference is None
        if reference is not None:
            self._spawn(self._ask_providers())
            for address in self._node.referrals(reference):
                self._consider(address)
        try:
            while time.monotonic() < deadline:
                for peer in self._transport.connected() if self._only is None else self._only:
                    self._consider(PeerAddress(peer))
                busy = self._asking > 0 or not self._records_read
                if self._offers:
                    first_at = first_at or time.monotonic()
                    # Those yet to be dialled join the transfer when they answer; they are not waited for.
                    if not self._near or time.monotonic() > first_at + _GRACE_SECONDS:
                        break
                if busy:
                    last_busy = time.monotonic()
                elif time.monotonic() > last_busy + patience:
                    break
                if self._tasks:
                    wait = _GRACE_SECONDS / 5 if self._offers else _POLL_SECONDS
                    await asyncio.wait(self._tasks, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.sleep(_POLL_SECONDS)
        finally:
            self._over = True
        return list(self._offers)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        # Never cancelled: what is cut off inside libp2p may take its connection along.  All of it ends
        # by itself, and a peer that was dialled in vain for this look-up is there for the next.
        task = self._node.spawn(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _consider(self, address: PeerAddress) -> None:
        if address.peer not in self._asked and len(self._asked) < _MAX_PEERS and not self._over:
            self._asked.add(address.peer)
            if self._node.resting(address.peer):
                return  # failed or lied lately, or blocked
            self._asking += 1
            if address.peer in self._transport.connected():
                self._near.add(address.peer)
            self._spawn(self._ask_one(address))

    async def _ask_providers(self) -> None:
        key = (
            document_key(self._query.document) if self._query.document else Cid.parse(str(self._query.artifact)).digest
        )
        if self._transport.connected():  # a walk through the DHT would hold up the answers of neighbours
            await asyncio.sleep(_NEIGHBOURS_FIRST_SECONDS)
        while not self._over:  # records arrive while we look; each round is cheap when nothing is known
            try:
                for address in await self._transport.find_providers(key):
                    self._consider(address)
            except KvswapError:
                pass
            self._records_read = True
            await asyncio.sleep(1.0)

    async def _ask_one(self, address: PeerAddress) -> None:
        try:
            await self._ask(address)
        finally:
            self._asking -= 1
            self._near.discard(address.peer)

    async def _ask(self, address: PeerAddress) -> None:
        peer = address.peer
        try:
            if peer not in self._transport.connected():
                await self._transport.connect(address)
            async with asyncio.timeout(LIMITS.lookup_seconds):
                began = time.perf_counter()
                reply = await self._node.ask(address, self._query, messages.FindReply)
                self._node.calibration.add_latency(peer, time.perf_counter() - began)
                self._node.record(peer).publisher = reply.publisher
                self._node.offered(peer, reply.asks / 1e6)
        except (KvswapError, TimeoutError) as error:
            self._node.failed(peer, str(error) or type(error).__name__)
            return
        hear_heads(self._node, reply.heads, peer)
        hear_audits(self._node, reply.audits, peer, self._query.document)
        if reply.grant is not None:
            self._node.grants.put(peer, reply.grant, [found.artifact for found in reply.found if found.complete])
        self._offers += [Offer(peer, found) for found in reply.found]
        for provider in reply.providers[: LIMITS.find_results] if self._only is None else ():
            self._consider(PeerAddress(provider.peer, tuple(provider.addresses)))
