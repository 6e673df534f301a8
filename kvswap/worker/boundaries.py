"""What an artifact holds for readers that resume before its end: windows of sliding layers, and states.

The cache at the end of a document does not show it, as a sliding layer has moved on and a state holds for one position
alone.  What of it is in the store is compared block by block, beside a prefill that computes the whole again (V7); what
is not was not needed yet, and of untrusted publishers nobody resumes there (`exchange.prefix`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kvswap.artifact import layout as layouts
from kvswap.artifact.manifest import ChunkRef, Manifest
from kvswap.artifact.sealing import Seal
from kvswap.artifact.tensors import as_part, as_tensor, decode_chunk, digest_parts
from kvswap.codec.parts import WORD, Part
from kvswap.core.errors import NotFound
from kvswap.trust.noise import Score, Spread

if TYPE_CHECKING:
    from kvswap.artifact.assembly import ChunkSource

_ROWS = 1024  # positions that the honest noise was measured over; a score is comparable over as many


@dataclass(slots=True)
class Boundaries:
    """The chunks that a reader of the document's end does not need, compared with what is computed, block by block."""

    manifest: Manifest
    source: ChunkSource
    spread: Spread
    seal: Seal | None
    bitwise: bool = True
    worst: tuple[int, Score] | None = None
    """The token count and the score of the boundary that is furthest off, of those compared so far."""
    _refs: dict[int, list[ChunkRef]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the chunks."""
        end = set(layouts.needed(self.manifest))
        for index, ref in enumerate(self.manifest.chunks):
            if index not in end:
                self._refs.setdefault(ref.block, []).append(ref)

    def compare(self, cache: Any, block: int, start: int, stop: int) -> None:
        """Compare the chunks of block [start, stop) with a cache that was just computed up to `stop`.

        Raises `IntegrityError` for a chunk that does not decode to what was signed.
        """
        from kvswap.model.cache import capture_block

        refs = self._refs.get(block, [])
        if not refs:
            return
        layout = self.manifest.layout
        width = max(len(layer.tensors) for layer in layout.layers)
        errors = np.full((_ROWS, len(layout.layers), width), np.nan, np.float32)
        for ref in refs:
            try:
                coded = self.source(ref.id)
            except NotFound:  # not fetched: this reader went on from the end
                continue
            dtype = layout.group_dtype(ref.run)
            supplied: list[Part] = [np.empty(s, WORD[dtype]) for s in layouts.part_shapes(layout, ref.run, start, stop)]
            decode_chunk(self.manifest, ref, coded, supplied, None, {}, self.seal)
            computed = capture_block(cache, layout, ref.run, start, stop)
            self.bitwise &= digest_parts([as_part(tensor) for tensor in computed]) == ref.raw
            for (index, place), part, tensor in zip(layout.members[ref.run], supplied, computed, strict=True):
                _put(errors[:, index, place], as_tensor(part, dtype), tensor, layout.is_state(ref.run))
        score = self.spread.score(errors)
        if self.worst is None or score.worst > self.worst[1].worst:
            self.worst = (stop, score)

    @property
    def why(self) -> str:
        """The difference of what is held before the end, in words; empty if honest noise explains it."""
        if self.worst is None or self.worst[1].honest:
            return ""
        stop, score = self.worst
        return (
            f"what it holds to resume after {stop} tokens is not what the model makes of them: "
            f"{score.worst:.1f} times the most that honest caches show"
        )


def _put(errors: Any, supplied: Any, computed: Any, state: bool) -> None:
    """Write the differences of one tensor: at the last positions, or of a state, which has one, at all of them."""
    from kvswap.model.recompute import relative

    if state:
        errors[:] = relative(supplied.reshape(1, 1, -1), computed.reshape(1, 1, -1)).numpy()
    elif supplied.shape[1]:
        last = relative(supplied, computed).numpy()[-_ROWS:]
        errors[-len(last) :] = last
