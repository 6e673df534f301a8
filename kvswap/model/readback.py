"""Token ids from a cache: V of layer 0 depends on the token alone, so it can be looked up.

Whoever holds a KV cache holds its text.  A reader who asked for a document by its digest uses that: the ids
must have the manifest's token digest, and the text they spell the document's digest.
"""

from __future__ import annotations

import hashlib

import torch

from kvswap.artifact.chain import token_digest
from kvswap.core.errors import Incompatible, IntegrityError
from kvswap.model.load import LoadedModel
from kvswap.model.recompute import first_layer

_BATCH = 4_096


def read_ids(loaded: LoadedModel, v: torch.Tensor) -> list[int]:
    """The ids whose V, computed here, is nearest to `v` of layer 0, [head, token, dim]."""
    rows = v.transpose(0, 1).reshape(v.shape[1], -1).float()
    unique, inverse = torch.unique(rows, dim=0, return_inverse=True)
    size = int(loaded.model.get_input_embeddings().weight.shape[0])
    nearest = torch.full((len(unique),), torch.inf)
    found = torch.zeros(len(unique), dtype=torch.long)
    for start in range(0, size, _BATCH):
        ids = list(range(start, min(start + _BATCH, size)))
        _, known = first_layer(loaded, ids, len(ids))
        table = known.transpose(0, 1).reshape(len(ids), -1).float()
        lengths = table.square().sum(1)
        for at in range(0, len(unique), _BATCH):
            piece = slice(at, at + _BATCH)
            near, which = (lengths - 2 * unique[piece] @ table.T).min(1)
            better = near < nearest[piece]
            nearest[piece] = torch.where(better, near, nearest[piece])
            found[piece] = torch.where(better, which + start, found[piece])
    return [int(i) for i in found[inverse]]


def read_document(loaded: LoadedModel, v: torch.Tensor, wanted: bytes, sha256: bytes) -> list[int]:
    """Ids with the token digest `wanted` that are those of the text with this digest.

    Raises `IntegrityError` when layer 0 holds other tokens, `Incompatible` when they do not spell that text, which
    may be the tokenizer's doing.
    """
    ids = read_ids(loaded, v)
    if token_digest(ids) != wanted:
        raise IntegrityError(
            "layer 0 does not hold the tokens that the manifest names", cause="the cache is of another text"
        )
    text = loaded.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if hashlib.sha256(text.encode()).digest() != sha256 or list(loaded.tokenize(text)) != ids:
        raise Incompatible(
            "the tokens of this cache do not spell the document that it is said to be of",
            cause="another text, or a tokenizer that loses some of it",
            hint="give the document's file instead of its digest",
            field="document",
        )
    return ids
