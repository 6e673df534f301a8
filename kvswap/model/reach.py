"""Rotary tables (RoPE) that depend on the length of the text.

With LongRoPE transformers uses one set of frequencies while a text is short, and another one for all of it once it is
longer; with dynamic RoPE the frequencies change with the length.  Computed block by block, a document that crosses the
threshold would have keys of both kinds, which no model was trained for.  So one table is chosen for a document with
room for question and answer, the one that the model uses for a text of `table_tokens` tokens.  A publisher records it
in the manifest's `rope`, readers compute with it, and what goes on beyond these tokens is refused.  Where nothing is
recorded, the model's own choice stands, and the whole has to stay on one side of the threshold.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kvswap.core.errors import Incompatible

HEADROOM = 1024
"""Tokens behind a document that its table has room for, if the model's context has."""
TABLE = "table_tokens"
"""The field of a manifest's `rope` with the length of text whose table the document was computed with."""


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
    """Check that `tokens` tokens in blocks, and `headroom` more, get one table if the model chooses for each block.

    Raises `Incompatible` if they cross a threshold.
    """
    first = min(block_tokens, tokens)  # the shortest that the model sees of it
    for threshold in thresholds(config):
        if tokens + headroom <= threshold.tokens or (threshold.beyond and first > threshold.tokens):
            continue
        raise _crossed(
            f"the threshold of this model's {threshold.kind} RoPE at {threshold.tokens} tokens",
            tokens,
            headroom,
            threshold.tokens,
        )


def _crossed(what: str, tokens: int, headroom: int, limit: int) -> Incompatible:
    more = f", {headroom} of them for question and answer" if headroom else ""
    return Incompatible(
        f"{tokens + headroom} tokens{more} cross {what}",
        cause="longer texts are computed with other frequencies, and a cache would mix both",
        hint=f"stay within {limit} tokens: publish --truncate, or a shorter answer with --max-tokens",
        field="layout.rope",
        threshold=limit,
    )


