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
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from kvswap.artifact import layout as layouts
from kvswap.artifact.specs import LayerSpec, Layout
from kvswap.artifact.tensors import LayerTensors
from kvswap.core.errors import Incompatible
from kvswap.model import layers as kinds


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


def caching_layers(cache: Any) -> list[Any]:
    """Return the layers of a transformers cache that keep keys and values, in the model's order."""
    return [layer for layer in cache.layers if kinds.keeps(layer)]


def cache_indices(cache: Any) -> dict[int, int]:
    """Return which cache layer each layer of the model is, by its number; those that keep nothing are left out."""
    holding = [index for index, layer in enumerate(cache.layers) if kinds.keeps(layer)]
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
            device = cache_device(cache) or held.tensors[0].device
            if kinds.grows(layer):
                own = computed - held.first  # tokens of the layer's part that were computed
                if own > 0:
                    _take_computed(layer, held, own)
                kinds.fill_grown(layer, held, tokens, device)
            kinds.fill_states(layer, held, device)


def _take_computed(layer: Any, held: LayerTensors, own: int) -> None:
    """Copy the last `own` tokens that a layer has computed to the front of what it is to hold."""
    made = kinds.read(layer, held.spec, own)
    for spec, into, tensor in zip(held.spec.tensors, held.tensors, made, strict=True):
        if spec.rows is None:
            into[:, :own] = tensor.cpu()


def cache_device(cache: Any) -> Any:
    """Return the device of what a cache holds, or None for an empty one."""
    return next((tensor.device for layer in caching_layers(cache) for _, tensor in kinds.tensors_in(layer)), None)


def set_aside(cache: Any) -> Callable[[], None]:
    """Note what a cache holds, and return a function that puts it back after further tokens."""
    notes = [kinds.note(layer) for layer in caching_layers(cache)]

    def restore() -> None:
        for put_back in notes:
            put_back()

    return restore


def check_layers(cache: Any) -> None:
    """Check that every cache layer is of a kind that kvswap handles exactly.

    Raises `Incompatible` naming the others.
    """
    for index, layer in enumerate(cache.layers):
        if kinds.keeps(layer) and not isinstance(layer, PreallocatedLayer) and kinds.kind_of(layer) is None:
            raise Incompatible(
                f"cache layer {index} is a {type(layer).__name__}, which kvswap cannot exchange",
                cause="quantised and compressed layers keep something of another kind",
                field="layout",
            )
        if isinstance(layer, DynamicSlidingWindowLayer) and layer.sliding_window < 2:
            raise Incompatible(f"cache layer {index} has a window of {layer.sliding_window}", field="layout")
    if not caching_layers(cache) or not kinds.keeps(cache.layers[0]):
        # Reading tokens back and computing layer 0 again take it for a function of the token and its position.
        raise Incompatible("the first layer of the model keeps no keys and values", field="layout")


def layer_specs(cache: Any) -> list[LayerSpec]:
    """Return the kinds and tensors of the layers of a cache that holds at least one token.

    The dtype that needs no mention is that of the first tensor.  Raises `Incompatible` for a layer that was never
    filled, for a batch, and for a layer kind that kvswap cannot exchange.
    """
    check_layers(cache)
    layers = caching_layers(cache)
    held = [kinds.tensors_in(layer) for layer in layers]
    usual = next((tensors[0][1].dtype for tensors in held if tensors), None)
    specs = []
    for index, (layer, tensors) in enumerate(zip(layers, held, strict=True)):
        states = [name for name, _ in tensors if name.startswith((kinds.CONV, kinds.RECURRENT))]
        if usual is None or not tensors or bool(states) != isinstance(layer, kinds.STATES):
            raise Incompatible(
                f"cache layer {index} was never filled", cause="its state lies elsewhere", field="layout"
            )
        if kinds.grows(layer) and (not layer.is_initialized or layer.keys.dim() != 4):
            raise Incompatible(
                f"cache layer {index} was never filled", cause="its state lies elsewhere", field="layout"
            )
        if any(tensor.shape[0] != 1 for _, tensor in tensors):
            raise Incompatible(f"the cache holds a batch of {tensors[0][1].shape[0]}", field="layout")
        specs.append(kinds.spec_of(layer, kinds.kind_of(layer) or "full", usual))
    return specs


def capture_block(cache: Any, layout: Layout, group: int, start: int, stop: int) -> list[torch.Tensor]:
    """Copy the tensors of a group for block [start, stop), which was just computed.

    The copies are CPU tensors [head, row, dim], layer by layer.
    """
    parts, layers = [], caching_layers(cache)
    for index, place in layout.members[group]:
        first, last = layouts.stored_span(layout.layers[index], start, stop)
        tensor = kinds.read(layers[index], layout.layers[index], last - first)[place]
        parts.append(tensor.cpu().contiguous().clone())
    return parts


def held_tensors(cache: Any, specs: Sequence[LayerSpec], tokens: int) -> list[LayerTensors]:
    """Return the tensors of each layer after `tokens` tokens: states copied, others as views where on the CPU."""
    out = []
    for spec, layer in zip(specs, caching_layers(cache), strict=True):
        first, stop = layouts.held_span(spec, tokens)
        read = kinds.read(layer, spec, stop - first)
        # A layer goes on in the memory of its states.
        own = [t.cpu() if one.rows is None else t.cpu().clone() for one, t in zip(spec.tensors, read, strict=True)]
        out.append(LayerTensors(spec, tuple(own), first, stop - first))
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
        if not kinds.match(layer, held.spec):
            raise Incompatible(
                f"cache layer {place} of the artifact is of kind {held.spec.kind}, which the model's is not",
                field="layout.layers",
            )
        if type(layer) is DynamicLayer:
            cache.layers[index] = PreallocatedLayer.filled(held.k.to(device), held.v.to(device), held.tokens)
            continue
        if kinds.grows(layer):
            kinds.fill_grown(layer, held, tokens, device)
        kinds.fill_states(layer, held, device)
    return cache
