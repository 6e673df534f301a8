from __future__ import annotations

import dataclasses

import pytest

from kvswap.core.limits import LIMITS, Limits


def test_limits_are_fixed_and_may_be_others_for_a_test() -> None:
    other = dataclasses.replace(LIMITS, stall_seconds=0.5)
    assert (other.stall_seconds, other.chunk_bytes) == (0.5, LIMITS.chunk_bytes) and LIMITS.stall_seconds == 10.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        LIMITS.stall_seconds = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError, match="stal_seconds"):
        Limits(stal_seconds=1.0)
