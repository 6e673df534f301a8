"""Ingest: chunks that the model process or an engine makes go into the store, and a manifest of them is signed.

What makes them sends chunks and a fingerprint as events and ends with all else that a manifest says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from kvswap.artifact.manifest import PREDICTED_CODECS, ChunkRef, FileRef, Manifest
from kvswap.artifact.sealing import FINGERPRINT, PREDICTOR, ChunkPosition, Seal, chunk_position
from kvswap.core.ids import Cid
from kvswap.exchange.model_port import OnEvent
from kvswap.exchange.node.listing import list_artifact
from kvswap.exchange.node.node import Node
from kvswap.exchange.publishing.signing import sign
from kvswap.exchange.request import Progress
from kvswap.trust import Group, Statement
from kvswap.trust.groups import Sealing
from kvswap.worker.conversation import ChunkEvent, FileEvent, FingerprintEvent, JobEvent

R = TypeVar("R")
Producer = Callable[[OnEvent], Awaitable[R]]
"""What makes the chunks: tells of each, and returns what it has to say in the end."""


@dataclass(frozen=True, slots=True)
class Ingested(Generic[R]):
    """The outcome of a run, from which its manifest is made; the files are in the store."""

    result: R
    refs: list[ChunkRef]
    predictor: FileRef | None
    fingerprint: FileRef | None
    seal: Seal | None  # with which they are sealed


class _Ingest:
    """What is kept of one run: each file sealed where that is asked for, held against collection, and counted."""

    def __init__(
        self,
        node: Node,
        hold: Callable[[Cid], None],
        sealing: Sealing | None,
        progress: Progress,
        fingerprint: bytes | None,
    ) -> None:
        self._node = node
        self._hold = hold
        self._seal = sealing.seal if sealing is not None else None
        self._progress = progress
        self._refs: list[ChunkRef] = []
        self._coded: dict[str, list[int]] = {}  # by codec: raw bytes, wire bytes, microseconds
        self._fingerprint = fingerprint

    async def keep(self, place: ChunkPosition, held: bytes) -> FileRef:
        """Put a file into the store."""
        if self._seal is not None:
            held = await asyncio.to_thread(self._seal.close, place, held)
        made = Cid.of(held)
        self._hold(made)
        await asyncio.to_thread(self._node.store.put_chunk, held, made)
        return FileRef(cid=bytes(made), length=len(held))

    async def on_event(self, event: JobEvent) -> None:
        """Keep a chunk or a fingerprint; the user is told of everything else."""
        if isinstance(event, FingerprintEvent):
            self._fingerprint = event.data
        elif isinstance(event, ChunkEvent):
            ref = event.ref
            file = await self.keep(chunk_position(ref), event.data)
            self._refs.append(msgspec.structs.replace(ref, cid=file.cid, length=file.length))
            sums = self._coded.setdefault(ref.codec, [0, 0, 0])
            for index, value in enumerate((ref.raw_length, ref.length, event.us)):
                sums[index] += value
        elif not isinstance(event, FileEvent):
            await self._progress(event)

    async def made(self, result: R, predictor: bytes | None) -> Ingested[R]:
        """Return what is to be said of it, once all chunks are there."""
        for name, (raw, coded_bytes, micro) in self._coded.items():
            self._node.calibration.add_encode(name, raw, coded_bytes, micro / 1e6)
        named = None  # where prediction helped nowhere, every chunk is of another codec
        if predictor is not None and any(ref.codec in PREDICTED_CODECS for ref in self._refs):
            named = await self.keep(PREDICTOR, predictor)
        fingerprint = await self.keep(FINGERPRINT, self._fingerprint) if self._fingerprint is not None else None
        return Ingested(result, sorted(self._refs, key=lambda r: (r.block, r.run)), named, fingerprint, self._seal)


async def ingest(
    node: Node,
    run: Producer[R],
    progress: Progress,
    describe: Callable[[Ingested[R]], Awaitable[Manifest]],
    readers: Group | None,
    *,
    predictor: bytes | None = None,
    fingerprint: bytes | None = None,
) -> Statement:
    """Keep the chunks that `run` makes, sign the manifest that `describe` makes of them, and offer the artifact.

    With `readers` nothing that is kept can be read by others.  `predictor`: the predictor that predictive chunks
    are coded with.  `fingerprint`: the fingerprint, unless it comes as an event.
    """
    sealing = Sealing.new(readers) if readers is not None else None
    cid = Cid.of(predictor) if predictor is not None else None
    with node.store.lease([cid] if cid else []) as hold:
        if predictor is not None:
            await asyncio.to_thread(node.store.put_chunk, predictor, cid)
        ingest = _Ingest(node, hold, sealing, progress, fingerprint)
        made = await ingest.made(await run(ingest.on_event), predictor)
        statement = await asyncio.to_thread(sign, node, await describe(made), sealing)
        await asyncio.to_thread(list_artifact, node.store, statement)
    node.counters.published += 1
    row = statement.manifest
    document = row.document.reference if row.document else None
    node.events.add(
        "published", artifact=str(statement.artifact), document=document, tokens=row.prefix.tokens, codecs=row.codecs
    )
    node.network.queue_announcement(str(statement.artifact), statement.reference)
    return statement
