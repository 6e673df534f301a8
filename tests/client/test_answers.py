"""What a daemon answers, as both clients read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvswap.client import answers
from kvswap.core.errors import DaemonNotRunning

SHORT = {"artifacts": [{"artifact": "x", "tokens": 5, "rate": 0.25, "why": None, "label": "é 😀", "pinned": True}]}


@pytest.mark.parametrize("times", [1, 20_000])
def test_a_long_answer_is_read_as_a_short_one_is(times: int) -> None:
    value = {"artifacts": SHORT["artifacts"] * times}
    text = json.dumps(value)
    assert (len(text) > answers._LONG) == (times > 1)
    assert answers.message_of(text.encode(), Path("/home")) == answers.message_of(text, Path("/home")) == value


@pytest.mark.parametrize("padding", [0, answers._LONG])
@pytest.mark.parametrize("text", ["<html>", "[1]", '{"a": ', "5"])
def test_what_is_no_answer_is_another_program(text: str, padding: int) -> None:
    with pytest.raises(DaemonNotRunning, match="not a kvswap daemon"):
        answers.message_of(" " * padding + text, Path("/home"))
