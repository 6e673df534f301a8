"""What was fetched is listed before it is synced; what the power takes is noticed."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvswap.core.ids import Cid
from kvswap.core.upkeep import Problems
from kvswap.store import Store, write_behind
from kvswap.store.write_behind import WriteBehind
from tests.store.test_store import put
from tests.support import make_artifact, until

CIDS = [Cid.of(b"%d" % number) for number in range(200)]


def crash(store: Store) -> None:
    """End as with a kill: nothing is flushed, only the lock is gone."""
    store._index.close()
    os.close(store._lock)


def unsynced(store: Store) -> set[Cid]:
    return {Cid(bytes(r["cid"])) for r in store._index.rows("SELECT cid FROM chunks WHERE NOT synced")}


def file_of(store: Store, cid: Cid) -> Path:
    return next(store.chunks_directory.rglob(str(cid)))


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk so slow that nothing is synced while the test runs."""
    monkeypatch.setattr(WriteBehind, "add", lambda self, cid, size: None)


def test_all_are_synced_oldest_first_and_then_told_of() -> None:
    done: list[Cid] = []
    told: list[Cid] = []

    def synced(cids: Sequence[Cid]) -> None:
        assert set(cids) <= set(done)
        told.extend(cids)

    queue = WriteBehind(done.append, synced)
    for cid in CIDS:
        queue.add(cid, 10)
    queue.close()
    assert done == told == CIDS


def test_who_writes_faster_than_the_disk_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_behind, "_WAITING_BYTES", 30)
    go, full, through = threading.Event(), threading.Event(), threading.Event()
    queue = WriteBehind(lambda cid: go.wait(600) and None, lambda cids: None)

    def write() -> None:
        for cid in CIDS[:3]:
            queue.add(cid, 10)
        full.set()
        queue.add(CIDS[3], 10)
        through.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert full.wait(600) and not through.is_set()
    go.set()
    assert through.wait(600)
    thread.join()
    queue.close()


def test_what_cannot_be_told_of_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_behind, "_WAITING_BYTES", 20)

    def broken(cids: Sequence[Cid]) -> None:
        raise RuntimeError("the index is gone")

    queue = WriteBehind(lambda cid: None, broken)
    for cid in CIDS:
        queue.add(cid, 10)
    queue.close()


def test_fetched_chunks_are_synced_soon_and_others_at_once(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    own, fetched = store.put_chunk(b"made here"), store.put_chunk(b"fetched", write_behind=True)
    assert own not in unsynced(store)
    assert store.get_chunk(fetched) == b"fetched"
    store.close()
    again = Store.open(tmp_path)
    assert unsynced(again) == set() and again.missing([own, fetched]) == []


@pytest.mark.parametrize("cached", [True, False])
def test_what_the_power_took_is_not_listed_any_more(tmp_path: Path, never: None, cached: bool) -> None:
    size = 600_001  # a file system that can writes so much directly
    store = Store.open(tmp_path)
    made = make_artifact()
    put(store, made)
    bodies = [os.urandom(size) for _ in range(4)]
    whole, emptied, gone, wrong = (store.put_chunk(body, write_behind=True, cached=cached) for body in bodies)
    lost = made.manifest.chunks[0].id
    store._chunks.forget(lost)
    store.put_chunk(made.chunks[lost], lost, write_behind=True)
    put(store, made, durable=False)
    assert unsynced(store) == {whole, emptied, gone, wrong, lost}
    used = store.used_bytes
    crash(store)
    file_of(store, emptied).write_bytes(b"")
    file_of(store, gone).unlink()
    file_of(store, wrong).write_bytes(bytes(size))
    file_of(store, lost).write_bytes(b"")
    again = Store.open(tmp_path)
    assert again.missing([whole, emptied, gone, wrong, lost]) == [emptied, gone, wrong, lost]
    assert not again.get_artifact(made.id).complete  # type: ignore[union-attr]
    assert again.used_bytes == used - 3 * size - len(made.chunks[lost]) and unsynced(again) == set()
    assert again.get_chunk(whole) == bodies[0]
    assert again.put_chunk(bodies[1]) == emptied  # it can be had again
    assert again.verify().quarantined == 0


def test_what_the_disk_did_not_keep_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems say only when asked to sync that there was no room."""

    def no_room(cid: Cid) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    store = Store.open(tmp_path)
    monkeypatch.setattr(store._files, "sync", no_room)
    cid = store.put_chunk(b"fetched", write_behind=True)
    store._ingest.write_behind.close()
    assert store.missing([cid]) == [cid] and store.used_bytes == 0
    assert store.put_chunk(b"fetched") == cid


def test_errors_of_the_disk_cost_what_they_hit_and_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is full while the disk says EIO: the thread goes on, and so does who writes."""
    monkeypatch.setattr(write_behind, "_WAITING_BYTES", 20)
    monkeypatch.setattr(write_behind, "_BATCH", 2)
    problems, done, told = Problems(), [], []
    broken = set(CIDS[3:9])

    def sync(cid: Cid) -> None:
        if cid in broken:
            raise sqlite3.OperationalError("database or disk is full")
        done.append(cid)

    def synced(cids: Sequence[Cid]) -> None:
        if CIDS[15] in cids:
            raise OSError(errno.EIO, "Input/output error")
        told.extend(cids)

    queue = WriteBehind(sync, synced, problems)
    for cid in CIDS[:9]:
        queue.add(cid, 10)
    until(lambda: "syncing" in problems)
    for cid in CIDS[9:40]:
        queue.add(cid, 10)
    queue.close()
    assert done == [c for c in CIDS[:40] if c not in broken]
    assert set(done) - set(told) <= {CIDS[14], CIDS[15], CIDS[16]}  # those of one batch
    assert queue._writer.waiting_bytes == 0 and "syncing" not in problems
