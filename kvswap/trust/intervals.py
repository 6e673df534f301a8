"""The intervals that a reader computes again where single positions cannot be (V5).

A sliding layer and a state keep too little to compute one position on top of them.  What can be computed is everything
between two places that readers resume at: from what the publisher signed at the first to what it signed at the second.
If every interval is right, so is the end, and every lie lies in one of them.  Which are computed is the reader's secret
until the manifest is fixed.

`samples` counts positions elsewhere.  Here `samples` of 128 intervals are drawn, at least one: the usual 32 are a
quarter.  Where only the end is kept there is one interval, and V5 computes what V7 does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvswap.artifact import layout as layouts
from kvswap.artifact.manifest import Manifest
from kvswap.trust.sampling import draw

OF_SAMPLES = 128  # so many samples are all intervals
_CUTS_PER_BLOCK = 4
_CUTS_ALWAYS = 64


@dataclass(frozen=True, slots=True)
class Interval:
    """The tokens [start, stop) between two places that readers resume at; 0 is the beginning, where nothing is held."""

    start: int
    stop: int

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Draw:
    """The intervals that a reader computes, out of `of` that cover all `tokens` of a document."""

    intervals: tuple[Interval, ...]
    of: int
    tokens: int

    @property
    def chance(self) -> float:
        """The least probability that an interval which is wrong is among those drawn."""
        return 1 / -(-self.of // len(self.intervals))

    @property
    def cost(self) -> float:
        """The part of the document's tokens that is computed; of a prefill's seconds it is about as much."""
        return sum(interval.tokens for interval in self.intervals) / self.tokens


def needs_intervals(manifest: Manifest) -> bool:
    """Return True if V5 cannot look at single positions of this artifact, by its layout."""
    return not manifest.layout.keeps_all


def intervals_of(manifest: Manifest) -> list[Interval]:
    """List the intervals of an artifact in order; neighbours are joined until they are a block long.

    So there are no more of them than blocks and one, however many checkpoints a manifest lists.
    """
    size, tokens = manifest.prefix.block_tokens, manifest.prefix.tokens
    ends: Sequence[int] = manifest.layout.checkpoints
    if not manifest.layout.has_states:
        ends = sorted({*range(size, tokens, size), *(end for end in ends if end < tokens)})
    out, start = [], 0
    for end in (*(end for end in ends if end < tokens), tokens):
        if end - start >= size or end == tokens:
            out.append(Interval(start, end))
            start = end
    return out


def drawn(manifest: Manifest, seed: bytes, artifact: bytes, samples: int) -> Draw:
    """Draw the intervals to compute, one out of each of as many stretches; the seed alone decides which."""
    every = intervals_of(manifest)
    count = min(len(every), max(1, -(-len(every) * samples // OF_SAMPLES)))
    places = draw(seed, artifact, len(every), count)
    return Draw(tuple(every[place] for place in places), len(every), manifest.prefix.tokens)


def expected(manifest: Manifest, samples: int) -> Draw:
    """Return a draw like those to come, to tell their cost and their chance before: that of an all-zero seed."""
    return drawn(manifest, bytes(32), b"", samples)


def files_of(manifest: Manifest, draw: Draw) -> list[int]:
    """List the indices of the files that are needed to check these intervals: what is held at both ends of each."""
    indices = set(layouts.needed(manifest))
    for place in {place for interval in draw.intervals for place in (interval.start, interval.stop)} - {0}:
        indices.update(layouts.needed(manifest, place))
    return sorted(indices) + ([len(manifest.chunks)] if manifest.predictor else [])


def too_many_cuts(manifest: Manifest) -> str:
    """Return why a document cannot be computed again in its publisher's passes, or an empty text.

    Every cut ends a forward pass: many more passes than blocks make a document cost many times its prefill.
    """
    blocks = layouts.block_count(manifest.prefix.tokens, manifest.prefix.block_tokens)
    cuts = len(manifest.blocks.cuts)
    if cuts <= _CUTS_PER_BLOCK * blocks + _CUTS_ALWAYS:
        return ""
    return f"it was computed in {blocks + cuts} passes, {cuts} of them cut short; this reader computes no such cache"
