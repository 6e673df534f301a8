"""The check that a cache is finite, which one that overflowed its dtype is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kvswap.core.errors import Incompatible
from kvswap.model.cache import caching_layers

Pair = tuple[torch.Tensor, torch.Tensor]


def check_tensors(pairs: Sequence[Pair], dtype: str) -> None:
    """Check that all K and V are finite.  Raises `Incompatible` naming the first layer that is not.

    It sums each tensor first, at a few percent of the cost of testing each number: a non-finite number makes a
    non-finite sum.
    """
    sums = [tensor.sum(dtype=torch.float32) for pair in pairs for tensor in pair]
    if not sums or bool(torch.isfinite(torch.stack(sums)).all()):
        return
    for layer, pair in enumerate(pairs):
        for name, tensor in zip("KV", pair, strict=True):
            if not bool(torch.isfinite(tensor).all()):
                raise not_finite(f"{name} of layer {layer} is not finite in {dtype}", dtype, layer=layer)


def check_block(cache: Any, start: int, stop: int, dtype: str) -> None:
    """Apply `check_tensors` to what the cache's layers hold of tokens [start, stop), which were just computed."""
    pairs: list[Pair] = []
    for layer in caching_layers(cache):
        if not layer.is_initialized or layer.get_seq_length() < stop:
            break  # the forward pass was stopped before this layer
        new = min(stop - start, layer.keys.shape[2])
        first = layer.keys.shape[2] - new
        pairs.append((layer.keys[:, :, first:], layer.values[:, :, first:]))
    check_tensors(pairs, dtype)


def not_finite(what: str, dtype: str, **details: Any) -> Incompatible:
    """Return the error for a number that is not finite, with a hint for this dtype."""
    return Incompatible(
        what,
        cause=f"the model overflows in {dtype}" if dtype == "float16" else "the model or its weights are damaged",
        hint="--dtype bfloat16, or float32" if dtype == "float16" else "--dtype float32",
        field="dtype",
        **details,
    )
