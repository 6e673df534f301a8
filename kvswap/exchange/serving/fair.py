"""Fair sharing among peers: each one that waits has its turn, whatever the others ask for.

`UploadQuota` shares memory, `Pacer` shares bytes per second.  Both serve waiting peers in rotation, and the
requests of one peer in order.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque

from kvswap.core.errors import PeerBusy

_Turn = tuple[int, "asyncio.Future[None]"]


class _Rotation:
    """The waiting requests by peer."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[_Turn]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._queues)

    def waiting(self, peer: str) -> int:
        return len(self._queues.get(peer, ()))

    def add(self, peer: str, size: int) -> asyncio.Future[None]:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(peer, deque()).append((size, turn))
        return turn

    def heads(self) -> list[tuple[str, int, asyncio.Future[None]]]:
        """Return the first living request of each peer, the peer whose turn it is first."""
        out = []
        for peer in list(self._queues):
            queue = self._queues[peer]
            while queue and queue[0][1].done():  # cancelled while waiting
                queue.popleft()
            if queue:
                out.append((peer, *queue[0]))
            else:
                del self._queues[peer]
        return out

    def serve(self, peer: str) -> None:
        """Let a peer's first request go on, and put the peer at the end of the rotation."""
        queue = self._queues.pop(peer)
        _, turn = queue.popleft()
        if queue:
            self._queues[peer] = queue
        turn.set_result(None)


class UploadQuota:
    """A memory quota: at most `capacity` bytes are held by all peers, and `per_peer` by one.

    A larger piece goes alone.
    """

    def __init__(self, capacity: int, per_peer: int, waiting_per_peer: int) -> None:
        self._capacity = capacity
        self._per_peer = per_peer
        self._waiting_per_peer = waiting_per_peer
        self._held: Counter[str] = Counter()
        self._rotation = _Rotation()

    @property
    def used(self) -> int:
        """The bytes that are held now."""
        return self._held.total()

    async def acquire(self, peer: str, size: int) -> None:
        """Wait for `size` bytes of room.  Raises `PeerBusy` when this peer has too many requests waiting already."""
        if self._rotation.waiting(peer) >= self._waiting_per_peer:
            raise PeerBusy(f"more than {self._waiting_per_peer} requests of yours are waiting")
        turn = self._rotation.add(peer, size)
        self._dispatch()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(peer, size)
            raise

    def release(self, peer: str, size: int) -> None:
        """Give back `size` bytes that a peer holds, and let waiting requests go on."""
        self._held[peer] -= size
        self._held += Counter()
        self._dispatch()

    def _dispatch(self) -> None:
        moved = True
        while moved:
            moved = False
            for peer, size, _ in self._rotation.heads():
                fits = not self.used or self.used + size <= self._capacity
                own = not self._held[peer] or self._held[peer] + size <= self._per_peer
                if fits and own:
                    self._held[peer] += size
                    self._rotation.serve(peer)
                    moved = True


class Pacer:
    """A rate limit: at most `rate` bytes a second to all peers together; 0: as fast as they take it."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._rotation = _Rotation()
        self._free_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def take(self, peer: str, size: int) -> None:
        """Wait until `size` more bytes may go out to `peer`."""
        if not self._rate:
            return
        turn = self._rotation.add(peer, size)
        self._dispatch()
        await turn

    def _wake(self) -> None:
        self._timer = None  # here alone: a timer that still waits is the only one
        self._dispatch()

    def _dispatch(self) -> None:
        loop = asyncio.get_running_loop()
        while heads := self._rotation.heads():
            now = loop.time()
            if self._free_at > now:
                self._timer = self._timer or loop.call_at(self._free_at, self._wake)
                return
            peer, size, _ = heads[0]
            # What was not used in the past is lost, but for a short moment: the timer is not exact.
            self._free_at = max(self._free_at, now - 0.02) + size / self._rate
            self._rotation.serve(peer)
