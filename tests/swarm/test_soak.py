"""A short run of `make soak`: a slow machine does fewer fetches, and fails for none."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvswap.core.errors import IntegrityError, KvswapError, NetworkTimeout, NotFound, PeerError, Unexpected, Untrusted
from tests.swarm.soak import Report, Soak, told

pytestmark = [pytest.mark.swarm, pytest.mark.faults]
SECONDS = 180.0  # after which it begins no more fetches


def test_a_node_goes_on_through_restarts_jumps_and_lies(tmp_path: Path) -> None:
    soak = Soak(tmp_path, fetches=800, restarts=12, jumps=6)
    report = soak.run(SECONDS, sample_every=100)
    assert not report.unexplained, told(report)
    assert report.fetches and report.compared


@pytest.mark.parametrize(
    ("error", "causes", "explained"),
    [
        (NotFound("x"), [], False),
        (NotFound("x"), ["the partner is not connected"], True),
        (NotFound("x"), ["it is withdrawn"], True),
        (PeerError("x"), ["it is withdrawn"], False),
        (NetworkTimeout("x"), ["the clocks jumped"], True),
        (IntegrityError("x"), ["the clocks jumped"], False),  # a lie is never of the clock
        (Untrusted("x"), ["the partner is not connected", "the clocks jumped"], False),
        (Unexpected("x"), ["the partner is not connected", "the clocks jumped", "it is withdrawn"], False),
    ],
)
def test_an_error_is_explained_by_its_code_or_not_at_all(
    error: KvswapError, causes: list[str], explained: bool
) -> None:
    soak = Soak.__new__(Soak)
    soak.report = Report()
    assert soak._failed("fetch", error, causes) is explained
    assert bool(soak.report.explained) is explained and bool(soak.report.unexplained) is not explained
