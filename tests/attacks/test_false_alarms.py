"""Honest artifacts of every kind alarm nobody; all of it is in docs/results/false-alarms.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.bench_honest import measured
from kvswap.trust.noise import MARGIN
from tests.attacks.kinds import KINDS
from tests.worker.honest import Shelf


def alarmed(root: Path, kind: str, each: int, seed: int) -> None:
    found = measured(Shelf(root, noise_tokens=512), KINDS[kind], each, seed)
    assert found.artifacts == each and not found.alarms, found.said
    assert {"V2", "V3", "V5", "V6", "V7"} <= set(found.nearest) and max(found.nearest.values()) <= MARGIN


def test_a_few_honest_artifacts_alarm_nobody(tmp_path: Path) -> None:
    alarmed(tmp_path, "K/V and state", 4, 1)


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS)
def test_honest_artifacts_of_every_kind_alarm_nobody(tmp_path: Path, kind: str) -> None:
    alarmed(tmp_path, kind, 6, 2)
