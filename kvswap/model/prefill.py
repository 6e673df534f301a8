"""The canonical schedule: prefill block by block, and greedy continuation.

Floating-point sums depend on the shapes they are computed in, so "the KV cache of a text" is only defined together with
a schedule.  kvswap's is: blocks of a fixed number of tokens, one forward pass each, from position 0,
`logits_to_keep=1`.  Publisher and reader make the same calls, and so get the same bits on the same class of machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from blake3 import blake3

from kvswap.artifact.blocks import Blocks
from kvswap.artifact.manifest import Manifest
from kvswap.core.errors import Interrupted, InvalidDocument
from kvswap.model import reach
from kvswap.model.cache import new_cache
from kvswap.model.finite import check_block, not_finite
from kvswap.model.kernels import initialize_kernels
from kvswap.model.load import LoadedModel
from kvswap.model.passing import cache_of

initialize_kernels()  # every module that computes imports this one

PROBE_STEPS = 4


@dataclass(frozen=True, slots=True)
class Block:
    """A block that was just computed: tokens [start, stop), and the seconds it took."""

    index: int
    start: int
    stop: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Hooks:
    """The functions that a greedy continuation calls: with each token id, each step's logits, and to know when to end.

    `cancelled` returns True once nobody wants the rest.
    """

    on_token: Callable[[int], None] | None = None
    on_logits: Callable[[torch.Tensor], None] | None = None
    cancelled: Callable[[], bool] | None = None


NO_HOOKS = Hooks()


@dataclass(slots=True)
class Continuation:
    """The greedy tokens after a prefix, and the BLAKE3 digest over every step's float32 logits."""

    ids: list[int]
    logits_digest: str
    first_seconds: float
    seconds: float


def check_length(loaded: LoadedModel, tokens: int) -> None:
    """Check that so many tokens fit the model's context.  Raises `InvalidDocument` if they do not."""
    if tokens > loaded.context:
        raise InvalidDocument(
            f"the document has {tokens} tokens, the model's context is {loaded.context}",
            cause="the text is longer than the model can read",
            hint="split it, or publish its longest whole-block prefix with --truncate",
        )


def check_reach(loaded: LoadedModel, tokens: int, headroom: int, block_tokens: int, rope: str | None = None) -> None:
    """Choose one RoPE table for a document of `tokens` tokens with `headroom` more behind it, and compute with it.

    `rope` is that of the document's manifest, whose choice it then is.  Raises `Incompatible` if the whole does not
    stay within one table.
    """
    config = loaded.model.config.get_text_config(decoder=True)
    chosen = reach.choose(config, loaded.context, tokens, headroom) if rope is None else reach.recorded(rope)
    if chosen:
        reach.check_table(config, loaded.context, chosen, tokens, headroom)
    else:
        reach.check(config, tokens, headroom, block_tokens)
    if reach.thresholds(config):
        reach.pin(loaded.model, chosen)
        loaded.table = chosen


def check_reach_of(loaded: LoadedModel, manifest: Manifest, headroom: int, tokens: int | None = None) -> None:
    """Compute with the RoPE table of an artifact, for `tokens` tokens (default: its own) and `headroom` more.

    Raises `Incompatible` if they do not stay within it.
    """
    prefix = manifest.prefix
    length = prefix.tokens if tokens is None else tokens
    check_reach(loaded, length, headroom, prefix.block_tokens, manifest.layout.rope)


def forward(loaded: LoadedModel, cache: Any, ids: Sequence[int], start: int) -> torch.Tensor:
    """Run one forward pass of `ids` at positions from `start`, and return the last position's logits.

    They are float32, on the CPU.
    """
    tokens = torch.tensor([list(ids)], device=loaded.device)
    positions = torch.arange(start, start + len(ids), device=loaded.device)[None]
    with torch.inference_mode(False), torch.no_grad():
        out = loaded.model(
            input_ids=tokens, position_ids=positions, use_cache=True, logits_to_keep=1, **cache_of(loaded.model, cache)
        )
    logits: torch.Tensor = out.logits[0, -1].float().cpu()
    return logits


def canonical_prefill(
    loaded: LoadedModel,
    cache: Any,
    ids: Sequence[int],
    block_tokens: int,
    start: int = 0,
    cuts: Sequence[int] = (),
) -> Iterator[Block]:
    """Fill `cache` from token `start` (a block's end) to the end of `ids`, yielding after each block.

    `cuts` are further ends of blocks.  Raises `Incompatible` if a block is not finite.
    """
    blocks = Blocks(len(ids), block_tokens, (*cuts, start))
    for index, (first, stop) in enumerate(blocks):
        if first < start:
            continue
        began = time.perf_counter()
        forward(loaded, cache, ids[first:stop], first)
        check_block(cache, first, stop, loaded.dtype)
        if loaded.device.startswith("cuda"):
            torch.cuda.synchronize()
        yield Block(index, first, stop, time.perf_counter() - began)


def prefill(loaded: LoadedModel, ids: Sequence[int], block_tokens: int, headroom: int = 0) -> Any:
    """Compute a cache of `ids` on the canonical schedule, with memory for `headroom` more tokens."""
    cache = new_cache(loaded.model.config, len(ids) + headroom)
    for _ in canonical_prefill(loaded, cache, ids, block_tokens):
        pass
    return cache


def greedy(
    loaded: LoadedModel,
    cache: Any,
    position: int,
    ids: Sequence[int],
    max_tokens: int,
    *,
    stop_ids: frozenset[int] = frozenset(),
    follow: Sequence[int] = (),
    hooks: Hooks = NO_HOOKS,
) -> Continuation:
    """Process `ids` at `position`, then generate `max_tokens` greedy tokens one by one, or fewer up to a stop id.

    `follow` holds tokens to continue with in the place of the generated ones, as far as it reaches.  Raises
    `Incompatible` if the logits are not finite, `Interrupted` once `hooks.cancelled` returns True.
    """
    began = time.perf_counter()
    hasher = blake3()
    made: list[int] = []
    first = 0.0
    following = list(ids)
    while len(made) < max_tokens:
        logits = forward(loaded, cache, following, position)
        if not math.isfinite(float(logits.max())):  # some models exclude tokens with -inf, none excludes all
            raise not_finite(f"the logits after {position} tokens are not finite in {loaded.dtype}", loaded.dtype)
        if hooks.on_logits is not None:
            hooks.on_logits(logits)
        hasher.update(logits.numpy().astype("<f4", copy=False).data.cast("B"))
        position += len(following)
        token = int(logits.argmax())
        made.append(token)
        first = first or time.perf_counter() - began
        if hooks.on_token is not None:
            hooks.on_token(token)
        if token in stop_ids:
            break
        if hooks.cancelled is not None and hooks.cancelled():
            raise Interrupted("stopped")
        following = [follow[len(made) - 1] if len(made) <= len(follow) else token]
    return Continuation(made, "blake3:" + hasher.hexdigest(), first, time.perf_counter() - began)


def stop_ids(loaded: LoadedModel) -> frozenset[int]:
    """Return the token ids that end an answer."""
    eos = getattr(loaded.model.generation_config, "eos_token_id", None)
    ids = eos if isinstance(eos, list) else [eos]
    return frozenset(i for i in [*ids, loaded.tokenizer.eos_token_id] if isinstance(i, int))
