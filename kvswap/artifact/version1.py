"""Version 1 of a manifest's layout: layers of keys and values, of one dtype, in runs of whole layers.

Everything that fits is still written so, which readers of before understand; `fits` says what does.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from kvswap.artifact.specs import (
    KEY,
    VALUE,
    Digest,
    Indices,
    LayerGroup,
    LayerSpec,
    Layout,
    Positive,
    Strict,
    TensorDigests,
    Text,
)
from kvswap.core.limits import LIMITS

VERSION = 1
KINDS = ("full", "sliding")
"""The kinds of layers that version 1 has words for."""


class LayerV1(Strict, frozen=True):
    """One cache layer: `full`, or `sliding` with its window in tokens."""

    kind: Annotated[str, Meta(max_length=32)]
    heads: Positive
    k_dim: Positive
    v_dim: Positive
    window: Positive | None = None


class LayoutV1(Strict, frozen=True):
    """The shapes of the cache.  `runs` partitions the layers; a chunk holds one block of one run."""

    dtype: Text
    axes: Text
    rope: Annotated[str, Meta(max_length=4096)]
    layers: Annotated[list[LayerV1], Meta(max_length=LIMITS.manifest_layers)]
    runs: Annotated[list[Indices], Meta(max_length=LIMITS.manifest_layers)]


class DigestsV1(Strict, frozen=True):
    """BLAKE3 of one layer's K and V as held after the last token, [head, token, dim] order."""

    k: Digest
    v: Digest


def fits(layout: Layout) -> bool:
    """Return True if version 1 can say all of a layout."""
    return not layout.checkpoints and all(layer.is_key_value and layer.kind in KINDS for layer in layout.layers)


def layout_from(written: LayoutV1) -> Layout:
    """Return the layout that a manifest of version 1 describes."""
    layers = [LayerSpec.key_value(one.kind, one.heads, one.k_dim, one.v_dim, one.window) for one in written.layers]
    groups = [LayerGroup(tuple(run), (KEY, VALUE)) for run in written.runs]
    return Layout(written.dtype, written.axes, written.rope, layers, groups)


def layout_to(layout: Layout) -> LayoutV1:
    """Return what a manifest of version 1 says of a layout that fits it."""
    layers = [LayerV1(one.kind, one.heads, one.k_dim, one.v_dim, one.window) for one in layout.layers]
    return LayoutV1(layout.dtype, layout.axes, layout.rope, layers, [list(group.layers) for group in layout.groups])


def digests_from(written: list[DigestsV1]) -> list[TensorDigests]:
    """Return the digests of a manifest of version 1, one for each tensor of each layer."""
    return [(one.k, one.v) for one in written]


def digests_to(digests: list[TensorDigests]) -> list[DigestsV1]:
    """Return the digests of layers of keys and values as version 1 writes them."""
    return [DigestsV1(k, v) for k, v in digests]
