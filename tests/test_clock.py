"""No test depends on how fast the machine is, and those of time are found."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clock import READS, timed

HERE = Path(__file__).parent
LONG = 60.0  # seconds: a limit that ends what hangs is at least this
# Limits that are meant to expire, or whose expiring fails nothing.
EXPIRES = {
    "core/test_tasks.py": "an awaitable that swallows its time-out",
    "daemon/fake_worker.py": "the turns of its loop",
    "exchange/serving/test_costs.py": "shorter than the 30 s that a body would be waited for",
    "host/test_billing.py": "a connection that is not refused says nothing",
    "net/test_transport_conformance.py": "a connection that never closes",
    "store/test_filling.py": "a reader that has to wait",
    "swarm/attackers.py": "an attacker's own",
    "swarm/raw.py": "an attacker's own",
    "swarm/test_tables.py": "an attacker's own",
    "worker/test_jobs.py": "what is held up does not end",
    "warm.py": "processes that are asked for and killed after",
}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield (node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")), node


def limits(tree: ast.AST) -> Iterator[tuple[int, float]]:
    """The lines and seconds of limits that are written as numbers."""
    at = {"wait_for": 1, "timeout": 0, "fail_after": 0, "move_on_after": 0, "wait": 0, "until": 1}
    for name, call in calls(tree):
        given = [k.value for k in call.keywords if k.arg == "timeout" or (k.arg == "seconds" and name == "until")]
        if name in at and len(call.args) > at[name]:
            given.append(call.args[at[name]])
        if name == "join" and isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
            given += call.args
        for value in given:
            if isinstance(value, ast.Constant) and isinstance(value.value, int | float):
                yield call.lineno, float(value.value)


def compared(tree: ast.AST) -> Iterator[int]:
    """The lines that assert something of a clock that was read there, or of seconds that a command took."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            for test in ast.walk(node.test):
                if isinstance(test, ast.Compare) and any(isinstance(op, ast.Lt | ast.LtE) for op in test.ops):
                    left, right = ast.unparse(test.left), ast.unparse(test.comparators[0])
                    if right == "deadline":  # a limit, in other words
                        continue
                    if any(name in READS for name, _ in calls(test)) or (
                        left.endswith("['seconds']") and "['seconds']" not in right
                    ):
                        yield node.lineno


def files() -> list[Path]:
    return sorted(p for p in HERE.rglob("*.py") if p.name not in ("soak.py", "siege.py"))


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(HERE)))
def test_limits_only_end_what_hangs_and_nothing_is_said_of_wall_time(path: Path) -> None:
    tree = ast.parse(path.read_text())
    short = [] if str(path.relative_to(HERE)) in EXPIRES else [f"{n}: {s} s" for n, s in limits(tree) if s < LONG]
    assert not short, f"limits that a busy machine may meet: {short}"
    assert not list(compared(tree)), "asserts how long something took"


def test_examples_have_no_deadline() -> None:
    from hypothesis import HealthCheck, settings

    assert settings.default is not None and settings.default.deadline is None
    assert HealthCheck.too_slow in settings.default.suppress_health_check


def test_what_is_too_short_or_of_wall_time_is_seen() -> None:
    tree = ast.parse(
        "assert done.wait(5)\nuntil(x, 30, what='y')\nthread.join(10)\nrun(a, timeout=20)\n"
        "async with asyncio.timeout(59):\n    pass\nassert time.monotonic() - began < 3\nassert report['seconds'] < 1\n"
    )
    assert [line for line, _ in limits(tree)] == [1, 2, 3, 4, 5]
    assert sorted(compared(tree)) == [7, 8]


def test_a_test_is_of_time_by_what_it_or_what_it_calls_does(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "def helper():\n    time.sleep(1)\n"
        "def between():\n    helper()\n"
        "def test_calls():\n    between()\n"
        "def test_fixture(helper):\n    pass\n"
        "async def test_limit():\n    monkeypatch.setattr(a, '_WAIT_SECONDS', 1)\n"
        "async def test_turn():\n    await asyncio.sleep(0)\n"
        "def test_none():\n    assert plan(max_seconds=3)\n"
    )
    assert timed(tmp_path / "a.py") == {"helper", "between", "test_calls", "test_fixture", "test_limit"}
