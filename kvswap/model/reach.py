"""Rotary tables (RoPE) that depend on the length of the text.

With LongRoPE transformers uses one set of frequencies while a text is short, and another one for all of it once it is
longer; with dynamic RoPE the frequencies change with the length.  Computed block by block, a document that crosses the
threshold would have keys of both kinds, which no model was trained for.  So it has to stay on one side, with question
and answer, or is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kvswap.core.errors import Incompatible


@dataclass(frozen=True, slots=True)
class Threshold:
    """A length of text, in tokens, up to which a model's RoPE frequencies are the same.

    `beyond` is True if they are constant again for longer texts.
    """

    kind: str
    tokens: int
    beyond: bool


def thresholds(config: Any) -> tuple[Threshold, ...]:
    """Return the thresholds of a text configuration, shortest first; most models have none."""
    found = set()
    for parameters in _rope_parameters(config):
        kind = str(parameters.get("rope_type") or parameters.get("type") or "default")
        most = int(getattr(config, "max_position_embeddings", None) or 0)
        if kind in ("longrope", "su"):
            own = getattr(config, "original_max_position_embeddings", None)
            tokens = int(parameters.get("original_max_position_embeddings") or own or most)
            found.add(Threshold("longrope", tokens, True))
        elif "dynamic" in kind:
            found.add(Threshold("dynamic", most, False))
    return tuple(sorted(found, key=lambda threshold: threshold.tokens))


def _rope_parameters(config: Any) -> Iterator[dict[str, Any]]:
    for name in ("rope_parameters", "rope_scaling"):
        given = getattr(config, name, None)
        if not isinstance(given, dict):
            continue
        if "rope_type" in given or "type" in given:
            yield given
        yield from (inner for inner in given.values() if isinstance(inner, dict))  # one for each kind of layer


def check(config: Any, tokens: int, headroom: int, block_tokens: int) -> None:
    """Check that `tokens` tokens in blocks, and `headroom` more, are computed with one RoPE table.

    Raises `Incompatible` if they cross a threshold.
    """
    first = min(block_tokens, tokens)  # the shortest that the model sees of it
    for threshold in thresholds(config):
        if tokens + headroom <= threshold.tokens or (threshold.beyond and first > threshold.tokens):
            continue
        more = f", {headroom} of them for question and answer" if headroom else ""
        raise Incompatible(
            f"{tokens + headroom} tokens{more} cross the threshold of this model's {threshold.kind} RoPE at "
            f"{threshold.tokens} tokens",
            cause="it computes longer texts with other frequencies, and a cache made in blocks would mix both",
            hint=f"stay within {threshold.tokens} tokens: publish --truncate, or a shorter answer with --max-tokens",
            field="layout.rope",
            threshold=threshold.tokens,
        )


def longest(config: Any, context: int) -> int:
    """Return the most tokens that a text may have to fit the context and stay below every threshold."""
    return min([context, *(threshold.tokens for threshold in thresholds(config))])


def set_back(model: Any) -> None:
    """Restore dynamic RoPE tables that a longer text has extended, so that a shorter one gets its own frequencies."""
    for module in model.modules():
        grown, own = getattr(module, "max_seq_len_cached", None), getattr(module, "original_max_seq_len", None)
        if grown is not None and own is not None and grown > own and hasattr(module, "original_inv_freq"):
            module.register_buffer("inv_freq", module.original_inv_freq.to(module.inv_freq.device), persistent=False)
            module.max_seq_len_cached = own
