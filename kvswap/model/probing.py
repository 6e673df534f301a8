"""A test, on a few tokens, that a model uses the cache that it is given.

Some models accept a cache and keep their state elsewhere, or attend to new tokens only: their caches would be filled,
signed and loaded without an error, and mean nothing.  The whole model runs once, for three tokens; the token that
follows is computed up to the second layer only: on the cache, on a cache with other contents, and in one pass.
Others continue one token at a time from a state, and begin every pass of several tokens with an empty one: their blocks
are not the document's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kvswap.artifact.tensors import LayerTensors
from kvswap.core.errors import Incompatible, KvswapError
from kvswap.model import finite, reach
from kvswap.model import layers as kinds
from kvswap.model.cache import (
    StoppableCache,
    build_cache,
    cache_indices,
    caching_layers,
    check_layers,
    held_tensors,
    layer_specs,
)
from kvswap.model.passing import cache_argument, cache_of

_IDS = ((5, 9, 7, 11), (23, 3, 17, 4), (8, 31, 6, 15))  # three of the document, one that follows
_FAR = 1 << 20
_STRONG = 1e30  # so that a state is felt whatever the weights; a state that is not read may overflow
_NEAR = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}  # tolerance of one token's keys at one position


class _Stop(Exception):
    """The signal that the wanted keys were computed."""


def check_cache(model: Any) -> None:
    """Check that the model fills the cache that it is given, and continues from its contents.

    Raises `Incompatible` if it does not, or cannot be run with such a cache.
    """
    text = model.config.get_text_config(decoder=True)
    vocabulary = int(getattr(text, "vocab_size", 0) or 40)
    try:
        with torch.inference_mode(False), torch.no_grad():
            if not any(_uses(model, [i % vocabulary for i in ids]) for ids in _IDS):
                raise _refused("does not continue from the cache that it is given")
            _check_states(model, [[i % vocabulary for i in ids] for ids in _IDS])
            if not reach.thresholds(text):
                _check_far(model, int(getattr(text, "max_position_embeddings", 0) or _FAR))
    except (KvswapError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the model is the caller's, and may raise anything
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise _refused(f"cannot be run with the cache that kvswap gives it ({said})") from error


def _refused(what: str) -> Incompatible:
    return Incompatible(
        f"the model {what}",
        cause="its state lies elsewhere, so a cache of it would mean nothing",
        field="layout",
    )


def _uses(model: Any, ids: list[int]) -> bool:
    """Return True if the next token depends on the cache's contents.

    It has to be nearer to the token of one pass with the right contents than with others.
    """
    before = len(ids) - 1
    cache = StoppableCache(config=model.config)
    check_layers(cache)
    out = _forward(model, cache, ids[:before], 0)
    if getattr(out, cache_argument(model), None) is not cache:
        raise _refused("gives back another cache than it was given")
    specs = layer_specs(cache)
    for index, layer in enumerate(caching_layers(cache)):
        if (seen := kinds.tokens_in(layer)) not in (before, None):
            raise _refused(f"holds {seen} tokens in cache layer {index} after {before}")
    held = held_tensors(cache, specs, before)
    # Non-finite values cannot be compared; and a model that overflows at three tokens computes no document.
    finite.check_held(held, str(held[0].tensors[0].dtype).removeprefix("torch."))
    growing = [index for index, layer in enumerate(specs) if layer.kind != "state"]
    first = growing[0] if growing else None
    # Up to the second layer of keys, which depends on what the first one attended to; or to the logits.
    for last in (*growing[1:2], len(held)):
        own, right = _keys(model, _copied(model, held, before, 1.0), ids[before:], before, (first, last))
        _, other = _keys(model, _copied(model, held, before, -1.0), ids[before:], before, (first, last))
        whole_own, whole = _keys(model, StoppableCache(config=model.config), ids, 0, (first, last))
        if first is not None and not specs[0].has_states and _apart(own, whole_own) > _NEAR.get(own.dtype, 0.1):
            raise _refused("does not count positions on from the cache that it is given")
        if not torch.equal(right, other):
            return _apart(right, whole) < _apart(other, whole)
    return False


def _check_states(model: Any, samples: Sequence[list[int]]) -> None:
    """Refuse a model that takes no notice of a state it is given when several tokens follow."""
    before = 2
    unused = {kinds.CONV, kinds.RECURRENT}
    for ids in samples:
        cache = StoppableCache(config=model.config)
        _forward(model, cache, ids[:before], 0)
        specs = layer_specs(cache)
        stateful = [index for index, spec in enumerate(specs) if spec.has_states]
        unused &= {t.name.partition(".")[0] for index in stateful for t in specs[index].tensors}
        if not unused:
            return
        held = held_tensors(cache, specs, before)
        # Up to the first keys that depend on a state; or to the logits.
        later = [index for index, spec in enumerate(specs) if spec.kind != "state" and index > stateful[0]]
        last = (None, later[0] if later else len(specs))
        _, right = _keys(model, _copied(model, held, before, 1.0), ids[before:], before, last)
        for kind in sorted(unused):
            _, other = _keys(model, _copied(model, held, before, -_STRONG, kind), ids[before:], before, last)
            if not torch.equal(right, other):
                unused.discard(kind)
    if unused:
        raise Incompatible(
            f"the model begins every pass of several tokens with an empty {' and '.join(sorted(unused))} state",
            cause="computed in blocks, a document would be forgotten at the end of each",
            field="layout",
        )


def _copied(model: Any, held: Sequence[LayerTensors], tokens: int, sign: float, kind: str = "") -> Any:
    """Make a cache of copies; those tensors whose names begin with `kind` are multiplied by `sign`."""
    copies = []
    for one in held:
        signs = [sign if spec.name.startswith(kind) else 1.0 for spec in one.spec.tensors]
        made = tuple(tensor.clone() * own for tensor, own in zip(one.tensors, signs, strict=True))
        copies.append(LayerTensors(one.spec, made, one.first, one.tokens))
    return build_cache(model.config, copies, tokens, model.device)


def _keys(
    model: Any, cache: Any, ids: list[int], start: int, layers: tuple[int | None, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys of the last token, and what is computed last.

    `layers`: the cache layer whose keys are returned (None: an empty tensor), and the one whose keys and values are
    computed last (beyond all layers: the logits).
    """
    first, last = layers
    taken: list[torch.Tensor] = [torch.empty(0)] if first is None else []
    right, where = cache.update, cache_indices(cache)

    def update(keys: torch.Tensor, values: torch.Tensor, layer: int, *rest: Any, **more: Any) -> Any:
        if where[layer] == first:
            taken.append(keys[0, :, -1].clone())
        if where[layer] == last:
            taken.append(torch.cat([keys[0, :, -1].flatten(), values[0, :, -1].flatten()]))
            raise _Stop
        return right(keys, values, layer, *rest, **more)

    cache.update = update
    try:
        taken.append(_forward(model, cache, ids, start).logits[0, -1])
    except _Stop:
        pass
    if len(taken) < 2:
        raise _refused("does not fill the cache that it is given")
    return taken[0], taken[-1]


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the relative distance |one - other| / |other|."""
    far = (one.float() - other.float()).norm()
    return float(far / other.float().norm().clamp_min(1e-12))


def _forward(model: Any, cache: Any, ids: Sequence[int], start: int) -> Any:
    return _at(model, cache, ids, range(start, start + len(ids)))


def _at(model: Any, cache: Any, ids: Sequence[int], positions: Sequence[int]) -> Any:
    return model(
        input_ids=torch.tensor([list(ids)], device=model.device),
        position_ids=torch.tensor([list(positions)], device=model.device),
        use_cache=True,
        logits_to_keep=1,
        **cache_of(model, cache),
    )


def _check_far(model: Any, context: int) -> None:
    """Refuse a model whose keys of one token at one position change with the length of the text."""
    keys = []
    for second in (2, min(context, _FAR) - 1):
        cache = StoppableCache(config=model.config)

        def update(own: torch.Tensor, *_: Any, **__: Any) -> Any:
            keys.append(own[0, :, 0].clone())
            raise _Stop

        cache.update = update  # type: ignore[assignment,method-assign]
        try:
            _at(model, cache, (1, 2), (1, second))
        except _Stop:
            pass
        except Exception:  # noqa: BLE001 - not every model takes positions with gaps
            return
    if keys and _apart(*keys) > _NEAR.get(keys[0].dtype, 0.1):
        raise Incompatible(
            "the model's keys depend on how long the text is, in a way that kvswap does not know",
            cause="a cache made in blocks would mix keys of several lengths",
            field="layout.rope",
        )
