"""Filling a cache from both ends: blocks are computed from the front while chunks arrive from the back.

With everything in the store this is loading, with nothing to come it is prefilling, and in between both
go at once until they meet: `cost.split` says before every unit whether to compute it or to wait for it.
Chunks are decoded between two units when computing is done on the CPU, which has nothing to spare, and
beside it otherwise.  Blocks from elsewhere are verified as ever.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kvswap.artifact import chain, layout
from kvswap.artifact.assembly import Assembly, ChunkSource, Predictors
from kvswap.artifact.layout import Unit, block_span
from kvswap.artifact.manifest import Manifest
from kvswap.core.errors import IntegrityError, PeerError
from kvswap.cost import Split, Work
from kvswap.trust import Statement
from kvswap.worker.told import Talk

_LISTEN_SECONDS = 0.05


@dataclass(slots=True)
class Filled:
    """How the cache came about."""

    computed: int = 0  # tokens, of blocks that were computed whole
    load_seconds: float = 0.0  # spent on verifying and decoding
    compute_seconds: float = 0.0
    samples: list[list[float]] = field(default_factory=list)  # [tokens before, tokens, seconds] of whole blocks


class _Met(Exception):
    """All layers from here on are there."""


def fill(
    loaded: Any,
    statement: Statement,
    source: ChunkSource,
    tokens: int | None,
    room: int,
    ids: Sequence[int] | None,
    work: dict[str, Any] | None,
    predictors: Predictors,
    talk: Talk,
) -> tuple[Any, int, Filled, str]:
    """A cache of an artifact's first `tokens` tokens: loaded, or in parts computed while the others arrive.

    Returns it with its length, how it came about, and what can be claimed of it.
    """
    from kvswap.model.prefill import check_length, check_reach

    manifest = statement.manifest
    layout.check_compatible(manifest, loaded.identity.digest, loaded.dtype)
    prefix, probe = manifest.prefix, manifest.probe
    stop = prefix.tokens if tokens is None else tokens
    total = stop if tokens is None or ids is None else len(ids)
    check_reach(loaded, total, room, prefix.block_tokens)
    check_length(loaded, total + room)
    # What is computed has to be the artifact's own tokens, whatever it says of its document.
    own = chain.chain_digests(loaded.identity.digest, (ids or [])[:stop], prefix.block_tokens)
    known = ids if ids is not None and len(ids) >= stop and own == prefix.chain[: len(own)] else None
    units = layout.units(manifest, tokens, by_run=loaded.device == "cpu")
    split = split_of(units, work, known is not None, all(layer.window is None for layer in manifest.layout.layers))
    after = max(room, len(probe.question) + len(probe.tokens)) + (len(known) - stop if known else 0)
    with Assembly(manifest, source, tokens=tokens, room=after, predictors=predictors, seal=statement.seal) as assembly:
        hybrid = Hybrid(loaded, assembly, units, split, known, talk)
        cache = hybrid.run()
    talk.say("filled", tokens=stop, computed=hybrid.filled.computed)
    claim = manifest.numerics.claim
    if hybrid.filled.computed and loaded.numerics().environment != manifest.numerics.environment:
        verified = claim != "tolerance" and stop == prefix.tokens and probed(loaded, cache, manifest)
        claim = "token-verified" if verified else "tolerance"
    return cache, stop, hybrid.filled, claim


class Hybrid:
    """One document.  `run` once."""

    def __init__(
        self,
        loaded: Any,
        assembly: Assembly,
        units: Sequence[Unit],
        split: Split,
        ids: Sequence[int] | None,
        talk: Talk,
    ) -> None:
        """`ids`: the document's, None when it can only be loaded."""
        self._loaded, self._assembly, self._units, self._split = loaded, assembly, units, split
        self._ids, self._talk = ids, talk
        self._cache: Any = None
        self._reached = 0  # tokens at the front that are in the cache being computed
        self._loading = len(units)  # those from here on are loaded, or on their way
        self._beside = not str(loaded.device).startswith("cpu")
        self.filled = Filled()

    def run(self) -> Any:
        """A cache of the assembly's tokens.  Raises `IntegrityError`, or `PeerError` when nothing more comes."""
        from kvswap.model.cache import build_cache, close_over

        first = self._split.front
        self._load(0, first)
        self._assembly.wait()  # what is computed builds on it
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
        """Wait until it is clear whether the unit at the front is to be computed, or is not needed any more."""
        while True:
            self._talk.check()
            self._hear(0.0)
            step = self._split.step()
            if step == "met":
                return False
            if step == "stuck":
                raise PeerError("the rest of the artifact does not come", cause="the peers went away")
            self._load_back(busy=step == "compute" and not self._beside)
            if step == "compute":
                self._talk.say("claim", unit=self._split.front)
                return True
            self._hear(_LISTEN_SECONDS)

    def _compute(self, block: int) -> None:
        """Units of a block from the front on; stops between two of them when the rest is there."""
        from kvswap.model.cache import cache_over
        from kvswap.model.finite import check_block
        from kvswap.model.prefill import forward

        assembly, ids = self._assembly, self._ids
        assert ids is not None  # noqa: S101 - the split never computes without them
        prefix = assembly.manifest.prefix
        start, stop = block_span(prefix.tokens, prefix.block_tokens, block)
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
                _settle(self._loaded.device)
            computed()
            self._reached = stop
            self.filled.computed += stop - start
            self.filled.samples.append([start, stop - start, spent])
        self.filled.compute_seconds += spent

    # -- the back --------------------------------------------------------------------------------

    def _hear(self, seconds: float) -> None:
        came = None
        for message in self._talk.told.take(seconds):
            came = message if "bytes" in message else came
            if (unit := message.get("unit")) is not None:
                self._split.arrived(unit)
            elif "ended" in message:
                self._split.ended()
        if came is not None:  # the last: those before it were told while we were busy
            self._split.got(came["bytes"], came["arriving"], time.monotonic())

    def _load_back(self, busy: bool) -> None:
        """Decode what is whole, from the end; while `busy` with something else, as many blocks as go at once."""
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
        """What arrived last, and of the block in which both met the layers that were not computed."""
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
                # These chunks are coded against layers that were computed here, and here is another class of
                # machine than the publisher's: the bits differ.  Then the block is computed whole.
                self._again(block)
        began = time.perf_counter()
        self._assembly.wait()
        self.filled.load_seconds += time.perf_counter() - began

    def _whole(self, unit: int) -> int:
        """The first unit from this one on that begins a block."""
        units = self._units
        while 0 < unit < len(units) and units[unit].block == units[unit - 1].block:
            unit += 1
        return unit

    def _again(self, block: int) -> None:
        from kvswap.model.cache import kept
        from kvswap.model.finite import check_block
        from kvswap.model.prefill import forward

        prefix = self._assembly.manifest.prefix
        start, stop = block_span(prefix.tokens, prefix.block_tokens, block)
        self._cache.before = None
        for layer, held in zip(kept(self._cache), self._assembly.tensors, strict=True):
            layer.reach(start, held.k, held.v)
        assert self._ids is not None  # noqa: S101 - a part of the block was computed
        forward(self._loaded, self._cache, self._ids[start:stop], start)
        check_block(self._cache, start, stop, self._loaded.dtype)
        self._reached = stop
        self.filled.computed += stop - start


