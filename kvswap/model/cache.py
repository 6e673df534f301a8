"""Conversion of transformers caches to tensors and back.

`PreallocatedLayer` is a full-attention layer with memory reserved for further tokens: `update` writes behind the
present ones and returns views, while the stock layer copies everything at every step.  It is bitwise equal to the stock
layer (tested), and falls back to it when the memory is used up or the cache was edited.

Not every layer of a model keeps something: in Gemma 3n and the small Gemma 4 the last layers read the keys and values
of earlier ones.  transformers gives them a `DummyLayer` from 5.23 on, and none before.  A *cache layer* here, as in a
manifest, is one that keeps keys and values, counted from 0 (`caching_layers`); `cache_indices` says which layer of the
model is which cache layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import cache_utils
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from kvswap.artifact import layout as layouts
from kvswap.artifact.manifest import LayerSpec
from kvswap.artifact.tensors import LayerTensors
from kvswap.core.errors import Incompatible


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """A `DynamicLayer` over preallocated memory for `headroom` tokens."""

    def __init__(self, headroom: int) -> None:
        super().__init__()
        self._headroom = headroom
        self._k: torch.Tensor | None = None
        self._v: torch.Tensor | None = None

    @classmethod
    def filled(cls, k: torch.Tensor, v: torch.Tensor, tokens: int) -> PreallocatedLayer:
        """Wrap tensors [head, capacity, dim] whose first `tokens` are filled; the layer owns them from then on."""
        layer = cls(k.shape[1])
        layer._k, layer._v = k[None], v[None]
        layer.dtype, layer.device, layer.is_initialized = k.dtype, k.device, True
        layer.keys, layer.values = layer._k[:, :, :tokens], layer._v[:, :, :tokens]
        return layer

    def _owns(self, view: Any, base: torch.Tensor) -> bool:
        return (
            isinstance(view, torch.Tensor)
            # not `data_ptr`, which is 0 for a view of no tokens
            and view.untyped_storage().data_ptr() == base.untyped_storage().data_ptr()
            and view.storage_offset() == base.storage_offset()
            and view.shape[0] == base.shape[0]
            and view.stride() == base.stride()
        )

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Append keys and values, and return all of them so far, as views while they fit the memory."""
        new = key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            if new <= self._headroom:
                self._k = key_states.new_empty((*key_states.shape[:2], self._headroom, key_states.shape[-1]))
                self._v = value_states.new_empty((*value_states.shape[:2], self._headroom, value_states.shape[-1]))
                self.keys, self.values = self._k[:, :, :0], self._v[:, :, :0]
        k, v = self._k, self._v
        have = self.keys.shape[-2] if self.keys.dim() == 4 else 0
        fits = k is not None and v is not None and have + new <= k.shape[2] and key_states.shape[0] == k.shape[0]
        # If the cache was cropped, repeated or reordered, `keys` and `values` are no longer views of this memory.
        if not fits or k is None or v is None or not (self._owns(self.keys, k) and self._owns(self.values, v)):
            self._k = self._v = None
            return super().update(key_states, value_states, *args, **kwargs)
        k[:, :, have : have + new] = key_states
        v[:, :, have : have + new] = value_states
        self.keys, self.values = k[:, :, : have + new], v[:, :, : have + new]
        return self.keys, self.values

    def reach(self, tokens: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Extend the layer to the first `tokens` tokens: those it holds already, and the rest from k and v.

        `k` and `v` are [head, capacity, dim] and may be the layer's own memory, which is then not copied.
        Raises `ValueError` if the layer was edited.
        """
        if self._k is None or self._v is None:
            raise ValueError("the layer was edited")
        have = self.keys.shape[2]
        for own, given in ((self._k, k), (self._v, v)):
            if own.data_ptr() != given.data_ptr():
                own[0, :, have:tokens] = given[:, have:tokens].to(own.device)
        self.keys, self.values = self._k[:, :, :tokens], self._v[:, :, :tokens]

    def reset(self) -> None:
        """Empty the layer and give up its memory."""
        self._k = self._v = None
        super().reset()


_NOTHING_KEPT: type | None = getattr(cache_utils, "DummyLayer", None)


def _keeps(layer: Any) -> bool:
    return type(layer) is not _NOTHING_KEPT


def caching_layers(cache: Any) -> list[Any]:
    """Return the layers of a transformers cache that keep keys and values, in the model's order."""
    return [layer for layer in cache.layers if _keeps(layer)]


def cache_indices(cache: Any) -> dict[int, int]:
    """Return which cache layer each layer of the model is, by its number; those that keep nothing are left out."""
    holding = [index for index, layer in enumerate(cache.layers) if _keeps(layer)]
    return {index: place for place, index in enumerate(holding)}


class StoppableCache(DynamicCache):  # type: ignore[misc]
    """A `DynamicCache` that calls `before` when a layer is about to store what a forward pass computed.

    `before` is called with the number of the cache layer.  It may raise, which ends the forward pass before that layer
    has taken anything.
    """

    before: Callable[[int], None] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._places = cache_indices(self)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        """Call `before`, then store the keys and values of a layer."""
        if self.before is not None:
            self.before(self._places[layer_idx])
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def new_cache(config: Any, headroom: int) -> DynamicCache:
    """Make an empty cache for a model, with memory for `headroom` tokens in its full-attention layers.

    Raises `Incompatible` for a layer kind that kvswap cannot exchange.
    """
    cache = DynamicCache(config=config)
    check_layers(cache)
    cache.layers = [PreallocatedLayer(headroom) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def cache_over(config: Any, tensors: Sequence[LayerTensors], tokens: int, device: str | torch.device) -> StoppableCache:
    """Make a cache that computes a document into `tensors`, whose first `tokens` tokens are present already.

    The tensors of full-attention layers become the cache's memory (on the CPU without a copy); sliding layers start
    empty.  `close_over` ends the computation.  Raises `Incompatible` for a layer kind that kvswap cannot exchange.
    """
    cache = StoppableCache(config=config)
    check_layers(cache)
    for index, place in cache_indices(cache).items():
        if type(cache.layers[index]) is DynamicLayer:
            held = tensors[place]
            cache.layers[index] = PreallocatedLayer.filled(held.k.to(device), held.v.to(device), tokens)
    return cache


def close_over(cache: StoppableCache, tensors: Sequence[LayerTensors], computed: int, tokens: int) -> None:
    """Complete a cache of `cache_over`: join the `computed` first tokens with the tensors' others, up to `tokens`."""
    cache.before = None
    for layer, held in zip(caching_layers(cache), tensors, strict=True):
        if isinstance(layer, PreallocatedLayer):
            layer.reach(tokens, held.k, held.v)
        elif computed < tokens:
            own = computed - held.first  # tokens of the layer's window that were computed
            if own > 0:
                held.k[:, :own], held.v[:, :own] = (t[0, :, -own:].cpu() for t in (layer.keys, layer.values))
            device = layer.keys.device if layer.is_initialized else held.k.device
            _fill_sliding(layer, held.k.to(device), held.v.to(device), tokens)


def _fill_sliding(layer: Any, k: torch.Tensor, v: torch.Tensor, tokens: int) -> None:
    if not layer.is_initialized:
        layer.lazy_initialization(k[None], v[None])
    layer.keys, layer.values = k[None], v[None]
    # `update` would count only what is stored; positions and masks need what was seen.
    layer.cumulative_length = tokens


def check_layers(cache: Any) -> None:
    """Check that every cache layer is of a kind that kvswap handles exactly.

    Raises `Incompatible` naming the others.
    """
    for index, layer in enumerate(cache.layers):
        if _keeps(layer) and type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer, PreallocatedLayer):
            raise Incompatible(
                f"cache layer {index} is a {type(layer).__name__}, which kvswap cannot exchange",
                cause="linear-attention, quantised and hybrid layers keep state of another kind",
                field="layout",
            )
        if isinstance(layer, DynamicSlidingWindowLayer) and layer.sliding_window < 2:
            raise Incompatible(f"cache layer {index} has a window of {layer.sliding_window}", field="layout")
    if not caching_layers(cache) or not _keeps(cache.layers[0]):
        # Reading tokens back and computing layer 0 again take it for a function of the token and its position.
        raise Incompatible("the first layer of the model keeps no keys and values", field="layout")


def layer_specs(cache: Any) -> list[LayerSpec]:
    """Return the kinds and shapes of the layers of a cache that holds at least one token.

    Raises `Incompatible` for a layer that was never filled, for a batch, and for a layer kind that kvswap cannot
    exchange.
    """
    check_layers(cache)
    specs = []
    for index, layer in enumerate(caching_layers(cache)):
        if not layer.is_initialized or layer.keys.dim() != 4:
            raise Incompatible(
                f"cache layer {index} was never filled", cause="its state lies elsewhere", field="layout"
            )
        if layer.keys.shape[0] != 1:
            raise Incompatible(f"the cache holds a batch of {layer.keys.shape[0]}", field="layout")
        sliding = isinstance(layer, DynamicSlidingWindowLayer)
        specs.append(
            LayerSpec(
                kind="sliding" if sliding else "full",
                heads=layer.keys.shape[1],
                k_dim=layer.keys.shape[3],
                v_dim=layer.values.shape[3],
                window=int(layer.sliding_window) if sliding else None,
            )
        )
    return specs


def capture_block(
    cache: Any, specs: Sequence[LayerSpec], layer_group: Sequence[int], start: int, stop: int
) -> list[torch.Tensor]:
    """Copy K and V of each layer in `layer_group` for block [start, stop), which was just computed.

    The copies are CPU tensors [head, token, dim], in the order of `layer_group`, K before V.
    """
    parts, layers = [], caching_layers(cache)
    for index in layer_group:
        first, last = layouts.stored_span(specs[index], start, stop)
        layer = layers[index]
        for tensor in (layer.keys, layer.values):
            at = tensor.shape[2] - (last - first)
            parts.append(tensor[0, :, at:].cpu().contiguous().clone())
    return parts


def held_tensors(cache: Any, specs: Sequence[LayerSpec], tokens: int) -> list[LayerTensors]:
    """Return K and V of each layer after `tokens` tokens, as views where the cache is on the CPU."""
    out = []
    for spec, layer in zip(specs, caching_layers(cache), strict=True):
        first, stop = layouts.held_span(spec, tokens)
        k, v = (t[0, :, t.shape[2] - (stop - first) :] for t in (layer.keys, layer.values))
        out.append(LayerTensors(k.cpu(), v.cpu(), first, stop - first))
    return out


def build_cache(
    config: Any, tensors: Sequence[LayerTensors], tokens: int, device: str | torch.device = "cpu"
) -> DynamicCache:
    """Wrap tensors into a cache that has seen `tokens` tokens.

    Raises `Incompatible` if the model has another number of cache layers, or one of a kind that kvswap cannot exchange.
    """
    cache = DynamicCache(config=config)
    check_layers(cache)
    found = cache_indices(cache)
    if len(found) != len(tensors):
        raise Incompatible(
            f"the artifact has {len(tensors)} cache layers, the model {len(found)}", field="layout.layers"
        )
    for index, place in found.items():
        layer, held = cache.layers[index], tensors[place]
        k, v = held.k.to(device), held.v.to(device)
        if isinstance(layer, DynamicSlidingWindowLayer):
            _fill_sliding(layer, k, v, tokens)
        else:
            cache.layers[index] = PreallocatedLayer.filled(k, v, held.tokens)
    return cache
