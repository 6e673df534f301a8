"""The check that a cache is finite, which one that overflowed its dtype is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kvswap.artifact.tensors import LayerTensors
from kvswap.core.errors import Incompatible
from kvswap.model import layers as kinds
from kvswap.model.cache import caching_layers

Named = tuple[str, torch.Tensor]


def check_tensors(layers: Sequence[Sequence[Named]], dtype: str) -> None:
    """Check that the tensors of all layers are finite.  Raises `Incompatible` naming the first that is not.

    It sums each tensor first, at a few percent of the cost of testing each number: a non-finite number makes a
    non-finite sum.
    """
    sums = [tensor.sum(dtype=torch.float32) for layer in layers for _, tensor in layer]
    if not sums or bool(torch.isfinite(torch.stack(sums)).all()):
        return
    for number, layer in enumerate(layers):
        for name, tensor in layer:
            if not bool(torch.isfinite(tensor).all()):
                what = name.upper() if len(name) == 1 else name
                raise not_finite(f"{what} of layer {number} is not finite in {dtype}", dtype, layer=number)


def check_held(tensors: Sequence[LayerTensors], dtype: str) -> None:
    """Apply `check_tensors` to the filled rows of all tensors."""
    check_tensors([[(t.name, h.filled(i)) for i, t in enumerate(h.spec.tensors)] for h in tensors], dtype)


def check_block(cache: Any, start: int, stop: int, dtype: str) -> None:
    """Apply `check_tensors` to what the cache's layers hold of tokens [start, stop), which were just computed."""
    layers: list[list[Named]] = []
    for layer in caching_layers(cache):
        if (seen := kinds.tokens_in(layer)) is not None and seen < stop:
            break  # the forward pass was stopped before this layer
        states = dict(kinds.states_in(layer))
        layers.append(
            [
                (name, tensor if name in states else tensor[..., -min(stop - start, tensor.shape[-2]) :, :])
                for name, tensor in kinds.tensors_in(layer)
            ]
        )
    check_tensors(layers, dtype)


def not_finite(what: str, dtype: str, **details: Any) -> Incompatible:
    """Return the error for a number that is not finite, with a hint for this dtype."""
    return Incompatible(
        what,
        cause=f"the model overflows in {dtype}" if dtype == "float16" else "the model or its weights are damaged",
        hint="--dtype bfloat16, or float32" if dtype == "float16" else "--dtype float32",
        field="dtype",
        **details,
    )
