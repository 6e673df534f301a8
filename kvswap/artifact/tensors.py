"""Bytes <-> tensors: one block of one run, and whole caches.  The only torch in this room.

`encode_chunk` is the publisher's step, `load` the reader's.  `load` allocates the tensors the model
will use once, with room for what follows, and decodes every chunk straight into its place, chunks in
parallel.  Every wire digest is checked before its chunk is decoded and every raw digest before
anything is returned: the caller either gets a whole verified cache or an error.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from blake3 import blake3

from kvswap import codec as codecs
from kvswap.artifact import layout as layouts
from kvswap.artifact.manifest import ITEM_BYTES, ChunkRef, Layout, Manifest, TensorDigests
from kvswap.codec import Context, Part, Predictor, predictive
from kvswap.core.errors import IntegrityError
from kvswap.core.ids import Cid

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_SIGNED = {2: torch.int16, 4: torch.int32}
_WORD = {2: np.uint16, 4: np.uint32}

_PREDICTORS_KEPT = 4

ChunkSource = Callable[[Cid], bytes]


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """A chunk ready to be stored."""

    ref: ChunkRef
    wire: bytes
    seconds: float  # of encoding


@dataclass(slots=True)
class LayerTensors:
    """One layer's K and V, [head, room, dim]; the first `tokens` are filled, from position `first`."""

    k: torch.Tensor
    v: torch.Tensor
    first: int
    tokens: int


def as_part(tensor: torch.Tensor) -> Part:
    """The bit patterns of a CPU tensor as unsigned integers; shares memory."""
    size = tensor.element_size()
    part: Part = tensor.view(_SIGNED[size]).numpy().view(_WORD[size])
    return part


def digest_parts(parts: Sequence[Part]) -> bytes:
    """BLAKE3 of the parts' bytes in order, without joining them."""
    hasher = blake3()
    for part in parts:
        for head in part:  # a head's tokens are contiguous even where the part is a view into a cache
            hasher.update(np.ascontiguousarray(head).data.cast("B") if head.size else b"")
    return hasher.digest()


def digest_layer(tensors: LayerTensors) -> TensorDigests:
    """The manifest's digests of one layer."""
    k, v = (as_part(t[:, : tensors.tokens]) for t in (tensors.k, tensors.v))
    return TensorDigests(k=digest_parts([k]), v=digest_parts([v]))


def encode_chunk(
    parts: Sequence[Part], dtype: str, codec: str, block: int, run: int, context: Context | None = None
) -> EncodedChunk:
    """Encode one block of one run and describe it: of an inexact codec, what a reader will get."""
    began = time.perf_counter()
    used, wire = codecs.encode(parts, dtype, codec, context)
    seconds = time.perf_counter() - began
    if not codecs.get(used).exact:
        parts = [np.empty(part.shape, part.dtype) for part in parts]
        codecs.decode(used, wire, parts, dtype, context)
    ref = ChunkRef(
        block=block,
        run=run,
        codec=used,
        cid=bytes(Cid.of(wire)),
        length=len(wire),
        raw=digest_parts(parts),
        raw_length=codecs.raw_length(parts),
    )
    return EncodedChunk(ref, wire, seconds)


Layers = dict[int, tuple[Part, Part]]


def by_layer(run: Sequence[int], parts: Sequence[Part]) -> Layers:
    """K and V of each layer of a run, of its parts in order."""
    return dict(zip(run, zip(parts[::2], parts[1::2], strict=True), strict=True))


def context_of(predictor: Predictor | None, layers: Sequence[int], start: int, earlier: Layers) -> Context | None:
    """What a run of layers is coded against: `earlier` layers of the same block, whose first token is at `start`."""
    if predictor is None:
        return None
    try:
        stack, place = predictor.stack_of(layers[0])
    except KeyError:
        return None
    if stack.layers[place : place + len(layers)] != tuple(layers):
        return None
    before: list[Part] = []
    for layer in reversed(stack.layers[max(0, place - stack.before) : place]):
        if layer not in earlier:
            break
        before[:0] = earlier[layer]
    return Context(predictor, stack, place, before, start)


Predictors = OrderedDict[Cid, Predictor]
"""Those read lately, kept by whoever loads many artifacts."""


def read_predictor(cid: Cid, source: ChunkSource, kept: Predictors | None = None) -> Predictor:
    """Checked.  Raises `IntegrityError`."""
    kept = OrderedDict() if kept is None else kept
    known = kept.pop(cid, None)
    if known is None:
        data = source(cid)
        if Cid.of(data) != cid:
            raise IntegrityError(f"predictor {cid} does not have its digest", hint="kvswap verify --store")
        known = predictive.load(data)
    kept[cid] = known
    while len(kept) > _PREDICTORS_KEPT:
        kept.popitem(last=False)
    return known


