"""Whatever is raised becomes one of our errors: generated over the kinds of exceptions and of what was under way."""

from __future__ import annotations

import errno
import json
import logging
import socket
import sqlite3
import ssl
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from kvswap.core import log
from kvswap.core.errors import KvswapError, NotFound, StoreFull, UsageError
from kvswap.core.failures import as_kvswap_error, ours, record

CODES = {1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 130}


def raised(make: Callable[[], object]) -> BaseException:
    try:
        make()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def _deep() -> None:
    json.loads("[" * 100_000)


def _database(text: bytes) -> Callable[[], object]:
    def work() -> None:
        with sqlite3.connect(":memory:") as connection:
            connection.deserialize(text)
            connection.execute("SELECT * FROM sqlite_master").fetchall()

    return work


def _full_database() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA max_page_count = 2")
    connection.execute("CREATE TABLE t (v)")
    connection.execute("INSERT INTO t VALUES (zeroblob(100000))")


def _read_only() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA query_only = 1")
    connection.execute("CREATE TABLE t (v)")


REAL: dict[str, tuple[Callable[[], object], set[int]]] = {
    "surrogate": (lambda: "\ud800".encode(), {2}),
    "not utf-8": (lambda: b"\xff".decode(), {2}),
    "not json": (lambda: json.loads("{"), {1}),
    "not toml": (lambda: tomllib.loads("="), {2}),
    "deep": (_deep, {2}),
    "import": (lambda: __import__("no_such_package_of_ours"), {7}),
    "overflow": (lambda: sqlite3.connect(":memory:").execute("SELECT ?", (10**30,)), {2}),
    "missing file": (lambda: Path("/nonexistent/x").read_bytes(), {1}),
    "a directory": (lambda: Path("/").read_bytes(), {1}),
    "full device": (lambda: Path("/dev/full").write_bytes(b"x"), {12}),
    "no database": (_database(b"nothing of the kind" * 1000), {6}),
    "full database": (_full_database, {12}),
    "read-only database": (_read_only, {1}),
    "no such table": (lambda: sqlite3.connect(":memory:").execute("SELECT * FROM t"), {1}),
    "closed database": (lambda: _closed().execute("SELECT 1"), {1}),
    "no database file": (lambda: sqlite3.connect("/nonexistent/x"), {1}),
    "unknown host": (lambda: socket.getaddrinfo("256.256.256.256.invalid.", 1, flags=socket.AI_NUMERICHOST), {1}),
    "type": (lambda: len(3), {1}),  # type: ignore[arg-type]
    "key": (lambda: {}["x"], {1}),
    "assertion": (lambda: _fail(AssertionError()), {1}),
    "time": (lambda: _fail(TimeoutError()), {1}),
    "memory": (lambda: _fail(MemoryError()), {1}),
    "tls": (lambda: _fail(ssl.SSLError(1, "wrong version number")), {1}),
    "group": (lambda: _fail(ExceptionGroup("several", [OSError(errno.ENOSPC, "x"), ValueError()])), {12}),
    "threads": (lambda: _fail(RuntimeError("can't start new thread")), {1}),
    "escapes": (lambda: _fail(ValueError("\x1b]0;title\x07\nmore")), {1}),
    "broken pipe": (lambda: _fail(BrokenPipeError(errno.EPIPE, "Broken pipe")), {1}),
}


def _closed() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.close()
    return connection


def _fail(error: BaseException) -> None:
    raise error


def is_told(error: KvswapError) -> None:
    """Exit code, cause and hint, in printable lines without the inside of Python."""
    assert error.exit_code in CODES
    assert error.message and error.cause and error.hint
    for line in (error.message, error.cause, error.hint):
        assert line.isprintable() and "Traceback" not in line and len(line) < 1_000
    assert type(KvswapError.from_dict(error.to_dict())) is type(error)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("doing", ["", "reading the index"])
def test_what_is_raised_is_told_as_ours(name: str, doing: str) -> None:
    make, codes = REAL[name]
    error = raised(make)
    made = as_kvswap_error(error, doing)
    is_told(made)
    assert made.exit_code in codes, (made.message, made.exit_code)
    assert made.origin is (error.exceptions[0] if isinstance(error, ExceptionGroup) else error)
    assert doing in made.message


@pytest.mark.parametrize("code", sorted(errno.errorcode))
def test_every_errno_is_told(code: int) -> None:
    full = code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    made = as_kvswap_error(OSError(code, "what the system says", "/a/b\x1b", None, "/c"), "writing a chunk")
    is_told(made)
    assert (made.exit_code == 12) is full
    if code != errno.ETIMEDOUT:
        assert "/a/b" in made.message and "/c" in made.message


def test_ours_goes_out_unchanged() -> None:
    error = NotFound("x")
    assert as_kvswap_error(error, "y") is error
    assert record(error) is error
    with pytest.raises(NotFound), ours("doing"):
        raise error


def test_the_traceback_is_in_the_log_and_nowhere_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handlers = list(logging.getLogger().handlers)
    log.start_log(tmp_path)
    try:
        with pytest.raises(StoreFull), ours("writing a chunk"):
            Path("/dev/full").write_bytes(b"x")
        error = raised(lambda: "\ud800".encode())
        made = record(error, "reading a text")
        assert isinstance(made, UsageError)
        record(made), record(error)  # at the next boundary, again
    finally:
        log.start_log(None)
        logging.getLogger().handlers[:] = handlers
    stderr = capsys.readouterr().err
    assert "the disk is full" in stderr and "Traceback" not in stderr and len(stderr.splitlines()) == 2
    text = (tmp_path / log.NAME).read_text()
    assert text.count("Traceback") == 2 and "/dev/full" in text
    assert (tmp_path / log.NAME).stat().st_mode & 0o077 == 0


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handlers = list(logging.getLogger().handlers)
    (tmp_path / log.NAME).mkdir()
    log.start_log(tmp_path)
    try:
        record(ValueError("x"), "reading")
    finally:
        log.start_log(None)
        logging.getLogger().handlers[:] = handlers
    assert "Traceback" not in capsys.readouterr().err
