from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvswap.store import AuditRow, Records, quotas
from kvswap.store import records as module
from kvswap.store.unwritten import ReceivedStatusRecord


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    made = Records(tmp_path / "trust.sqlite3")
    yield made
    made.close()


def row(number: int, artifact: str = "a", failed: bool = False) -> AuditRow:
    return AuditRow(f"audit {number}", artifact, "sha256:d", "publisher", "auditor", failed, b"envelope %d" % number)


def test_audits_come_back_failures_first_and_once(records: Records) -> None:
    assert records.add_audit(row(1)) and records.add_audit(row(2, failed=True)) and records.add_audit(row(3, "b"))
    assert not records.add_audit(row(1))
    assert [r.id for r in records.audits(artifact="a")] == ["audit 2", "audit 1"]
    assert len(records.audits(document="sha256:d")) == 3 and records.audits(publisher="somebody") == []


def test_one_artifact_fills_nothing_but_its_own_room(records: Records) -> None:
    for number in range(100):
        records.add_audit(row(number))
    assert len(records.audits(artifact="a")) == 64


def crowded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: set[str]) -> Records:
    monkeypatch.setattr(module, "_STATUS_RECORDS_KEPT", 8)
    monkeypatch.setattr(module, "_STATUS_RECORDS_OF_A_SENDER", 3)
    return Records(tmp_path / "crowded.sqlite3", trusted.__contains__)


def test_a_flood_of_heads_forgets_strangers_and_nobody_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trusted: set[str] = set()
    records = crowded(tmp_path, monkeypatch, trusted)
    records.put_status_record("own", ReceivedStatusRecord(7, b"t", {"x": "why"}, kept=True))
    records.put_status_record("later trusted", ReceivedStatusRecord(7, b"t", {"x": "why"}, sender="somebody"))
    records.put_status_record("stranger", ReceivedStatusRecord(1, b"s", {"y": "because"}, sender="quiet"))
    trusted.add("later trusted")  # after it was heard
    for number in range(50):
        records.put_status_record(
            f"flood {number}", ReceivedStatusRecord(1, b"s", {"y": "because"}, sender=f"liar {number % 10}")
        )
    assert records.status_record("own") == (7, b"t") and records.withdrawn("x", "own") == "why"
    assert records.status_record("later trusted") == (7, b"t") and records.withdrawn("x", "later trusted") == "why"
    assert records.status_record("flood 0") is None and records.withdrawn("y", "flood 0") is None
    assert records.status_record("flood 49") is not None
    records.close()


def test_one_teller_pushes_out_what_it_told_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = crowded(tmp_path, monkeypatch, set())
    records.put_status_record("honest", ReceivedStatusRecord(1, b"s", {"y": "because"}, sender="honest peer"))
    for number in range(50):
        records.put_status_record(f"flood {number}", ReceivedStatusRecord(1, b"s", {}, sender=f"liar {number % 3}"))
    assert records.status_record("honest") == (1, b"s")
    assert sum(records.status_record(f"flood {number}") is not None for number in range(50)) <= 8
    records.close()


@pytest.mark.parametrize("when", ["held", "asked before", "asked after"])
def test_a_withdrawal_of_what_was_held_or_asked_for_outlives_every_flood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    records = crowded(tmp_path, monkeypatch, set())
    if when == "asked before":
        records.ask("x")
    records.put_status_record(
        "publisher",
        ReceivedStatusRecord(
            3, b"h", {"x": "why", "z": "other"}, sender="peer", held={"x"} if when == "held" else set()
        ),
    )
    if when == "asked after":
        records.ask("x")
    for number in range(50):
        records.put_status_record(f"flood {number}", ReceivedStatusRecord(1, b"s", {}, sender=f"liar {number}"))
    assert records.status_record("publisher") is None and records.withdrawn("z", "publisher") is None
    assert records.withdrawn("x", "publisher") == "why"
    records.close()
    again = Records(tmp_path / "crowded.sqlite3")
    assert again.withdrawn("x", "publisher") == "why"
    again.close()


def test_what_goes_wrong_in_the_middle_leaves_nothing_open(tmp_path: Path) -> None:
    records = Records(tmp_path / "t.sqlite3")
    with pytest.raises(Exception):  # noqa: B017 - whatever SQLite makes of it
        records.put_status_record("p", ReceivedStatusRecord(1, b"one", {"x": object()}))  # type: ignore[dict-item]
    records.put_status_record("p", ReceivedStatusRecord(2, b"two", {"x": "why"}))
    records.add_checks("a", [1, 5])
    records.close()
    again = Records(tmp_path / "t.sqlite3")
    assert (
        again.status_record("p") == (2, b"two") and again.checks("a") == {1, 5} and again.withdrawn("x", "p") == "why"
    )
    again.close()


