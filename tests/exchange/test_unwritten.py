"""A disk that takes nothing while peers tell things: they are obeyed, look-ups go on, and what was told is kept."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvswap.api import AskRequest, AskResult
from kvswap.core.errors import KvswapError, LocalFault, NotFound, P2pDown, StoreFull, Untrusted
from kvswap.core.ids import Cid
from kvswap.core.upkeep import Problems
from kvswap.cost import Plan
from kvswap.exchange import Node
from kvswap.exchange import ask as answering
from kvswap.exchange.ask import answer
from kvswap.exchange.discovery.resolve import resolve
from kvswap.exchange.verification.audits import receive_audits, refuse_if_failed
from kvswap.exchange.verification.pending_writes import write_pending
from kvswap.exchange.verification.status_records import receive_status_records
from kvswap.store import Records
from kvswap.store.unwritten import ReceivedStatusRecord
from kvswap.trust.audit import FAILED
from kvswap.trust.status_record import make_status_record
from kvswap.worker.messages import AnswerJob, TokenizedText, TokenizeJob
from tests.exchange.test_damaged import said
from tests.exchange.test_fetch import DOCUMENT, SlowModel, world
from tests.exchange.test_received import AUDITOR, PEER, audit, head
from tests.store.test_full import no_larger_files
from tests.support import key, make_artifact, run

FULL = sqlite3.OperationalError("database or disk is full")
FULL.sqlite_errorcode = sqlite3.SQLITE_FULL
DAMAGED = sqlite3.DatabaseError("database disk image is malformed")
DAMAGED.sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def takes_nothing(records: Records, error: Exception) -> Callable[[], None]:
    """Let no transaction end well; what is returned lets them again."""
    right = records._db.transaction

    def transaction() -> Any:
        raise error.with_traceback(None)

    records._db.transaction = transaction  # type: ignore[method-assign]

    def again() -> None:
        records._db.transaction = right  # type: ignore[method-assign]

    return again


@pytest.mark.parametrize("error", [FULL, DAMAGED, StoreFull("full"), LocalFault("read-only")])
def test_a_look_up_goes_on_and_withdrawals_are_obeyed(tmp_path: Path, error: Exception) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=40)
            holder, reader = await w.node(), await w.node()
            w.give(holder, made)
            again = takes_nothing(reader.trust.records, error)
            receive_status_records(holder, [head(1, {})], PEER)  # which it tells with its answers
            assert [str(r.statement.artifact) for r in await resolve(reader, DOCUMENT)] == [made.id]
            assert "heard" in reader.problems
            receive_status_records(reader, [head(2, {made.id: "an error"})], PEER)
            receive_status_records(reader, [head(3, {})], PEER)
            for reference in (DOCUMENT, Cid.parse(made.id)):
                with pytest.raises(Untrusted, match="an error"):
                    await resolve(reader, reference)
            again()
            write_pending(reader)
            assert "heard" not in reader.problems
            publisher = made.manifest.publisher
            other = Records(tmp_path / "1" / "trust.sqlite3")
            assert (
                other.withdrawn(made.id, publisher) == "an error" and (other.status_record(publisher) or (0,))[0] == 3
            )
            other.close()

    run(body())


def test_what_is_here_and_withdrawn_goes_also_then(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=40)
            node = await w.node()
            w.give(node, made)
            takes_nothing(node.trust.records, FULL)
            receive_status_records(node, [head(1, {made.id: "an error"})], PEER)
            assert node.store.artifacts() == []
            for number in range(
                2000
            ):  # what strangers tell meanwhile pushes out nothing of it, and fills a bounded room
                receive_status_records(
                    node,
                    [make_status_record(key(5000), number + 1, int(time.time()), [], {}).envelope],
                    f"peer {number}",
                )
            assert node.trust.records.withdrawn_of([made.id]) == {(made.id, made.manifest.publisher): "an error"}
            assert node.trust.records.withdrawn_by(made.manifest.publisher) == {made.id: "an error"}

    run(body())


def test_what_is_kept_meanwhile_is_bounded(tmp_path: Path) -> None:
    problems = Problems()
    records = Records(tmp_path / "t.sqlite3", {"trusted"}.__contains__, problems)
    again = takes_nothing(records, FULL)
    records.receive_status_record("trusted", ReceivedStatusRecord(7, b"t", {"x": "why"}, sender="somebody"))
    records.receive_status_record("had", ReceivedStatusRecord(7, b"h", {"y": "why"}, sender="somebody", held={"y"}))
    for number in range(5000):
        records.receive_status_record(
            f"flood {number}", ReceivedStatusRecord(1, b"s" * 100, {"z": "why"}, sender=f"liar {number % 100}")
        )
    filling = records.unwritten.status_records.filling()
    assert filling.entries <= filling.most_entries <= 1024 and filling.bytes <= filling.most_bytes
    assert records.withdrawn("x", "trusted") == "why" and records.withdrawn("y", "had") == "why"
    assert records.status_record("trusted") == (7, b"t") and records.status_record("flood 4999") == (1, b"s" * 100)
    again()
    records.maintain()
    assert len(records.unwritten.status_records) == 0 and "heard" in problems  # which `waiting.attend` clears
    records.close()


def test_an_own_head_is_never_in_memory_only(tmp_path: Path) -> None:
    records = Records(tmp_path / "t.sqlite3")
    takes_nothing(records, FULL)
    with pytest.raises(sqlite3.OperationalError):
        records.put_status_record("own", ReceivedStatusRecord(1, b"h", {"x": "why"}, kept=True))
    assert records.status_record("own") is None
    records.close()


@pytest.mark.parametrize("full", ["the database", "the trust list"])
def test_a_failed_audit_counts_and_its_publisher_is_caught_later(tmp_path: Path, full: str) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=40)
            node = await w.node()
            node.trust.policy.add(str(AUDITOR.peer_id))
            told = [audit(made, FAILED)]
            if full == "the database":
                again = takes_nothing(node.trust.records, FULL)
                receive_audits(node, told, PEER, None)
                again()
            else:
                with no_larger_files(20):
                    receive_audits(node, told, PEER, None)
                assert node.trust.policy.policy.ban_of(made.manifest.publisher) is None
            assert "heard" in node.problems
            with pytest.raises(Untrusted, match="failed an audit"):
                refuse_if_failed(node, made.statement)
            write_pending(node)
            assert node.trust.policy.policy.ban_of(made.manifest.publisher) is not None and "heard" not in node.problems
            assert len(node.trust.records.audits(artifact=made.id)) == 1
            node.trust.policy.add(made.manifest.publisher)  # what was heard once is not held against it again
            receive_audits(node, told, PEER, None)
            write_pending(node)
            assert node.trust.policy.policy.trusts(made.manifest.publisher)

    run(body())


def test_a_successor_is_followed_when_the_disk_takes_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            node, old, new = await w.node(), key(1), key(60)
            envelope = make_status_record(old, 3, int(time.time()) - 5, [], {}, new).envelope
            with no_larger_files(20):
                receive_status_records(node, [envelope], PEER)
            assert not node.trust.policy.policy.trusts(str(new.peer_id)) and "heard" in node.problems
            write_pending(node)
            assert node.trust.policy.policy.trusts(str(new.peer_id)) and "heard" not in node.problems

    run(body())


class Prefilling(SlowModel):
    """Answers by prefilling, in nothing."""

    async def warm(self, choice: Any) -> None:
        pass

    async def run(self, choice: Any, job: Any, on_event: Any = None, outbox: Any = None) -> Any:
        if isinstance(job, TokenizeJob):
            return TokenizedText(tokens=5, ids=b"", token_digest=bytes(32), chain=[bytes(32)])
        assert isinstance(job, AnswerJob) and job.text == "a text" and job.envelope is None
        return said(5)


@pytest.mark.parametrize("error", [StoreFull("full"), LocalFault("read-only"), P2pDown("it stopped")])
@pytest.mark.parametrize("where", ["choose", "find_prefix"])
def test_with_the_text_at_hand_own_trouble_means_prefilling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: KvswapError, where: str
) -> None:
    async def fails(*arguments: Any, **named: Any) -> tuple[None, Plan]:
        raise error.with_traceback(None)

    async def nobody(*arguments: Any, **named: Any) -> None:
        raise NotFound("nobody offers it")

    monkeypatch.setattr(answering, "choose", nobody)
    monkeypatch.setattr(answering, where, fails)

    async def ask(node: Node, text: str | None) -> AskResult:
        return await answer(node, AskRequest(ref=DOCUMENT, question="Is it?", max_tokens=1, text=text))

    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node(model=Prefilling())
            answered = await ask(node, "a text")
            assert answered["text"] == "It is." and answered["plan"]["action"] == "prefill"
            assert error.message in answered["plan"]["reason"]
            with pytest.raises(type(error) if where == "choose" else NotFound):
                await ask(node, None)

    run(body())
