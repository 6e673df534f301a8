from __future__ import annotations

import errno
import sqlite3
import time
from pathlib import Path

import pytest

from kvswap.core.errors import UsageError
from kvswap.core.upkeep import Problems
from kvswap.store import Ledger, PeerRecord, database


def test_what_was_experienced_survives_a_restart(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "peers.sqlite3")
    record = ledger.record("a")
    record.bytes_in, record.bytes_out, record.blocked, record.publisher = 100, 250, True, "p"
    record.count_invalid_data(1234.5)
    ledger.record("b").failed(10.0)
    ledger.close()
    again = Ledger(tmp_path / "peers.sqlite3")
    assert again.record("a").ratio == 2.5 and again.record("a").lies == 1 and again.record("a").lied_at == 1234.5
    assert again.blocked("a") and not again.blocked("b") and not again.blocked("stranger")
    assert again.record("b").failures == 1 and again.record("b").ratio is None
    again.close()


def test_a_killed_process_loses_at_most_what_was_not_flushed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "peers.sqlite3")
    ledger.record("a").bytes_in = 5
    ledger.flush()
    ledger.record("a").bytes_in = 9  # and no close
    assert Ledger(tmp_path / "peers.sqlite3").record("a").bytes_in == 5


def test_a_damaged_file_costs_the_history_only(tmp_path: Path) -> None:
    path = tmp_path / "peers.sqlite3"
    path.write_bytes(b"this is no database" * 100)
    ledger = Ledger(path)
    assert ledger.peers() == {}
    ledger.record("a").bytes_in = 1
    ledger.close()
    assert Ledger(path).peers()["a"].bytes_in == 1
    assert path.with_suffix(".damaged").exists()


def test_it_is_bounded_and_never_forgets_whom_it_blocks(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "peers.sqlite3")
    ledger.record("blocked").blocked = True
    for number in range(5000):
        ledger.record(str(number))
    assert len(ledger.peers()) <= 4096 and ledger.blocked("blocked") and "4999" in ledger.peers()
    ledger.close()


def test_pauses_grow_with_failures_and_end_with_a_success() -> None:
    record = PeerRecord()
    assert record.not_before(300, 3600) == 0
    pauses = []
    for _ in range(12):
        record.failed(1000.0)
        pauses.append(record.not_before(300, 3600) - 1000.0)
    assert pauses == sorted(pauses) and pauses[0] < 5 and pauses[-1] == 300
    record.worked()
    assert record.not_before(300, 3600) == 0
    record.count_invalid_data(1000.0)
    assert record.not_before(300, 3600) == 4600


def full(tmp_path: Path) -> Ledger:
    """A ledger in which every place is taken by a peer that delivered."""
    ledger = Ledger(tmp_path / "peers.sqlite3")
    for number in range(4096):
        ledger.record(str(number)).bytes_in = 1
    return ledger


def test_who_is_blocked_or_lied_is_remembered_in_a_full_ledger(tmp_path: Path) -> None:
    ledger = full(tmp_path)
    with ledger.changing("bad") as record:
        record.blocked = True
    with ledger.changing("liar") as record:
        record.count_invalid_data(time.time())
    ledger.record("late").failed(time.time())
    for number in range(3000):
        ledger.record(f"stranger {number}")
    assert ledger.blocked("bad") and ledger.backoff_seconds("liar", 300, 3600) > 3500
    assert sum(ledger.delivered(str(number)) for number in range(4096)) >= 4096 - 3  # each took one place
    assert len(ledger.peers()) == 4096
    ledger.close()
    again = Ledger(tmp_path / "peers.sqlite3")
    assert again.blocked("bad") and again.backoff_seconds("liar", 300, 3600) > 3500
    again.close()


def test_no_record_is_given_out_that_nothing_holds(tmp_path: Path) -> None:
    ledger = full(tmp_path)
    for number in range(10):
        record = ledger.record(f"stranger {number}")
        assert ledger.peers()[f"stranger {number}"] is record
    ledger.close()


def test_liars_push_out_neither_who_is_blocked_nor_most_who_delivered(tmp_path: Path) -> None:
    ledger = full(tmp_path)
    for number in range(100):
        ledger.block(f"blocked {number}", True)
    for number in range(1500):
        with ledger.changing(f"liar {number}") as record:
            record.count_invalid_data(time.time())
    assert all(ledger.blocked(f"blocked {number}") for number in range(100))
    assert sum(ledger.delivered(str(number)) for number in range(4096)) >= 2900
    assert (
        ledger.backoff_seconds("liar 1499", 300, 3600) > 3500 and ledger.backoff_seconds("liar 500", 300, 3600) > 3500
    )
    ledger.close()


def test_more_are_not_blocked_than_there_is_room_for_and_that_is_said(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "peers.sqlite3")
    for number in range(3072):
        ledger.block(str(number), True)
    ledger.block("0", True)  # is already
    with pytest.raises(UsageError, match="3072"):
        ledger.block("one more", True)
    for number in range(5000):
        ledger.record(f"stranger {number}")
    assert not ledger.blocked("one more") and all(ledger.blocked(str(number)) for number in range(3072))
    ledger.block("0", False)
    ledger.block("one more", True)
    assert ledger.blocked("one more") and not ledger.blocked("0")
    ledger.close()


def database_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("as SQLite says it")
    error.sqlite_errorcode = code
    return error


OWN_TROUBLE = (
    database_error(sqlite3.SQLITE_BUSY),
    database_error(sqlite3.SQLITE_LOCKED),
    database_error(sqlite3.SQLITE_NOMEM),
    database_error(sqlite3.SQLITE_PROTOCOL),
    database_error(sqlite3.SQLITE_IOERR),
    OSError(errno.EMFILE, "too many open files"),
)


def blocking(path: Path) -> None:
    ledger = Ledger(path)
    ledger.block("bad", True)
    ledger.record("good").bytes_in = 7
    ledger.close()


@pytest.mark.parametrize("readable", [True, False], ids=["copied", "not read"])
@pytest.mark.parametrize("error", OWN_TROUBLE)
def test_a_file_that_cannot_be_opened_now_is_not_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, readable: bool
) -> None:
    path, problems = tmp_path / "peers.sqlite3", Problems()
    blocking(path)

    def refuses(*arguments: object) -> sqlite3.Connection:
        raise error.with_traceback(None)

    with monkeypatch.context() as patch:
        patch.setattr(database, "connect", refuses)
        if not readable:
            patch.setattr(database, "copied", lambda path: database.in_memory())
        ledger = Ledger(path, problems)
        assert not path.with_suffix(".damaged").exists()
        assert ledger.blocked("bad") is readable and ("peers" in problems) is not readable
        ledger.record("good").bytes_in += 3
        ledger.record("new").bytes_out = 5
        ledger.flush()  # in vain
    ledger.flush()
    assert "peers" not in problems
    for which in (ledger, Ledger(path)):
        assert which.blocked("bad") and which.record("good").bytes_in == 10 and which.record("new").bytes_out == 5
    ledger.close()


def test_a_file_of_another_schema_is_begun_anew(tmp_path: Path) -> None:
    path, problems = tmp_path / "peers.sqlite3", Problems()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE peers (peer TEXT PRIMARY KEY, something INTEGER)")
    db.close()
    ledger = Ledger(path, problems)
    assert "peers" in problems and path.with_suffix(".damaged").exists()
    ledger.record("a").bytes_in = 1
    ledger.close()
    assert Ledger(path).peers()["a"].bytes_in == 1
