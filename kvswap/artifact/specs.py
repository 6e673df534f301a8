"""What a cache is made of: named tensors, layers of them, and the groups of layers that share a chunk.

A tensor grows with the text, one row a token (keys, values, latents, the keys of a sparse attention's index), or it is
a *state*, one value that stands for all tokens before a position (the recurrent state of a linear attention, the last
inputs of a convolution).  A state is of use at that position only, so an artifact holds it at *checkpoints*: token
counts, the end always among them, that a reader can resume at.

`part_shape` is how every tensor is cut into [head, row, dim] for codecs and digests, whatever axes the model gives it.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from kvswap.core.limits import LIMITS

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "q8_0": 1}
"""Bytes of one number; of `q8_0`, blocks of ggml that hold 32 numbers in 34 bytes, the last axis counts bytes."""
KEY, VALUE = "k", "v"
"""Names of a full or sliding layer's tensors; in version 1 of the manifest a layer has these two."""

Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Text = Annotated[str, Meta(max_length=256)]
Name = Annotated[str, Meta(max_length=32, pattern=r"^[a-z][a-z0-9_.]*$")]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Positive = Annotated[int, Meta(ge=1, le=2**53)]
Axes = Annotated[tuple[Positive, ...], Meta(min_length=1, max_length=3)]
Checkpoints = Annotated[list[Positive], Meta(max_length=LIMITS.manifest_blocks)]
Indices = Annotated[list[Count], Meta(max_length=LIMITS.manifest_layers)]

TensorDigests = Annotated[tuple[Digest, ...], Meta(max_length=LIMITS.layer_tensors)]
"""BLAKE3 of each of one layer's tensors as held after the last token, [head, row, dim] order."""


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a manifest; unknown fields are refused."""


class TensorSpec(Strict, frozen=True):
    """One tensor of a cache layer.

    `per` says whether it has one row for each `token` or one value for each `checkpoint`.  `shape` are its axes in the
    model's order without those of the batch and of the tokens: [heads, dim] for keys, [channels, width] for a
    convolution's state.  `dtype` is that of the layout if it is None.
    """

    name: Name
    per: Literal["token", "checkpoint"]
    shape: Axes
    dtype: Text | None = None

    @property
    def heads(self) -> int:
        """The first of the three axes that codecs see: all but the last one or two."""
        return math.prod(self.shape[: -1 if self.per == "token" else -2])

    @property
    def rows(self) -> int | None:
        """The rows of a state; None for a tensor whose rows are the tokens."""
        if self.per == "token":
            return None
        return self.shape[-2] if len(self.shape) > 1 else 1

    @property
    def dim(self) -> int:
        """The last axis."""
        return self.shape[-1]

    def part_shape(self, tokens: int) -> tuple[int, int, int]:
        """Return the shape [head, row, dim] of this tensor's part in a chunk with `tokens` tokens."""
        return (self.heads, tokens if self.rows is None else self.rows, self.dim)


