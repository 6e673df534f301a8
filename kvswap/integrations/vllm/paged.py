"""vLLM's paged cache of one layer: tokens go in as the engine's own writer puts them, and come out by undoing that.

How a backend lays out a block is its own affair (packed for AMX, transposed, interleaved).  What it writes with is
public to every backend, so loading calls just that.  For reading, the writer is watched once: every place of
a block is written with its own number, and where the numbers land is the layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kvswap.core.errors import Incompatible
from kvswap.integrations.vllm.engine import Group

_BITS = {2: torch.int16, 4: torch.int32}


def slots(group: Group, blocks: Sequence[int], first: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(slot, token) for each token of [first, stop) that has a block; block 0 is vLLM's null block."""
    tokens = torch.arange(first, stop, dtype=torch.int64)
    places = torch.tensor(blocks, dtype=torch.int64)[tokens // group.block_tokens]
    there = places != 0
    return (places * group.block_tokens + tokens % group.block_tokens)[there], tokens[there]


class PagedLayer:
    """One layer's cache.  `layer` is vLLM's attention layer, `cache` its [blocks, ...] tensor."""

    def __init__(self, layer: Any, cache: torch.Tensor, group: Group) -> None:
        write = getattr(layer.impl, "do_kv_cache_update", None)
        if write is None:
            raise Incompatible(
                f"kvswap does not work with the attention backend {type(layer.impl).__name__}",
                cause="it has no writer of its own",
                field="engine",
            )
        self._layer, self._cache, self._group = layer, cache, group
        self._write = write
        self._order: torch.Tensor | None = None

    def put(self, k: torch.Tensor, v: torch.Tensor, slot: torch.Tensor) -> None:
        """K and V, [head, token, dim], into these slots."""
        device = self._cache.device
        key, value = (t.transpose(0, 1).contiguous().to(device) for t in (k, v))
        self._write(self._layer, key, value, self._cache, slot.to(device))

    def take(self, blocks: Sequence[int], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V, [head, token, dim] on the CPU, of the first `tokens` tokens of these blocks.

        Raises `Incompatible` when this backend does not keep every bit.
        """
        group = self._group
        if self._order is None:
            self._order = self._learn()
        count = -(-tokens // group.block_tokens)
        held = self._cache[torch.tensor(blocks[:count], device=self._cache.device)].cpu().reshape(count, -1)
        width = group.heads * group.block_tokens
        plain = held[:, self._order]
        k, v = plain[:, : width * group.k_dim], plain[:, width * group.k_dim :]
        out = []
        for part, dim in ((k, group.k_dim), (v, group.v_dim)):
            shaped = part.reshape(count, group.heads, group.block_tokens, dim).transpose(0, 1)
            out.append(shaped.reshape(group.heads, -1, dim)[:, :tokens].contiguous())
        return out[0], out[1]

    def _learn(self) -> torch.Tensor:
        """For each place of a block's K, then V, [head, token, dim]: where in the block's memory it is."""
        group, cache = self._group, self._cache
        shape = (group.heads, group.block_tokens)
        sizes = [shape[0] * shape[1] * dim for dim in (group.k_dim, group.v_dim)]
        slot = torch.arange(group.block_tokens, dtype=torch.int64, device=cache.device)
        scratch = torch.zeros_like(cache[:1])
        places = torch.zeros(scratch.numel(), dtype=torch.int64)
        numbers = torch.arange(1, sum(sizes) + 1, dtype=torch.int64)
        for shift in (0, 8, 16, 24):  # a digit at a time: 0 to 255 are exact in every dtype
            digit = ((numbers >> shift) & 255).to(cache.dtype)
            k, v = (
                part.reshape(*shape, dim).transpose(0, 1).contiguous().to(cache.device)
                for part, dim in zip((digit[: sizes[0]], digit[sizes[0] :]), (group.k_dim, group.v_dim), strict=True)
            )
            self._write(self._layer, k, v, scratch, slot)
            places += scratch.cpu().reshape(-1).to(torch.int64) << shift
        order = torch.zeros(sum(sizes) + 1, dtype=torch.int64)
        order[places] = torch.arange(places.numel())
        order = order[1:]
        if not torch.equal(places[order], numbers):
            raise Incompatible(
                f"the attention backend {type(self._layer.impl).__name__} does not keep K and V as they are",
                cause="a quantised cache",
                field="engine",
            )
        return order
