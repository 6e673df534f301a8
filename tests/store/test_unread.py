"""A file that this machine cannot open or read now is not a wrong one: nothing is deleted, moved or unlisted for that."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvswap.core.errors import LocalFault
from kvswap.core.ids import Cid
from kvswap.store import Store
from kvswap.store.files import ChunkFile
from tests.store.test_store import put
from tests.store.test_write_behind import crash, file_of, unsynced
from tests.support import make_artifact

OWN_TROUBLE = (errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EIO)


@contextmanager
def unopened(cid: Cid, code: int) -> Iterator[None]:
    """As under load, or on a disk that fails for a while: this one file cannot be opened."""
    real = os.open

    def refusing(path: Any, *arguments: Any, **options: Any) -> int:
        if str(cid) in str(path):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", refusing)
        yield


@contextmanager
def unread(code: int) -> Iterator[None]:
    """It can be opened, and no byte of it can be read."""

    def refusing(self: ChunkFile, into: memoryview, at: int) -> int:
        raise OSError(code, os.strerror(code))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChunkFile, "read_into", refusing)
        yield


@pytest.fixture(autouse=True)
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is synced beside the test."""
    monkeypatch.setattr("kvswap.store.write_behind.WriteBehind.add", lambda self, cid, size: None)


@pytest.mark.parametrize("code", OWN_TROUBLE)
def test_what_cannot_be_opened_to_be_synced_stays_and_is_synced_later(tmp_path: Path, code: int) -> None:
    store, made = Store.open(tmp_path), make_artifact()
    for cid, data in made.chunks.items():
        store.put_chunk(data, cid, write_behind=True)
    first = next(iter(made.chunks))
    with unopened(first, code), pytest.raises(LocalFault, match=str(first)):
        put(store, made)
    assert store.missing(made.chunks) == [] and first in unsynced(store) and file_of(store, first).exists()
    put(store, made)
    assert unsynced(store) == set() and store.get_artifact(made.id).complete  # type: ignore[union-attr]
    store.close()


@pytest.mark.parametrize("code", OWN_TROUBLE)
def test_what_cannot_be_opened_at_the_start_stays_and_is_looked_at_again(tmp_path: Path, code: int) -> None:
    store, made = Store.open(tmp_path), make_artifact()
    put(store, made)
    cid = store.put_chunk(b"fetched", write_behind=True)
    crash(store)
    with unopened(cid, code):
        again = Store.open(tmp_path)
        assert again.missing([cid]) == [] and unsynced(again) == {cid} and file_of(again, cid).exists()
        assert str(cid) in again.problems["chunks"]
        crash(again)
    with unread(code):
        again = Store.open(tmp_path)
        assert again.missing([cid]) == [] and unsynced(again) == {cid}
        crash(again)
    again = Store.open(tmp_path)
    assert unsynced(again) == set() and again.get_chunk(cid) == b"fetched" and "chunks" not in again.problems
    again.close()


@pytest.mark.parametrize("code", OWN_TROUBLE)
def test_verify_moves_nothing_that_it_cannot_read_and_looks_at_the_others(tmp_path: Path, code: int) -> None:
    store, made = Store.open(tmp_path), make_artifact()
    put(store, made)
    first, *_, last = sorted(made.chunks, key=str)
    file_of(store, last).write_bytes(b"rot")
    with unopened(first, code), pytest.raises(LocalFault, match=str(first)):
        store.verify()
    assert store.missing(made.chunks) == [last] and file_of(store, first).exists()
    with unread(code), pytest.raises(LocalFault):
        store.verify()
    assert store.missing(made.chunks) == [last]
    store.put_chunk(made.chunks[last], last)
    assert store.verify().clean
    store.close()


def test_a_directory_that_cannot_be_looked_into_does_not_mean_that_its_chunks_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, made = Store.open(tmp_path), make_artifact()
    put(store, made)
    real = os.stat

    def refusing(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(f"{store.chunks_directory}/"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refusing)
        assert store._chunks.forget_missing() == 0
    assert store.missing(made.chunks) == []
    store.close()
