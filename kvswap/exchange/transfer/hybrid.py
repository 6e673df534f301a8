"""Loading a document's cache into the model process while its chunks are still on their way.

The transfer downloads work units from the last to the first, the model process loads them as they come and, where
the text is at hand, computes from the first on; what it computes is not fetched any more.  What came stays
in the store, each chunk checked, and serves the next attempt and other peers.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from msgspec import structs

from kvswap.api.events import FilledEvent, ReservationEvent
from kvswap.artifact.layout import work_units
from kvswap.core.errors import KvswapError, PeerError
from kvswap.core.ids import Cid
from kvswap.cost import Objective, Work
from kvswap.cost.calibration import raw_by_codec
from kvswap.exchange.model_port import ModelChoice, OnEvent, Outbox
from kvswap.exchange.node.node import Node
from kvswap.exchange.planning.decision import Planned, judge, prices
from kvswap.exchange.request import Progress, Terms
from kvswap.exchange.transfer.completion import note_fetched
from kvswap.exchange.transfer.download import download
from kvswap.exchange.transfer.downloader import Transfer
from kvswap.trust import Statement
from kvswap.worker.conversation import ArrivalNotice, EndNotice, JobEvent, RateNotice
from kvswap.worker.messages import AnswerJob, ComputedAnswer, UnitCosts

_REPORT_SECONDS = 0.1
_WAVE_SECONDS = 0.5  # of chunks among which rarity counts, not order: what is whole from the end on can be used


@dataclass(frozen=True, slots=True)
class CacheOrigin:
    """An artifact, or its first `tokens` tokens, and the plan for it."""

    statement: Statement
    tokens: int | None
    planned: Planned
    began: float  # when it was asked for, `time.perf_counter`


async def run_from(
    node: Node,
    choice: ModelChoice,
    source: CacheOrigin,
    terms: Terms,
    on_event: OnEvent,
    progress: Progress,
    job: AnswerJob,
) -> tuple[ComputedAnswer, Transfer | None]:
    """Let the model process answer from a source, of which some or all is still to be fetched.

    With the text in `job`, a source that dries up only means that more is computed.  Returns what the job
    made, and the transfer if there was one.
    """
    manifest = source.statement.manifest
    job = structs.replace(
        job,
        envelope=source.statement.envelope,
        key=source.statement.key,
        chunks=str(node.store.chunks_directory),
        tokens=source.tokens,
    )
    async with node.store.held(lambda: [file.id for file in manifest.files]):
        if not source.planned.missing_bytes:
            made = await node.model.run(choice, job, on_event)
            await _record_load_rate(node, source, made)
            return made, None
        units = await asyncio.to_thread(_Units.of, node, source, by_layer_group=choice.device == "cpu")
        feed = _Feed(node, choice, source, terms, progress, units, computes=job.text is not None)
        return await feed.run(job, on_event)


@dataclass(slots=True)
class _Units:
    """The units of an artifact, and what each lacks.  Made in a thread: it walks over all chunks."""

    files: list[list[int]]
    """The indices of the files of each unit; a predictor comes with the last one."""
    lacking: list[set[Cid]]
    """The files of each unit that are not in the store."""
    waiting: dict[Cid, list[int]]
    """The units that lack a file: one may stand at several places."""
    wire: list[int]
    """The bytes of each unit that are still to arrive."""
    mean: float
    """The mean length of a chunk, in bytes."""

    @classmethod
    def of(cls, node: Node, source: CacheOrigin, *, by_layer_group: bool) -> _Units:
        """List the units, and look up what is here."""
        manifest, files = source.statement.manifest, source.statement.manifest.files
        units = [list(unit.chunks) for unit in work_units(manifest, source.tokens, by_layer_group=by_layer_group)]
        if manifest.predictor is not None:
            units[-1].insert(0, len(manifest.chunks))
        ids = [[files[i].id for i in unit] for unit in units]
        missing = set(node.store.missing([cid for unit in ids for cid in unit]))
        waiting: dict[Cid, list[int]] = {}
        for number, unit in enumerate(ids):
            for cid in missing.intersection(unit):
                waiting.setdefault(cid, []).append(number)
        return cls(
            files=units,
            lacking=[missing.intersection(unit) for unit in ids],
            waiting=waiting,
            wire=[sum(files[i].length for i in unit if files[i].id in missing) for unit in units],
            mean=sum(chunk.length for chunk in manifest.chunks) / len(manifest.chunks),
        )

    def chunks(self, number: int, chunks: int) -> list[int]:
        """Return the chunks of a unit, of an artifact that has so many: a predictor is none."""
        return [index for index in self.files[number] if index < chunks]


class _Feed:
    """A transfer that feeds one job of the model process."""

    def __init__(
        self,
        node: Node,
        choice: ModelChoice,
        source: CacheOrigin,
        terms: Terms,
        progress: Progress,
        units: _Units,
        *,
        computes: bool,
    ) -> None:
        self._node, self._choice, self._source, self._terms = node, choice, source, terms
        self._progress = progress
        self._units = units
        self._computes = computes
        self._filled = source.began
        self._outbox: Outbox = asyncio.Queue()
        self._transfer: Transfer | None = None
        self._given_up: set[int] = set()  # chunks

    async def run(self, job: AnswerJob, on_event: OnEvent) -> tuple[ComputedAnswer, Transfer | None]:
        work = await asyncio.to_thread(self._costs)
        fetching = asyncio.create_task(self._fetch(work.lowest))

        async def on_job_event(event: JobEvent) -> None:
            if isinstance(event, ReservationEvent):
                self._give_up(event.unit)
            elif isinstance(event, FilledEvent):
                self._filled = time.perf_counter()
                self._end(fetching)  # all is there
            await on_event(event)

        try:
            done = await self._node.model.run(self._choice, structs.replace(job, work=work), on_job_event, self._outbox)
        except PeerError:
            if fetching.done() and not fetching.cancelled() and (why := fetching.exception()) is not None:
                raise why from None  # the transfer knows better why nothing came
            raise
        finally:
            self._end(fetching)
            await asyncio.gather(fetching, return_exceptions=True)
        if self._transfer is not None and not self._transfer.skipped:
            self._transfer.learn_start(self._filled - self._source.began)
        return done, self._transfer

    def _costs(self) -> UnitCosts:
        """Write down the costs of the units for the model process."""
        planned = self._source.planned
        per_gb = prices(self._node).per_gb + (planned.link.per_gb if planned.link else 0.0)
        lowest = lowest_unit(planned.work, self._terms.objective, per_gb)
        return UnitCosts(
            compute=[_micro(seconds) if self._computes else 0 for seconds in planned.work.compute],
            wire=self._units.wire,
            load=[_micro(seconds) for seconds in planned.work.load],
            last=_micro(planned.work.last),
            rate=int(planned.link.bytes_per_second) if planned.link else 0,
            computes=self._computes,
            eager=planned.plan.action == "hybrid" or self._terms.objective.by != "money",
            lowest=lowest,
        )

    def _end(self, fetching: asyncio.Task[None]) -> None:
        """Stop fetching; a transfer that has everything ends by itself, and tells of it."""
        if self._transfer is None or not self._transfer.complete:
            fetching.cancel()

    def _give_up(self, number: int) -> None:
        """Drop the chunks of a unit that is computed: they need not come."""
        chunks = self._units.chunks(number, len(self._source.statement.manifest.chunks))
        self._given_up.update(chunks)
        if self._transfer is not None:
            self._transfer.skip(chunks)

    async def _fetch(self, lowest: int) -> None:
        """Fetch until all is here or nobody sends it; the job is sent everything that matters to it."""
        node, statement, files = self._node, self._source.statement, self._units.files
        wanted = await asyncio.to_thread(lambda: [i for unit in reversed(files[lowest:]) for i in unit])
        rest = None
        if not (self._computes or self._terms.force):
            rest = await judge(node, statement.manifest, self._terms.objective)
        began = time.perf_counter()
        telling: asyncio.Task[None] | None = None

        def begin(transfer: Transfer) -> None:
            nonlocal telling
            self._transfer = transfer
            transfer.stored = self._stored
            transfer.skip(self._given_up)
            transfer.wave = self._wave()
            telling = asyncio.create_task(self._report_rate(transfer))

        try:
            planned = self._source.planned
            transfer = await download(
                node, statement, wanted, planned.peers, self._progress, rest, planned.most_per_gb, begin
            )
            self._outbox.put_nowait(EndNotice(why="all that was wanted is here"))
            if not transfer.skipped and self._source.tokens is None:
                note_fetched(node, statement, transfer, time.perf_counter() - began)
        except KvswapError as error:
            node.events.add("transfer_ended", artifact=str(statement.artifact), reason=error.message)
            self._outbox.put_nowait(EndNotice(why=error.message))
            raise
        finally:
            if telling is not None:
                telling.cancel()

    def _wave(self) -> int:
        link = self._source.planned.link
        return 1 + int(link.bytes_per_second * _WAVE_SECONDS / self._units.mean) if link else 1

    def _stored(self, index: int) -> None:
        cid, lacking = self._source.statement.manifest.files[index].id, self._units.lacking
        for number in self._units.waiting.pop(cid, ()):
            lacking[number].discard(cid)
            if not lacking[number]:
                self._outbox.put_nowait(ArrivalNotice(unit=number))

    async def _report_rate(self, transfer: Transfer) -> None:
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            self._outbox.put_nowait(RateNotice(bytes=transfer.seen_bytes, arriving=transfer.arriving_bytes))


def lowest_unit(work: Work, objective: Objective, per_gb: float) -> int:
    """Return the number of the first unit that may be fetched within the budgets of bytes and dollars.

    Units are fetched from the last to the first; `per_gb` is in US dollars.
    """
    most = objective.max_bytes
    if objective.max_dollars is not None and per_gb > 0:
        affordable = int(objective.max_dollars / per_gb * 1e9)
        most = affordable if most is None else min(most, affordable)
    if most is None:
        return 0
    total, lowest = 0, len(work)
    while lowest > 0 and total + work.wire[lowest - 1] <= most:
        lowest -= 1
        total += work.wire[lowest]
    return lowest


async def _record_load_rate(node: Node, source: CacheOrigin, done: ComputedAnswer) -> None:
    """Record how fast a run from the store loaded; one that waited for chunks, or computed, says nothing of that."""
    if done.computed:
        return
    raw = await asyncio.to_thread(_raw_bytes, source)
    node.calibration.add_load(raw, done.load_us / 1e6)


def _raw_bytes(source: CacheOrigin) -> dict[str, int]:
    """Return the bytes before coding of all that a reader loads, by codec."""
    chunks = source.statement.manifest.chunks
    return raw_by_codec(chunks[i] for unit in work_units(source.statement.manifest, source.tokens) for i in unit.chunks)


def _micro(seconds: float) -> int:
    return int(seconds * 1e6)
