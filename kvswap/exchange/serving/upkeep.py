"""The upkeep of a node between requests: peers, records, announcements, and the network part itself.

Each is a step that `forever` repeats, so an error costs one round of it and is seen in `kvswap status`.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from kvswap.core.errors import KvswapError
from kvswap.core.ids import peer_of
from kvswap.core.limits import LIMITS
from kvswap.core.upkeep import forever
from kvswap.exchange.node.node import Node
from kvswap.net import PeerAddress, Transport
from kvswap.store import ArtifactRow

_FLUSH_SECONDS = 5.0
_BOOTSTRAP_SECONDS = 5.0
_DIALLED = 16  # of those that the settings name, at a time
_LOOK_SECONDS = 1.0
_SETTLE_SECONDS = 1.0  # of the handshakes of GossipSub and Kademlia with a peer that is new
_PER_ROUND = 64  # artifacts
_AGAIN_SECONDS = 12 * 3600.0  # after which all is told once more: records in the DHT expire
_MET_KEPT = 4_096
_MET_SECONDS = 600.0  # a peer that was gone for less is not new


Work = Callable[[], Awaitable[None]]


def begin(node: Node, join: Work, serve_bulk: Work) -> None:
    """Start the upkeep of a node that takes part in the network, which `join` and `serve_bulk` start again."""
    announcing = Announcing(node)
    for name, step, pause in (
        ("ledger", lambda: asyncio.to_thread(node.ledger.flush), _FLUSH_SECONDS),
        ("p2p", lambda: keep_network(node, join), _LOOK_SECONDS),
        ("bulk", lambda: keep_bulk(node, serve_bulk), _LOOK_SECONDS),
        ("bootstrap", Bootstrap(node).step, _BOOTSTRAP_SECONDS),
        ("announcing", announcing.step, _LOOK_SECONDS),
        ("records", node.network.providing.step, _LOOK_SECONDS),
    ):
        node.background.spawn(
            forever(name, step, node.problems, pause=pause, on_problem=node.background.report_problem)
        )


async def keep_network(node: Node, join: Work) -> None:
    """Start the network part where it ended by itself, or could not be started.  Raises `P2pDown`."""
    transport = node.transport
    if not transport.failed:
        return
    if "p2p" not in node.problems:
        node.problems.note("p2p", f"the peer-to-peer part stopped: {transport.failed}")
        node.background.report_problem("p2p", node.problems["p2p"])
    await node.network.sessions.close()  # streams of the one that is gone
    await join()


async def keep_bulk(node: Node, serve_bulk: Work) -> None:
    """Serve HTTPS where this node should and does not.  Raises `P2pDown`."""
    if node.p2p:
        await serve_bulk()


class Bootstrap:
    """The connections to the peers that the settings name; one that is not reached holds up no other.

    They are dialled at once, `_DIALLED` at a time, and who was tried longest ago first.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._dialling: set[str] = set()
        self._tried: dict[str, float] = {}

    async def step(self) -> None:
        """Dial the peers that are not connected; waits for none of them."""
        node, transport = self._node, self._node.transport
        if not node.p2p:
            return
        connected = {*transport.connected(), transport.peer}
        for address in sorted(dict.fromkeys(node.settings.bootstrap), key=lambda a: self._tried.get(a, 0.0)):
            if address in self._dialling:
                continue
            try:
                peer = peer_of(address)
            except KvswapError as error:
                node.problems.note(_named(address), error)
                continue
            if peer in connected:
                node.problems.clear_one(_named(address))
            elif len(self._dialling) < _DIALLED:
                self._dialling.add(address)
                self._tried[address] = time.monotonic()
                node.background.spawn(self._dial(transport, PeerAddress(peer, (address,))))

    async def _dial(self, transport: Transport, there: PeerAddress) -> None:
        (address,) = there.addresses
        try:
            async with asyncio.timeout(2 * LIMITS.dial_seconds):  # the transport has its own, which is shorter
                await transport.connect(there)
            self._node.events.add("connected", peer=there.peer, how="bootstrap")
            self._node.problems.clear_one(_named(address))
        except Exception as error:  # noqa: BLE001 - shown, and tried again
            self._node.problems.note(_named(address), error)
        finally:
            self._dialling.discard(address)


def _named(address: str) -> str:
    return f"bootstrap {address}"


class Announcing:
    """The announcements of what is held, to peers that are met: a record given to nobody is found by nobody.

    All artifacts have their turn, newest first and then where the last round ended.  After a round it rests for as
    long as that took, however many peers come and go.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._met: OrderedDict[str, float] = OrderedDict()  # peers, and when they were seen last (monotonic)
        self._left = 0  # artifacts to tell of until all had their turn
        self._last: ArtifactRow | None = None  # that was told last
        self._pause_until = 0.0
        self._again_at = 0.0

    async def step(self) -> None:
        """Look for new peers, and do a round if there is something to announce and the last one is long enough ago."""
        node, now = self._node, time.monotonic()
        if not node.p2p:
            return
        connected = node.transport.connected()
        new = [p for p in connected if now - self._met.get(p, -_MET_SECONDS) >= _MET_SECONDS]
        for peer in connected:
            self._met.pop(peer, None)
            self._met[peer] = now
        while len(self._met) > _MET_KEPT:
            self._met.popitem(last=False)
        due = bool(new) or (bool(connected) and now >= self._again_at)
        if not due and (not self._left or now < self._pause_until):
            return
        if due:
            self._left = -1  # all of them, however many that are
            self._again_at = now + _AGAIN_SECONDS
        if now < self._pause_until:
            return
        if new:
            await asyncio.sleep(_SETTLE_SECONDS)
        await self._round()
        self._pause_until = time.monotonic() + (time.monotonic() - now)

    async def _round(self) -> None:
        node = self._node
        count = await asyncio.to_thread(node.store.count)
        if self._left < 0 or self._left > count:
            self._left = count
        announced = 0
        while self._left > 0 and announced < _PER_ROUND:
            # A page after the one that was told last, as there may be very many; after the oldest, the newest again.
            page = await asyncio.to_thread(node.store.page, self._last, min(self._left, _PER_ROUND - announced))
            if not page and self._last is None:
                self._left = 0
            elif not page:
                self._last = None
            for row in page:
                if row.complete:  # `announce` looks whether it may be told
                    await node.network.announce(row.id, row.document)
                    announced += 1
                self._last = row
                self._left -= 1