def test_outcomes_are_remembered_and_the_last_one_counts(tmp_path: Path) -> None:
    from kvswap.store import Outcome

    path = tmp_path / "t.sqlite3"
    records = Records(path)
    first = Outcome("a", "p", "disputed", 2, (1, 2, 3, 5), ("b", "c"), "they differ")
    records.put_outcome(first)
    records.put_outcome(Outcome("b", "p", "passed", 2, (1, 2, 3, 5, 7)))
    assert records.outcome("a") == first and records.withheld() == ["a"]
    records.close()
    again = Records(path)
    assert again.outcome("a") == first and again.withheld() == ["a"]
    again.put_outcome(Outcome("a", "p", "passed", 2))
    assert again.withheld() == [] and again.outcomes(["a", "b", "none"]).keys() == {"a", "b"}
    with pytest.raises(ValueError, match="outcome"):
        again.put_outcome(Outcome("a", "p", "fine", 2))  # type: ignore[arg-type]
    again.close()


_SCHEMA_2B501D5 = """
CREATE TABLE checks (
    artifact TEXT NOT NULL, level INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (artifact, level)
) WITHOUT ROWID;
CREATE TABLE audits (
    id TEXT PRIMARY KEY, artifact TEXT NOT NULL, document TEXT, publisher TEXT NOT NULL, auditor TEXT NOT NULL,
    failed INTEGER NOT NULL, at REAL NOT NULL, envelope BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX audits_artifact ON audits (artifact);
CREATE INDEX audits_document ON audits (document);
CREATE TABLE heads (
    publisher TEXT PRIMARY KEY, sequence INTEGER NOT NULL, at REAL NOT NULL, kept INTEGER NOT NULL,
    envelope BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE withdrawn (
    artifact TEXT NOT NULL, publisher TEXT NOT NULL, why TEXT NOT NULL, PRIMARY KEY (artifact, publisher)
) WITHOUT ROWID;
INSERT INTO checks VALUES ('a', 5, 1.0);
INSERT INTO audits VALUES ('audit', 'a', NULL, 'p', 'q', 1, 1.0, X'00');
INSERT INTO heads VALUES ('p', 4, 1.0, 0, X'01'), ('t', 9, 1.0, 1, X'02');
INSERT INTO withdrawn VALUES ('x', 'p', 'why'), ('y', 't', 'because');
"""


def test_a_file_of_2b501d5_is_opened_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "trust.sqlite3"
    old = sqlite3.connect(path)
    old.executescript(_SCHEMA_2B501D5)
    old.close()
    for _ in range(2):
        records = Records(path)
        assert records.checks("a") == {5} and [r.id for r in records.audits()] == ["audit"]
        assert records.status_record("p") == (4, b"\1") and records.status_record("t") == (9, b"\2")
        assert records.withdrawn("x", "p") == "why" and records.withdrawn_by("t") == {"y": "because"}
        assert records.outcome("a") is None
        records.close()
    assert not path.with_suffix(".damaged").exists()


@pytest.mark.parametrize("others", [0, 300])
def test_many_are_asked_about_at_once_as_each_alone(records: Records, others: int) -> None:
    """Of a small table all rows are read, of a large one those that are asked for: the answer is the same."""
    from kvswap.store import Outcome

    for number in range(3 + others):
        records.put_outcome(Outcome(f"o{number}", "p", "passed", 2))
    records.put_status_record(
        "p", ReceivedStatusRecord(1, b"one", {f"w{n}": "why" for n in range(3 + others)}, kept=True)
    )
    names = [f"{kind}{number}" for kind in "own" for number in (0, 2)] + [f"n{number}" for number in range(200)]
    assert records.outcomes(names) == {name: records.outcome(name) for name in ("o0", "o2")}
    assert records.withdrawn_of(names) == {("w0", "p"): "why", ("w2", "p"): "why"}


def test_what_was_withdrawn_stays_so_and_only_by_its_publisher(records: Records) -> None:
    records.put_status_record("p", ReceivedStatusRecord(1, b"one", {"x": "why"}, kept=True))
    records.put_status_record("p", ReceivedStatusRecord(2, b"two", {}, kept=True))
    assert records.withdrawn("x", "p") == "why" and records.withdrawn("x", "q") is None
    assert records.status_record("p") == (2, b"two")


def test_checks_and_all_else_survive_a_restart(tmp_path: Path) -> None:
    first = Records(tmp_path / "t.sqlite3")
    first.add_checks("a", [1, 5])
    first.add_audit(row(1))
    first.close()
    again = Records(tmp_path / "t.sqlite3")
    assert again.checks("a") == {1, 5} and len(again.audits()) == 1
    again.close()


def test_a_damaged_file_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite3"
    path.write_bytes(b"no database at all" * 100)
    made = Records(path)
    assert made.audits() == [] and path.with_suffix(".damaged").exists()
    made.close()


