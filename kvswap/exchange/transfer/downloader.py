"""Running a transfer: a task for each peer, a task for each chunk in flight, one schedule for all.

A chunk is listed in the store only when its bytes have its CID.  A peer that sends anything else, or
nothing, loses its work to the others and is left alone for a while; peers heard of on the way join
in.  Beside all this a watch compares what is left, at the rate seen, with prefilling it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from kvswap.artifact.manifest import ChunkRef, FileRef, Manifest
from kvswap.core.errors import IntegrityError, KvswapError, NetworkTimeout, NotFound, P2pDown, PeerBusy, PeerError
from kvswap.core.failures import is_own
from kvswap.core.limits import LIMITS
from kvswap.core.tasks import end
from kvswap.exchange.discovery.lookup import find
from kvswap.exchange.node.node import AGENT, Node
from kvswap.exchange.planning.decision import Judge, not_worth_it
from kvswap.exchange.request import Progress
from kvswap.exchange.transfer.schedule import Schedule
from kvswap.exchange.transfer.sources import Source
from kvswap.exchange.transfer.tasks import retrieve_error, run_to_end
from kvswap.net import PeerAddress, Unreachable, messages
from kvswap.net.dialling import JUDGED

_TICK_SECONDS = 0.1  # how often hedging and silence are looked at
_SHOW_SECONDS = 0.25
_JOIN_SECONDS = 0.1  # a peer that may be asked without joining it is joined after
_REFRESH_SECONDS = 0.4  # of what an incomplete peer has
_REFRESH_COMPLETE_SECONDS = 3.0
_STARVED_SECONDS = 12.0  # nothing under way and nobody to ask: the transfer is given up
_LOOK_AGAIN_SECONDS = 3.0
_BUSY_SECONDS = 0.25
_BUSY_TRIES = 24
_FALSE_HAVES = 3  # chunks that a peer may say to have and not have
_TRIES = 3  # of one peer in one transfer
_DOWN_MOST = 6  # tries that our own network part may end
_CANDIDATES = 4 * LIMITS.peers_per_transfer  # peers kept in mind
_REFERRED = 16  # peers that one peer may name at a time: it must not fill the list with inventions
_JUDGE_EVERY_SECONDS = 0.25
_JUDGE_AFTER_SECONDS = 1.5
_CACHED_BYTES = 96 << 20  # a transfer of at most so much goes through the page cache, where its reader finds it
_SUNK = 1.25  # the rest must cost so much more than prefilling before a fetch under way is given up


@dataclass(slots=True)
class _PeerEntry:
    """A peer that may be asked."""

    address: PeerAddress
    tries: int = 0
    not_before: float = 0.0
    source: Source | None = None


@dataclass(slots=True)
class Transfer:
    """The state of one transfer.  All methods run on the node's loop."""

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
    received: int = 0  # bytes verified and stored
    seen_bytes: int = 0  # all that came, also what was not needed in the end
    served_bytes: dict[str, int] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)  # of peers that are done, bytes a second
    _channels: set[str] = field(default_factory=set)
    _began: float = field(default_factory=time.monotonic)
    _refs: list[ChunkRef | FileRef] = field(default_factory=list)
    _index: dict[int, int] = field(default_factory=dict)  # chunk of the manifest -> number in the schedule
    _file: list[int] = field(default_factory=list)  # and the other way round
    _schedule: Schedule = field(default_factory=lambda: Schedule([]))
    _peers: dict[str, _PeerEntry] = field(default_factory=dict)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _flights: dict[tuple[str, int], asyncio.Task[None]] = field(default_factory=dict)
    _invalid: set[str] = field(default_factory=set)
    _reasons: dict[str, str] = field(default_factory=dict)
    _pulse: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    _ended: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    _broken: BaseException | None = None  # the disk, not a peer
    _down: int = 0  # tries that our own part in the network ended

    async def run(self, peers: Sequence[str]) -> None:
        """Until every chunk is stored, or no peer is left to ask."""
        files = self.manifest.files
        cids = [files[i].id for i in self.wanted]
        missing = set(await asyncio.to_thread(self.node.store.missing, cids))
        for index in self.wanted:
            ref = files[index]
            if ref.id in missing:
                missing.discard(ref.id)  # one chunk may stand at two places
                self._index[index] = len(self._refs)
                self._file.append(index)
                self._refs.append(ref)
        if not self._refs:
            return
        self._schedule = Schedule([ref.length for ref in self._refs], wave=self.wave)
        for index in self.skipped:
            self._skip(index)
        if self._schedule.complete:
            return
        self._consider(PeerAddress(peer) for peer in peers)
        self.node.peers.leaving.add(self._leave)
        helpers = [self._watch(), self._show(), self._look_again()]
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

    def skip(self, indices: Iterable[int]) -> None:
        """These files are not wanted any more."""
        for index in set(indices) - self.skipped:
            self.skipped.add(index)
            self._skip(index)

    def _skip(self, index: int) -> None:
        number = self._index.get(index)
        if number is None:
            return
        for loser in self._schedule.skip(number):
            self._flights[loser, number].cancel()
        if self._schedule.complete:
            self._end()
        self._notify()

    @property
    def _cached(self) -> bool:
        return self.received + self._schedule.left_bytes <= _CACHED_BYTES

    @property
    def complete(self) -> bool:
        """Whether all that is wanted is in the store."""
        return bool(self._refs) and self._schedule.complete

    @property
    def arriving_bytes(self) -> int:
        """What has come of chunks under way."""
        return self._schedule.arriving()

    def _notify(self) -> None:
        """There may be something to give out again: wake the peers."""
        pulse, self._pulse = self._pulse, asyncio.get_running_loop().create_future()
        pulse.set_result(None)

    def _break(self, error: BaseException) -> None:
        """End the transfer: it is not a peer that failed."""
        self._broken = self._broken or error
        self._end()

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
        self._notify()

    # -- peers -----------------------------------------------------------------------------------

    def _consider(self, addresses: Iterable[PeerAddress]) -> None:
        """Peers that may be asked.  Bounded: those that were tried in vain make way for others."""
        me = self.node.transport.peer
        for address in addresses:
            if (
                address.peer == me
                or address.peer in self._peers
                or self.node.peers.price(address.peer) > self.most_per_gb
            ):
                continue
            if self.node.network.address_book.reachable(address) is None:
                continue  # it led nowhere a moment ago
            if len(self._peers) >= _CANDIDATES:
                spent = (p for p, k in self._peers.items() if k.tries >= _TRIES and p not in self._tasks)
                if (forgotten := next(spent, None)) is None:
                    return
                del self._peers[forgotten]
            rest = self.node.peers.backoff_seconds(address.peer)
            self._peers[address.peer] = _PeerEntry(address, 0, time.monotonic() + rest if rest else 0.0)
            self._notify()

    def _leave(self, peer: str) -> None:
        """Take nothing more from a peer, not even what is under way."""
        if (entry := self._peers.get(peer)) is not None:
            entry.tries = _TRIES
            self._reasons[peer] = f"{peer} is blocked"
        if (task := self._tasks.get(peer)) is not None:
            task.cancel()
        for (giver, _), flight in list(self._flights.items()):
            if giver == peer:
                flight.cancel()  # at once: what arrives in the same moment counts no more

    async def _supervise(self) -> None:
        starved = time.monotonic()
        while not self._schedule.complete:
            if self._broken is not None:
                raise self._broken
            now = time.monotonic()
            readers = self.node.network.swarms.readers(self.artifact)
            self._consider(PeerAddress(p.peer, tuple(p.addresses), JUDGED) for p in readers)
            for peer, entry in self._peers.items():
                free = len(self._tasks) < LIMITS.peers_per_transfer
                if free and peer not in self._tasks and entry.tries < _TRIES and entry.not_before <= now:
                    entry.tries += 1
                    self._tasks[peer] = asyncio.create_task(self._peer(entry))
            if self._flights or any(k.source is None for p, k in self._peers.items() if p in self._tasks):
                starved = now  # chunks are coming, or somebody is being dialled
            hopeless = not self._tasks and not any(self._may_return(k, now) for k in self._peers.values())
            if now - starved > (_LOOK_AGAIN_SECONDS + LIMITS.lookup_seconds / 5 if hopeless else _STARVED_SECONDS):
                raise self._failure()
            await asyncio.wait([self._ended], timeout=_TICK_SECONDS)

    def _may_return(self, entry: _PeerEntry, now: float) -> bool:
        return entry.tries < _TRIES and entry.not_before < now + _STARVED_SECONDS

    async def _look_again(self) -> None:
        """Peers come back under new addresses, and others may have it by now."""
        while True:
            await asyncio.sleep(_LOOK_AGAIN_SECONDS / 3)
            if self._flights:
                continue
            try:
                offers = await find(self.node, messages.Find(AGENT, artifact=self.artifact))
            except KvswapError:  # our own trouble: the transfer finds it out by itself, or goes on without
                offers = []
            for offer in offers:
                if offer.found.artifact == self.artifact:
                    self._consider([PeerAddress(offer.peer)])
                    self._allow_retry(offer.peer)
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    def _allow_retry(self, peer: str) -> None:
        """Try once more whom no try reached, as it answers now."""
        entry = self._peers.get(peer)
        if self._down > _DOWN_MOST:
            return  # for which no peer is the way out
        if entry is not None and entry.tries >= _TRIES and peer not in self._invalid and peer not in self._tasks:
            entry.tries, entry.not_before = _TRIES - 1, time.monotonic()

    async def _peer(self, entry: _PeerEntry) -> None:
        """One peer, from dialling it until nothing more is to be had from it."""
        peer = entry.address.peer
        source = Source(self.node, peer, self.artifact, len(self.manifest.files))
        refresh: asyncio.Task[None] | None = None
        try:
            await source.open(entry.address)
            entry.source = source
            self._hold(source)
            refresh = asyncio.create_task(self._refresh(source))
            await self._draw(source, refresh)
            entry.tries = 0
        except IntegrityError as error:
            entry.tries = _TRIES
            if is_own(error):
                self._break(error)
                return
            self._invalid.add(peer)
            self._reasons[peer] = error.message
            self.node.peers.sent_invalid_data(peer, error.message, artifact=self.artifact)
        except KvswapError as error:
            self._reasons[peer] = error.message
            self._down += isinstance(error, P2pDown)
            # What cannot be reached is held against its addresses, and what we failed at against nobody.
            if not isinstance(error, Unreachable) and self._broken is None:
                self.node.peers.blame(peer, error)
            if isinstance(error, NetworkTimeout):
                entry.tries = max(entry.tries, _TRIES - 1)  # each costs a whole time-out: once more, not twice
            entry.not_before = time.monotonic() + min(4.0, 0.5 * 2**entry.tries)
        except Exception as error:  # noqa: BLE001 - not the peer's fault but ours: it ends the transfer
            self._break(error)
        finally:
            # First what needs no waiting: the whole transfer may be ending, and cancel this as well.
            self._rate(peer)
            self._schedule.drop_peer(peer)
            entry.source = None
            mine = [task for (name, _), task in self._flights.items() if name == peer]
            try:
                await end([*mine, *([refresh] if refresh else [])])
            finally:
                self._tasks.pop(peer, None)
                self._notify()
                await source.close()

    def _hold(self, source: Source) -> None:
        has = {self._index[i] for i in source.has if i in self._index}
        entry = self.node.calibration.peer(source.peer).get("rate")
        self._schedule.set_peer(source.peer, has, entry)
        self._consider(source.others[:_REFERRED])
        self._notify()

    async def _refresh(self, source: Source) -> None:
        while True:
            complete = len(source.has) == len(self.manifest.files)
            often = _REFRESH_COMPLETE_SECONDS if complete else _REFRESH_SECONDS
            await asyncio.sleep(often if source.joined else _JOIN_SECONDS)
            await source.refresh()
            self._hold(source)

    async def _draw(self, source: Source, refresh: asyncio.Task[None]) -> None:
        """Keep as many chunks in flight as the schedule gives this peer; returns when all is done."""
        peer = source.peer
        busy = lacking = 0
        hold_until = 0.0
        mine: set[asyncio.Task[None]] = set()
        while not self._schedule.complete:
            now = time.monotonic()
            while now >= hold_until and (number := self._schedule.next(peer, now)) is not None:
                mine.add(self._start(source, number))
            await asyncio.wait(
                {*mine, refresh, self._pulse}, timeout=_TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED
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
            if self._schedule.slow(peer, time.monotonic()):
                raise PeerError(f"{peer} sends less than {LIMITS.slowest_bytes_per_second} bytes a second")

    # -- chunks ----------------------------------------------------------------------------------

    def _start(self, source: Source, number: int) -> asyncio.Task[None]:
        """A flight as a task.  One that is cancelled before it began has run nothing, not even its end."""
        task = asyncio.create_task(self._flight(source, number))

        def landed(task: asyncio.Task[None]) -> None:
            retrieve_error(task)
            if self._flights.get((source.peer, number)) is task:
                self._flights.pop((source.peer, number))
                self._schedule.failed(source.peer, number)
                self._notify()

        task.add_done_callback(landed)
        self._flights[source.peer, number] = task
        return task

    async def _flight(self, source: Source, number: int) -> None:
        peer, ref = source.peer, self._refs[number]

        def on_bytes(size: int) -> None:
            self.seen_bytes += size
            self._schedule.progress(peer, number, size, time.monotonic())

        stored = False
        try:
            async with self.node.buffers.lease(ref.length) as memory:
                on_bytes(0)  # from here on silence counts
                view = memoryview(memory)[: ref.length]
                arrived = await source.chunk(ref.id, view, on_bytes)
                losers = self._schedule.received(peer, number)
                if losers is None:
                    return  # another peer was faster
                for loser in losers:
                    self._flights[loser, number].cancel()
                self._notify()  # the link is free again, while this one is checked and written
                await run_to_end(self.node.store.put_chunk, view, ref.id, memory, arrived, True, self._cached)
                stored = True
        except NotFound:
            self._schedule.lacks(peer, number)
            raise
        except (IntegrityError, PeerError):
            raise
        except Exception as error:
            self._break(error)
            raise PeerError("the transfer is ending") from error
        finally:
            self._flights.pop((peer, number), None)
            if not stored:
                self._schedule.failed(peer, number)
                self._notify()
        self._schedule.done(number)
        if self._schedule.complete:
            self._end()
        self.received += ref.length
        if self.stored is not None:
            self.stored(self._file[number])
        self._channels.add(source.kind)
        self.served_bytes[peer] = self.served_bytes.get(peer, 0) + ref.length
        with self.node.ledger.changing(peer) as record:
            record.bytes_in += ref.length
            record.worked()
        self.node.counters.bytes_in += ref.length

    def _rate(self, peer: str) -> None:
        """Remember the goodput of what this peer gave; a few small chunks say nothing."""
        rate = self._schedule.mean_rate(peer)
        if rate is not None and self.served_bytes.get(peer, 0) > 1_000_000:
            self.rates[peer] = rate
            self.node.calibration.add_rate(peer, rate)

    def learn_start(self, seconds: float) -> None:
        """From a whole fetch that took so long: what of it was not the link, but asking, checking and writing."""
        if len(self.served_bytes) == len(self.rates) == 1:
            ((peer, rate),) = self.rates.items()
            self.node.calibration.add_start(peer, max(0.0, seconds - self.received / rate))

    # -- beside it -------------------------------------------------------------------------------

    async def _show(self) -> None:
        while True:
            await asyncio.sleep(_SHOW_SECONDS)
            await self._report_progress()

    async def _report_progress(self) -> None:
        schedule = self._schedule
        sources = [k.source for k in self._peers.values() if k.source is not None]
        peers = [
            {"peer": s.peer, "kind": s.kind, "rate": schedule.rate(s.peer), "in_flight": schedule.flights(s.peer)}
            for s in sources
        ]
        await self.progress(
            {
                "event": "transfer",
                "done": len(self._refs) - schedule.left,
                "chunks": len(self._refs),
                "bytes": self.received,
                "arriving": schedule.arriving(),
                "total_bytes": self.received + schedule.left_bytes,
                "rate": schedule.total_rate(),
                "seconds": round(time.monotonic() - self._began, 3),
                "peers": peers,
                "from": dict(self.served_bytes),
                "over": sorted(self._channels),
            }
        )

    async def _watch(self) -> None:
        """Raise `PlanSaysPrefill` when the link turns out so slow that the rest is not worth waiting for."""
        began = time.perf_counter()
        largest = max(ref.length for ref in self._refs)
        while self.rest is not None:
            await asyncio.sleep(_JUDGE_EVERY_SECONDS)
            elapsed = time.perf_counter() - began
            if elapsed < _JUDGE_AFTER_SECONDS or self._schedule.complete:
                continue
            # What is under way counts as almost here: a rate that is rather too high.
            rate = (self.received + largest) / elapsed
            chosen = self.rest(rate, self._schedule.left_bytes)
            if chosen.action == "prefill" and chosen.fetch and chosen.fetch.seconds > _SUNK * chosen.seconds:
                self.node.counters.plans_prefill += 1
                self.node.events.add("abandoned", artifact=self.artifact, reason=chosen.reason)
                raise not_worth_it(self.artifact, chosen)
        await asyncio.Event().wait()

    def _failure(self) -> KvswapError:
        done = f"{len(self._refs) - self._schedule.left} of {len(self._refs)} chunks are here and kept"
        if self._invalid:
            return IntegrityError(
                f"a peer sent bytes that are not what the manifest says, and nobody else has them; {done}",
                cause="a broken or malicious peer",
                hint="kvswap peers",
            )
        reasons = "; ".join(dict.fromkeys(self._reasons.values())) or "no peer has the rest"
        return PeerError(
            f"the transfer stopped: {reasons[:300]}; {done}",
            cause="this node's own network part ended" if self._down else "the peers went away",
            hint=f"kvswap fetch {self.artifact}  resumes",
        )
