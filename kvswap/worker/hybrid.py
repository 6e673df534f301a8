"""Filling a cache from both ends: blocks are computed from the front while chunks arrive from the back.

With everything in the store this is loading, with nothing to come it is prefilling, and in between both run at once
until they meet: `cost.split` decides before every unit whether to compute it or to wait for it.  If the model runs on
the CPU, which has no time to spare, chunks are decoded between two units, otherwise in parallel.  Loaded blocks are
verified as always.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kvswap.api.events import FilledEvent, ReservationEvent
from kvswap.artifact import chain, layout
from kvswap.artifact.assembly import Assembly
from kvswap.artifact.layout import WorkUnit
from kvswap.artifact.manifest import Manifest
from kvswap.core.errors import IntegrityError, PeerError
from kvswap.cost import Split, Work
from kvswap.trust import Statement
from kvswap.worker.chunks import chunk_source
from kvswap.worker.conversation import ArrivalNotice, RateNotice
from kvswap.worker.inbox import JobContext, JobPipe
from kvswap.worker.messages import AnswerJob, UnitCosts

_LISTEN_SECONDS = 0.05


@dataclass(slots=True)
class Filled:
    """The record of how a cache was filled: tokens computed, and the seconds of loading and computing."""

    computed: int = 0  # tokens, of blocks that were computed whole
    load_seconds: float = 0.0  # spent on verifying and decoding
    compute_seconds: float = 0.0
    samples: list[list[float]] = field(default_factory=list)  # [tokens before, tokens, seconds] of whole blocks


class _Met(Exception):
    """The signal that all layers from here on are loaded."""


@dataclass(frozen=True, slots=True)
class FilledCache:
    """A cache filled with an artifact: its length in tokens, how that was done, and the exactness claim it has."""

    cache: Any
    tokens: int
    how: Filled
    claim: str


def fill(
    context: JobContext, statement: Statement, job: AnswerJob, headroom: int, ids: Sequence[int] | None
) -> FilledCache:
    """Fill a cache with an artifact's first `job.tokens` tokens: loaded, or partly computed while the rest arrives.

    `ids`: the token ids of the document that is asked about, where its text is known; `headroom`: the tokens that
    follow it.
    """
    from kvswap.model.prefill import check_length, check_reach_of
    from kvswap.model.shape import require_layers

    loaded, tokens, manifest = context.loaded, job.tokens, statement.manifest
    layout.check_compatible(manifest, loaded.identity.digest, loaded.dtype)
    require_layers(loaded, manifest)  # before anything is reserved for them
    prefix, probe = manifest.prefix, manifest.probe
    stop = prefix.tokens if tokens is None else tokens
    total = stop if tokens is None or ids is None else len(ids)
    check_reach_of(loaded, manifest, headroom, total)
    check_length(loaded, total + headroom)
    # Only the artifact's own tokens may be computed, whatever its manifest says of the document.
    cuts = manifest.layout.checkpoints
    own = chain.chain_digests(loaded.identity.digest, (ids or [])[:stop], prefix.block_tokens, cuts)
    known = ids if ids is not None and len(ids) >= stop and own == prefix.chain[: len(own)] else None
    units = layout.work_units(manifest, tokens, by_layer_group=loaded.device == "cpu")
    split = split_of(units, job.work, known is not None, manifest.layout.keeps_all)
    after = max(headroom, len(probe.question) + len(probe.tokens)) + (len(known) - stop if known else 0)
    source, seal = chunk_source(job.chunks), statement.seal
    with Assembly(
        manifest, source, tokens=tokens, headroom=after, predictors=context.predictors, seal=seal
    ) as assembly:
        hybrid = Hybrid(loaded, assembly, units, split, known, context.pipe)
        cache = hybrid.run()
    context.pipe.send(FilledEvent(tokens=stop, computed=hybrid.filled.computed))
    claim = manifest.numerics.claim
    if hybrid.filled.computed and loaded.numerics().environment != manifest.numerics.environment:
        verified = claim != "tolerance" and stop == prefix.tokens and probed(loaded, cache, manifest)
        claim = "token-verified" if verified else "tolerance"
    return FilledCache(cache, stop, hybrid.filled, claim)


class Hybrid:
    """One document's cache being filled from both ends; `run` is called once."""

    def __init__(
        self,
        loaded: Any,
        assembly: Assembly,
        units: Sequence[WorkUnit],
        split: Split,
        ids: Sequence[int] | None,
        pipe: JobPipe,
    ) -> None:
        """Prepare to fill the assembly's cache; `ids` are the document's, or None if it can only be loaded."""
        self._loaded, self._assembly, self._units, self._split = loaded, assembly, units, split
        self._ids, self._pipe = ids, pipe
        self._cache: Any = None
        self._reached = 0  # tokens at the front that are in the cache being computed
        self._loading = len(units)  # units from here on are loaded, or being loaded
        self._beside = not str(loaded.device).startswith("cpu")
        self.filled = Filled()

    def run(self) -> Any:
        """Fill the cache and return it.  Raises `IntegrityError`, or `PeerError` if no more chunks arrive."""
        from kvswap.model.cache import build_cache, close_over

        first = self._split.front
        self._load(0, first)
        self._assembly.wait()  # the computation builds on these blocks
        while self._go():
            self._compute(self._units[self._split.front].block)
        self._rest()
        config, tokens = self._loaded.model.config, self._assembly.tokens
        if self._cache is None:
            return build_cache(config, self._assembly.tensors, tokens, self._loaded.device)
        close_over(self._cache, self._assembly.tensors, self._reached, tokens)
        return self._cache

    # -- the front -------------------------------------------------------------------------------

    def _go(self) -> bool:
        """Wait until the next unit at the front must be computed (True), or is not needed any more (False)."""
        while True:
            self._pipe.check()
            self._receive(0.0)
            step = self._split.step()
            if step == "met":
                return False
            if step == "stuck":
                raise PeerError("the rest of the artifact does not come", cause="the peers went away")
            self._load_back(busy=step == "compute" and not self._beside)
            if step == "compute":
                self._pipe.send(ReservationEvent(unit=self._split.front))
                return True
            self._receive(_LISTEN_SECONDS)

    def _compute(self, block: int) -> None:
        """Compute units of a block from the front on; stop between two of them if the rest has arrived."""
        from kvswap.model.cache import cache_over
        from kvswap.model.finite import check_block
        from kvswap.model.prefill import forward

        assembly, ids = self._assembly, self._ids
        assert ids is not None  # noqa: S101 - the split never computes without them
        start, stop = assembly.manifest.blocks.span(block)
        if self._cache is None:
            self._cache = cache_over(self._loaded.model.config, assembly.tensors, start, self._loaded.device)
        spent = 0.0
        began = time.perf_counter()

        def computed() -> None:
            nonlocal spent, began
            seconds = time.perf_counter() - began
            spent += seconds
            self._split.computed(seconds)

        def before(layer: int) -> None:
            nonlocal began
            front = self._split.front + 1
            here = front < len(self._units) and self._units[front].block == block
            if here and layer == self._units[front].layers[0]:
                computed()
                if not self._go():
                    raise _Met
                began = time.perf_counter()

        self._cache.before = before
        try:
            forward(self._loaded, self._cache, ids[start:stop], start)
        except _Met:
            check_block(self._cache, start, stop, self._loaded.dtype)  # the layers that were computed until then
        else:
            check_block(self._cache, start, stop, self._loaded.dtype)
            if self._beside:
                _synchronize(self._loaded.device)
            computed()
            self._reached = stop
            self.filled.computed += stop - start
            self.filled.samples.append([start, stop - start, spent])
        self.filled.compute_seconds += spent

    # -- the back --------------------------------------------------------------------------------

    def _receive(self, seconds: float) -> None:
        came = None
        for message in self._pipe.inbox.take(seconds):
            if isinstance(message, RateNotice):
                came = message
            elif isinstance(message, ArrivalNotice):
                self._split.arrived(message.unit)
            else:
                self._split.ended()
        if came is not None:  # the latest only: earlier ones arrived while this thread was busy
            self._split.got(came.bytes, came.arriving, time.monotonic())

    def _load_back(self, busy: bool) -> None:
        """Decode complete blocks from the end; while `busy` computing, only if there are as many as worker threads."""
        back = self._whole(self._split.back)  # a block is decoded when all of it is here
        blocks = {self._units[i].block for i in range(back, self._loading)}
        if blocks and (not busy or len(blocks) >= self._assembly.workers):
            self._load(back, self._loading)
            self._loading = back

    def _load(self, first: int, last: int, computed: Sequence[int] = ()) -> None:
        began = time.perf_counter()
        self._assembly.fill([chunk for unit in self._units[first:last] for chunk in unit.chunks], computed)
        if not self._beside:
            self._assembly.wait()
        self.filled.load_seconds += time.perf_counter() - began

    def _rest(self) -> None:
        """Load the remaining units, and the uncomputed layers of the block where both sides met."""
        units, front = self._units, self._split.front
        self._load(until := self._whole(front), self._loading)
        self._loading = until
        if front < until:
            block = units[front].block
            computed = [layer for unit in units[:front] if unit.block == block for layer in unit.layers]
            try:
                self._load(front, until, computed)
                self._assembly.wait()
            except IntegrityError:
                if not computed or self._assembly.manifest.predictor is None:
                    raise
                # These chunks are predicted from layers that were computed here, on another class of machine than
                # the publisher's: the bits differ.  So the whole block is computed.
                self._again(block)
        began = time.perf_counter()
        self._assembly.wait()
        self.filled.load_seconds += time.perf_counter() - began

    def _whole(self, unit: int) -> int:
        """Return the first unit at or after this one that starts a block."""
        units = self._units
        while 0 < unit < len(units) and units[unit].block == units[unit - 1].block:
            unit += 1
        return unit

    def _again(self, block: int) -> None:
        from kvswap.model.cache import caching_layers
        from kvswap.model.finite import check_block
        from kvswap.model.prefill import forward

        start, stop = self._assembly.manifest.blocks.span(block)
        self._cache.before = None
        for layer, held in zip(caching_layers(self._cache), self._assembly.tensors, strict=True):
            layer.reach(start, held.k, held.v)
        assert self._ids is not None  # noqa: S101 - a part of the block was computed
        forward(self._loaded, self._cache, self._ids[start:stop], start)
        check_block(self._cache, start, stop, self._loaded.dtype)
        self._reached = stop
        self.filled.computed += stop - start


