"""The program ends with the command line's code; Ctrl-C is one line, whenever it comes."""

from __future__ import annotations

import os

import pytest

from kvswap import __main__ as program
from kvswap.cli import main as top


def ended(monkeypatch: pytest.MonkeyPatch, main: object) -> object:
    monkeypatch.setattr(top, "main", main)
    with pytest.raises(SystemExit) as end:
        program.entry()
    return end.value.code


@pytest.mark.parametrize("code", [0, 2, 12])
def test_the_code_is_the_command_lines(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    assert ended(monkeypatch, lambda: code) == code


def test_ctrl_c_is_130_and_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert ended(monkeypatch, interrupted) == 130
    assert capfd.readouterr().err == "kvswap: interrupted; what was fetched is kept, the same command resumes\n"


def test_ctrl_c_ends_it_also_where_nothing_can_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    def closed(descriptor: int, data: bytes) -> int:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(os, "write", closed)
    assert ended(monkeypatch, interrupted) == 130
