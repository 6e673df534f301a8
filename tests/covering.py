"""What each test file runs of the package, in all the processes that it starts: `pytest --covering DIRECTORY`.

Every process writes a data file there whose contexts are the test files.  `tests.found` reads them.  Lines that run
when a module is imported are counted by nobody: which test imports it first says nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.measuring import DIRECTORY, FILE, measure


class Covering:
    """Switches the context with the file that is tested."""

    def __init__(self, measuring: Any) -> None:
        self._measuring = measuring

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        file = item.nodeid.partition("::")[0]
        if os.environ.get(FILE) != file:
            os.environ[FILE] = file
            self._measuring.switch_context(file)
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--covering", metavar="DIRECTORY", help="write there what each test file runs of the package")


def pytest_configure(config: pytest.Config) -> None:
    directory = config.getoption("--covering")
    if not directory:
        return
    os.environ[DIRECTORY] = str(Path(directory).absolute())
    Path(directory).mkdir(parents=True, exist_ok=True)
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.register(Covering(measure()))
