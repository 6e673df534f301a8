"""The pipe of the model process: whatever a job raises, and whatever it returns, one answer goes out that can be read."""

from __future__ import annotations

import io
from typing import Any

import pytest

from kvswap.core.errors import KvswapError, NotFound
from kvswap.worker import protocol
from kvswap.worker.__main__ import answer_of, sendable
from kvswap.worker.messages import JobEnd, end_of
from tests.core.test_failures import REAL, is_told


class Jobs:
    def __init__(self, work: Any) -> None:
        self._work = work

    def run(self, message: dict[str, Any]) -> dict[str, Any]:
        return self._work()  # type: ignore[no-any-return]


def sent(answer: JobEnd) -> JobEnd:
    """The end of a job as the node reads it."""
    got = protocol.read(io.BytesIO(protocol.frame(sendable(answer))))
    assert got is not None
    return end_of(got)


def error_of(end: JobEnd) -> KvswapError:
    assert end.error is not None
    return KvswapError.from_dict(end.error)


@pytest.mark.parametrize("name", REAL)
def test_whatever_a_job_raises_is_told_with_its_traceback_for_the_log(name: str) -> None:
    make, codes = REAL[name]
    answer = sent(answer_of(Jobs(make), {"job": "x"}))
    error = error_of(answer)
    is_told(error)
    assert error.exit_code in codes
    assert "Traceback" in str(answer.trace) and "\x1b" not in str(answer.trace)


def test_our_own_errors_go_as_they_are() -> None:
    def fail() -> None:
        raise NotFound("not here", field="x")

    assert sent(answer_of(Jobs(fail), {"job": "x"})) == JobEnd(error=NotFound("not here", field="x").to_dict())


def _knot() -> dict[str, Any]:
    knot: dict[str, Any] = {}
    knot["a"] = knot
    return knot


@pytest.mark.parametrize("value", [{"a": object()}, {"a": "\ud800"}, {"a": 1 << 70}, _knot(), {"a": 1j}])
def test_an_answer_that_cannot_be_packed_fails_one_request_and_not_the_process(value: dict[str, Any]) -> None:
    answer = sent(answer_of(Jobs(lambda: value), {"job": "x"}))
    error = error_of(answer)
    is_told(error)
    assert error.code == "worker_failed"

    def fail() -> None:
        raise NotFound("x", what=value)

    assert error_of(sent(answer_of(Jobs(fail), {"job": "x"}))).code == "worker_failed"
