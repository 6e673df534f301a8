"""Reading token ids back from a cache, where K or V of layer 0 depends on the token alone and can be looked up.

A KV cache therefore discloses its text.  A reader who asked for a document by its digest uses that: the ids must have
the manifest's token digest, and the text they decode to the document's digest.  Whether a model's layer 0 allows it is
tested with the reader's own model (`readable`): V does where RoPE rotates the keys; K does where a latent is cached and
V holds the rotated part; neither does where positions are added to the embedding.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch

from kvswap.artifact.chain import token_digest
from kvswap.artifact.tensors import LayerTensors
from kvswap.core.errors import Incompatible, IntegrityError
from kvswap.model.load import LoadedModel
from kvswap.model.recompute import first_layer
from kvswap.trust.noise import ROUNDING

_BATCH = 4_096
_TRIED = 64  # positions of the self-test
_NEAR = 8.0  # values within so many roundings count as the same
_SUMS = 1e-5  # relative error of a squared distance that is summed in float32

Part = Literal["k", "v"]


@dataclass(frozen=True, slots=True)
class ReadTokens:
    """The ids that were read back, and whether they are unambiguous at every position."""

    ids: list[int]
    certain: bool


def readable(loaded: LoadedModel) -> Part | None:
    """Return which of V and K of layer 0 is the same for a token at every position, or None if neither is.

    It is tested on five tokens in changing order, each at many positions and with different neighbours.
    """
    size = loaded.vocabulary
    count = min(_TRIED, loaded.context)
    ids = [(size // 7 * (1 + i * i % 5)) % size for i in range(count)]
    k, v = first_layer(loaded, ids, count)
    parts: tuple[tuple[Part, torch.Tensor], ...] = (("v", v), ("k", k))
    for name, part in parts:
        rows = _rows(part)
        same = all(_together(rows[[i for i, other in enumerate(ids) if other == token]], loaded) for token in set(ids))
        apart = len(torch.unique(rows, dim=0)) > 1 or len(set(ids)) == 1
        if same and apart:
            return name
    return None


def _rows(part: torch.Tensor) -> torch.Tensor:
    """Reshape [head, token, dim] to [token, head * dim], float32."""
    return part.transpose(0, 1).reshape(part.shape[1], -1).float()


def _together(rows: torch.Tensor, loaded: LoadedModel) -> bool:
    far = (rows - rows[0]).norm(dim=1).max()
    return bool(far <= _NEAR * ROUNDING[loaded.dtype] * rows[0].norm())


def read_ids(loaded: LoadedModel, held: LayerTensors, part: Part) -> ReadTokens:
    """Return, for each position, the id whose own `part` of layer 0 is nearest to the one in `held`."""
    rows = _rows((held.v if part == "v" else held.k)[:, : held.tokens].cpu())
    unique, inverse = torch.unique(rows, dim=0, return_inverse=True)
    size = loaded.vocabulary
    batch = min(_BATCH, loaded.context)
    nearest = torch.full((len(unique), 2), torch.inf)  # the two smallest squared distances, less the row's own length
    found = torch.zeros(len(unique), dtype=torch.long)
    for start in range(0, size, batch):
        ids = list(range(start, min(start + batch, size)))
        known = first_layer(loaded, ids, len(ids))[1 if part == "v" else 0]
        table = _rows(known)
        lengths = table.square().sum(1)
        for at in range(0, len(unique), batch):
            piece = slice(at, at + batch)
            near, which = torch.topk(lengths - 2 * unique[piece] @ table.T, min(2, len(ids)), largest=False)
            better = near[:, 0] < nearest[piece, 0]
            found[piece] = torch.where(better, which[:, 0] + start, found[piece])
            nearest[piece] = torch.cat([nearest[piece], near], 1).topk(2, largest=False).values
    squares = unique.square().sum(1)
    gap = (nearest[:, 1] - nearest[:, 0]) / squares.clamp_min(1e-30)
    margin = max((_NEAR * ROUNDING[loaded.dtype]) ** 2, _SUMS)
    certain = bool((gap > margin).all()) and bool(torch.isfinite(unique).all())
    return ReadTokens([int(i) for i in found[inverse]], certain)


def read_document(loaded: LoadedModel, held: LayerTensors, wanted: bytes, sha256: bytes) -> list[int]:
    """Return the ids of a document, read back from layer 0 and checked against both signed digests.

    The ids have the token digest `wanted` and decode to the text with the digest `sha256`.  Raises `IntegrityError` if
    layer 0 unambiguously holds other tokens; `Incompatible` if this model's layer 0 does not determine its tokens, or
    if they do not decode to that text, which may be the tokenizer's doing.
    """
    part = readable(loaded)
    hint = "give the document's file instead of its digest"
    if part is None:
        raise Incompatible(
            "the tokens cannot be read back from layer 0 of this model",
            cause="its keys and values depend on the position as well",
            hint=hint,
            field="document",
        )
    read = read_ids(loaded, held, part)
    if token_digest(read.ids) != wanted:
        if not read.certain:
            raise Incompatible(
                "the tokens cannot be read back from layer 0: several fit as well",
                cause="tokens whose embeddings are alike",
                hint=hint,
                field="document",
            )
        raise IntegrityError(
            "layer 0 does not hold the tokens that the manifest names", cause="the cache is of another text"
        )
    text = loaded.tokenizer.decode(read.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if hashlib.sha256(text.encode()).digest() != sha256 or list(loaded.tokenize(text)) != read.ids:
        raise Incompatible(
            "the tokens of this cache do not spell the document that it is said to be of",
            cause="another text, or a tokenizer that loses some of it",
            hint=hint,
            field="document",
        )
    return read.ids
