"""What was saved: totals that survive a restart, measured and estimated apart, and a damaged file that loses no start."""

from __future__ import annotations

import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kvswap.core.upkeep import Problems
from kvswap.cost import Option
from kvswap.exchange.node.savings import Saved, Savings


def savings(path: Path) -> Savings:
    return Savings(path, Problems(), lambda: 1000.0)


def test_totals_are_kept_and_estimates_are_about_what_they_compare(tmp_path: Path) -> None:
    path = tmp_path / "savings.json"
    first = savings(path)
    first.add(tokens=100, nbytes=5, seconds=2.0, prefill=Option(10.0, 0.5), paid=0.1)
    first.add(tokens=50, nbytes=0, seconds=1.0, prefill=None, paid=0.0)
    first.write()
    assert savings(path).total == Saved(
        since=1000.0,
        uses=2,
        tokens=150,
        bytes=5,
        spent_seconds=3.0,
        compared=1,
        compared_seconds=2.0,
        prefill_seconds=10.0,
        dollars=0.4,
    )


@given(data=st.binary(max_size=200) | st.sampled_from([b"{}", b'{"uses": -1e999}', b'{"dollars": "x"}', b"[]"]))
def test_a_damaged_file_begins_anew_and_is_told(data: bytes, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("home") / "savings.json"
    path.write_bytes(data)
    problems = Problems()
    found = Savings(path, problems, lambda: 7.0)
    assert all(math.isfinite(getattr(found.total, name)) for name in Saved.__struct_fields__)
    if "savings" in problems:
        assert found.total == Saved(since=7.0)
        found.add(tokens=1, nbytes=1, seconds=1.0, prefill=None, paid=0.0)
        found.write()
        assert "savings" not in problems
        assert savings(path).total.uses == 1


def test_what_is_no_use_counts_for_nothing(tmp_path: Path) -> None:
    found = savings(tmp_path / "savings.json")
    found.add(tokens=0, nbytes=1, seconds=1.0, prefill=None, paid=0.0)
    found.add(tokens=5, nbytes=1, seconds=math.inf, prefill=None, paid=0.0)
    assert found.total == Saved(since=1000.0)
    found.write()
    assert not (tmp_path / "savings.json").exists()
