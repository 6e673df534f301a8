"""The tensors of a cache in torch, and their views as the parts that chunks are made of (`parts`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kvswap.artifact import layout as layouts
from kvswap.artifact.manifest import Manifest
from kvswap.artifact.parts import (
    EncodedChunk,
    Layers,
    by_layer,
    codec_for,
    context_of,
    decode_chunk,
    digest_parts,
    encode_chunk,
    predictable,
)
from kvswap.artifact.specs import ITEM_BYTES, LayerSpec, Layout, TensorDigests
from kvswap.codec import Part
from kvswap.core.errors import IntegrityError

__all__ = [
    "DTYPES",
    "EncodedChunk",
    "LayerTensors",
    "Layers",
    "as_part",
    "as_tensor",
    "by_layer",
    "cache_bytes",
    "codec_for",
    "context_of",
    "decode_chunk",
    "digest_layer",
    "digest_parts",
    "encode_chunk",
    "predictable",
    "verify_tensors",
]

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "q8_0": torch.uint8,  # blocks of ggml, as bytes
}
_SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32}
_WORD = {1: np.uint8, 2: np.uint16, 4: np.uint32}


@dataclass(slots=True)
class LayerTensors:
    """The tensors of one layer in the order of its `LayerSpec`, each [head, row, dim].

    Of a tensor whose rows are tokens the first `tokens` rows are filled, from position `first`; there may be room for
    more behind them.  A state has all of its rows.
    """

    spec: LayerSpec
    tensors: tuple[torch.Tensor, ...]
    first: int
    tokens: int

    @classmethod
    def key_value(cls, k: torch.Tensor, v: torch.Tensor, first: int, tokens: int) -> LayerTensors:
        """Hold keys and values, [head, token, dim], of a layer that keeps nothing else and does not slide."""
        return cls(LayerSpec.key_value("full", k.shape[0], k.shape[2], v.shape[2]), (k, v), first, tokens)

    @property
    def k(self) -> torch.Tensor:
        """The keys, or what the layer has in their place: its first tensor."""
        return self.tensors[0]

    @property
    def v(self) -> torch.Tensor:
        """The values, or what the layer has in their place: its second tensor."""
        return self.tensors[1]

    def filled(self, place: int) -> torch.Tensor:
        """Return the filled rows of a tensor."""
        tensor = self.tensors[place]
        return tensor if self.spec.tensors[place].rows is not None else tensor[:, : self.tokens]

    def each_filled(self) -> list[torch.Tensor]:
        """Return the filled rows of every tensor."""
        return [self.filled(place) for place in range(len(self.tensors))]


def as_part(tensor: torch.Tensor) -> Part:
    """View the bit patterns of a CPU tensor as unsigned integers; shares memory."""
    size = tensor.element_size()
    part: Part = tensor.view(_SIGNED[size]).numpy().view(_WORD[size])
    return part


def as_tensor(part: Part, dtype: str) -> torch.Tensor:
    """View bit patterns as the numbers of a dtype; shares memory."""
    signed = torch.from_numpy(part.view(f"i{part.dtype.itemsize}"))
    return signed.view(DTYPES[dtype])


def digest_layer(tensors: LayerTensors) -> TensorDigests:
    """Compute the digests of one layer's tensors, as the manifest holds them."""
    return tuple(digest_parts([as_part(tensor)]) for tensor in tensors.each_filled())


def verify_tensors(manifest: Manifest, tensors: Sequence[LayerTensors]) -> None:
    """Check the per-layer digests of a cache loaded whole.  Raises `IntegrityError`."""
    for index, (held, signed) in enumerate(zip(tensors, manifest.tensors, strict=True)):
        if digest_layer(held) != signed:
            raise IntegrityError(f"layer {index} does not have its signed tensor digest")


def cache_bytes(layout: Layout, tokens: int) -> int:
    """Compute the bytes of all tensors that a reader of `tokens` tokens holds."""
    total = 0
    for layer in layout.layers:
        first, stop = layouts.held_span(layer, tokens)
        for tensor in layer.tensors:
            total += math.prod(tensor.part_shape(stop - first)) * ITEM_BYTES[layout.dtype_of(tensor)]
    return total
