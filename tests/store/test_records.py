from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvswap.store import AuditRow, Records
from kvswap.store import records as module


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


def test_a_flood_of_heads_forgets_strangers_and_nobody_trusted(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HEADS_KEPT", 5)
    records.put_head("trusted", 7, b"t", {"x": "why"}, kept=True)
    for number in range(20):
        records.put_head(f"stranger {number}", 1, b"s", {"y": "because"}, kept=False)
    assert records.head("trusted") == (7, b"t") and records.withdrawn("x", "trusted") == "why"
    assert records.head("stranger 0") is None and records.withdrawn("y", "stranger 0") is None
    assert records.head("stranger 19") is not None


def test_what_was_withdrawn_stays_so_and_only_by_its_publisher(records: Records) -> None:
    records.put_head("p", 1, b"one", {"x": "why"}, kept=True)
    records.put_head("p", 2, b"two", {}, kept=True)
    assert records.withdrawn("x", "p") == "why" and records.withdrawn("x", "q") is None
    assert records.head("p") == (2, b"two")


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
