"""vLLM's paged cache of one layer: tokens go in as the engine's own writer puts them.

How a backend lays out a block is its own affair (packed for AMX, transposed, interleaved).  What it writes with
every backend has under the same name, so loading calls just that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kvswap.core.errors import Incompatible
from kvswap.integrations.vllm.engine import Group


def slots(group: Group, blocks: Sequence[int], first: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(slot, token) for each token of [first, stop) that has a block; block 0 is vLLM's null block."""
    tokens = torch.arange(first, stop, dtype=torch.int64)
    places = torch.tensor(blocks, dtype=torch.int64)[tokens // group.block_tokens]
    there = places != 0
    return (places * group.block_tokens + tokens % group.block_tokens)[there], tokens[there]


class PagedLayer:
    """One layer's cache.  `layer` is vLLM's attention layer, `cache` its [blocks, ...] tensor."""

    def __init__(self, layer: Any, cache: torch.Tensor) -> None:
        write = getattr(layer.impl, "do_kv_cache_update", None)
        if write is None:
            raise Incompatible(
                f"kvswap does not work with the attention backend {type(layer.impl).__name__}",
                cause="it has no writer of its own",
                field="engine",
            )
        self._layer, self._cache, self._write = layer, cache, write

    def put(self, k: torch.Tensor, v: torch.Tensor, slot: torch.Tensor) -> None:
        """K and V, [head, token, dim], into these slots."""
        device = self._cache.device
        key, value = (t.transpose(0, 1).contiguous().to(device) for t in (k, v))
        self._write(self._layer, key, value, self._cache, slot.to(device))
