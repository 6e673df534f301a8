"""The blocks of a token sequence: the tokens that are computed in one forward pass each.

Blocks end at every multiple of a fixed number of tokens, at the end of the sequence, and at *cuts* between them: token
counts at which a publisher holds the states of a model that keeps some, so that a reader can resume there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence


class Blocks:
    """The blocks of `tokens` tokens, numbered from 0.

    `cuts` are ends of blocks beside the multiples of `block_tokens`; multiples and those beyond `tokens` are left out.
    """

    __slots__ = ("_ends", "block_tokens", "cuts", "tokens")

    def __init__(self, tokens: int, block_tokens: int, cuts: Sequence[int] = ()) -> None:
        self.tokens, self.block_tokens = tokens, block_tokens
        self.cuts = tuple(sorted({cut for cut in cuts if cut % block_tokens and cut < tokens}))
        self._ends: list[int] | None = None
        if self.cuts:
            self._ends = sorted({*range(block_tokens, tokens, block_tokens), *self.cuts, tokens})

    def __len__(self) -> int:
        return -(-self.tokens // self.block_tokens) + len(self.cuts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Iterate over the [start, stop) of each block."""
        return (self.span(block) for block in range(len(self)))

    def span(self, block: int) -> tuple[int, int]:
        """Return the [start, stop) of a block, in tokens."""
        if self._ends is None:
            return block * self.block_tokens, min((block + 1) * self.block_tokens, self.tokens)
        return self._ends[block - 1] if block else 0, self._ends[block]

    def ends_at(self, tokens: int) -> bool:
        """Return True if a block ends after `tokens` tokens."""
        return 0 < tokens <= self.tokens and (
            tokens % self.block_tokens == 0 or tokens == self.tokens or tokens in self.cuts
        )

    def until(self, tokens: int) -> int:
        """Count the blocks up to the end of the one that holds token `tokens` - 1."""
        if self._ends is None:
            return -(-tokens // self.block_tokens)
        return bisect_left(self._ends, tokens) + 1 if tokens else 0
