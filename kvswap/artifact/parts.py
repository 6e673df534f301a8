"""The step between bytes and parts, one block of one group of layers at a time.  No torch: parts are numpy's.

`encode_chunk` is the publisher's step, `decode_chunk` the reader's: wire digest, decoding, raw digest.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from kvswap import codec as codecs
from kvswap.artifact import layout as layouts
from kvswap.artifact.manifest import ChunkRef, Manifest
from kvswap.artifact.sealing import PREDICTOR, Seal, chunk_position, open_file
from kvswap.artifact.specs import Layout
from kvswap.codec import Context, Part, Predictor, predictive
from kvswap.core.errors import IntegrityError
from kvswap.core.ids import Cid

_PREDICTORS_KEPT = 4

ChunkSource = Callable[[Cid], bytes]

Predictors = OrderedDict[Cid, Predictor]
"""The predictors that were read lately, kept by whoever loads many artifacts."""


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """A chunk ready to be stored: its entry in the manifest, and its wire bytes."""

    ref: ChunkRef
    wire: bytes
    seconds: float  # of encoding


def digest_parts(parts: Sequence[Part]) -> bytes:
    """Compute the BLAKE3 digest of the parts' bytes in order, without joining them."""
    hasher = blake3()
    for part in parts:
        for head in part:  # a head's tokens are contiguous even where the part is a view into a cache
            hasher.update(np.ascontiguousarray(head).data.cast("B") if head.size else b"")
    return hasher.digest()


def encode_chunk(
    parts: Sequence[Part], dtype: str, codec: str, block: int, layer_group: int, context: Context | None = None
) -> EncodedChunk:
    """Encode one block of one group and describe it.

    For a lossy codec, the raw digest is that of what a reader will decode.
    """
    began = time.perf_counter()
    used, wire = codecs.encode(parts, dtype, codec, context)
    seconds = time.perf_counter() - began
    if not codecs.get(used).lossless:
        parts = [np.empty(part.shape, part.dtype) for part in parts]
        codecs.decode(used, wire, parts, dtype, context)
    ref = ChunkRef(
        block=block,
        run=layer_group,
        codec=used,
        cid=bytes(Cid.of(wire)),
        length=len(wire),
        raw=digest_parts(parts),
        raw_length=codecs.raw_length(parts),
    )
    return EncodedChunk(ref, wire, seconds)


Layers = dict[int, tuple[Part, Part]]


def by_layer(layout: Layout, group: int, parts: Sequence[Part]) -> Layers:
    """Map each layer of a group to its keys and values, given the group's parts; empty for a group of other tensors."""
    if not predictable(layout, group):
        return {}
    return dict(zip(layout.groups[group].layers, zip(parts[::2], parts[1::2], strict=True), strict=True))


def predictable(layout: Layout, group: int) -> bool:
    """Return True if a group's tensors are of the kind that `predictive` codes: two a layer, a row for each token."""
    return len(layout.groups[group].tensors) == 2 and not layout.is_state(group)


def codec_for(layout: Layout, group: int, codec: str) -> str:
    """Return the codec for a group: the one asked for, or `planes` for states, which a lossy codec would ruin."""
    return "planes" if layout.is_state(group) and not codecs.get(codec).lossless else codec


def context_of(predictor: Predictor | None, layout: Layout, group: int, start: int, earlier: Layers) -> Context | None:
    """Return the context that a group is coded with, or None where the predictor does not cover it.

    The context holds the `earlier` layers of the same block; the block's first token is at position `start`.
    """
    if predictor is None or not predictable(layout, group):
        return None
    layers = layout.groups[group].layers
    try:
        stack, place = predictor.stack_of(layers[0])
    except KeyError:
        return None
    if stack.layers[place : place + len(layers)] != layers:
        return None
    before: list[Part] = []
    for layer in reversed(stack.layers[max(0, place - stack.before) : place]):
        if layer not in earlier:
            break
        before[:0] = earlier[layer]
    return Context(predictor, stack, place, before, start)


def decode_chunk(
    manifest: Manifest,
    ref: ChunkRef,
    wire: bytes,
    parts: list[Part],
    predictor: Predictor | None,
    earlier: Layers,
    seal: Seal | None = None,
) -> None:
    """Decode one block of one group into `parts`, checked before and after, and add the parts to `earlier`.

    Raises `IntegrityError` naming the chunk.
    """
    coded = open_file(ref, chunk_position(ref), wire, seal)
    layout = manifest.layout
    span = manifest.blocks.span(ref.block)
    begin, _ = layouts.stored_span(layout.layers[layout.groups[ref.run].layers[0]], *span)
    context = context_of(predictor, layout, ref.run, begin, earlier)
    codecs.decode(ref.codec, coded, parts, layout.group_dtype(ref.run), context)
    if digest_parts(parts) != ref.raw:
        raise IntegrityError(
            f"chunk {ref.id} (block {ref.block}) decodes to other bytes than were signed",
            cause="a fault in the codec, or a publisher that signed a wrong digest",
        )
    if predictor is not None:
        earlier |= by_layer(layout, ref.run, parts)


def read_predictor(
    cid: Cid, source: ChunkSource, kept: Predictors | None = None, seal: Seal | None = None
) -> Predictor:
    """Read the predictor of an artifact, from `kept` or else from its source, and keep it there.

    `kept` holds the four predictors that were read last; `seal` opens the file where it is sealed.  Raises
    `IntegrityError` if the file does not have its digest.
    """
    kept = OrderedDict() if kept is None else kept
    known = kept.pop(cid, None)
    if known is None:
        data = source(cid)
        if Cid.of(data) != cid:
            raise IntegrityError(f"predictor {cid} does not have its digest", hint="kvswap verify --store")
        known = predictive.load(seal.open(PREDICTOR, data) if seal is not None else data)
    kept[cid] = known
    while len(kept) > _PREDICTORS_KEPT:
        kept.popitem(last=False)
    return known
