"""vLLM's paged cache of one layer: tokens are written as the engine's own writer does, and read back.

Each attention backend lays out its blocks differently (packed for AMX, transposed, interleaved).  Their writers have a
common name, so loading calls those.  There is no such function for reading: the position of each number is learned by
letting the writer write a block of consecutive numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kvswap.core.errors import Incompatible
from kvswap.integrations.vllm.engine import KVCacheGroup

_DIGIT = 8  # bits that every dtype holds exactly


def slots(group: KVCacheGroup, blocks: Sequence[int], first: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (slot, token) for each token of [first, stop) that has a block; block 0 is vLLM's null block."""
    tokens = torch.arange(first, stop, dtype=torch.int64)
    places = torch.tensor(blocks, dtype=torch.int64)[tokens // group.block_tokens]
    there = places != 0
    return (places * group.block_tokens + tokens % group.block_tokens)[there], tokens[there]


class PagedLayer:
    """The paged cache of one layer: `layer` is vLLM's attention layer, `cache` its [blocks, ...] tensor."""

    def __init__(self, layer: Any, cache: torch.Tensor) -> None:
        write = getattr(layer.impl, "do_kv_cache_update", None)
        if write is None:
            raise Incompatible(
                f"kvswap does not work with the attention backend {type(layer.impl).__name__}",
                cause="it has no writer of its own",
                field="engine",
            )
        self._layer, self._cache, self._write = layer, cache, write
        self._places: torch.Tensor | None = None  # position in a block of each number of K, then of V

    def put(self, k: torch.Tensor, v: torch.Tensor, slot: torch.Tensor) -> None:
        """Write K and V, [head, token, dim], to these slots."""
        device = self._cache.device
        key, value = (t.transpose(0, 1).contiguous().to(device) for t in (k, v))
        self._call_writer(key, value, self._cache, slot.to(device))

    def _call_writer(self, k: torch.Tensor, v: torch.Tensor, cache: torch.Tensor, slot: torch.Tensor) -> None:
        """Let the engine write K and V of [token, head, dim]."""
        self._write(self._layer, k, v, cache, slot)

    def learn(self, group: KVCacheGroup) -> None:
        """Learn the layout of a block, so that it can be read.

        Raises `Incompatible` if K and V cannot be read back.
        """
        shape = (group.block_tokens, group.heads)
        count = group.block_tokens * group.heads * (group.k_dim + group.v_dim)
        middle = group.block_tokens * group.heads * group.k_dim
        found = torch.zeros(self._cache[0].numel(), dtype=torch.int64)
        digits = range(0, count.bit_length(), _DIGIT)
        numbers = torch.arange(1, count + 1, dtype=torch.int64)  # 0 means that nothing was written there
        for shift in digits:
            digit = (numbers >> shift) & ((1 << _DIGIT) - 1)
            k, v = digit[:middle], digit[middle:]
            written = self._written(k.view(*shape, group.k_dim), v.view(*shape, group.v_dim))
            found |= written.to(torch.int64) << shift
        places = torch.full((count,), -1)
        inside = (found >= 1) & (found <= count)
        places[found[inside] - 1] = inside.nonzero().flatten()
        self._places = places.to(self._cache.device)
        if not self._reads_back(group):
            raise Incompatible(
                f"kvswap cannot read the cache of the attention backend {type(self._layer.impl).__name__}",
                cause="it does not keep K and V as they are, in blocks of their own",
                hint='"publish": "never" in kv_connector_extra_config',
                field="engine",
            )

    def _written(self, k: torch.Tensor, v: torch.Tensor, block: int = 0) -> torch.Tensor:
        """Return a block, flat, as the engine's writer leaves it for K and V of [token, head, dim]."""
        scratch = torch.zeros((block + 1, *self._cache.shape[1:]), dtype=self._cache.dtype, device=self._cache.device)
        slot = torch.arange(block * len(k), (block + 1) * len(k), device=scratch.device)
        k, v = (t.to(scratch.dtype).contiguous().to(scratch.device) for t in (k, v))
        self._call_writer(k, v, scratch, slot)
        return scratch[block].reshape(-1).cpu()

    def _reads_back(self, group: KVCacheGroup) -> bool:
        generator = torch.Generator().manual_seed(0)
        shape = (group.block_tokens, group.heads)
        k, v = (
            torch.randn(*shape, dim, generator=generator).to(self._cache.dtype) for dim in (group.k_dim, group.v_dim)
        )
        raw = self._written(k, v, 1)
        assert self._places is not None  # noqa: S101 - just learned
        if int(self._places.min()) < 0 or int(self._places.max()) >= len(raw):
            return False
        read_k, read_v = self._shaped(raw[self._places.cpu()][None], group)
        return torch.equal(read_k, k.transpose(0, 1)) and torch.equal(read_v, v.transpose(0, 1))

    def get(self, blocks: Sequence[int], group: KVCacheGroup) -> tuple[torch.Tensor, torch.Tensor]:
        """Read K and V of these blocks, [head, token, dim], to the CPU; `learn` has to be called first."""
        assert self._places is not None  # noqa: S101
        raw = self._cache[torch.tensor(blocks, device=self._cache.device)].reshape(len(blocks), -1)
        return self._shaped(raw[:, self._places].cpu(), group)

    def _shaped(self, numbers: torch.Tensor, group: KVCacheGroup) -> tuple[torch.Tensor, torch.Tensor]:
        """Reshape [block, position] to K and V of [head, token, dim]."""
        size, heads = group.block_tokens, group.heads
        middle = size * heads * group.k_dim
        k, v = (
            part.reshape(len(numbers) * size, heads, dim).transpose(0, 1)
            for part, dim in ((numbers[:, :middle], group.k_dim), (numbers[:, middle:], group.v_dim))
        )
        return k, v


class LatentLayer(PagedLayer):
    """The paged cache of one layer of latents (MLA): K is the latent, V its rotary key.

    vLLM keeps a rotary key in pairs (0, 1), (2, 3), ...; with `halves`, artifacts have the firsts before the seconds.
    """

    def __init__(self, layer: Any, cache: torch.Tensor, *, halves: bool) -> None:
        super().__init__(layer, cache)
        self._halves = halves

    def put(self, k: torch.Tensor, v: torch.Tensor, slot: torch.Tensor) -> None:
        """Write latents and rotary keys, [1, token, dim], to these slots."""
        super().put(k, _in_pairs(v) if self._halves else v, slot)

    def get(self, blocks: Sequence[int], group: KVCacheGroup) -> tuple[torch.Tensor, torch.Tensor]:
        """Read latents and rotary keys of these blocks, [1, token, dim], to the CPU."""
        k, v = super().get(blocks, group)
        return k, _in_halves(v) if self._halves else v

    def _call_writer(self, k: torch.Tensor, v: torch.Tensor, cache: torch.Tensor, slot: torch.Tensor) -> None:
        self._write(k[:, 0], v, cache, slot, "auto", self._layer._k_scale)


def _in_pairs(halves: torch.Tensor) -> torch.Tensor:
    return torch.stack(halves.chunk(2, dim=-1), dim=-1).flatten(-2)


def _in_halves(pairs: torch.Tensor) -> torch.Tensor:
    return torch.cat((pairs[..., ::2], pairs[..., 1::2]), dim=-1)


def paged_layer(layer: Any, cache: torch.Tensor, group: KVCacheGroup) -> PagedLayer:
    """Return the paged cache of a layer of this group.  Raises `Incompatible` where its backend has no writer."""
    return LatentLayer(layer, cache, halves=group.halves) if group.latent else PagedLayer(layer, cache)
