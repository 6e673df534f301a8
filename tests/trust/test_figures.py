from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kvswap.core import wire
from kvswap.core.errors import WorkerFailed
from kvswap.trust.figures import CheckFigures, micro


def test_only_what_was_measured_is_in_json_and_fractions_are_fractions() -> None:
    figures = CheckFigures(positions=32, wrong=0, worst=micro(8.2), margin=micro(2.0), bitwise=False)
    assert list(figures.to_json().items()) == [
        ("positions", 32),
        ("wrong", 0),
        ("worst", 8.2),
        ("margin", 2.0),
        ("bitwise", False),
    ]
    assert CheckFigures().to_json() == {}
    assert type(CheckFigures(worst=0).to_json()["worst"]) is float


def test_the_order_is_that_of_each_level() -> None:
    """JSON keeps the order that it always had: an interval's figures come before those of its positions."""
    some = CheckFigures(first=3, chance=1, margin=2, worst=1, wrong=1, positions=4, of_intervals=9, intervals=2)
    assert list(some.to_json()) == [
        "intervals", "of_intervals", "chance", "positions", "wrong", "worst", "margin", "first",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fraction", "millionths"), [(0.0, 0), (8.2, 8_200_000), (1.005, 1_005_000), (1e9, 10**12), (float("inf"), 10**12)]
)
def test_millionths_are_rounded_and_bounded(fraction: float, millionths: int) -> None:
    assert micro(fraction) == millionths


def test_the_pipe_carries_them_as_they_are() -> None:
    every = {
        field.name: ("a", "b") if field.name == "disputed_with" else "x" if "str" in str(field.type) else 3
        for field in msgspec.structs.fields(CheckFigures)
    }
    every |= {field.name: True for field in msgspec.structs.fields(CheckFigures) if "bool" in str(field.type)}
    figures = CheckFigures(**every)  # type: ignore[arg-type]
    assert wire.convert(wire.parse(wire.pack(wire.plain(figures)), WorkerFailed), CheckFigures, WorkerFailed) == figures
    other: dict[str, Any] = {"worst": 1.5}
    with pytest.raises(WorkerFailed):
        wire.convert(other, CheckFigures, WorkerFailed)
    with pytest.raises(WorkerFailed):
        wire.convert({"unknown": 1}, CheckFigures, WorkerFailed)
