"""Every parser against damaged and arbitrary bytes: only errors of our own, whatever comes."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import CORPUS, TARGETS

MANY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", list(TARGETS))
def test_its_seeds_are_read(name: str) -> None:
    seeds = CORPUS[name]()
    assert seeds
    for seed in seeds:
        TARGETS[name](seed)


@pytest.mark.parametrize("name", list(TARGETS))
@MANY
@given(data=st.data())
def test_damage_raises_only_our_own_errors(name: str, data: st.DataObject) -> None:
    seed = bytearray(data.draw(st.sampled_from(CORPUS[name]())))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(seed) - 1)))
        how = data.draw(st.sampled_from(("flip", "cut", "insert", "huge")))
        if how == "flip" and seed:
            seed[at] ^= data.draw(st.integers(1, 255))
        elif how == "cut":
            del seed[at:]
        elif how == "insert":
            seed[at:at] = data.draw(st.binary(max_size=16))
        else:
            seed[at : at + 4] = b"\xff\xff\xff\xff"
    TARGETS[name](bytes(seed))


@pytest.mark.parametrize("name", list(TARGETS))
@MANY
@given(data=st.binary(max_size=600))
def test_arbitrary_bytes_raise_only_our_own_errors(name: str, data: bytes) -> None:
    TARGETS[name](data)
