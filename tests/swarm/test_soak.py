"""A short run of `make soak`: a slow machine does fewer fetches, and fails for none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.swarm.soak import Soak, told

pytestmark = [pytest.mark.swarm, pytest.mark.faults, pytest.mark.timeout(600)]
SECONDS = 45.0  # after which it begins no more fetches


def test_a_node_goes_on_through_restarts_jumps_and_lies(tmp_path: Path) -> None:
    soak = Soak(tmp_path, fetches=150, restarts=3, jumps=2)
    report = soak.run(SECONDS, sample_every=25)
    assert not report.unexplained, told(report)
    assert report.fetches and report.compared
