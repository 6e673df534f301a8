"""Project Wycheproof's Ed25519 vectors against the one place where signatures are checked."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from kvswap.core.errors import IntegrityError
from kvswap.trust import check_signature

TESTS = json.loads((Path(__file__).parent / "wycheproof_ed25519.json").read_text())["tests"]


def test_all_of_them_are_here() -> None:
    assert len(TESTS) == 210


@pytest.mark.parametrize("test", TESTS, ids=[f"{t[0]} {t[1]}" for t in TESTS])
def test_vector(test: list[Any]) -> None:
    _, _, key, message, signature, result = test
    arguments = (bytes.fromhex(key), bytes.fromhex(signature), bytes.fromhex(message))
    if result == "acceptable":  # mixed-order keys and the like: refused or not, but never another error
        with contextlib.suppress(IntegrityError):
            check_signature(*arguments)
    elif result == "valid":
        check_signature(*arguments)
    else:
        with pytest.raises(IntegrityError):
            check_signature(*arguments)
