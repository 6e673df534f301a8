from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvswap.artifact.blocks import Blocks

TOKENS, SIZE = st.integers(1, 300), st.integers(1, 64)


@given(TOKENS, SIZE, st.sets(st.integers(1, 320), max_size=8))
def test_blocks_cover_the_tokens_and_end_at_multiples_and_cuts(tokens: int, size: int, cuts: set[int]) -> None:
    blocks = Blocks(tokens, size, sorted(cuts))
    spans = list(blocks)
    assert len(spans) == len(blocks) and spans[0][0] == 0 and spans[-1][1] == tokens
    assert all(a[1] == b[0] for a, b in zip(spans, spans[1:], strict=False))
    ends = {stop for _, stop in spans}
    assert ends == {*range(size, tokens, size), *(cut for cut in cuts if cut < tokens), tokens}
    assert {n for n in range(tokens + 2) if blocks.ends_at(n)} == ends
    assert [blocks.span(i) for i in range(len(blocks))] == spans
    for tokens_in in (1, tokens // 2 or 1, tokens):
        assert blocks.until(tokens_in) == next(i for i, (_, stop) in enumerate(spans) if stop >= tokens_in) + 1


@given(TOKENS, SIZE)
def test_without_cuts_blocks_are_the_multiples(tokens: int, size: int) -> None:
    assert list(Blocks(tokens, size)) == list(Blocks(tokens, size, range(0, tokens + size, size)))
    assert Blocks(tokens, size).cuts == () and Blocks(tokens, size).until(0) == 0