def _synchronize(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()


def split_of(units: Sequence[WorkUnit], work: UnitCosts | None, computes: bool, full: bool) -> Split:
    """Make the split from the node's figures; without any, everything counts as stored.

    `computes` is True if the document's tokens are known, `full` if every layer keeps every token.
    """
    nothing = [0] * len(units)
    work = work or UnitCosts(compute=nothing, wire=nothing, load=nothing)
    compute, load = ([us / 1e6 for us in part] for part in (work.compute, work.load))
    front = next((i for i, size in enumerate(work.wire) if size), 0)  # stored units at the front are not computed again
    while front and units[front].block == units[front - 1].block:
        front -= 1
    return Split(
        Work(compute, list(work.wire), load, work.last / 1e6),
        float(work.rate),
        time.monotonic(),
        front=front if full else 0,
        computes=computes and work.computes,
        eager=work.eager,
        lowest=work.lowest,
    )


def probed(loaded: Any, cache: Any, manifest: Manifest) -> bool:
    """Return True if the cache continues with the tokens of the publisher's probe; the cache is left unchanged."""
    from kvswap.model.cache import set_aside
    from kvswap.model.prefill import greedy
    from kvswap.model.shape import unaskable

    probe = manifest.probe
    if not probe.tokens or unaskable(loaded, manifest):
        return False
    restore = set_aside(cache)
    made = greedy(loaded, cache, manifest.prefix.tokens, probe.question, len(probe.tokens))
    restore()
    return made.ids == list(probe.tokens)
