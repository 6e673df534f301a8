"""Standard streams that are closed, full, or a terminal: what is said goes where it can, or nowhere."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from kvswap.cli import streams
from kvswap.core.errors import LocalFault, StoreFull


class Broken(io.TextIOWrapper):
    """A stream on which every line fails with this error."""

    def __init__(self, error: Exception) -> None:
        super().__init__(io.BytesIO(), "utf-8")
        self.error, self.descriptor = error, os.dup(1)

    def write(self, text: str) -> int:
        raise self.error

    def fileno(self) -> int:
        return self.descriptor


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts another stream in the place of one of this process."""
    opened = []

    def put(name: str, stream: Any) -> Any:
        opened.append(stream)
        monkeypatch.setattr(sys, name, stream)
        return stream

    yield put
    for stream in opened:
        if isinstance(stream, Broken):
            os.close(stream.descriptor)


def test_an_answer_is_a_line_of_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    streams.answer("a line")
    streams.write_line("for people \x1b[31m\tin red")
    out, err = capsys.readouterr()
    assert out == "a line\n" and "\x1b" not in err and "\tin red\n" in err


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StoreFull),
        (OSError(errno.EIO, "Input/output error"), LocalFault),
        (ValueError("I/O operation on closed file."), LocalFault),
    ],
)
@pytest.mark.parametrize("keep", [False, True])
def test_an_answer_that_cannot_be_written_is_told_and_not_lost(
    error: Exception, kind: type[Exception], keep: bool, instead: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    instead("stdout", Broken(error))
    with pytest.raises(kind) as told:
        streams.answer("the answer", keep=keep)
    assert told.value.hint and "output" in told.value.message  # type: ignore[attr-defined]
    assert ("the answer" in capsys.readouterr().err) is keep


def test_a_reader_that_went_away_is_not_an_error_to_be_worded(instead: Any) -> None:
    instead("stdout", Broken(BrokenPipeError()))
    with pytest.raises(BrokenPipeError):
        streams.answer("x", keep=True)


def test_what_people_cannot_be_told_is_left_out(instead: Any) -> None:
    instead("stderr", Broken(OSError(errno.EIO, "x")))
    streams.write_line("nothing comes of it")
    instead("stderr", None)
    streams.write_line("nor of this")


def test_at_the_end_both_are_flushed_and_a_broken_one_is_silenced(instead: Any) -> None:
    class Full(Broken):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "full")

    broken = instead("stdout", Full(OSError()))
    instead("stderr", None)
    streams.flush()
    assert os.path.samestat(os.fstat(broken.descriptor), Path(os.devnull).stat())  # what it still holds goes nowhere


def test_a_missing_input_is_an_empty_one_and_no_character_is_refused(instead: Any) -> None:
    instead("stdin", None)
    out = instead("stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    streams.prepare()
    assert sys.stdin.read() == ""
    sys.stdin.close()
    streams.answer("na\u00efve \u2192")
    assert out.buffer.getvalue() == b"na\\xefve \\u2192\n"
