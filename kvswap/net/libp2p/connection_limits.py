"""Admission of inbound connections and streams, with shares by peer and by IP address.

Any number of PeerIds costs an attacker nothing; addresses cost a little, and having delivered data costs work.  So when
places are short, the IP address and peer that hold most of them lose one, idle ones first, and peers that once
delivered keep theirs.  Nothing that a remote peer sends ends more than its own stream: what a handler raises stays
here.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import trio
from libp2p.network.connection.raw_connection import RawConnection

from kvswap.core.bounded import Filling
from kvswap.core.limits import LIMITS
from kvswap.net.server import Buckets

_CLOSE_SECONDS = 2.0

Handler = Callable[[Any], Awaitable[None]]
HostOf = Callable[[str], str | None]


@dataclass(slots=True, eq=False)
class _ConnectionSlot:
    """A stream or a connection: its peer and IP address, and how to end it."""

    peer: str
    host: str
    end: Callable[[], Awaitable[None]]
    since: float = field(default_factory=time.monotonic)
    busy: Callable[[], bool] = lambda: False


class ConnectionSlots:
    """A limited number of places for peers: when all are taken, a newcomer may get one of the host that holds most."""

    def __init__(self, name: str, most: int, per_peer: int, per_host: int, favoured: Callable[[str], bool]) -> None:
        """Make `most` places, of which a peer and an IP address may hold a share each.

        `favoured(peer)` is True for a peer that keeps its places, and may have more than its IP address's share.
        """
        self.name = name
        self._most = most
        self._per_peer = per_peer
        self._per_host = per_host
        self._favoured = favoured
        self._places: dict[_ConnectionSlot, None] = {}  # in order of arrival
        self._peers: Counter[str] = Counter()
        self._hosts: Counter[str] = Counter()
        self._refused = 0
        self._evicted = 0

    def take(self, place: _ConnectionSlot) -> tuple[bool, _ConnectionSlot | None]:
        """Give a place to a newcomer: return whether it got one, and the place that has to end for it, if any."""
        favoured = self._favoured(place.peer)
        if self._peers[place.peer] >= self._per_peer or (not favoured and self._hosts[place.host] >= self._per_host):
            self._refused += 1
            return False, None
        victim = self._victim(place) if len(self._places) >= self._most else None
        if len(self._places) >= self._most and victim is None:
            self._refused += 1
            return False, None
        if victim is not None:
            self._evicted += 1
            self.leave(victim)
        self._places[place] = None
        self._peers[place.peer] += 1
        self._hosts[place.host] += 1
        return True, victim

    def leave(self, place: _ConnectionSlot) -> None:
        """Give a place back.  Idempotent."""
        if place in self._places:
            del self._places[place]
            for counter, name in ((self._peers, place.peer), (self._hosts, place.host)):
                counter[name] -= 1
                if not counter[name]:
                    del counter[name]

    def _victim(self, new: _ConnectionSlot) -> _ConnectionSlot | None:
        """Return the place that makes way for a newcomer, or None.

        It is taken from the IP address, and there from the peer, that holds most places, idle ones first, then the
        oldest. Favoured peers lose none.  If the address and peer hold no more than the newcomer's, they lose one only
        to a favoured newcomer, or if the address holds more than one.
        """
        loose = [p for p in self._places if not self._favoured(p.peer)]
        if not loose:
            return None

        def rank(place: _ConnectionSlot) -> tuple[int, int, bool, float]:
            return (-self._hosts[place.host], -self._peers[place.peer], place.busy(), place.since)

        worst = min(loose, key=rank)
        more = (self._hosts[worst.host], self._peers[worst.peer]) > (self._hosts[new.host], self._peers[new.peer])
        return worst if more or self._favoured(new.peer) or self._hosts[worst.host] > 1 else None

    def filling(self) -> Filling:
        """Return how many places are taken."""
        return Filling(self.name, len(self._places), self._most, 0, 0, self._refused, self._evicted)


class Streams:
    """The handler of every inbound stream, which gives it a place before its protocol is negotiated."""

    def __init__(self, handler: Handler, host_of: HostOf, favoured: Callable[[str], bool]) -> None:
        self._handler = handler
        self._host_of = host_of
        most = LIMITS.transport_streams
        self.places = ConnectionSlots("streams", most, LIMITS.transport_streams_per_peer, most // 2, favoured)

    async def __call__(self, stream: Any) -> None:
        """Give a stream a place and run its handler, or reset it if there is no place or the handler raises."""
        peer = str(stream.muxed_conn.peer_id)
        place = _ConnectionSlot(peer, self._host_of(peer) or peer, stream.reset)
        taken, victim = self.places.take(place)
        try:
            if victim is not None:
                await _end(victim)
            if taken:
                await self._handler(stream)
            else:
                await _end(place)
        except Exception:  # noqa: BLE001 - whatever it sent: it ends its stream, and nothing else
            await _end(place)
        finally:
            self.places.leave(place)


class StreamLimit:
    """The handler of one protocol, limited to a few streams of each peer and a duration in seconds."""

    def __init__(self, handler: Handler, per_peer: int, most: int, seconds: float) -> None:
        self._handler = handler
        self._per_peer = per_peer
        self._most = most
        self._seconds = seconds
        self._open: Counter[str] = Counter()

    async def __call__(self, stream: Any) -> None:
        """Run the handler on a stream, and reset the stream if the peer has too many or the time is up."""
        peer = str(stream.muxed_conn.peer_id)
        if self._open[peer] >= self._per_peer or self._open.total() >= self._most:
            await stream.reset()
            return
        self._open[peer] += 1
        try:
            with trio.move_on_after(self._seconds) as scope:
                await self._handler(stream)
            if scope.cancelled_caught:
                await stream.reset()
        finally:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]


class Connections:
    """The inbound connections: a few in handshake at once, and places for those that completed it.

    py-libp2p gives a slot to every connection that was ever made and frees none of them.
    """

    def __init__(self, swarm: Any, favoured: Callable[[str], bool]) -> None:
        self._swarm = swarm
        self._half: Counter[str] = Counter()  # in handshake, by IP address
        self._arrivals = Buckets(
            LIMITS.arrivals_per_second, LIMITS.arrivals_at_once, trio.current_time, "arrivals by host"
        )
        self._all = Buckets(LIMITS.all_arrivals_per_second, LIMITS.all_arrivals_at_once, trio.current_time, "arrivals")
        self.tables = (self._arrivals.table, self._all.table)
        most = LIMITS.connections
        self.places = ConnectionSlots("connections", most, LIMITS.connections_per_peer, most // 2, favoured)
        swarm._handle_inbound_connection = self.handle

    def filling(self) -> Filling:
        """Return how many connections are in handshake."""
        return Filling("connections on their way in", self._half.total(), LIMITS.half_open, 0, 0)

    async def handle(self, raw: Any, listener: Any) -> None:
        """Serve one inbound connection until it ends."""
        host = _host(raw)
        full = self._half[host] >= LIMITS.half_open_per_host or self._half.total() >= LIMITS.half_open
        # A handshake takes time on the loop that serves everything else: limit them for each IP address, then for all.
        if full or not self._arrivals.take(host) or not self._all.take(""):
            await _closed(raw)
            return
        self._half[host] += 1
        try:
            connection = await self._upgraded(raw, listener)
        finally:
            self._half[host] -= 1
            if not self._half[host]:
                del self._half[host]
        if connection is not None:
            await self._keep(connection, host)
        await _closed(raw)

    async def _upgraded(self, raw: Any, listener: Any) -> Any:
        """Return the swarm's connection, secured and multiplexed; None if the handshake failed."""
        try:
            with trio.fail_after(LIMITS.dial_seconds):
                muxed = await self._swarm.upgrade_inbound_raw_conn(RawConnection(raw, False), listener)
        except Exception:  # noqa: BLE001 - whatever it did, it did not become a connection
            return None
        every = self._swarm.get_connections(muxed.peer_id)
        return next((c for c in every if c.muxed_conn is muxed), None)

    async def _keep(self, connection: Any, host: str) -> None:
        peer = str(connection.muxed_conn.peer_id)
        place = _ConnectionSlot(peer, host, connection.close, busy=lambda: len(connection.streams) > 2)
        taken, victim = self.places.take(place)
        try:
            if victim is not None:
                await _end(victim)
            if taken:
                await connection.event_closed.wait()
            else:
                await _end(place)
        finally:
            self.places.leave(place)


async def _end(place: _ConnectionSlot) -> None:
    with trio.move_on_after(_CLOSE_SECONDS), contextlib.suppress(Exception):
        await place.end()


async def _closed(raw: Any) -> None:
    with trio.move_on_after(_CLOSE_SECONDS), contextlib.suppress(Exception):
        await raw.close()


def _host(raw: Any) -> str:
    with contextlib.suppress(Exception):
        return str(raw.get_remote_address()[0])
    return ""
