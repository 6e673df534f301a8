"""A database that is filled from the disk, after damage, is not read before it is whole."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvswap.store.index import Index

QUERY = "SELECT length FROM chunks"
DAMAGE = sqlite3.DatabaseError("database disk image is malformed")


class Filled(Index):
    """An index with one chunk, whose refilling stops until `go_on`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, on_problem=lambda text: None)
        self.filling, self.go_on = threading.Event(), threading.Event()
        self.remake = self._refill
        self._put()

    def _put(self) -> None:
        self.write(lambda db: db.execute("INSERT INTO chunks (cid, length, added) VALUES (?, 7, 0)", (b"a" * 32,)))

    def _refill(self) -> None:
        self.filling.set()
        assert self.go_on.wait(600)
        self._put()
        assert len(self.rows(QUERY)) == 1  # who fills it reads it


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Filled]:
    made = Filled(tmp_path / "index.sqlite3")
    yield made
    made.go_on.set()
    made.close()


def test_who_comes_while_it_is_filled_waits(index: Filled) -> None:
    with ThreadPoolExecutor(2) as pool:
        renewing = pool.submit(index.renew, index.epoch, DAMAGE)
        assert index.filling.wait(600)
        reading: Future[list[Any]] = pool.submit(index.rows, QUERY)
        wait([reading], timeout=0.3)  # time enough to read the file that is not filled yet
        index.go_on.set()
        renewing.result()
        assert [row["length"] for row in reading.result()] == [7]


def test_who_had_begun_reads_again(index: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has looked already when the other file takes the place of the damaged one."""
    usual, begun = index._reader, []

    @contextmanager
    def late() -> Iterator[sqlite3.Connection]:
        first = not begun
        begun.append(threading.get_ident())
        if first:
            pool.submit(index.renew, index.epoch, DAMAGE)
            assert index.filling.wait(600)
        with usual() as db:
            yield db
        if first:
            index.go_on.set()

    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(index, "_reader", late)
        assert [row["length"] for row in index.rows(QUERY)] == [7]
