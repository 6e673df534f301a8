from __future__ import annotations

from pathlib import Path

from kvswap.store import Ledger, PeerRecord


def test_what_was_experienced_survives_a_restart(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "peers.sqlite3")
    record = ledger.record("a")
    record.bytes_in, record.bytes_out, record.blocked, record.publisher = 100, 250, True, "p"
    record.lied(1234.5)
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
    record.lied(1000.0)
    assert record.not_before(300, 3600) == 4600
