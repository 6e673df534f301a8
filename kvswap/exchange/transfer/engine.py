"""Chunks from several peers at once, into the store.

One task a peer draws from a shared queue, several chunks ahead on one stream.  A chunk is listed in
the store only when its bytes have its CID; a peer that sends anything else is dropped and marked, and
its open chunks go back into the queue for the others.  Beside them a watch compares what is left, at
the rate seen, with prefilling it all.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvswap.artifact.layout import needed
from kvswap.artifact.manifest import ChunkRef, Manifest
from kvswap.core.errors import IntegrityError, KvswapError, PeerError
from kvswap.core.ids import Cid
from kvswap.exchange.find import find
from kvswap.exchange.node import Node
from kvswap.exchange.plan import Judge, not_worth_it
from kvswap.exchange.publish import Progress
from kvswap.net import messages
from kvswap.net.client import Session, from_bitmap, session

_AHEAD = 4  # chunk requests open on one stream
_WRITES = 8  # verified-and-stored chunks in flight: bounds memory between socket and disk
_PEERS = 8
_JUDGE_EVERY_SECONDS = 0.25
_JUDGE_AFTER_SECONDS = 1.5
_SUNK = 1.25  # the rest must cost so much more than prefilling before a fetch under way is given up
_ROUNDS = 2  # whole passes over the peers before giving up


@dataclass(slots=True)
class Transfer:
    """The state of one transfer.  All methods run on the node's loop."""

    node: Node
    manifest: Manifest
    artifact: str
    progress: Progress
    rest: Judge | None
    queue: deque[ChunkRef] = field(default_factory=deque)
    left: int = 0
    left_bytes: int = 0
    total: int = 0
    received: int = 0
    served_bytes: dict[str, int] = field(default_factory=dict)
    errors: list[KvswapError] = field(default_factory=list)
    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_WRITES))

    async def run(self, peers: Sequence[str]) -> None:
        """Until every chunk is stored, or no peer is left to ask."""
        wanted = {self.manifest.chunks[i].id: self.manifest.chunks[i] for i in needed(self.manifest)}
        missing = await asyncio.to_thread(self.node.store.missing, wanted)
        self.queue.extend(wanted[cid] for cid in missing)
        self.left = self.total = len(missing)
        self.left_bytes = sum(wanted[cid].length for cid in missing)
        work = asyncio.create_task(self._rounds(peers))
        watch = asyncio.create_task(self._watch())
        try:
            done, _ = await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            await (work if work in done else watch)
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)

    async def _watch(self) -> None:
        """Raise `PlanSaysPrefill` when the link turns out so slow that the rest is not worth waiting for."""
        began = time.perf_counter()
        while self.rest is not None:
            await asyncio.sleep(_JUDGE_EVERY_SECONDS)
            elapsed = time.perf_counter() - began
            if elapsed < _JUDGE_AFTER_SECONDS or not self.left:
                continue
            # What is under way counts as almost here: a rate that is rather too high.
            rate = (self.received + max(c.length for c in self.manifest.chunks)) / elapsed
            chosen = self.rest(rate, self.left_bytes)
            if chosen.action == "prefill" and chosen.fetch and chosen.fetch.seconds > _SUNK * chosen.seconds:
                self.node.counters.plans_prefill += 1
                self.node.events.add("abandoned", artifact=self.artifact, reason=chosen.reason)
                raise not_worth_it(self.artifact, chosen)
        await asyncio.Event().wait()

    async def _rounds(self, peers: Sequence[str]) -> None:
        liars: set[str] = set()
        for attempt in range(_ROUNDS):
            if attempt:  # peers come back under new addresses, others may have it by now
                offers = await find(self.node, messages.Find(artifact=self.artifact))
                peers = [offer.peer for offer in offers if offer.found.artifact == self.artifact]
            usable = [p for p in dict.fromkeys(peers) if p not in liars][:_PEERS]
            tasks = [asyncio.create_task(self._from_peer(p)) for p in usable]
            try:
                results = await asyncio.gather(*tasks)
            finally:  # one that fails for good must not leave the others running
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            liars |= {p for p, honest in zip(usable, results, strict=True) if not honest}
            if not self.left:
                return
        raise self._failure(bool(liars))

    def _failure(self, lied: bool) -> KvswapError:
        done = f"{self.total - self.left} of {self.total} chunks of {self.artifact} are here"
        if lied:
            return IntegrityError(
                f"a peer sent bytes that are not what the manifest says, and nobody else has them; {done}",
                cause="a lying or broken peer",
                hint="kvswap peers",
            )
        reasons = "; ".join(dict.fromkeys(e.message for e in self.errors)) or "no peer has the rest"
        return PeerError(
            f"the transfer stopped: {reasons[:300]}; {done}",
            cause="the peers went away",
            hint=f"kvswap fetch {self.artifact}  resumes",
        )

    async def _from_peer(self, peer: str) -> bool:
        """Draw chunks from one peer until the queue is empty or it fails.  False: it lied."""
        assert self.node.transport is not None  # noqa: S101 - offers came through it
        record = self.node.record(peer)
        open_chunks: deque[ChunkRef] = deque()
        writes: set[asyncio.Task[None]] = set()
        honest = True
        began = time.perf_counter()
        try:
            async with session(self.node.transport, peer) as talk:
                began = time.perf_counter()
                has = await self._has(talk)
                await self._pump(talk, has, open_chunks, writes)
        except IntegrityError as error:
            honest = False
            self._mark_liar(peer, error)
        except KvswapError as error:
            record.failures += 1
            self.errors.append(error)
            self.node.events.add("peer_failed", peer=peer, reason=error.message)
        finally:
            self._rate(peer, time.perf_counter() - began)
            self.queue.extendleft(reversed(open_chunks))
            results = await asyncio.gather(*writes, return_exceptions=True)
        for result in results:
            if isinstance(result, IntegrityError):
                if honest:
                    self._mark_liar(peer, result)
                honest = False
            elif isinstance(result, BaseException):
                raise result  # the disk, not the peer
        return honest

    def _rate(self, peer: str, seconds: float) -> None:
        """Remember the goodput of what this peer gave; a few small chunks say nothing."""
        received = self.served_bytes.get(peer, 0)
        if received > 1_000_000 or (received and seconds > 1):
            self.node.calibration.add_rate(peer, received / seconds)

    def _mark_liar(self, peer: str, error: KvswapError) -> None:
        self.node.record(peer).lies += 1
        self.node.counters.rejected_chunks += 1
        self.node.events.add("peer_lied", peer=peer, artifact=self.artifact, reason=error.message)

    async def _has(self, talk: Session) -> set[Cid]:
        answer = await talk.ask(messages.Have(self.artifact), bytes)
        flags = from_bitmap(answer, len(self.manifest.chunks))
        return {c.id for c, here in zip(self.manifest.chunks, flags, strict=True) if here}

    def _next(self, has: set[Cid]) -> ChunkRef | None:
        for _ in range(len(self.queue)):
            ref = self.queue.popleft()
            if ref.id in has:
                return ref
            self.queue.append(ref)
        return None

    async def _pump(
        self, talk: Session, has: set[Cid], open_chunks: deque[ChunkRef], writes: set[asyncio.Task[None]]
    ) -> None:
        broken: list[BaseException] = []
        while self.left and not broken:
            while len(open_chunks) < _AHEAD and (ref := self._next(has)) is not None:
                open_chunks.append(ref)
                await talk.send(messages.GetChunk(str(ref.id)))
            if not open_chunks:
                if writes:
                    await asyncio.wait(writes, return_when=asyncio.FIRST_COMPLETED)
                    continue
                return  # what is left is with other peers, or nobody has it
            ref = open_chunks[0]
            data = await talk.chunk_answer(ref.length)
            open_chunks.popleft()
            await self.gate.acquire()
            task = asyncio.ensure_future(self._store(talk.peer, ref, data))
            writes.add(task)

            def finished(done: asyncio.Task[None]) -> None:
                self.gate.release()
                error = done.exception() if not done.cancelled() else asyncio.CancelledError()
                if error is None:
                    writes.discard(done)
                else:
                    broken.append(error)

            task.add_done_callback(finished)

    async def _store(self, peer: str, ref: ChunkRef, data: bytes) -> None:
        try:
            if len(data) != ref.length:
                raise IntegrityError(f"{peer} sent {len(data)} bytes for chunk {ref.id} of {ref.length}")
            await asyncio.to_thread(self.node.store.put_chunk, data, ref.id)
        except BaseException:
            self.queue.append(ref)
            raise
        self.left -= 1
        self.left_bytes -= len(data)
        self.received += len(data)
        self.served_bytes[peer] = self.served_bytes.get(peer, 0) + len(data)
        record = self.node.record(peer)
        record.bytes_in += len(data)
        self.node.counters.bytes_in += len(data)
        await self.progress(
            {
                "event": "chunk",
                "done": self.total - self.left,
                "chunks": self.total,
                "bytes": self.received,
                "peer": peer,
            }
        )
