"""What a daemon answers, as both clients read it."""

from __future__ import annotations

import json
from http.client import IncompleteRead
from pathlib import Path

import pytest
from msgspec.json import encode

from kvswap.api.store import StoredArtifact
from kvswap.client import answers, calls
from kvswap.client.sender_sync import _split
from kvswap.core.errors import DaemonNotRunning

SHORT = {"artifacts": [{"artifact": "x", "tokens": 5, "rate": 0.25, "why": None, "label": "é 😀", "pinned": True}]}

_ROW = {
    **dict.fromkeys(("artifact", "document", "model", "label", "dtype", "publisher", "standing"), "x"),
    **dict.fromkeys(("tokens", "raw_bytes", "wire_bytes", "expires", "added", "used"), 1),
    "pinned": False, "complete": True, "group": None, "why": None, "disputed_with": [],
}  # fmt: skip


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


def rows_of(*lines: bytes) -> list[StoredArtifact]:
    return list(answers.joined_rows(lines, calls.artifacts(), Path("/home"))["result"].artifacts)


def test_rows_that_come_in_lines_are_one_list() -> None:
    one, other = (StoredArtifact.from_json(_ROW | {"artifact": name}) for name in "ab")
    assert rows_of() == []
    assert rows_of(encode([one, other]), encode([]), encode([one])) == [one, other, one]
    for line in (b"<html>", b"[1]", b"{}", b"[", b'[{"artifact": "a"}]'):
        with pytest.raises(DaemonNotRunning, match="not a kvswap daemon"):
            rows_of(encode([one]), line)


class _Pieces:
    """An answer that comes in these pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = iter(pieces)

    def read1(self, most: int) -> bytes:
        return next(self._pieces, b"")


def test_lines_are_whole_however_they_are_cut() -> None:
    text = b"one\n\ntwo and\nthree\n"
    for size in range(1, len(text) + 1):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert list(_split(_Pieces(*pieces))) == [b"one", b"", b"two and", b"three"]  # type: ignore[arg-type]
    with pytest.raises(IncompleteRead):
        list(_split(_Pieces(b"one\ntw", b"o")))  # type: ignore[arg-type]
