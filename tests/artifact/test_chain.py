from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvswap.artifact import chain

IDS = st.lists(st.integers(0, 2**31), min_size=1, max_size=60)


@given(IDS, IDS, IDS, st.integers(1, 8))
def test_a_common_beginning_shares_exactly_its_whole_blocks(
    common: list[int], a: list[int], b: list[int], block: int
) -> None:
    seed = b"\0" * 32
    left, right = chain.chain_digests(seed, common + a, block), chain.chain_digests(seed, common + b, block)
    shared = 0
    for x, y in zip(common + a, common + b, strict=False):
        if x != y:
            break
        shared += 1
    if common + a == common + b:
        assert left == right
        return
    whole = shared // block
    assert left[:whole] == right[:whole]
    assert not set(left[whole + (1 if shared % block else 0) :]) & set(right)


def test_another_model_shares_nothing() -> None:
    ids = list(range(20))
    assert not set(chain.chain_digests(b"\0" * 32, ids, 4)) & set(chain.chain_digests(b"\1" * 32, ids, 4))


def test_ids_are_packed_as_little_endian_u32() -> None:
    assert chain.pack_ids([1, 256, 65536]) == b"\1\0\0\0\0\1\0\0\0\0\1\0"
