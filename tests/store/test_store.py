from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvswap.core.errors import Incompatible, IntegrityError, NotFound, StoreFull, StoreLocked
from kvswap.core.ids import Cid
from kvswap.exchange.node.listing import list_artifact
from kvswap.store import Store
from kvswap.store.files import ChunkFile
from kvswap.store.leases import Leases
from kvswap.store.tables import MIGRATIONS
from tests.support import Ingested, make_artifact


def put(store: Store, made: Ingested, *, leave_out: int = 0, durable: bool = True) -> None:
    for cid, wire in list(made.chunks.items())[leave_out:]:
        store.put_chunk(wire, cid)
    list_artifact(store, made.statement, durable=durable)


def test_chunks_are_named_by_what_they_are(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    cid = store.put_chunk(b"abc")
    assert cid == Cid.of(b"abc")
    assert store.get_chunk(cid) == b"abc"
    assert store.put_chunk(b"abc", cid) == cid
    assert store.used_bytes == 3
    with pytest.raises(IntegrityError):
        store.put_chunk(b"abd", cid)
    with pytest.raises(NotFound):
        store.get_chunk(Cid.of(b"nothing"))
    assert store.missing([cid, Cid.of(b"x"), cid, Cid.of(b"x")]) == [Cid.of(b"x")]


def test_everything_survives_a_restart(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    made = make_artifact()
    put(store, made)
    store.pin(made.id, True)
    store.close()
    again = Store.open(tmp_path)
    row = again.get_artifact(made.id)
    assert row is not None and row.complete and row.pinned
    assert again.envelope(made.id) == made.statement.envelope
    assert again.used_bytes == sum(map(len, made.chunks.values()))
    assert [r.id for r in again.artifacts(made.manifest.document.reference)] == [made.id]  # type: ignore[union-attr]


def test_one_process_holds_a_store(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    script = f"from kvswap.store import Store; from pathlib import Path; Store.open(Path({str(tmp_path)!r}))"
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "StoreLocked" in other.stderr
    with pytest.raises(StoreLocked):
        Store.open(tmp_path)
    store.close()
    Store.open(tmp_path).close()


def test_a_file_changed_on_disk_is_set_aside_and_never_served(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    made = make_artifact()
    put(store, made)
    cid = made.manifest.chunks[0].id
    path = next((tmp_path / "chunks").rglob(str(cid)))
    path.write_bytes(b"x" + path.read_bytes()[1:])
    with pytest.raises(IntegrityError):
        store.get_chunk(cid)
    assert not store.has_chunk(cid)
    assert (tmp_path / "quarantine" / str(cid)).exists()
    assert not store.get_artifact(made.id).complete  # type: ignore[union-attr]
    store.put_chunk(made.chunks[cid], cid)  # repaired by fetching it again
    put(store, made)
    assert store.get_artifact(made.id).complete  # type: ignore[union-attr]


def test_a_chunk_is_read_in_pieces_and_not_collected_meanwhile(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    data = os.urandom(700_001)
    cid = store.put_chunk(data)
    with store.open_chunk(cid) as chunk:
        assert chunk.length == len(data)
        store.collect(0)
        assert store.has_chunk(cid)
        piece, read = memoryview(bytearray(100_000)), b""
        while size := chunk.read_into(piece, len(read)):
            read += bytes(piece[:size])
        assert read == data
    store.collect(0)
    with pytest.raises(NotFound), store.open_chunk(cid):
        pass


def test_what_rots_unseen_is_found_when_asked_to_look_again(tmp_path: Path) -> None:
    """A disk that changes bits changes no time of change."""
    store = Store.open(tmp_path)
    cid = store.put_chunk(b"a" * 5000)
    store.get_chunk(cid)  # found right
    path = next((tmp_path / "chunks").rglob(str(cid)))
    before = path.stat()
    path.write_bytes(b"b" + path.read_bytes()[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(IntegrityError):
        store.check_chunk(cid)
    assert not store.has_chunk(cid)


def test_verify_repairs_what_can_be_repaired(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    made = make_artifact(tokens=40)
    put(store, made)
    cids = [c.id for c in made.manifest.chunks]
    files = {cid: next((tmp_path / "chunks").rglob(str(cid))) for cid in cids}
    files[cids[0]].unlink()
    files[cids[1]].write_bytes(b"wrong")
    stray = tmp_path / "chunks" / str(Cid.of(b"stray"))[-2:] / str(Cid.of(b"stray"))
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"stray")
    (tmp_path / "chunks" / "zz").mkdir(exist_ok=True)
    (tmp_path / "chunks" / "zz" / "README").write_text("somebody's note")
    report = store.verify()
    assert (report.quarantined, report.missing, report.adopted, report.incomplete_artifacts) == (1, 1, 1, 1)
    assert not report.clean
    assert store.has_chunk(Cid.of(b"stray"))
    for cid in cids[:2]:
        store.put_chunk(made.chunks[cid], cid)
    assert store.verify().clean
    assert store.get_artifact(made.id).complete  # type: ignore[union-attr]


def test_collection_takes_orphans_then_the_longest_unused_and_never_pins_or_leases(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    old, pinned, leased, new = (make_artifact(seed=n, text=b"%d" % n) for n in range(4))
    for made in (old, pinned, leased, new):
        put(store, made)
    orphan = store.put_chunk(b"nobody's")
    store.pin(pinned.id, True)
    assert store.collect() == len(b"nobody's")
    assert not store.has_chunk(orphan)
    store.touch(new.id)
    with store.lease([leased.manifest.chunks[0].id]):
        store.collect(target_bytes=store.used_bytes - 1)
        assert store.get_artifact(old.id) is None
        store.collect(target_bytes=0)
        assert {r.id for r in store.artifacts()} == {pinned.id, leased.id}
    store.collect(target_bytes=0)
    assert [r.id for r in store.artifacts()] == [pinned.id]
    assert store.used_bytes == sum(map(len, pinned.chunks.values()))
    assert len(list((tmp_path / "chunks").rglob("bafkr4i*"))) == len(pinned.chunks)


def test_shared_chunks_are_stored_once_and_outlive_one_owner(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    a, b = make_artifact(seed=5, text=b"a"), make_artifact(seed=5, text=b"b")
    assert a.chunks.keys() == b.chunks.keys() and a.id != b.id
    put(store, a)
    used = store.used_bytes
    put(store, b)
    assert store.used_bytes == used
    store.remove(a.id)
    store.collect()
    assert store.used_bytes == used
    assert store.get_artifact(b.id).complete  # type: ignore[union-attr]


def test_the_quota_holds_and_loses_nothing(tmp_path: Path) -> None:
    store = Store.open(tmp_path, quota_bytes=1000)
    made = make_artifact()
    small = store.put_chunk(b"x" * 600)
    with store.lease([small]), pytest.raises(StoreFull):
        store.put_chunk(b"y" * 600)
    assert store.has_chunk(small)
    store.put_chunk(b"y" * 600)  # the first was an orphan: it made room
    assert not store.has_chunk(small)
    assert store.used_bytes == 600
    with store.lease(made.chunks), pytest.raises(StoreFull):
        put(store, made)
    assert store.used_bytes <= 1000


def test_for_want_of_room_it_collects_to_a_watermark_the_expired_first(tmp_path: Path) -> None:
    """Not a little for each chunk that comes, and never what is pinned or in use."""
    made = [make_artifact(seed=n, text=b"%d" % n) for n in range(20)]
    each = sum(map(len, made[0].chunks.values()))
    store = Store.open(tmp_path, quota_bytes=21 * each)
    expired = make_artifact(seed=50, text=b"expired", now=1_700_000_000)
    for one in made[:19]:
        put(store, one)
    put(store, expired)
    store.touch(expired.id)  # used last, and of no use
    store.pin(made[0].id, True)
    with store.lease(made[1].chunks):
        put(store, make_artifact(seed=60, text=b"more", tokens=42))
    left = {row.id for row in store.artifacts()}
    assert store.used_bytes <= 0.9 * store.quota_bytes
    assert {made[0].id, made[1].id, made[18].id} <= left and not {expired.id, made[2].id} & left
    assert store.verify().clean


def test_collecting_beside_readers_and_writers_takes_nothing_in_use(tmp_path: Path) -> None:
    store = Store.open(tmp_path, quota_bytes=10**9)
    errors: list[BaseException] = []
    stop = threading.Event()

    def work(number: int) -> None:
        try:
            for round_ in range(12):
                made = make_artifact(seed=number * 100 + round_, text=b"%d %d" % (number, round_))
                with store.lease(made.chunks):
                    put(store, made)
                    for cid, data in made.chunks.items():
                        assert store.get_chunk(cid) == data
                    assert store.get_artifact(made.id) is not None
        except BaseException as error:
            errors.append(error)

    def collect() -> None:
        try:
            while not stop.is_set():
                store.collect(0)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    collector = threading.Thread(target=collect)
    for thread in [*workers, collector]:
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    collector.join()
    assert errors == []
    store.collect(0)
    assert store.used_bytes == 0 and store.artifacts() == []
    assert list((tmp_path / "chunks").rglob("bafkr4i*")) == []


def test_a_full_disk_is_store_full_and_leaves_no_trace(tmp_path: Path) -> None:
    script = f"""
import resource, signal
from pathlib import Path
from kvswap.core.errors import StoreFull
from kvswap.core.ids import Cid
from kvswap.store import Store
store = Store.open(Path({str(tmp_path)!r}))
kept = store.put_chunk(b"k" * 1000)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    store.put_chunk(b"x" * 400_000)
except StoreFull as error:
    assert error.exit_code == 12
    assert not store.has_chunk(Cid.of(b"x" * 400_000))
    assert store.get_chunk(kept) == b"k" * 1000
    assert store.used_bytes == 1000
    print("full")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "full", done.stderr
    assert not list((tmp_path / "tmp").iterdir())
    assert Store.open(tmp_path).verify().clean


def test_a_killed_writer_never_leaves_a_listed_wrong_chunk(tmp_path: Path) -> None:
    script = f"""
import os
from pathlib import Path
from kvswap.store import Store
store = Store.open(Path({str(tmp_path)!r}))
print("go", flush=True)
while True:
    store.put_chunk(os.urandom(50_000))
"""
    for attempt in range(8):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"go\n"
        time.sleep(0.03 * (attempt + 1))  # a different moment each time; not waiting for anything
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        store = Store.open(tmp_path)
        report = store.verify()
        assert report.quarantined == 0 and report.missing == 0
        store.close()
    assert report.checked > 8


def test_longest_prefix_finds_the_deepest_match_of_complete_artifacts(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    made = make_artifact(tokens=40, block_tokens=8)
    put(store, made)
    chain = made.manifest.prefix.chain
    assert [(r.id, n) for r, n in store.longest_prefix([*chain[:3], b"\0" * 32])] == [(made.id, 3)]
    assert store.longest_prefix([b"\0" * 32]) == []
    store._chunks.forget(made.manifest.chunks[0].id)
    assert store.longest_prefix(chain) == []


def test_a_store_of_the_future_is_refused(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    with sqlite3.connect(tmp_path / "index.sqlite3") as db:
        db.execute("PRAGMA user_version=999")
    with pytest.raises(Incompatible):
        Store.open(tmp_path)
    with sqlite3.connect(tmp_path / "index.sqlite3") as db:
        db.execute(f"PRAGMA user_version={len(MIGRATIONS)}")
    Store.open(tmp_path).close()  # the lock was released


def test_what_a_crash_left_in_tmp_is_cleared(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    (tmp_path / "tmp" / "half").write_bytes(b"x")
    Store.open(tmp_path).close()
    assert not list((tmp_path / "tmp").iterdir())


def test_what_comes_and_goes_while_it_is_verified_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading the index and looking at the files, one chunk is put and another collected."""
    store = Store.open(tmp_path)
    going = store.put_chunk(b"an orphan of some length")
    listed = store._files.all

    def meanwhile() -> list[Cid]:
        names = list(listed())
        names.append(store.put_chunk(b"comes"))
        return names

    monkeypatch.setattr(store._files, "all", meanwhile)
    assert store.verify().adopted == 0
    assert store.used_bytes == len(b"an orphan of some length") + len(b"comes")
    opened = store._files.open

    @contextlib.contextmanager
    def and_gone(cid: Cid) -> Iterator[ChunkFile]:
        with opened(cid) as file:
            if cid == going:
                store.collect()
            yield file

    monkeypatch.setattr(store._files, "all", lambda: list(listed()))
    monkeypatch.setattr(store._files, "open", and_gone)
    with store.lease([Cid.of(b"comes")]):
        assert store.verify().adopted == 0
    assert store.used_bytes == len(b"comes")
    assert not store.has_chunk(going)


def test_many_chunks_are_held_and_let_go_whoever_is_cancelled() -> None:
    cids = [Cid.of(b"%d" % number) for number in range(50)]

    async def body() -> None:
        leases, begun, go_on = Leases(), threading.Event(), threading.Event()
        async with leases.held(lambda: cids):
            assert len(leases) == 50
            with leases.free(cids) as free:
                assert free == []
        assert len(leases) == 0

        def slowly() -> list[Cid]:
            begun.set()
            go_on.wait(600)
            return cids

        async def hold() -> None:
            async with leases.held(slowly):
                raise AssertionError("it was cancelled before")

        task = asyncio.create_task(hold())
        await asyncio.to_thread(begun.wait, 600)
        task.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(leases) == 0

        def wrong() -> list[Cid]:
            raise ValueError("no ids")

        with pytest.raises(ValueError, match="no ids"):
            async with leases.held(wrong):
                pass

    asyncio.run(body())
