"""How much CPU each test takes, with all processes that it starts: printed at the end, by file and by test.

Wall time says little where others use the machine; CPU-seconds are the same beside them.  With `--spending FILE` every
test's figure is written there, one a line.  The figures of a test are those of its worker and its descendants; what a
fixture of a wider scope costs is told of the test that needed it first.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import warm

_TICK = os.sysconf("SC_CLK_TCK")
_SHOWN = 12
_before = 0.0
_tests: Counter[str] = Counter()
_cold: Counter[str] = Counter()  # tests by the variables of the environment for which they started processes cold
_began = time.monotonic()


def _of(pid: str) -> float:
    """CPU-seconds of a process, of its children that have ended, and of its descendants that live."""
    try:
        used = sum(int(ticks) for ticks in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15])
        tasks = Path(f"/proc/{pid}/task").iterdir()
        children = [child for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it has just ended; or this is no Linux
        return 0.0
    return used / _TICK + sum(map(_of, children))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--spending", metavar="FILE", help="write the CPU-seconds of each test to a file")


def pytest_collection_finish() -> None:
    global _before
    _before = _of("self")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    global _before
    outcome: Any = yield
    now = _of("self")
    report = outcome.get_result()  # what is said here goes to the terminal with all else that a report says
    report.cpu, report.cold = max(0.0, now - _before), sorted(warm.cold)
    warm.cold.clear()
    _before = max(now, _before)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _tests[report.nodeid] += getattr(report, "cpu", 0.0)
    _cold.update(getattr(report, "cold", ()))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    files: Counter[str] = Counter()
    for name, seconds in _tests.items():
        files[name.partition("::")[0]] += seconds
    if (path := config.getoption("--spending")) is not None:
        lines = [f"{seconds:9.2f} {name}" for name, seconds in _tests.most_common()]
        Path(path).write_text("\n".join(lines) + "\n")
    if len(_tests) < 100:
        return
    wall = time.monotonic() - _began
    terminalreporter.section(f"{sum(files.values()):.0f} CPU-seconds in {wall:.0f} s; most of them in")
    for name, seconds in files.most_common(_SHOWN):
        terminalreporter.line(f"{seconds:7.1f}  {name}")
    for name, tests in _cold.most_common():
        terminalreporter.line(f"{tests:7}  tests started processes cold, as their environment has another {name}")
