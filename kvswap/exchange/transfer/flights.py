"""The flights of a transfer: what it lacks, who is asked for which chunk, and the requests under way.

A chunk is listed in the store only when its bytes have its CID.  A chunk may be asked of two peers at once; the first
to have given it whole wins, and the other is cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvswap.artifact.manifest import ChunkRef, FileRef
from kvswap.core.errors import IntegrityError, NotFound, PeerError
from kvswap.exchange.node.node import Node
from kvswap.exchange.transfer.schedule import Schedule
from kvswap.exchange.transfer.sources import Source
from kvswap.exchange.transfer.tasks import retrieve_error, run_to_end

_CACHED_BYTES = 96 << 20  # a transfer of at most so much goes through the page cache, where its reader finds it


@dataclass(slots=True)
class Amounts:
    """The bytes that came in a transfer, all of them and by peer."""

    received: int = 0  # verified and stored
    seen: int = 0  # all that came, also what was not needed in the end
    by_peer: dict[str, int] = field(default_factory=dict)
    channels: set[str] = field(default_factory=set)  # "https", "libp2p"
    rates: dict[str, float] = field(default_factory=dict)  # of peers that are done, bytes a second


class Flights:
    """The chunks that a transfer lacks, and the requests for them.  All methods run on the node's loop."""

    def __init__(self, node: Node, stored: Callable[[int], None]) -> None:
        """Make a transfer's flights; `stored` is called with the index of each file that is in the store now."""
        self._node = node
        self._stored = stored
        self.refs: Sequence[ChunkRef | FileRef] = ()
        self.schedule = Schedule([])
        self.largest = 0  # bytes of one of the refs
        self.amounts = Amounts()
        self.under_way: dict[tuple[str, int], asyncio.Task[None]] = {}
        self.broken: BaseException | None = None  # the disk, not a peer
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.pulse: asyncio.Future[None] = loop.create_future()  # there may be something to give out again
        self._numbers: dict[int, int] = {}  # file of the manifest -> number in the schedule
        self._files: list[int] = []  # and the other way round

    async def plan(self, files: Sequence[ChunkRef | FileRef], indices: Sequence[int], wave: int) -> None:
        """Set what is lacking: the files of these indices, in the order wanted; `wave` as in `Schedule`."""

        def lay_out() -> tuple[dict[int, int], list[ChunkRef | FileRef], Schedule, int]:
            refs = [files[index] for index in indices]
            numbers = {index: number for number, index in enumerate(indices)}
            lengths = [ref.length for ref in refs]
            return numbers, refs, Schedule(lengths, wave=wave), max(lengths, default=0)

        laid_out = await asyncio.to_thread(lay_out)  # all at once: meanwhile files may be given up
        self._files, (self._numbers, self.refs, self.schedule, self.largest) = list(indices), laid_out

    @property
    def complete(self) -> bool:
        """True when nothing is lacking that is still wanted."""
        return self.schedule.complete

    @property
    def _cached(self) -> bool:
        return self.amounts.received + self.schedule.left_bytes <= _CACHED_BYTES

    # -- what is wanted ----------------------------------------------------------------------------

    def skip(self, index: int) -> None:
        """Give up a file that is not wanted any more, and the requests for it."""
        number = self._numbers.get(index)
        if number is None:
            return
        for loser in self.schedule.skip(number):
            self.under_way[loser, number].cancel()
        if self.complete:
            self.end()
        self.notify()

    def set_peer(self, peer: str, has: set[int], rate: float | None) -> None:
        """Note which files a peer has, by their indices, and the bytes a second that it once gave."""
        self.schedule.set_peer(peer, {self._numbers[i] for i in has if i in self._numbers}, rate)

    def notify(self) -> None:
        """Wake whoever waits for something to ask for."""
        pulse, self.pulse = self.pulse, asyncio.get_running_loop().create_future()
        pulse.set_result(None)

    def fail(self, error: BaseException) -> None:
        """End the transfer for an error that is no peer's."""
        self.broken = self.broken or error
        self.end()

    def end(self) -> None:
        """End the transfer: everything is here, or an error has been noted."""
        if not self.ended.done():
            self.ended.set_result(None)
        self.notify()

    # -- requests ----------------------------------------------------------------------------------

    def start(self, source: Source, number: int) -> asyncio.Task[None]:
        """Request a chunk in a task.  One that is cancelled before it began has run nothing, not even its end."""
        task = asyncio.create_task(self._fly(source, number))

        def landed(task: asyncio.Task[None]) -> None:
            retrieve_error(task)
            if self.under_way.get((source.peer, number)) is task:
                self.under_way.pop((source.peer, number))
                self.schedule.failed(source.peer, number)
                self.notify()

        task.add_done_callback(landed)
        self.under_way[source.peer, number] = task
        return task

    def of(self, peer: str) -> list[asyncio.Task[None]]:
        """Return the requests to one peer that are under way."""
        return [task for (name, _), task in self.under_way.items() if name == peer]

    async def _fly(self, source: Source, number: int) -> None:
        peer, ref = source.peer, self.refs[number]

        def on_bytes(size: int) -> None:
            self.amounts.seen += size
            self.schedule.progress(peer, number, size, time.monotonic())

        stored = False
        try:
            async with self._node.buffers.lease(ref.length) as memory:
                on_bytes(0)  # from here on silence counts
                view = memoryview(memory)[: ref.length]
                arrived = await source.chunk(ref.id, view, on_bytes)
                losers = self.schedule.received(peer, number)
                if losers is None:
                    return  # another peer was faster
                for loser in losers:
                    self.under_way[loser, number].cancel()
                self.notify()  # the link is free again, while this one is checked and written
                await run_to_end(self._node.store.put_chunk, view, ref.id, memory, arrived, True, self._cached)
                stored = True
        except NotFound:
            self.schedule.lacks(peer, number)
            raise
        except (IntegrityError, PeerError):
            raise
        except Exception as error:
            self.fail(error)
            raise PeerError("the transfer is ending") from error
        finally:
            self.under_way.pop((peer, number), None)
            if not stored:
                self.schedule.failed(peer, number)
                self.notify()
        self._land(source, number)

    def _land(self, source: Source, number: int) -> None:
        """Count a chunk that is in the store now."""
        peer, length, amounts = source.peer, self.refs[number].length, self.amounts
        self.schedule.done(number)
        if self.complete:
            self.end()
        amounts.received += length
        self._stored(self._files[number])
        amounts.channels.add(source.kind)
        amounts.by_peer[peer] = amounts.by_peer.get(peer, 0) + length
        with self._node.ledger.changing(peer) as record:
            record.bytes_in += length
            record.worked()
        self._node.counters.bytes_in += length

    # -- rates -------------------------------------------------------------------------------------

    def learn_rate(self, peer: str) -> None:
        """Keep the goodput of what this peer gave; a few small chunks say nothing."""
        rate = self.schedule.mean_rate(peer)
        if rate is not None and self.amounts.by_peer.get(peer, 0) > 1_000_000:
            self.amounts.rates[peer] = rate
            self._node.calibration.add_rate(peer, rate)

    def learn_start(self, seconds: float) -> None:
        """Keep what of a whole fetch of so many seconds was not the link, but asking, checking and writing."""
        amounts = self.amounts
        if len(amounts.by_peer) == len(amounts.rates) == 1:
            ((peer, rate),) = amounts.rates.items()
            self._node.calibration.add_start(peer, max(0.0, seconds - amounts.received / rate))
