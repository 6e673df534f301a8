"""A check of vLLM's cos and sin tables, which are computed once and used for the life of the process.

A table whose first computation was raced (`kvswap.model.kernels`) would stay wrong, and with it every cache that is
published or continued.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from kvswap.core.errors import Incompatible


def check_tables() -> None:
    """Check that each table on the CPU is what the same code computes now.  Raises `Incompatible` if one is not."""
    from vllm.model_executor.layers import rotary_embedding

    for rope in list(rotary_embedding._ROPE_DICT.values()):
        for table, again in _made_again(rope):
            if table.device.type != "cpu" or _same(table, again, rope.__dict__.get("dtype")):
                continue
            raise Incompatible(
                f"vLLM's table of cos and sin ({type(rope).__name__}) is not what it computes now",
                cause="the first computation of this process was spoilt; see docs/vllm.md",
                hint="start the engine again",
                field="engine",
            )


def _made_again(rope: Any) -> Iterator[tuple[torch.Tensor, list[torch.Tensor]]]:
    """Yield each table with its parts computed anew, in order."""
    if hasattr(rope, "long_short_cos_sin_cache"):
        short = (rope.original_max_position_embeddings, rope.short_factor, rope.short_mscale)
        long = (rope.max_position_embeddings, rope.long_factor, rope.long_mscale)
        yield rope.long_short_cos_sin_cache, [rope._compute_cos_sin_cache(*short), rope._compute_cos_sin_cache(*long)]
    elif isinstance(getattr(rope, "cos_sin_cache", None), torch.Tensor):
        yield rope.cos_sin_cache, [rope._compute_cos_sin_cache()]


def _same(table: torch.Tensor, again: list[torch.Tensor], dtype: torch.dtype | None) -> bool:
    made = torch.cat(again)
    rounded = made.to(dtype) if dtype is not None else made
    return any(torch.equal(table, one.to(table.dtype)) for one in (made, rounded))


def check_latent_keys() -> None:
    """Check that the engine rotates the key beside a latent (MLA) as vLLM's own plain code does.

    That key is a view into a wider row, which the kernel of vLLM 0.32 on CPU reads wrongly; what such an engine
    computes is wrong, with kvswap and without.  Raises `Incompatible`.
    """
    from vllm.model_executor.layers import rotary_embedding

    for rope in list(rotary_embedding._ROPE_DICT.values()):
        table = getattr(rope, "cos_sin_cache", None)
        if not isinstance(table, torch.Tensor):
            continue
        size, count = rope.head_size, 4
        make = torch.Generator().manual_seed(0)
        row = torch.randn(count, 9 * size, generator=make).to(table)
        query = torch.randn(count, 2, 2 * size, generator=make).to(table)
        positions = torch.arange(count, device=table.device)
        plain, own = (
            turn(positions, query.clone()[..., size:], row.clone()[:, -size:].unsqueeze(1))[1].float()
            for turn in (rope.forward_native, rope)
        )
        if not torch.allclose(plain, own, atol=0.05):
            raise Incompatible(
                f"this vLLM rotates the keys of latents (MLA) wrongly ({type(rope).__name__})",
                cause="its kernel reads a key that is part of a wider row wrongly",
                hint='--compilation-config \'{"custom_ops": ["-rotary_embedding"]}\'',
                field="engine",
            )
