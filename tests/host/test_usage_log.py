from __future__ import annotations

import sqlite3
import stat
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvswap.core.errors import IntegrityError, NotFound, QuotaExceeded, TokenRefused, UsageError
from kvswap.host.admission import Admission
from kvswap.host.usage_log import HostedDocument, UsageLog, today
from kvswap.trust.hosting import sign_offer
from tests.trust.test_hosting import HOST, TARIFF, offer, read


@pytest.fixture
def usage_log(tmp_path: Path) -> UsageLog:
    return UsageLog(tmp_path / "host.sqlite3")


def filled(usage_log: UsageLog, count: int = 5) -> None:
    signed = sign_offer(offer(), HOST)
    usage_log.add_offer(signed)
    for _ in range(count):
        usage_log.add_receipt(read(signed), HOST)


def test_reads_are_numbered_and_chained_and_survive(usage_log: UsageLog, tmp_path: Path) -> None:
    filled(usage_log)
    reads = usage_log.receipts()
    assert [r.read.number for r in reads] == [1, 2, 3, 4, 5]
    assert [r.read.previous for r in reads[1:]] == [r.digest for r in reads[:-1]]
    again = UsageLog(tmp_path / "host.sqlite3")
    assert again.check() == 5
    filled(again, 1)
    assert [r.read.number for r in again.last_receipts(None, 2)] == [5, 6]
    assert [r.read.number for r in again.last_receipts("alice", 1)] == [6] and not again.last_receipts("bob", 9)
    assert usage_log.check() == 6
    assert [r.read.number for r in usage_log.receipts("alice", after=4)] == [5, 6] and not usage_log.receipts("bob")
    assert stat.S_IMODE((tmp_path / "host.sqlite3").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "edit",
    [
        "DELETE FROM reads WHERE number = 3",
        "UPDATE reads SET envelope = (SELECT envelope FROM reads WHERE number = 2) WHERE number = 3",
        "UPDATE reads SET number = number + 1 WHERE number = 5",
        "DELETE FROM offers",
    ],
)
def test_an_edited_journal_shows(usage_log: UsageLog, tmp_path: Path, edit: str) -> None:
    filled(usage_log)
    with sqlite3.connect(tmp_path / "host.sqlite3") as other:
        other.execute(edit)
    with pytest.raises(IntegrityError):
        usage_log.check()


def test_a_dearer_record_shows(usage_log: UsageLog) -> None:
    signed = sign_offer(offer(), HOST)
    usage_log.add_offer(signed)
    dear: Any = msgspec.structs.replace(read(signed), picodollars=TARIFF.picodollars(3_774, 20, 64) + 1)
    usage_log.add_receipt(dear, HOST)
    with pytest.raises(IntegrityError, match="by the offer"):
        usage_log.check()


def test_a_client_is_known_by_a_token_that_is_not_kept(usage_log: UsageLog, tmp_path: Path) -> None:
    token = usage_log.invite("alice", 1_000, 2)
    assert usage_log.client(token) == usage_log.clients()[0]
    assert usage_log.client(token + "x") is None
    assert token.encode() not in b"".join(p.read_bytes() for p in tmp_path.iterdir())
    for name in ("alice", "", "x" * 65, "a\nb"):
        with pytest.raises(UsageError):
            usage_log.invite(name)
    usage_log.revoke("alice")
    assert usage_log.client(token) is None
    with pytest.raises(NotFound):
        usage_log.revoke("alice")


def test_documents_come_and_go(usage_log: UsageLog) -> None:
    document = HostedDocument("sha256:" + "0" * 64, "a", "text", "bafk")
    usage_log.add_document(document)
    usage_log.add_document(document)
    assert usage_log.references() == [document.document] and usage_log.document(document.document) == document
    usage_log.remove_document(document.document)
    for absent in (usage_log.document, usage_log.remove_document):
        with pytest.raises(NotFound):
            absent(document.document)


def test_admission_reserves_counts_and_gives_back(usage_log: UsageLog) -> None:
    token = usage_log.invite("alice", daily_tokens=8_000, concurrent=2)
    admission = Admission(usage_log, b"secret", concurrent=3)
    alice = admission.client(f"Bearer {token}")
    with admission.admit(alice) as one:
        one.reserve(5_000)
        with admission.admit(alice) as two:
            with pytest.raises(QuotaExceeded, match="a day"):
                two.reserve(3_001)
            two.reserve(3_000)
            with pytest.raises(QuotaExceeded, match="under way"), admission.admit(alice):
                pass
    signed = sign_offer(offer(), HOST)
    usage_log.add_offer(signed)
    usage_log.add_receipt(msgspec.structs.replace(read(signed), client=alice.id, ended=int(time.time())), HOST)
    assert usage_log.used(alice.id, today()) == 3_774 + 20 + 64
    with admission.admit(alice) as three, pytest.raises(QuotaExceeded) as raised:
        three.reserve(5_000)
    assert 0 < raised.value.details["retry_after"] <= 86_400


def test_admission_of_all_together_and_of_nobody(usage_log: UsageLog) -> None:
    admission = Admission(usage_log, b"secret", concurrent=1)
    alice, bob = (admission.client(f"Bearer {usage_log.invite(name)}") for name in ("alice", "bob"))
    with admission.admit(alice) as one:
        one.reserve(10**9)  # without a quota
        with pytest.raises(QuotaExceeded, match="as many"), admission.admit(bob):
            pass
    for header in ("", "Bearer", "Bearer ", "Basic x", "Bearer " + "x" * 300):
        with pytest.raises(TokenRefused):
            admission.client(header)
    assert admission.salt(alice) != admission.salt(bob)
    assert admission.salt(alice) != Admission(usage_log, b"other", 1).salt(alice)
