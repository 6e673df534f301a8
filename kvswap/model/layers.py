"""One layer of a transformers cache as the named tensors of a `LayerSpec`, read and written.

What a layer keeps beside keys and values is found in its attributes, whatever model it belongs to: the states of
convolutions and recurrences (`LinearAttentionLayer` and its combinations with attention), and the keys of a sparse
attention's index (`DynamicIndexedLayer`, and MiniMax-M3's own class).  Names are the attribute's and its number:
`conv.0`, `recurrent.0`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import cache_utils
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from kvswap.artifact.specs import KEY, VALUE, LayerSpec, TensorSpec
from kvswap.artifact.tensors import LayerTensors
from kvswap.core.errors import Incompatible

INDEX = "index"
CONV, RECURRENT = "conv", "recurrent"


def _class(name: str) -> Any:
    """Return a class that not every supported transformers has; one without instances in its place."""
    return getattr(cache_utils, name, type(name, (), {}))


_NOTHING_KEPT = _class("DummyLayer")
INDEXED = _class("DynamicIndexedLayer")
STATES = _class("LinearAttentionLayer")
_BOTH = {
    _class("LinearAttentionAndFullAttentionLayer"): "full+state",
    _class("LinearAttentionAndSlidingWindowAttentionLayer"): "sliding+state",
}
# Of models that bring a class of their own, by where it is defined: importing it would import the whole model.
_SPARSE_BLOCKS = "transformers.models.minimax_m3_vl.modeling_minimax_m3_vl.MiniMaxM3VLSparseCacheLayer"
_KINDS_OF_MODELS = {_SPARSE_BLOCKS: "full"}
_KINDS: dict[type, str] = {
    DynamicLayer: "full",
    DynamicSlidingWindowLayer: "sliding",
    INDEXED: "full",
    STATES: "state",
    **_BOTH,
}


def keeps(layer: Any) -> bool:
    """Return True if a layer keeps anything; one that reads an earlier layer's keys and values does not."""
    return type(layer) is not _NOTHING_KEPT


def kind_of(layer: Any) -> str | None:
    """Return the kind of a layer as manifests name it, or None for one that kvswap does not know."""
    return _KINDS.get(type(layer)) or _KINDS_OF_MODELS.get(_defined(layer))


def _defined(layer: Any) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def _index_name(layer: Any) -> str | None:
    """Return the attribute that holds the keys of a sparse attention's index, None where a layer has no such thing."""
    if isinstance(layer, INDEXED):
        return "indexer_keys"
    return "idx_keys" if _defined(layer) == _SPARSE_BLOCKS else None


def grows(layer: Any) -> bool:
    """Return True if a layer keeps something of each token, beside what it may keep for all of them together."""
    return isinstance(layer, DynamicLayer)


def tokens_in(layer: Any) -> int | None:
    """Return the tokens that a layer has seen, or None where it keeps states and does not count."""
    return int(layer.get_seq_length()) if grows(layer) else None


def tensors_in(layer: Any) -> list[tuple[str, torch.Tensor]]:
    """Return the tensors of a filled layer with their names, in the order of its spec, each with its batch axis."""
    found: list[tuple[str, torch.Tensor]] = []
    if grows(layer) and layer.is_initialized:
        found += [(KEY, layer.keys), (VALUE, layer.values)]
    index = getattr(layer, _index_name(layer) or "", None)
    if index is not None and getattr(layer, "is_indexer_initialized", True):
        found.append((INDEX, index))
    return found + states_in(layer)


def states_in(layer: Any) -> list[tuple[str, torch.Tensor]]:
    """Return the states of a layer with their names, each with its batch axis."""
    found: list[tuple[str, torch.Tensor]] = []
    if isinstance(layer, STATES):
        for number in range(layer.number_of_states):
            if layer.is_conv_states_initialized[number]:
                found.append((f"{CONV}.{number}", layer.conv_states[number]))
            if layer.is_recurrent_states_initialized[number]:
                found.append((f"{RECURRENT}.{number}", layer.recurrent_states[number]))
    return found


