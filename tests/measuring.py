"""Measures which lines a process of a test runs, where `tests.covering` asked for it."""

from __future__ import annotations

import atexit
import os
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent / "kvswap"
DIRECTORY, FILE = "KVSWAP_COVERING", "KVSWAP_TEST_FILE"  # in the environment: where to write, and what is tested


def measure() -> Any:
    """Measure this process into the directory that the environment names; returns what measures, None for none."""
    directory = os.environ.get(DIRECTORY)
    if not directory:
        return None
    import coverage

    measuring = coverage.Coverage(
        data_file=f"{directory}/data",
        data_suffix=True,
        branch=True,
        source=[str(PACKAGE)],
        config_file=False,
        messages=False,
        context=os.environ.get(FILE),
    )
    measuring.set_option("run:disable_warnings", ["no-data-collected", "module-not-measured", "module-not-imported"])
    leave = os._exit

    def save() -> None:
        measuring.stop()
        measuring.save()

    def exit_now(code: int) -> Any:
        save()
        leave(code)

    os._exit = exit_now  # type: ignore[assignment]
    atexit.register(save)
    measuring.start()
    return measuring