def _allocate(layout: Layout, tokens: int, room: int) -> list[LayerTensors]:
    dtype = DTYPES[layout.dtype]
    out = []
    for layer in layout.layers:
        first, stop = layouts.held_span(layer, tokens)
        extra = room if layer.window is None else 0
        k, v = (
            torch.empty((layer.heads, stop - first + extra, dim), dtype=dtype) for dim in (layer.k_dim, layer.v_dim)
        )
        out.append(LayerTensors(k, v, first, stop - first))
    return out


def load(
    manifest: Manifest,
    source: ChunkSource,
    *,
    tokens: int | None = None,
    room: int = 0,
    workers: int | None = None,
    predictors: Predictors | None = None,
) -> list[LayerTensors]:
    """A verified cache for the first `tokens` tokens (a block's end; default all), on the CPU.

    `room` tokens are left free behind full layers, so that what follows needs no copy.  `source`
    returns a chunk's wire bytes and is called from several threads.  Raises `IntegrityError` naming
    the chunk; memory is the cache plus one chunk a worker.
    """
    stop = manifest.prefix.tokens if tokens is None else tokens
    refs = [manifest.chunks[i] for i in layouts.needed(manifest, tokens)]
    predictor = read_predictor(manifest.predictor.id, source, predictors) if manifest.predictor else None
    tensors = _allocate(manifest.layout, stop, room)
    # Predictive chunks of a block are coded one against the other; all else is independent.
    tasks = [list(g) for _, g in groupby(refs, lambda r: r.block)] if predictor else [[ref] for ref in refs]

    def several(refs: list[ChunkRef]) -> None:
        earlier: Layers = {}
        for ref in refs:
            _decode_into(manifest, ref, source(ref.id), tensors, predictor, earlier)

    with ThreadPoolExecutor(workers or os.cpu_count() or 1, "kvswap-load") as pool:
        for _ in pool.map(several, tasks):
            pass
    return tensors


def decode_chunk(
    manifest: Manifest, ref: ChunkRef, wire: bytes, parts: list[Part], predictor: Predictor | None, earlier: Layers
) -> None:
    """Fill the parts of one block of one run, checked before and after; `earlier` layers of the block grow by them.

    Raises `IntegrityError` naming the chunk.
    """
    if len(wire) != ref.length or Cid.of(wire) != ref.id:
        raise IntegrityError(
            f"chunk {ref.id} (block {ref.block}) does not have its digest",
            cause="the file was changed on disk",
            hint="kvswap verify --store",
        )
    layout, prefix = manifest.layout, manifest.prefix
    run = layout.runs[ref.run]
    span = layouts.block_span(prefix.tokens, prefix.block_tokens, ref.block)
    begin, _ = layouts.stored_span(layout.layers[run[0]], *span)
    codecs.decode(ref.codec, wire, parts, layout.dtype, context_of(predictor, run, begin, earlier))
    if digest_parts(parts) != ref.raw:
        raise IntegrityError(
            f"chunk {ref.id} (block {ref.block}) decodes to other bytes than were signed",
            cause="a fault in the codec, or a publisher that signed a wrong digest",
        )
    if predictor is not None:
        earlier |= by_layer(run, parts)


def _decode_into(
    manifest: Manifest,
    ref: ChunkRef,
    wire: bytes,
    tensors: list[LayerTensors],
    predictor: Predictor | None,
    earlier: Layers,
) -> None:
    layout, prefix = manifest.layout, manifest.prefix
    start, stop = layouts.block_span(prefix.tokens, prefix.block_tokens, ref.block)
    whole: list[Part] = []  # what the chunk holds
    keep: list[tuple[Part, Part]] = []  # (place in the cache, what of a scratch part goes there)
    for index in layout.runs[ref.run]:
        held = tensors[index]
        first, last = layouts.stored_span(layout.layers[index], start, stop)
        for tensor in (held.k, held.v):
            low = max(first, held.first)
            place = as_part(tensor)[:, low - held.first : last - held.first]
            if low == first:
                whole.append(place)
            else:  # the window has moved past a part of this block
                scratch = np.empty((place.shape[0], last - first, place.shape[2]), place.dtype)
                whole.append(scratch)
                keep.append((place, scratch[:, low - first :]))
    decode_chunk(manifest, ref, wire, whole, predictor, earlier)
    for place, rest in keep:
        place[...] = rest


def verify_tensors(manifest: Manifest, tensors: Sequence[LayerTensors]) -> None:
    """Check the per-layer digests of a cache loaded whole.  Raises `IntegrityError`."""
    for index, (held, signed) in enumerate(zip(tensors, manifest.tensors, strict=True)):
        if digest_layer(held) != signed:
            raise IntegrityError(f"layer {index} does not have its signed tensor digest")


def cache_bytes(layout: Layout, tokens: int) -> int:
    """Bytes of K and V that a reader of `tokens` tokens holds."""
    size = ITEM_BYTES[layout.dtype]
    total = 0
    for layer in layout.layers:
        first, stop = layouts.held_span(layer, tokens)
        total += layer.heads * (layer.k_dim + layer.v_dim) * (stop - first) * size
    return total
