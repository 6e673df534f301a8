"""The first blocks of a document that is published, from an own artifact that begins with the same tokens.

A folder that is published again after a change, or a conversation that has grown, is computed from the first block on
that differs.  What is loaded is checked like everything that is loaded; that it is what would be computed here follows
from the claim of its manifest, so it is taken only where that was made in the same environment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvswap.artifact import chain
from kvswap.artifact.blocks import Blocks
from kvswap.artifact.manifest import Manifest
from kvswap.core.errors import IntegrityError, NotFound
from kvswap.worker.chunks import chunk_source
from kvswap.worker.inbox import JobContext
from kvswap.worker.messages import PublishJob

if TYPE_CHECKING:
    from kvswap.artifact.specs import Layout
    from kvswap.artifact.tensors import LayerTensors


@dataclass(frozen=True, slots=True)
class ReusedPrefix:
    """The first tokens of a document, loaded: as the cache that goes on, and as tensors by layer."""

    cache: Any
    tokens: int
    held: Sequence[LayerTensors]

    def parts(self, layout: Layout, group: int, start: int, stop: int) -> list[Any]:
        """Return the tensors of a layer group in block [start, stop), as `capture_block` does of the last block."""
        return [self.held[index].tensors[place][:, start:stop] for index, place in layout.members[group]]


def reused_prefix(
    context: JobContext, job: PublishJob, ids: Sequence[int], blocks: Blocks, headroom: int
) -> ReusedPrefix | None:
    """Load the whole blocks that `job.base` shares with `ids`; None without any.

    The cache has memory for all of `ids` and `headroom` tokens more.
    """
    from kvswap.artifact.assembly import load
    from kvswap.model.cache import build_cache
    from kvswap.trust import one_key, read_statement

    if job.base is None or job.chunks is None:
        return None
    loaded, statement = context.loaded, read_statement(job.base, one_key(job.base_key))
    tokens = shared_tokens(loaded, statement.manifest, ids, blocks)
    if not tokens:
        return None
    try:
        held = load(
            statement.manifest,
            chunk_source(job.chunks),
            tokens=tokens,
            headroom=len(ids) - tokens + headroom,
            predictors=context.predictors,
            seal=statement.seal,
        )
    except (IntegrityError, NotFound):  # damaged or gone: then it is computed
        return None
    return ReusedPrefix(build_cache(loaded.model.config, held, tokens, loaded.device), tokens, held)


def shared_tokens(loaded: Any, manifest: Manifest, ids: Sequence[int], blocks: Blocks) -> int:
    """Count the tokens of the whole blocks that an artifact has of `ids`, computed as they would be here.

    Never all of them: the last block is computed, whatever was there.  0 for a model that keeps windows or states,
    whose cache after a block within the document holds what the artifact's end does not.
    """
    prefix, layout = manifest.prefix, manifest.layout
    alike = (prefix.block_tokens, manifest.model.digest, layout.dtype) == (
        blocks.block_tokens,
        loaded.identity.digest,
        loaded.dtype,
    )
    same = manifest.numerics.claim == "bitwise" and manifest.numerics.environment == loaded.numerics().environment
    if not (alike and same and manifest.lossless and layout.keeps_all) or layout.checkpoints or blocks.cuts:
        return 0
    if layout.rope != loaded.rope():
        return 0
    own = chain.chain_digests(loaded.identity.digest, ids[: prefix.tokens], blocks.block_tokens)
    whole = min(prefix.tokens, len(ids) - 1) // blocks.block_tokens
    shared = next((n for n, (a, b) in enumerate(zip(own, prefix.chain, strict=False)) if a != b), whole)
    return min(shared, whole) * blocks.block_tokens