def test_no_number_of_withdrawals_pushes_out_those_of_what_was_here_or_of_the_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the user named by its id has a room of its own, and what was held has another."""
    monkeypatch.setattr(module, "_WITHDRAWN_KEPT", 10)
    monkeypatch.setattr(module, "_ASKED_KEPT", 1000)
    trusted = {f"friend {number}" for number in range(12)}
    records = crowded(tmp_path, monkeypatch, trusted)
    records.put_status_record("publisher", ReceivedStatusRecord(1, b"h", {"held": "why"}, sender="peer", held={"held"}))
    for friend in sorted(trusted):  # more than there is room for
        records.put_status_record(friend, ReceivedStatusRecord(1, b"h", {f"of {friend}": "why"}, sender=friend))
    for number in range(40):
        records.ask(f"asked {number}")
        records.put_status_record(
            f"flood {number}", ReceivedStatusRecord(1, b"s", {f"asked {number}": "why"}, sender=f"liar {number}")
        )
    assert records.withdrawn("held", "publisher") == "why"
    assert all(records.withdrawn(f"of {friend}", friend) == "why" for friend in trusted)
    known = [number for number in range(40) if records.withdrawn(f"asked {number}", f"flood {number}")]
    assert known == list(range(40 - len(known), 40)) and 10 <= len(known) <= 20  # and what was asked for is bounded
    records.close()


@pytest.mark.parametrize("trusted", [False, True], ids=["a stranger", "trusted"])
@pytest.mark.parametrize("disk", ["writable", "full"])
def test_one_publishers_withdrawals_are_bounded_and_counted(tmp_path: Path, trusted: bool, disk: str) -> None:
    """Whatever its heads of before withdrew; what it says now, and what was here, is remembered all the same."""
    records = Records(tmp_path / "t.sqlite3", lambda publisher: trusted)
    most = quotas.LINES_OF_TRUSTED if trusted else quotas.LINES_OF_UNTRUSTED
    if disk == "full":
        records._db.transaction = _full  # type: ignore[method-assign]
    last: dict[str, str] = {}
    for sequence in range(1, 5 * most // 1000):
        last = {f"{sequence} {number}": "why" for number in range(1000)}
        held = [next(iter(last))] if sequence == 1 else []
        records.receive_status_record("liar", ReceivedStatusRecord(sequence, b"h", last, sender="a peer", held=held))
    lines = records.withdrawn_by("liar")
    assert len(lines) <= most + 1 and last.keys() <= lines.keys() and "1 0" in lines
    assert len(lines) > 1000  # and not less than there is room for
    filling = (records.status_records if disk == "writable" else records.unwritten.status_records).filling()
    assert filling.bytes >= (len(lines) - 1) * 512
    records.close()
    if disk == "writable":
        again = Records(tmp_path / "t.sqlite3", lambda publisher: trusted)
        assert again.status_records.filling().bytes == filling.bytes
        again.close()


def _full() -> None:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


def test_a_failed_audit_always_has_room(records: Records) -> None:
    """The oldest that passed gives way to it; and the oldest that failed where none passed."""
    for number in range(100):
        records.add_audit(row(number))
    failure = row(100, failed=True)
    assert records.takes_audit(failure) and records.add_audit(failure) and not records.takes_audit(failure)
    kept = [r.id for r in records.audits(artifact="a")]
    assert len(kept) == 64 and kept[0] == "audit 100" and "audit 0" not in kept and "audit 1" in kept
    assert not records.takes_audit(row(101))
    for number in range(200, 300):
        assert records.add_audit(row(number, failed=True))
    assert [r.id for r in records.audits(artifact="a")] == [f"audit {number}" for number in range(299, 235, -1)]


def test_what_passed_gives_way_before_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AUDITS_KEPT", 10)
    records = Records(tmp_path / "t.sqlite3")
    for number in range(6):
        records.add_audit(row(number, f"artifact {number}", failed=True))
    for number in range(6, 40):
        records.add_audit(row(number, f"artifact {number}"))
    kept = {r.id for r in records.audits()}
    assert {f"audit {number}" for number in range(6)} <= kept and len(kept) <= 10 and "audit 39" in kept
    for number in range(40, 60):
        records.add_audit(row(number, f"artifact {number}", failed=True))
    kept = {r.id for r in records.audits()}
    assert kept == {f"audit {number}" for number in range(50, 60)}
    for number in range(2000):  # nor where nothing can be written
        records.remember_audit(row(number, "b", failed=number == 0))
    assert "audit 0" in {r.id for r in records.audits(artifact="b")}
    records.close()


def test_the_columns_are_those_of_homes_that_exist(tmp_path: Path) -> None:
    """A migration that ran once does not run again: a column that had another name now would be missing there."""
    Records(tmp_path / "trust.sqlite3").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "trust.sqlite3")) as db:
        heads = {row[1] for row in db.execute("PRAGMA table_info(heads)")}
    assert heads == {"publisher", "sequence", "at", "kept", "envelope", "teller"}
