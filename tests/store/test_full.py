"""A disk that takes no more, by a limit on the size of files; and what changes together is counted together."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvswap.core.errors import KvswapError, StoreFull
from kvswap.core.ids import Cid
from kvswap.cost import Calibration
from kvswap.store import Ledger, Store
from kvswap.trust import PolicyFile
from kvswap.trust.noise import NoiseRecord, SpreadRecord
from tests.store.test_store import put
from tests.support import key, make_artifact


@contextmanager
def no_larger_files(size: int) -> Iterator[None]:
    """As on a disk that is full: what would grow a file beyond `size` bytes is refused."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_index_that_cannot_grow_goes_on_in_memory_and_comes_back(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    first = [make_artifact(seed=n, text=b"%d" % n) for n in range(3)]
    for made in first:
        put(store, made)
    more = [make_artifact(seed=n, text=b"%d" % n) for n in range(10, 20)]
    with no_larger_files(16_384):
        for made in more:
            put(store, made)
        store.pin(more[0].id, True)
        store.touch(more[1].id)
        store.remove(first[0].id)
        store.collect()
        assert {row.id for row in store.artifacts()} == {made.id for made in [*first[1:], *more]}
        held = {cid: len(data) for made in [*first[1:], *more] for cid, data in made.chunks.items()}
        assert store.used_bytes == sum(held.values())
        assert store.verify().clean
    store.maintain()
    assert "index" not in store.problems
    store.close()
    again = Store.open(tmp_path)
    assert {row.id for row in again.artifacts()} == {made.id for made in [*first[1:], *more]}
    assert again.get_artifact(more[0].id).pinned and again.used_bytes == sum(held.values())  # type: ignore[union-attr]
    assert again.verify().clean
    again.close()


def test_what_the_disk_does_not_take_is_not_listed_and_not_counted(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    made = make_artifact()
    with no_larger_files(100):
        for _ in range(3):
            with pytest.raises(StoreFull):
                store.put_chunk(b"x" * 1000)
            with pytest.raises(KvswapError):
                put(store, made)
    assert store.artifacts() == [] and store.used_bytes == 0
    assert list((tmp_path / "tmp").iterdir()) == []
    put(store, made)
    assert store.get_artifact(made.id).complete and store.verify().clean  # type: ignore[union-attr]
    store.close()


def test_the_trust_list_changes_on_disk_before_it_changes_in_memory(tmp_path: Path) -> None:
    policy = PolicyFile(tmp_path / "trust.json", key(9).peer_id)
    friend, other = str(key(1).peer_id), str(key(2).peer_id)
    policy.add(friend)
    with no_larger_files(20):
        for change in (
            lambda: policy.add(other),
            lambda: policy.remove(friend),
            lambda: policy.ban(friend, "why", "artifact", "evidence"),
            lambda: policy.succeed(other),
        ):
            with pytest.raises(StoreFull):
                change()
            assert policy.policy.trusts(friend) and not policy.policy.trusts(other)
    assert [p.name for p in tmp_path.iterdir()] == ["trust.json"]
    assert PolicyFile(tmp_path / "trust.json", key(9).peer_id).policy.trusts(friend)


def test_a_failed_save_of_what_was_measured_leaves_no_file(tmp_path: Path) -> None:
    calibration, spread = Calibration(tmp_path / "calibration.json"), SpreadRecord([[1]], 1, 1)
    noise = NoiseRecord(samples=None, recompute=spread, fingerprints=spread, intervals=None)
    with no_larger_files(20):
        for _ in range(10):
            calibration.add_noise("model", noise)
            calibration.save()
    calibration.close()  # its thread may still be at it
    assert [p.name for p in tmp_path.iterdir() if p.name != "calibration.json"] == []


def test_who_sees_the_new_number_sees_what_is_new(tmp_path: Path) -> None:
    """What is read under a generation may be kept for as long as that is the generation."""
    store = Store.open(tmp_path)
    seen: dict[int, set[str]] = {}
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            generation = store.generation
            seen.setdefault(generation, {row.id for row in store.artifacts()})

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for number in range(40):
            made = make_artifact(seed=number, text=b"%d" % number, tokens=9)
            put(store, made)
            if number % 4 == 3:
                store.remove(made.id)
            there = {row.id for row in store.artifacts()}
            assert seen.get(store.generation, there) == there
    finally:
        stop.set()
        thread.join()
    store.close()


def test_a_lease_costs_the_same_however_many_there_are(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    cid = Cid.of(b"one")

    def fastest() -> float:
        best = 1.0
        for _ in range(50):
            began = time.thread_time()
            with store.lease([cid]):
                pass
            best = min(best, time.thread_time() - began)
        return best

    alone = fastest()
    with store.lease([Cid.of(b"%d" % n) for n in range(50_000)]):
        assert fastest() < 30 * alone
    store.close()


def test_the_ledger_writes_what_changed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "peers.sqlite3")
    for number in range(500):
        ledger.record(str(number)).bytes_in = number
    ledger.flush()
    assert ledger._db is not None
    before = ledger._db.total_changes
    ledger.flush()
    assert ledger._db.total_changes == before
    ledger.record("7").bytes_in = 8
    ledger.flush()
    assert ledger._db.total_changes - before <= 2
    ledger.close()
    again = Ledger(tmp_path / "peers.sqlite3")
    assert again.peers()["7"].bytes_in == 8 and len(again.peers()) == 500
    again.close()


def test_nobody_waits_for_the_ledgers_disk(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "peers.sqlite3")
    ledger.record("a").bytes_in = 1
    import sqlite3

    other = sqlite3.connect(tmp_path / "peers.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # a flush has to wait
    thread = threading.Thread(target=ledger.flush)
    thread.start()
    for number in range(100):
        ledger.record(str(number))
    assert thread.is_alive() and len(ledger.peers()) == 101
    other.execute("ROLLBACK")
    other.close()
    thread.join(600)
    assert not thread.is_alive()
    ledger.close()
