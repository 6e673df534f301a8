"""The results of `kvswap model`, which needs no daemon."""

from __future__ import annotations

from kvswap.api.node import ModelRow
from kvswap.api.result import Result


class ModelRows(Result, frozen=True, kw_only=True):
    """The models of the catalogue and of this machine."""

    models: list[ModelRow]


class PullResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap model pull`."""

    name: str
    directory: str
    identity: str
    """The digest of its weights and tokenizer, in hex."""
    parameters: int


class ModelRemoval(Result, frozen=True, kw_only=True):
    """The result of `kvswap model rm`."""

    removed: str
    directory: str
    freed_bytes: int


class TensorRow(Result, frozen=True, kw_only=True):
    """One tensor of a layer's cache."""

    name: str
    per: str
    """`token`, or `checkpoint` for a state."""
    shape: list[int]
    """The axes beside that of the tokens."""
    dtype: str | None
    """None: that of the model."""


class LayerRow(Result, frozen=True, kw_only=True):
    """One layer of a model's cache; the last three fields are there where it keeps keys and values alone."""

    kind: str
    tensors: list[TensorRow]
    window: int | None
    """The tokens that a sliding layer keeps; None: all."""
    heads: int | None = None
    k_dim: int | None = None
    v_dim: int | None = None


class ModelCheck(Result, frozen=True, kw_only=True):
    """The result of `kvswap model check`: what a model's cache is made of, and what works with it."""

    model_type: str
    names: str
    """The models of this type, in words."""
    tested: bool
    """True if this model type is among those tested."""
    exchanged: bool
    refused: str | None
    """The reason why it is not exchanged; None: it is."""
    adapter: bool
    """True for a LoRA on another model."""
    dtype: str
    layers: list[LayerRow]
    token_bytes: int
    """The bytes of each token, of layers without a window."""
    window_bytes: int
    """The most bytes of layers with a window, whatever the length."""
    state_bytes: int
    """The bytes at every checkpoint, of layers that keep states."""
    latent: bool
    """True if it keeps a latent for all heads (MLA)."""
    sampled: str | None
    """The parts of an artifact that verification (V5) draws: `positions` or `intervals`; None: it is not exchanged."""
    by_digest: str | None
    """`yes`, `within the window` or `no`: whether it can be verified by the document's digest, without the text."""
    checkpoint_tokens: int
    """The tokens between two checkpoints; 0: the end is the only one."""
    without: list[str]
    """The things that do not work although it is exchanged, with the reason."""