class LayerSpec(Strict, frozen=True):
    """One cache layer: its tensors in order, and the window in tokens of a layer that slides.

    `kind` says in words what they are: `full`, `sliding`, `latent`, `state`, or two of them with a `+` between.
    """

    kind: Annotated[str, Meta(max_length=32)]
    tensors: Annotated[tuple[TensorSpec, ...], Meta(min_length=1, max_length=LIMITS.layer_tensors)]
    window: Positive | None = None

    @classmethod
    def key_value(cls, kind: str, heads: int, k_dim: int, v_dim: int, window: int | None = None) -> LayerSpec:
        """Describe a layer that keeps keys and values, [head, token, dim], and nothing else."""
        return cls(kind, (TensorSpec(KEY, "token", (heads, k_dim)), TensorSpec(VALUE, "token", (heads, v_dim))), window)

    @property
    def is_key_value(self) -> bool:
        """True if the layer keeps keys and values of equal heads and nothing else, all that version 1 can say."""
        plain = [(t.name, t.per, len(t.shape), t.dtype) for t in self.tensors]
        return (
            plain == [(name, "token", 2, None) for name in (KEY, VALUE)] and len({t.heads for t in self.tensors}) == 1
        )

    @property
    def has_states(self) -> bool:
        """True if the layer keeps a state, so that only checkpoints can be resumed at."""
        return any(tensor.per == "checkpoint" for tensor in self.tensors)

    @property
    def heads(self) -> int:
        """The heads of the layer's first tensor."""
        return self.tensors[0].heads

    @property
    def k_dim(self) -> int:
        """The last axis of the first tensor, which in a layer of keys and values are the keys."""
        return self.tensors[0].dim

    @property
    def v_dim(self) -> int:
        """The last axis of the second tensor, which in a layer of keys and values are the values."""
        return self.tensors[1].dim

    @property
    def token_numbers(self) -> int:
        """The numbers that the layer keeps for each token that it holds."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors if tensor.per == "token")


def layer_words(spec: LayerSpec) -> str:
    """Describe a layer in words: its kind, its window, and the shape of each of its tensors."""
    window = f" of {spec.window}" if spec.window is not None else ""
    if spec.is_key_value:
        shape = f"{spec.heads} x {spec.k_dim}" + (f" and {spec.v_dim}" if spec.v_dim != spec.k_dim else "")
    else:
        shape = ", ".join(f"{tensor.name} {' x '.join(map(str, tensor.shape))}" for tensor in spec.tensors)
    return f"{spec.kind}{window}, {shape}"


class LayerGroup(Strict, frozen=True):
    """Tensors that share a chunk: those of these names, of each of these layers."""

    layers: Annotated[tuple[Count, ...], Meta(min_length=1, max_length=LIMITS.manifest_layers)]
    tensors: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=LIMITS.layer_tensors)]


class Layout(Strict, frozen=True, dict=True):
    """The shapes of the cache.

    `groups` partitions the tensors of all layers; a chunk holds one block of one group.  `checkpoints` are the token
    counts at which states are held and passes end, in order; there are none where no layer keeps a state and every
    pass is a whole block.
    """

    dtype: Text
    axes: Text
    rope: Annotated[str, Meta(max_length=4096)]
    layers: Annotated[list[LayerSpec], Meta(max_length=LIMITS.manifest_layers)]
    groups: Annotated[list[LayerGroup], Meta(max_length=LIMITS.manifest_groups)]
    checkpoints: Annotated[list[Positive], Meta(max_length=LIMITS.manifest_blocks)] = msgspec.field(
        default_factory=list
    )

    def dtype_of(self, tensor: TensorSpec) -> str:
        """Return the dtype of a tensor's numbers."""
        return tensor.dtype or self.dtype

    @cached_property
    def members(self) -> list[list[tuple[int, int]]]:
        """The tensors of each group in a chunk's order, each as (layer, place among the layer's tensors)."""
        out = []
        for group in self.groups:
            places = [
                place
                for place, tensor in enumerate(self.layers[group.layers[0]].tensors)
                if tensor.name in group.tensors
            ]
            out.append([(index, place) for index in group.layers for place in places])
        return out

    @cached_property
    def has_states(self) -> bool:
        """True if a layer keeps a state, so that only checkpoints can be resumed at."""
        return any(layer.has_states for layer in self.layers)

    @cached_property
    def checkpoint_set(self) -> frozenset[int]:
        """The checkpoints, to be asked whether a token count is one of them."""
        return frozenset(self.checkpoints)

    @property
    def keeps_all(self) -> bool:
        """True if every layer keeps every token and nothing else, so that any part of it can be computed on."""
        return not self.has_states and all(layer.window is None for layer in self.layers)

    @cached_property
    def _group_tensors(self) -> list[list[TensorSpec]]:
        firsts = [(self.layers[group.layers[0]], group.tensors) for group in self.groups]
        return [[tensor for tensor in first.tensors if tensor.name in names] for first, names in firsts]

    def group_tensors(self, group: int) -> list[TensorSpec]:
        """Return the tensors of a group's first layer that are in it; those of its other layers are alike."""
        return self._group_tensors[group]

    def group_dtype(self, group: int) -> str:
        """Return the dtype of a group's tensors, which is one."""
        return self.dtype_of(self.group_tensors(group)[0])

    def is_state(self, group: int) -> bool:
        """Return True if a group's tensors are states, which have chunks at checkpoints only."""
        return self.group_tensors(group)[0].per == "checkpoint"
