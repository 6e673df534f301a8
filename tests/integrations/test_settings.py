"""What an engine is told is judged by value when it starts, all of it at once."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest

from kvswap.core.errors import InvalidSettings
from tests.core.test_failures import is_told
from tests.support import ROOT

# the package imports vLLM, which is not here; its settings do not
_FILE = ROOT / "kvswap" / "integrations" / "vllm" / "settings.py"
_SPEC = importlib.util.spec_from_file_location("engine_settings", _FILE)
assert _SPEC is not None and _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
sys.modules["engine_settings"] = _MODULE
_SPEC.loader.exec_module(_MODULE)
_CHECKS, ConnectorSettings = _MODULE._CHECKS, _MODULE.ConnectorSettings

TABLE: dict[str, tuple[list[Any], list[Any]]] = {
    "home": (["", 5, "a\0b", None], ["/x"]),
    "group": (["a b", 5, "\x1b"], ["lab"]),
    "block_tokens": ([0, -1, 8193, 1.5, True, "64", None, float("nan")], [1, 256, 8192]),
    "min_tokens": ([0, -1, 1.5, True, "64"], [1, 4096]),
    "lookup_seconds": ([0, -1, float("nan"), float("inf"), True, "1", 1e9], [0.001, 1, 30.0]),
    "force": ([1, "yes", None], [True, False]),
    "local": ([1, "yes"], [True, False]),
    "publish": (["always", "", 1], ["never", "asked"]),
    "codec": (["plane", "", 1], ["planes", "raw", "predictive"]),
    "compare": ([0, "no"], [True, False]),
}


def test_the_table_has_every_key() -> None:
    assert set(TABLE) == set(_CHECKS)


@pytest.mark.parametrize("name", TABLE)
def test_every_value_is_judged(name: str) -> None:
    for value in TABLE[name][0]:
        with pytest.raises(InvalidSettings, match=f"{name} = ") as caught:
            ConnectorSettings.of({name: value})
        is_told(caught.value)
    for value in TABLE[name][1]:
        assert getattr(ConnectorSettings.of({name: value}), name) == value


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(InvalidSettings) as caught:
        ConnectorSettings.of({"nonsense": 1, "block_tokens": 0, "codec": "plane"})
    assert [f["name"] for f in caught.value.details["faults"]] == ["nonsense", "block_tokens", "codec"]
