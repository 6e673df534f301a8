"""The cache of a document in memory, assembled from chunks: the reader's side.

The tensors that the model will use are allocated once, with headroom for what follows, and every chunk is
decoded straight into its place, chunks in parallel and in any order.  Every wire digest is checked before
its chunk is decoded and every raw digest before `wait` returns: the caller either gets a verified cache
or an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from types import TracebackType

import numpy as np
import torch

from kvswap.artifact import layout as layouts
from kvswap.artifact.manifest import ChunkRef, Manifest
from kvswap.artifact.parts import ChunkSource, Layers, Predictors, decode_chunk, read_predictor
from kvswap.artifact.sealing import Seal
from kvswap.artifact.specs import Layout
from kvswap.artifact.tensors import DTYPES, LayerTensors, as_part
from kvswap.codec import Part, Predictor

__all__ = ["Assembly", "ChunkSource", "Predictors", "load", "read_predictor"]


class Assembly:
    """The first `tokens` tokens (a block's end; default all) of an artifact's cache, on the CPU.

    `headroom` tokens are left free behind full layers, so that what follows needs no copy.  `source` returns
    a chunk's wire bytes and is called from several threads; `seal` opens them where they are sealed.  Memory
    is the cache plus one chunk for each worker.
    """

    def __init__(
        self,
        manifest: Manifest,
        source: ChunkSource,
        *,
        tokens: int | None = None,
        headroom: int = 0,
        workers: int | None = None,
        predictors: Predictors | None = None,
        seal: Seal | None = None,
    ) -> None:
        self.manifest = manifest
        self._seal = seal
        self.tokens = manifest.prefix.tokens if tokens is None else tokens
        self._blocks = manifest.blocks
        self.tensors = _allocate(manifest.layout, self.tokens, headroom)
        self._source = source
        self._predictors = predictors
        self._predictor: Predictor | None = None
        self.workers = workers or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self.workers, "kvswap-load")
        self._pending: list[Future[None]] = []

    def __enter__(self) -> Assembly:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def fill(self, chunks: Iterable[int], computed: Sequence[int] = ()) -> None:
        """Start to decode these chunks (indices into the manifest's list), all those of a block in one call.

        `computed`: the layers of that block that are in their place already, computed and not decoded.
        """
        refs = [self.manifest.chunks[i] for i in chunks]
        if refs and self.manifest.predictor and self._predictor is None:
            self._predictor = read_predictor(self.manifest.predictor.id, self._source, self._predictors, self._seal)
        # Predictive chunks of a block are coded one against the other; all else is independent.
        tasks = [list(g) for _, g in groupby(refs, lambda r: r.block)] if self._predictor else [[ref] for ref in refs]
        self._pending += [self._pool.submit(self._several, task, computed) for task in tasks]

    def wait(self) -> None:
        """Wait until all chunks are decoded and checked.  Raises `IntegrityError` naming the chunk."""
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def _several(self, refs: Sequence[ChunkRef], computed: Sequence[int]) -> None:
        earlier: Layers = {}
        if computed:
            earlier = {index: self._key_value(index, refs[0].block) for index in computed}
        for ref in refs:
            self._decode(ref, self._source(ref.id), earlier)

    def _key_value(self, index: int, block: int) -> tuple[Part, Part]:
        """Return where keys and values of a layer's part of a block are."""
        return self._place(index, 0, block)[0], self._place(index, 1, block)[0]

    def _place(self, index: int, place: int, block: int) -> tuple[Part, int]:
        """Return where a layer's tensor of a block goes, and how many of its tokens are left out before."""
        held = self.tensors[index]
        tensor, spec = held.tensors[place], self.manifest.layout.layers[index]
        if spec.tensors[place].rows is not None:
            return as_part(tensor), 0
        first, last = layouts.stored_span(spec, *self._blocks.span(block))
        low = max(first, held.first)  # the window may have moved past a part of this block
        return as_part(tensor)[:, low - held.first : last - held.first], low - first

    def _decode(self, ref: ChunkRef, wire: bytes, earlier: Layers) -> None:
        whole: list[Part] = []  # what the chunk holds
        keep: list[tuple[Part, Part]] = []  # (place in the cache, what of a scratch part goes there)
        for index, tensor in self.manifest.layout.members[ref.run]:
            place, skipped = self._place(index, tensor, ref.block)
            if not skipped:
                whole.append(place)
                continue
            heads, tokens, dim = place.shape
            whole.append(np.empty((heads, tokens + skipped, dim), place.dtype))
            keep.append((place, whole[-1][:, skipped:]))
        decode_chunk(self.manifest, ref, wire, whole, self._predictor, earlier, self._seal)
        for place, rest in keep:
            place[...] = rest


def load(
    manifest: Manifest,
    source: ChunkSource,
    *,
    tokens: int | None = None,
    headroom: int = 0,
    workers: int | None = None,
    predictors: Predictors | None = None,
    seal: Seal | None = None,
) -> list[LayerTensors]:
    """Load the tensors of an artifact whose chunks are all in the source; the arguments are those of `Assembly`.

    Raises `IntegrityError` naming a damaged chunk.
    """
    with Assembly(
        manifest, source, tokens=tokens, headroom=headroom, workers=workers, predictors=predictors, seal=seal
    ) as assembly:
        assembly.fill(layouts.needed(manifest, tokens))
        assembly.wait()
        return assembly.tensors


def _allocate(layout: Layout, tokens: int, headroom: int) -> list[LayerTensors]:
    out = []
    for layer in layout.layers:
        first, stop = layouts.held_span(layer, tokens)
        rows = stop - first + (headroom if layer.window is None else 0)
        tensors = [torch.empty(spec.part_shape(rows), dtype=DTYPES[layout.dtype_of(spec)]) for spec in layer.tensors]
        out.append(LayerTensors(layer, tuple(tensors), first, stop - first))
    return out
