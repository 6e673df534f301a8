"""The step between bytes and tensors, one block of one run at a time.

`encode_chunk` is the publisher's step, `decode_chunk` the reader's: wire digest, decoding, raw digest.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from blake3 import blake3

from kvswap import codec as codecs
from kvswap.artifact import layout as layouts
from kvswap.artifact.manifest import ITEM_BYTES, ChunkRef, Layout, Manifest, TensorDigests
from kvswap.artifact.sealing import Seal, chunk_position, open_file
from kvswap.codec import Context, Part, Predictor
from kvswap.core.errors import IntegrityError
from kvswap.core.ids import Cid

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_SIGNED = {2: torch.int16, 4: torch.int32}
_WORD = {2: np.uint16, 4: np.uint32}


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """A chunk ready to be stored: its entry in the manifest, and its wire bytes."""

    ref: ChunkRef
    wire: bytes
    seconds: float  # of encoding


@dataclass(slots=True)
class LayerTensors:
    """The K and V of one layer, [head, capacity, dim]; the first `tokens` are filled, from position `first`."""

    k: torch.Tensor
    v: torch.Tensor
    first: int
    tokens: int


def as_part(tensor: torch.Tensor) -> Part:
    """View the bit patterns of a CPU tensor as unsigned integers; shares memory."""
    size = tensor.element_size()
    part: Part = tensor.view(_SIGNED[size]).numpy().view(_WORD[size])
    return part


def digest_parts(parts: Sequence[Part]) -> bytes:
    """Compute the BLAKE3 digest of the parts' bytes in order, without joining them."""
    hasher = blake3()
    for part in parts:
        for head in part:  # a head's tokens are contiguous even where the part is a view into a cache
            hasher.update(np.ascontiguousarray(head).data.cast("B") if head.size else b"")
    return hasher.digest()


def digest_layer(tensors: LayerTensors) -> TensorDigests:
    """Compute the digests of one layer's K and V, as the manifest holds them."""
    k, v = (as_part(t[:, : tensors.tokens]) for t in (tensors.k, tensors.v))
    return TensorDigests(k=digest_parts([k]), v=digest_parts([v]))


def encode_chunk(
    parts: Sequence[Part], dtype: str, codec: str, block: int, layer_group: int, context: Context | None = None
) -> EncodedChunk:
    """Encode one block of one run and describe it.

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


def by_layer(layer_group: Sequence[int], parts: Sequence[Part]) -> Layers:
    """Map each layer of a run to its K and V, given the parts of the run in order."""
    return dict(zip(layer_group, zip(parts[::2], parts[1::2], strict=True), strict=True))


def context_of(predictor: Predictor | None, layers: Sequence[int], start: int, earlier: Layers) -> Context | None:
    """Return the context that a layer group is coded with, or None where the predictor does not cover it.

    The context holds the `earlier` layers of the same block; the block's first token is at position `start`.
    """
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


def decode_chunk(
    manifest: Manifest,
    ref: ChunkRef,
    wire: bytes,
    parts: list[Part],
    predictor: Predictor | None,
    earlier: Layers,
    seal: Seal | None = None,
) -> None:
    """Decode one block of one run into `parts`, checked before and after, and add the parts to `earlier`.

    Raises `IntegrityError` naming the chunk.
    """
    coded = open_file(ref, chunk_position(ref), wire, seal)
    layout, prefix = manifest.layout, manifest.prefix
    layer_group = layout.runs[ref.run]
    span = layouts.block_span(prefix.tokens, prefix.block_tokens, ref.block)
    begin, _ = layouts.stored_span(layout.layers[layer_group[0]], *span)
    codecs.decode(ref.codec, coded, parts, layout.dtype, context_of(predictor, layer_group, begin, earlier))
    if digest_parts(parts) != ref.raw:
        raise IntegrityError(
            f"chunk {ref.id} (block {ref.block}) decodes to other bytes than were signed",
            cause="a fault in the codec, or a publisher that signed a wrong digest",
        )
    if predictor is not None:
        earlier |= by_layer(layer_group, parts)


def verify_tensors(manifest: Manifest, tensors: Sequence[LayerTensors]) -> None:
    """Check the per-layer digests of a cache loaded whole.  Raises `IntegrityError`."""
    for index, (held, signed) in enumerate(zip(tensors, manifest.tensors, strict=True)):
        if digest_layer(held) != signed:
            raise IntegrityError(f"layer {index} does not have its signed tensor digest")


def cache_bytes(layout: Layout, tokens: int) -> int:
    """Compute the bytes of K and V that a reader of `tokens` tokens holds."""
    size = ITEM_BYTES[layout.dtype]
    total = 0
    for layer in layout.layers:
        first, stop = layouts.held_span(layer, tokens)
        total += layer.heads * (layer.k_dim + layer.v_dim) * (stop - first) * size
    return total
