"""Token digests and chain digests: how a prefix of token ids is named.

The chain digest of block *i* is BLAKE3(chain digest of block *i-1* || the block's ids as
little-endian u32).  Block 0 starts from the model identity, so equal chain digests mean: the same
model, the same ids, the same blocks, from the first token on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvswap.artifact.blocks import Blocks
from kvswap.artifact.manifest import TokenSequence
from kvswap.core.ids import blake3_digest


def pack_ids(ids: Sequence[int]) -> bytes:
    """Pack token ids as little-endian u32, the form that every digest is taken over."""
    return np.asarray(ids, dtype="<u4").tobytes()


def unpack_ids(data: bytes) -> list[int]:
    """Restore what `pack_ids` gave."""
    ids: list[int] = np.frombuffer(data, "<u4").tolist()
    return ids


def token_digest(ids: Sequence[int]) -> bytes:
    """Compute the BLAKE3 digest of the packed ids."""
    return blake3_digest(pack_ids(ids))


def chain_digests(identity: bytes, ids: Sequence[int], block_tokens: int, cuts: Sequence[int] = ()) -> list[bytes]:
    """Compute one digest for each block of `artifact.blocks`.  Takes time linear in the ids."""
    digests = []
    previous = identity
    for start, stop in Blocks(len(ids), block_tokens, cuts):
        previous = blake3_digest(previous + pack_ids(ids[start:stop]))
        digests.append(previous)
    return digests


def token_sequence_of(
    identity: bytes, ids: Sequence[int], block_tokens: int, template: str | None = None, cuts: Sequence[int] = ()
) -> TokenSequence:
    """Return what a manifest says of the token ids; `template` names the rules they were made by, if not the usual."""
    return TokenSequence(
        tokens=len(ids),
        token_digest=token_digest(ids),
        block_tokens=block_tokens,
        chain=chain_digests(identity, ids, block_tokens, cuts),
        start=0,
        special_tokens=True,
        template=template,
    )
