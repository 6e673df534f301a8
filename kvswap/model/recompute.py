"""Recomputation of parts of a cache, for comparison with a cache that another node supplied.

`first_layer` needs only the tokens: K and V of layer 0 come from a token and its position alone.  `at_positions`
computes a few positions of every layer on top of a supplied cache, all in one forward pass: each attends to the
supplied tokens before it and to itself.  Both stop as soon as the last K and V that they need are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from kvswap.artifact.blocks import Blocks
from kvswap.artifact.tensors import LayerTensors
from kvswap.core.errors import Incompatible
from kvswap.model import reach
from kvswap.model.cache import cache_indices
from kvswap.model.kernels import initialize_kernels
from kvswap.model.load import LoadedModel
from kvswap.model.passing import cache_of

initialize_kernels()  # every module that computes imports this one or `prefill`


class _Taken(Exception):
    """The signal that the last wanted K and V were computed."""


class _FirstLayerCache(DynamicCache):  # type: ignore[misc]
    """A cache that takes the first keys and values that are computed; the states of layers before them go on in it."""

    taken: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        self.taken = (key_states[0], value_states[0])
        raise _Taken


class _Supplied(DynamicCache):  # type: ignore[misc]
    """A cache that shows every layer the supplied tokens before the computed ones, and records their differences."""

    def __init__(self, config: Any, tensors: Sequence[LayerTensors], tokens: int, positions: torch.Tensor) -> None:
        super().__init__(config=config)
        self._tensors, self._tokens, self._positions = tensors, tokens, positions
        self._places = cache_indices(self)
        self.errors = torch.zeros(len(positions), len(tensors), 2)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        place = self._places[layer_idx]
        held = self._tensors[place]
        shown = []
        for kind, (supplied, computed) in enumerate(((held.k, key_states[0]), (held.v, value_states[0]))):
            before = supplied[:, : self._tokens]
            self.errors[:, place, kind] = relative(before[:, self._positions], computed.cpu())
            shown.append(torch.cat([before.to(computed.device), computed], dim=1)[None])
        if place == len(self._tensors) - 1:
            raise _Taken
        return tuple(shown)


def relative(supplied: torch.Tensor, computed: torch.Tensor) -> torch.Tensor:
    """Return |supplied - computed| / |computed| for each token of [head, token, dim], as float32.

    The norms are over heads and dims.  A difference that is not finite counts as infinite.
    """
    wanted = computed.float()
    far = (supplied.float() - wanted).square().sum((0, 2)).sqrt()
    near = wanted.square().sum((0, 2)).sqrt().clamp_min(1e-12)
    return (far / near).nan_to_num(torch.inf, torch.inf, torch.inf)


def first_layer(
    loaded: LoadedModel, ids: Sequence[int], block_tokens: int, cuts: Sequence[int] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute K (after RoPE) and V of the first layer that keeps them, [head, token, dim], on the CPU.

    It uses the canonical schedule's blocks, so that on one class of machine the bits are the publisher's.  Layers below
    it, which keep states, are computed as well.
    """
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    cache = _FirstLayerCache(config=loaded.model.config)
    for start, stop in Blocks(len(ids), block_tokens, cuts):
        cache.taken = None
        _run(loaded, cache, ids[start:stop], range(start, stop))
        if cache.taken is None:
            raise Incompatible("the model fills no cache", field="layout")
        keys.append(cache.taken[0].cpu())
        values.append(cache.taken[1].cpu())
    return torch.cat(keys, 1), torch.cat(values, 1)


def at_positions(
    loaded: LoadedModel, tensors: Sequence[LayerTensors], tokens: int, ids: Sequence[int], positions: Sequence[int]
) -> torch.Tensor:
    """Return the relative difference of a supplied cache from the model at these positions, [position, layer, K or V].

    `ids` are the ids of all `tokens` tokens.  Raises `Incompatible` for sliding-window layers and states, which
    lack what earlier positions attended to.
    """
    if any(held.first or held.spec.has_states for held in tensors):
        raise Incompatible("sliding layers and states keep too little to compute a position again", field="layout")
    wanted = len(positions)
    if tokens - 1 not in positions and reach.thresholds(loaded.model.config.get_text_config(decoder=True)):
        positions = [*positions, tokens - 1]  # the last position makes the model use the document's own rotary table
    where = torch.tensor(list(positions))
    cache = _Supplied(loaded.model.config, tensors, tokens, where)
    count = len(positions)
    mask = torch.full((count, tokens + count), torch.finfo(loaded.model.dtype).min, dtype=loaded.model.dtype)
    mask[:, :tokens].masked_fill_(torch.arange(tokens) < where[:, None], 0)
    mask[:, tokens:].fill_diagonal_(0)
    _run(loaded, cache, [ids[p] for p in positions], positions, mask[None, None].to(loaded.device))
    return cache.errors[:wanted]


def _run(
    loaded: LoadedModel, cache: Any, ids: Sequence[int], positions: Sequence[int], mask: torch.Tensor | None = None
) -> None:
    tokens = torch.tensor([list(ids)], device=loaded.device)
    where = torch.tensor([list(positions)], device=loaded.device)
    try:
        with torch.inference_mode(False), torch.no_grad():
            loaded.model(
                input_ids=tokens,
                position_ids=where,
                attention_mask=mask,
                use_cache=True,
                logits_to_keep=1,
                **cache_of(loaded.model, cache),
            )
    except _Taken:
        return


def differences(supplied: Sequence[LayerTensors], computed: Sequence[LayerTensors]) -> torch.Tensor:
    """Return the relative difference of two caches at each token, [token, layer, tensor of the layer].

    It is not a number where a layer keeps nothing of a token, or has no such tensor.  That of a state, which stands for
    all tokens together, is the same at each of them.
    """
    tokens = max(held.first + held.tokens for held in computed)
    out = torch.full((tokens, len(computed), max(len(held.tensors) for held in computed)), torch.nan)
    for layer, (one, other) in enumerate(zip(supplied, computed, strict=True)):
        for place, spec in enumerate(other.spec.tensors):
            a, b = one.filled(place), other.filled(place)
            if spec.rows is None:
                out[other.first :, layer, place] = relative(a, b)
            else:
                out[:, layer, place] = relative(a.reshape(1, 1, -1), b.reshape(1, 1, -1))
    return out