def choose(config: Any, context: int, tokens: int, headroom: int) -> int:
    """Return the `table_tokens` for a document of `tokens` tokens, or 0 where the model's own choice is as good.

    `context` is the most tokens that the model takes; what goes beyond is for the caller to refuse.
    """
    found = thresholds(config)
    length = tokens + max(headroom, HEADROOM)
    if not found or length <= found[0].tokens or context <= found[0].tokens:
        return 0
    if _lasts(found, length):
        return context  # one name for the table of all longer texts
    # Whole steps, so that publishers of one document seldom differ.
    return min(context, -(-length // HEADROOM) * HEADROOM)


def recorded(rope: str) -> int:
    """Return the `table_tokens` of a manifest's `rope`, 0 where there is none or it is no length of a text."""
    try:
        fields = json.loads(rope)
    except (ValueError, RecursionError):  # other software's words; only ours has a table
        return 0
    table = fields.get(TABLE, 0) if isinstance(fields, dict) else 0
    return table if isinstance(table, int) and not isinstance(table, bool) and table > 0 else 0


def check_table(config: Any, context: int, table: int, tokens: int, headroom: int) -> None:
    """Check that a model has the table of texts of `table` tokens, with room for `tokens` and `headroom` more.

    Raises `Incompatible` if not.
    """
    found = thresholds(config)
    if not found or table > context:
        raise Incompatible(
            f"the artifact has the RoPE table of texts of {table} tokens, which this model has not", field="layout.rope"
        )
    if tokens + headroom > table and not _lasts(found, table):
        raise _crossed(f"the {table} tokens that this RoPE table was chosen for", tokens, headroom, table)


def _lasts(found: tuple[Threshold, ...], tokens: int) -> bool:
    """Return True if the table of texts of `tokens` tokens is that of all longer ones."""
    return all(threshold.beyond and tokens > threshold.tokens for threshold in found)


def table_alone(config: Any, context: int, tokens: int) -> int:
    """Return the `table_tokens` of a document after which the model chooses for itself, as in a caller's process.

    It is 0 below all thresholds.  Raises `Incompatible` where the model would go on with another table.
    """
    found = thresholds(config)
    if not found or tokens <= found[0].tokens:
        return 0
    if not _lasts(found, tokens):
        check(config, tokens, 0, 1)
    return context


def require_own(config: Any, rope: str, tokens: int, block_tokens: int) -> None:
    """Check that a model left to itself goes on after `tokens` tokens with the table of an artifact with this `rope`.

    Raises `Incompatible` if it does not, as where its caller or another engine runs it.
    """
    table = recorded(rope)
    if not table:
        check(config, tokens, 0, block_tokens)
    elif not (found := thresholds(config)) or not _lasts(found, min(table, tokens + 1)):
        raise Incompatible(
            f"the artifact's keys were computed with the RoPE table of texts of {table} tokens, "
            f"and this model would go on after {tokens} with that of shorter ones",
            cause="transformers and vLLM choose a table by the length of the text so far",
            hint="kvswap ask goes on with the artifact's own table",
            field="layout.rope",
        )


def longest(config: Any, context: int) -> int:
    """Return the most tokens that a text may have to fit the context and stay below every threshold."""
    return min([context, *(threshold.tokens for threshold in thresholds(config))])


def extended(config: Any, context: int) -> int:
    """Return the context of a model, which dynamic RoPE makes longer by its factor than the file's own number."""
    factors = [
        float(parameters.get("factor") or 1)
        for parameters in _rope_parameters(config)
        if "dynamic" in str(parameters.get("rope_type") or parameters.get("type"))
    ]
    return int(context * max(1.0, min(factors, default=1.0)))


def pin(model: Any, table: int) -> None:
    """Make a model use the table of texts of `table` tokens for every length; with 0 it chooses for itself again.

    A model chooses by the largest position of a forward pass: one more is put behind the others, and its row dropped.
    """
    for module in _choosing(model):
        module.__dict__.pop("forward", None)
        if table:
            module.forward = _as_long(module.forward, table - 1)
    set_back(model)


@contextmanager
def pinned(model: Any, table: int) -> Iterator[None]:
    """Pin a table while the block runs, in a model that belongs to somebody else."""
    if not table:
        yield
        return
    pin(model, table)
    try:
        yield
    finally:
        pin(model, 0)


def _choosing(model: Any) -> Iterator[Any]:
    """Yield the modules of a model that choose a table by the length of the text."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        names = kinds.values() if isinstance(kinds, dict) else [kinds]
        if any(name == "longrope" or "dynamic" in str(name) for name in names):
            yield module


def _as_long(forward: Any, last: int) -> Any:
    def pinned(x: Any, position_ids: Any, *rest: Any, **more: Any) -> Any:
        import torch

        further = position_ids.new_full((*position_ids.shape[:-1], 1), last)
        tables = forward(x, torch.cat([position_ids, further], dim=-1), *rest, **more)
        return tuple(table[..., :-1, :] for table in tables)

    return pinned


def set_back(model: Any) -> None:
    """Restore dynamic RoPE tables that a longer text has extended, so that a shorter one gets its own frequencies."""
    for module in _choosing(model):
        own = getattr(module, "original_max_seq_len", None)
        kinds = getattr(module, "rope_type", None)
        for prefix in [f"{kind}_" for kind in kinds] if isinstance(kinds, dict) else [""]:
            grown = getattr(module, f"{prefix}max_seq_len_cached", None)
            first = getattr(module, f"{prefix}original_inv_freq", None)
            if grown is not None and own is not None and grown > own and first is not None:
                table = first.to(getattr(module, f"{prefix}inv_freq").device)
                module.register_buffer(f"{prefix}inv_freq", table, persistent=False)
                setattr(module, f"{prefix}max_seq_len_cached", own)