def _settle(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()


def split_of(units: Sequence[Unit], work: dict[str, Any] | None, computes: bool, full: bool) -> Split:
    """The split that the node's figures make; without any, everything is in the store.

    `computes`: the document's text is here; `full`: no layer is a sliding one.
    """
    work = work or {}
    wire = list(work.get("wire") or [0] * len(units))
    compute, load = ([us / 1e6 for us in work.get(part) or [0] * len(units)] for part in ("compute", "load"))
    front = next((i for i, size in enumerate(wire) if size), 0)  # what is here at the front is not computed again
    while front and units[front].block == units[front - 1].block:
        front -= 1
    return Split(
        Work(compute, wire, load, int(work.get("last", 0)) / 1e6),
        float(work.get("rate", 0)),
        time.monotonic(),
        front=front if full else 0,
        computes=computes and bool(work.get("computes")),
        eager=bool(work.get("eager", True)),
        lowest=int(work.get("lowest", 0)),
    )


def probed(loaded: Any, cache: Any, manifest: Manifest) -> bool:
    """Whether the cache goes on as the publisher said, by the tokens of the probe; leaves it as it was."""
    from kvswap.model.cache import kept
    from kvswap.model.prefill import greedy
    from kvswap.model.shape import unaskable

    probe = manifest.probe
    if not probe.tokens or unaskable(loaded, manifest):
        return False
    layers = kept(cache)
    held = [(layer.keys, layer.values, getattr(layer, "cumulative_length", None)) for layer in layers]
    made = greedy(loaded, cache, manifest.prefix.tokens, probe.question, len(probe.tokens))
    for layer, (keys, values, seen) in zip(layers, held, strict=True):
        layer.keys, layer.values = keys, values
        if seen is not None:
            layer.cumulative_length = seen
    return made.ids == list(probe.tokens)