def spec_of(layer: Any, kind: str, dtype: torch.dtype) -> LayerSpec:
    """Describe a filled layer; `dtype` is the one that needs no mention.  Raises `Incompatible`."""
    specs = []
    for name, tensor in tensors_in(layer):
        per = "checkpoint" if name.startswith((CONV, RECURRENT)) else "token"
        shape = list(tensor.shape[1:])
        if per == "token":
            del shape[-2]
        if not 1 <= len(shape) <= (2 if per == "token" else 3):
            raise Incompatible(f"a cache tensor {name} of {tensor.dim()} axes cannot be exchanged", field="layout")
        own_dtype = None if tensor.dtype == dtype else str(tensor.dtype).removeprefix("torch.")
        specs.append(TensorSpec(name, per, tuple(shape), own_dtype))  # type: ignore[arg-type]
    window = int(layer.sliding_window) if isinstance(layer, DynamicSlidingWindowLayer) else None
    return LayerSpec(kind, tuple(specs), window)


def read(layer: Any, spec: LayerSpec, rows: int) -> list[torch.Tensor]:
    """Return a layer's tensors [head, row, dim]: the last `rows` of those that grow, states whole.  Views."""
    out = []
    for wanted, (_, tensor) in zip(spec.tensors, tensors_in(layer), strict=True):
        if wanted.rows is None:
            tensor = tensor[..., tensor.shape[-2] - rows :, :]
        out.append(tensor[0].reshape(wanted.part_shape(rows)))
    return out


def fill_states(layer: Any, held: LayerTensors, device: Any) -> None:
    """Set the states of a layer, new or used, to those of `held`."""
    for spec, tensor in zip(held.spec.tensors, held.tensors, strict=True):
        kind, _, number = spec.name.partition(".")
        if spec.rows is None:
            continue
        value, at = tensor.reshape(1, *spec.shape).to(device), int(number)
        if kind == CONV:
            if not layer.is_conv_states_initialized[at]:
                layer.lazy_initialization(conv_states=value, state_idx=at)
            layer.conv_states[at].copy_(value)
            layer.has_previous_state[at] = True
        else:
            if not layer.is_recurrent_states_initialized[at]:
                layer.lazy_initialization(recurrent_states=value, state_idx=at)
            layer.recurrent_states[at].copy_(value)


def fill_grown(layer: Any, held: LayerTensors, tokens: int, device: Any) -> None:
    """Set what a layer keeps of each token, as after `tokens` tokens.

    The stock layers copy it at every further token, so that `held` stays as it is.
    """
    k, v = held.filled(0).to(device)[None], held.filled(1).to(device)[None]
    if not layer.is_initialized:
        layer.lazy_initialization(k, v)
    layer.keys, layer.values = k, v
    if isinstance(layer, DynamicSlidingWindowLayer):
        # `update` would count only what is stored; positions and masks need what was seen.
        layer.cumulative_length = tokens
    if (name := _index_name(layer)) is not None:
        *heads, dim = held.spec.tensors[2].shape
        index = held.filled(2).to(device).reshape(1, *heads, held.tokens, dim)
        if not getattr(layer, "is_indexer_initialized", True):
            layer.lazy_initialization_indexer(index)
        setattr(layer, name, index)


def note(layer: Any) -> Callable[[], None]:
    """Note what a layer holds, and return a function that puts it back after further tokens."""
    names = ("keys", "values", "cumulative_length", "indexer_keys", "idx_keys")
    held = {name: getattr(layer, name) for name in names if hasattr(layer, name)}
    copies = [(tensor, tensor.clone()) for _, tensor in states_in(layer)]  # these are written in place

    def restore() -> None:
        for name, value in held.items():
            setattr(layer, name, value)
        for tensor, copy in copies:
            tensor.copy_(copy)

    return restore


def match(layer: Any, spec: LayerSpec) -> bool:
    """Return True if a spec is of the kind that a layer keeps, whatever its sizes."""
    states = [tensor.name for tensor in spec.tensors if tensor.rows is not None]
    growing: Sequence[str] = [tensor.name for tensor in spec.tensors if tensor.rows is None]
    wanted = [KEY, VALUE, *([INDEX] if _index_name(layer) else [])] if grows(layer) else []
    numbers = range(layer.number_of_states) if isinstance(layer, STATES) else range(0)
    known = {f"{kind}.{number}" for kind in (CONV, RECURRENT) for number in numbers}
    return growing == wanted and set(states) <= known and bool(states) == isinstance(layer, STATES)
