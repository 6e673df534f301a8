"""The downloader: a task for each peer, a task for each chunk in flight, one schedule for all.

`asked_peers` knows whom to ask, `schedule` decides who is asked for what, `flights` asks, receives and stores.  A peer
that sends anything but what it was asked for, or nothing, loses its work to the others; peers heard of on the way join
in.  Beside all this a watch compares what is left, at the rate seen, with prefilling it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from kvswap.api.events import SourcePeer, TransferEvent
from kvswap.artifact.manifest import Manifest
from kvswap.core.errors import IntegrityError, KvswapError, NotFound, PeerBusy, PeerError
from kvswap.core.failures import is_own
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.core.tasks import end
from kvswap.exchange.discovery.lookup import find
from kvswap.exchange.node.node import AGENT, Node
from kvswap.exchange.planning.decision import Judge, not_worth_it
from kvswap.exchange.request import Progress
from kvswap.exchange.transfer.asked_peers import STARVED_SECONDS, AskedPeer, AskedPeers
from kvswap.exchange.transfer.flights import Flights
from kvswap.exchange.transfer.sources import Source, source_of
from kvswap.net import PeerAddress, messages
from kvswap.net.dialling import JUDGED

_TICK_SECONDS = 0.1  # how often hedging and silence are looked at
_SHOW_SECONDS = 0.25
_JOIN_SECONDS = 0.1  # a peer that may be asked without joining it is joined after
_REFRESH_SECONDS = 0.4  # of what an incomplete peer has
_REFRESH_COMPLETE_SECONDS = 3.0
_LOOK_AGAIN_SECONDS = 3.0
_BUSY_SECONDS = 0.25
_BUSY_TRIES = 24
_FALSE_HAVES = 3  # chunks that a peer may say to have and not have
_REFERRED = 16  # peers that one peer may name at a time: it must not fill the list with inventions
_JUDGE_EVERY_SECONDS = 0.25
_JUDGE_AFTER_SECONDS = 1.5
_SUNK = 1.25  # the rest must cost so much more than prefilling before a fetch under way is given up


@dataclass(slots=True)
class Transfer:
    """One transfer of files of an artifact.  All methods run on the node's loop."""

    node: Node
    manifest: Manifest
    artifact: str
    wanted: Sequence[int]  # indices of files
    progress: Progress
    rest: Judge | None
    most_per_gb: float = math.inf  # a peer that asks for more is left alone
    wave: int = 64  # chunks among which the rarest goes first; 1: strictly in the order wanted
    stored: Callable[[int], None] | None = None  # called with the index of each file that is in the store now
    skipped: set[int] = field(default_factory=set)  # indices of files not wanted any more
    _began: float = field(default_factory=time.monotonic)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)  # by peer
    _peers: AskedPeers = field(init=False)
    _flights: Flights = field(init=False)

    def __post_init__(self) -> None:
        self._flights = Flights(self.node, self._on_stored)

    def _on_stored(self, index: int) -> None:
        if self.stored is not None:
            self.stored(index)

    # -- for those who follow it -------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """True when all that is wanted is in the store."""
        return bool(self._flights.refs) and self._flights.complete

    @property
    def received(self) -> int:
        """The bytes that were verified and stored."""
        return self._flights.amounts.received

    @property
    def seen_bytes(self) -> int:
        """The bytes that came in all, also those that were not needed in the end."""
        return self._flights.amounts.seen

    @property
    def arriving_bytes(self) -> int:
        """The bytes that came so far of chunks under way."""
        return self._flights.schedule.arriving()

    @property
    def served_bytes(self) -> dict[str, int]:
        """The bytes that were verified and stored, by peer."""
        return self._flights.amounts.by_peer

    def skip(self, indices: Iterable[int]) -> None:
        """Give up these files, which are not wanted any more."""
        for index in set(indices) - self.skipped:
            self.skipped.add(index)
            self._flights.skip(index)

    def learn_start(self, seconds: float) -> None:
        """Keep what of a whole fetch of so many seconds was not the link, but asking, checking and writing."""
        self._flights.learn_start(seconds)

    # -- running it --------------------------------------------------------------------------------

    async def run(self, peers: Sequence[str]) -> None:
        """Run until every chunk is stored; `peers` are asked first.

        Raises `PeerError` or `IntegrityError` once no peer is left to ask, `PlanSaysPrefill` when waiting for the rest
        costs more than prefilling, and what the disk raises.
        """
        files, flights = self.manifest.files, self._flights
        await flights.plan(files, await asyncio.to_thread(self._lacking), self.wave)
        for index in self.skipped:
            flights.skip(index)
        if not flights.refs or flights.complete:
            return
        self._peers = AskedPeers(self.node, self.artifact, self.most_per_gb)
        self._peers.add(PeerAddress(peer) for peer in peers)
        self.node.peers.leaving.add(self._leave)
        helpers = [self._watch(), self._show(), self._look_again(peers)]
        work = asyncio.create_task(self._supervise())
        tasks = [work, *(asyncio.create_task(helper) for helper in helpers)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await self._report_progress()
            for task in done:
                await task
        finally:
            self.node.peers.leaving.discard(self._leave)
            await end([*tasks, *self._tasks.values()])
            self.node.buffers.drop_free_soon()

    async def _supervise(self) -> None:
        flights, peers = self._flights, self._peers
        starved = time.monotonic()
        while not flights.complete:
            if flights.broken is not None:
                raise flights.broken
            now = time.monotonic()
            readers = self.node.network.swarms.readers(self.artifact)
            self._consider(PeerAddress(p.peer, tuple(p.addresses), JUDGED) for p in readers)
            for entry in peers.begin(now):
                self._tasks[entry.peer] = asyncio.create_task(self._ask(entry))
            if flights.under_way or peers.dialling:
                starved = now
            hopeless = peers.hopeless(now)
            if now - starved > (_LOOK_AGAIN_SECONDS + LIMITS.lookup_seconds / 5 if hopeless else STARVED_SECONDS):
                here = len(flights.refs) - flights.schedule.left
                raise peers.failure(f"{here} of {len(flights.refs)} chunks are here and kept")
            await asyncio.wait([flights.ended], timeout=_TICK_SECONDS)

    # -- peers -------------------------------------------------------------------------------------

    def _consider(self, addresses: Iterable[PeerAddress]) -> None:
        if self._peers.add(addresses):
            self._flights.notify()

    def _leave(self, peer: str) -> None:
        """Take nothing more from a peer, not even what is under way."""
        self._peers.block(peer)
        if (task := self._tasks.get(peer)) is not None:
            task.cancel()
        for flight in self._flights.of(peer):
            flight.cancel()  # at once: what arrives in the same moment counts no more

    async def _look_again(self, peers: Sequence[str]) -> None:
        """Look the artifact up again: peers come back under new addresses, and others may have it by now.

        Origins join at once, also where one of `peers` was faster to say that it has the artifact.
        """
        if others := [name for name in self.node.origins.names if name not in peers]:
            query = messages.Find(AGENT, artifact=self.artifact)
            self._consider(PeerAddress(offer.peer) for offer in await find(self.node, query, only=others))
        while True:
            await asyncio.sleep(_LOOK_AGAIN_SECONDS / 3)
            if self._flights.under_way:
                continue
            try:
                offers = await find(self.node, messages.Find(AGENT, artifact=self.artifact))
            except KvswapError:  # our own trouble: the transfer finds it out by itself, or goes on without
                offers = []
            for offer in offers:
                if offer.found.artifact == self.artifact:
                    self._consider([PeerAddress(offer.peer)])
                    self._peers.allow_retry(offer.peer)
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    def _lacking(self) -> list[int]:
        """Return the indices of the wanted files that are not here, in the order wanted.  Blocks."""
        files = self.manifest.files
        wanted = [(i, files[i].id) for i in dict.fromkeys(self.wanted)]
        missing = set(self.node.store.missing([cid for _, cid in wanted]))
        lacking: dict[Cid, int] = {}  # one chunk may stand at two places: the first of them counts
        for index, cid in wanted:
            if cid in missing:
                lacking.setdefault(cid, index)
        return list(lacking.values())

    async def _ask(self, entry: AskedPeer) -> None:
        """Ask one peer, from dialling it until nothing more is to be had from it."""
        peer, flights = entry.peer, self._flights
        source = source_of(self.node, peer, self.artifact, len(self.manifest.files))
        refresh: asyncio.Task[None] | None = None
        try:
            await source.open(entry.address)
            entry.source = source
            self._update(source)
            refresh = asyncio.create_task(self._refresh(source))
            await self._draw(source, refresh)
            entry.tries = 0
        except KvswapError as error:
            if isinstance(error, IntegrityError) and is_own(error):
                flights.fail(error)
                return
            self._peers.failed(entry, error, blame=flights.broken is None)
        except Exception as error:  # noqa: BLE001 - not the peer's fault but ours: it ends the transfer
            flights.fail(error)
        finally:
            # First what needs no waiting: the whole transfer may be ending, and cancel this as well.
            flights.learn_rate(peer)
            flights.schedule.drop_peer(peer)
            entry.source = None
            try:
                await end([*flights.of(peer), *([refresh] if refresh else [])])
            finally:
                self._tasks.pop(peer, None)
                entry.busy = False
                flights.notify()
                await source.close()

    def _update(self, source: Source) -> None:
        """Note what a peer has by now, and whom it names."""
        self._flights.set_peer(source.peer, source.has, self.node.calibration.peer(source.peer).get("rate"))
        self._consider(source.others[:_REFERRED])
        self._flights.notify()

    async def _refresh(self, source: Source) -> None:
        while True:
            complete = len(source.has) == len(self.manifest.files)
            often = _REFRESH_COMPLETE_SECONDS if complete else _REFRESH_SECONDS
            await asyncio.sleep(often if source.joined else _JOIN_SECONDS)
            await source.refresh()
            self._update(source)

    async def _draw(self, source: Source, refresh: asyncio.Task[None]) -> None:
        """Keep as many chunks in flight as the schedule gives this peer; returns when all is done."""
        peer, flights = source.peer, self._flights
        busy = lacking = 0
        hold_until = 0.0
        mine: set[asyncio.Task[None]] = set()
        while not flights.complete:
            now = time.monotonic()
            while now >= hold_until and (number := flights.schedule.next(peer, now)) is not None:
                mine.add(flights.start(source, number))
            await asyncio.wait(
                {*mine, refresh, flights.pulse}, timeout=_TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if refresh.done():
                await refresh
            for task in [t for t in mine if t.done()]:
                mine.discard(task)
                if task.cancelled():
                    continue
                error = task.exception()
                if isinstance(error, PeerBusy):
                    busy += 1
                    hold_until = time.monotonic() + _BUSY_SECONDS * min(busy, 8)
                    if busy > _BUSY_TRIES:
                        raise error
                elif isinstance(error, NotFound):
                    lacking += 1
                    if lacking > _FALSE_HAVES:
                        raise PeerError(f"{peer} claims chunks it does not have")
                elif error is not None:
                    raise error
                else:
                    busy = 0
            if flights.schedule.slow(peer, time.monotonic()):
                raise PeerError(f"{peer} sends less than {LIMITS.slowest_bytes_per_second} bytes a second")

    # -- beside it ---------------------------------------------------------------------------------

    async def _show(self) -> None:
        while True:
            await asyncio.sleep(_SHOW_SECONDS)
            await self._report_progress()

    async def _report_progress(self) -> None:
        schedule, amounts, chunks = self._flights.schedule, self._flights.amounts, len(self._flights.refs)
        peers = [
            SourcePeer(peer=s.peer, channel=s.kind, rate=schedule.rate(s.peer), in_flight=schedule.flights(s.peer))
            for s in self._peers.sources
        ]
        await self.progress(
            TransferEvent(
                done=chunks - schedule.left,
                chunks=chunks,
                bytes=amounts.received,
                arriving=schedule.arriving(),
                total_bytes=amounts.received + schedule.left_bytes,
                rate=schedule.total_rate(),
                seconds=round(time.monotonic() - self._began, 3),
                peers=peers,
                sent=dict(amounts.by_peer),
                over=sorted(amounts.channels),
            )
        )

    async def _watch(self) -> None:
        """Raise `PlanSaysPrefill` when the link turns out so slow that the rest is not worth waiting for."""
        began, flights = time.perf_counter(), self._flights
        while self.rest is not None:
            await asyncio.sleep(_JUDGE_EVERY_SECONDS)
            elapsed = time.perf_counter() - began
            if elapsed < _JUDGE_AFTER_SECONDS or flights.complete:
                continue
            # What is under way counts as almost here: a rate that is rather too high.
            rate = (flights.amounts.received + flights.largest) / elapsed
            chosen = self.rest(rate, flights.schedule.left_bytes)
            if chosen.action == "prefill" and chosen.fetch and chosen.fetch.seconds > _SUNK * chosen.seconds:
                self.node.counters.plans_prefill += 1
                self.node.events.add("abandoned", artifact=self.artifact, reason=chosen.reason)
                raise not_worth_it(self.artifact, chosen)
        await asyncio.Event().wait()
