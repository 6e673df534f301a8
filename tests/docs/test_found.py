"""Every module of the package has a test that can be found by its name."""

from __future__ import annotations

import pytest

from tests import found


def test_every_module_names_its_test() -> None:
    assert found.wrong_names() == []


def test_a_module_without_a_test_and_a_line_that_names_none_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = found.table()
    monkeypatch.setattr(
        found, "table", lambda: real | {"kvswap/core/wire.py": "tests/core/test_nothing.py", "x.py": "y"}
    )
    assert found.wrong_names() == [
        "found.toml: there is no x.py to be tested",
        "kvswap/core/wire.py: no tests/core/test_nothing.py",
    ]
