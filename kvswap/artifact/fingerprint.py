"""Fingerprints: a cache in a thousandth of its size, by which independent publishers are compared.

For every 64 tokens and every layer's K and V a random projection to 8 numbers: signs from a fixed seed, sums
over every eighth channel (a count sketch; Charikar, Chen and Farach-Colton 2002).  It keeps distances: the
difference of two fingerprints is as large, give or take a half, as that of the tensors.  The signs are
public: it tells a cache from another one, not from one that was made to look alike on purpose; see
`docs/security.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from blake3 import blake3
from torch.nn.functional import pad

from kvswap.artifact.layout import FINGERPRINT_TOKENS, FINGERPRINT_WIDTH
from kvswap.artifact.manifest import FileRef
from kvswap.artifact.sealing import FINGERPRINT, Seal, open_file
from kvswap.artifact.tensors import LayerTensors
from kvswap.core.errors import Incompatible, IntegrityError

_LARGEST = 65_504.0  # of a float16
_MOST_SIGNS = 1 << 27  # a byte each; of the widest layer known there are 2^21


@lru_cache(maxsize=2048)
def _signs(layer: int, kind: int, heads: int, dim: int) -> torch.Tensor:
    """+1 and -1, [head, FINGERPRINT_TOKENS, dim], int8."""
    count = heads * FINGERPRINT_TOKENS * dim
    if count > _MOST_SIGNS:
        raise Incompatible(
            f"layer {layer} has a tensor of {heads} x {dim}, too wide to be compared by a fingerprint",
            cause="no model that is known has one",
            field="layout",
        )
    digest = blake3(b"kvswap fingerprint v1 %d %d" % (layer, kind)).digest(length=-(-count // 8))
    bits = np.unpackbits(np.frombuffer(digest, np.uint8), bitorder="little")[:count]
    return torch.from_numpy(bits.astype(np.int8) * 2 - 1).reshape(heads, FINGERPRINT_TOKENS, dim)


def fingerprint(tensors: Sequence[LayerTensors]) -> bytes:
    """Compute the fingerprint of a whole document's cache.

    The bytes are float16, little endian: in the order [64 tokens, tensor, 8] of the tensors whose rows are tokens,
    layer by layer, where a sliding layer's part is 0; then [tensor, 8] of the states as held at the end.
    """
    tokens = max(held.first + held.tokens for held in tensors)
    parts = -(-tokens // FINGERPRINT_TOKENS)
    growing = [place for place in _places(tensors) if tensors[place[0]].spec.tensors[place[1]].per == "token"]
    states = [place for place in _places(tensors) if place not in growing]
    # In double precision, so that the order of a sum does not show in what is left of it.
    out = torch.zeros(parts, len(growing), FINGERPRINT_WIDTH, dtype=torch.float64)
    for at, (layer, place) in enumerate(growing):
        tensor, held = tensors[layer].tensors[place], tensors[layer]
        if held.first:
            continue
        signs = _signs(layer, place, tensor.shape[0], tensor.shape[2])
        for part in range(parts):
            start, stop = part * FINGERPRINT_TOKENS, min((part + 1) * FINGERPRINT_TOKENS, tokens)
            out[part, at] = _folded(tensor[:, start:stop].double() * signs[:, : stop - start])
    ends = torch.zeros(len(states), FINGERPRINT_WIDTH, dtype=torch.float64)
    for at, (layer, place) in enumerate(states):
        tensor = tensors[layer].tensors[place]
        signs = _signs(layer, place, tensor.shape[0], tensor.shape[2])
        for start in range(0, tensor.shape[1], FINGERPRINT_TOKENS):
            rows = tensor[:, start : start + FINGERPRINT_TOKENS].double()
            ends[at] += _folded(rows * signs[:, : rows.shape[1]])
    flat = torch.cat([out.flatten(), ends.flatten()]).clamp(-_LARGEST, _LARGEST)
    data: bytes = flat.numpy().astype("<f2").tobytes()
    return data


def _places(tensors: Sequence[LayerTensors]) -> list[tuple[int, int]]:
    return [(layer, place) for layer, held in enumerate(tensors) for place in range(len(held.tensors))]


def _folded(mixed: torch.Tensor) -> torch.Tensor:
    """Sum every eighth number of a tensor."""
    flat = pad(mixed.reshape(-1), (0, -mixed.numel() % FINGERPRINT_WIDTH))
    return flat.reshape(-1, FINGERPRINT_WIDTH).sum(0)


def check_fingerprint(file: FileRef, tensors: Sequence[LayerTensors], data: bytes, seal: Seal | None = None) -> None:
    """Raise `IntegrityError` unless `data` is that file, and the fingerprint of these tensors."""
    if fingerprint(tensors) != open_file(file, FINGERPRINT, data, seal):
        raise IntegrityError("the fingerprint is not that of the tensors", cause="the publisher signed another one")
