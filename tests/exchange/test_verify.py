"""Verifying, with the model process's own jobs in a thread: what each step says, and what is not to be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvswap.artifact.layout import needed_files
from kvswap.core.errors import IntegrityError, NotFound, Untrusted, UsageError
from kvswap.core.ids import Cid, document_digest
from kvswap.exchange import Node
from kvswap.exchange.fetch import fetch
from kvswap.exchange.publish import publish
from kvswap.exchange.request import Terms
from kvswap.exchange.verification.coverage import verification
from kvswap.exchange.verify import forget_damaged, raise_for, refuse_unusable, verify_artifact
from kvswap.store.files import chunk_path
from kvswap.trust.levels import Level, LevelReport, LevelResult, up_to
from tests.exchange.modelled import RealModel, jobs_of, publisher_and_reader
from tests.support import DOCUMENT, run

TEXT = DOCUMENT.read_text()[:700]
REFERENCE = document_digest(TEXT.encode())
FORCED = Terms(force=True)


def chunks(node: Node, artifact: str) -> list[Cid]:
    """The chunks that a reader of the whole document needs."""
    manifest = node.read(node.store.envelope(artifact)).manifest  # type: ignore[arg-type]
    return [manifest.files[i].id for i in needed_files(manifest)]


def test_a_right_artifact_passes_every_step(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, b):
            made = await publish(a, TEXT.encode())
            await fetch(b, REFERENCE, FORCED)
            report = await verify_artifact(b, REFERENCE, levels=up_to(7), text=TEXT)
            assert report["passed"] == ["V0", "V1", "V2", "V3", "V4", "V5", "V7"]
            assert list(report["unchecked"]) == ["V6"]  # nobody else has published it
            assert report["artifact"] == made["artifact"] and report["probe"] and report["probe_bitwise"]
            assert report["trusted"] and report["same_environment"] and report["coverage"]["one_position"] == 1.0
            assert b.trust.records.checks(made["artifact"]) >= {1, 2, 3, 5, 7}

    run(body())


def test_what_is_due_follows_who_published_it(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    """Of oneself and of the trusted the cheap steps and the probe; of strangers samples of every layer as well."""

    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, b):
            made = await publish(a, TEXT.encode())
            own = await verify_artifact(a, REFERENCE)
            assert {"V1", "V2", "V3", "V4"} <= set(own["passed"]) and "V5" in own["unchecked"]
            await fetch(b, REFERENCE, FORCED)
            b.trust.policy.remove(made_by := str(a.identity.publisher.peer_id))
            report = await verify_artifact(b, Cid.parse(made["artifact"]), text=TEXT)
            assert {"V3", "V5"} <= set(report["passed"]) and "V0" in report["unchecked"]
            assert report["publisher"] == made_by and not report["trusted"]

    run(body())


@pytest.mark.parametrize("how", ["deleted", "damaged"])
def test_a_chunk_that_is_not_right_here_is_told_and_condemns_nobody(
    tmp_path: Path, tiny_models: dict[str, Path], how: str
) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, b):
            made = await publish(a, TEXT.encode())
            done = await fetch(b, REFERENCE, FORCED)
            first = chunks(b, made["artifact"])[0]
            path = chunk_path(b.store.chunks_directory, first)
            path.unlink() if how == "deleted" else path.write_bytes(b"rot")
            with pytest.raises((IntegrityError, NotFound)):
                await verify_artifact(b, REFERENCE, text=TEXT)
            assert b.trust.policy.bans() == [] and b.trust.records.outcome(made["artifact"]) is None
            assert b.store.missing([first]) == [first]  # unlisted: the next fetch brings it anew
            with pytest.raises(NotFound, match="not here"):
                await verify_artifact(b, Cid.parse(made["artifact"]))
            await fetch(b, REFERENCE, FORCED)
            assert (await verify_artifact(b, REFERENCE, text=TEXT))["verified"]
            assert forget_damaged(b, done.statement) == 0
            chunk_path(b.store.chunks_directory, first).write_bytes(b"rot")
            assert forget_damaged(b, done.statement) == 1 and b.store.missing([first]) == [first]

    run(body())


def test_only_what_is_here_and_its_own_text_are_looked_at(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, b):
            await publish(a, TEXT.encode())
            with pytest.raises(NotFound, match="not in the store"):
                await verify_artifact(b, REFERENCE)
            done = dict(jobs_of(a))
            with pytest.raises(UsageError, match="not the document"):
                await verify_artifact(a, REFERENCE, text=TEXT + "!")
            assert jobs_of(a) == done  # before anything is computed

    run(body())


@pytest.mark.parametrize("refuses", [{5}, {2, 3, 4, 5, 7}])
def test_what_this_model_cannot_do_is_skipped_with_the_reason(
    tmp_path: Path, tiny_models: dict[str, Path], refuses: set[int]
) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, b):
            await publish(a, TEXT.encode())
            await fetch(b, REFERENCE, FORCED)
            assert isinstance(b.model, RealModel)
            b.model.cannot = refuses
            report = await verify_artifact(b, REFERENCE, levels=up_to(5), text=TEXT)
            assert report["passed"] == ["V0", "V1"]
            assert "in this test" in report["unchecked"]["V5"]

    run(body())


def test_a_strangers_artifact_is_verified_once_before_it_counts(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, b):
            await publish(a, TEXT.encode())
            b.trust.policy.remove(str(a.identity.publisher.peer_id))
            with pytest.raises(Untrusted):
                await fetch(b, REFERENCE, FORCED)
            allow_untrusted = Terms(force=True, allow_untrusted=True)
            first = await fetch(b, REFERENCE, allow_untrusted, text=TEXT)
            assert {"V1", "V2", "V3", "V5"} <= set(first.verification["passed"])
            looked = jobs_of(b)["verify"]
            again = await fetch(b, REFERENCE, allow_untrusted, text=TEXT)
            assert jobs_of(b)["verify"] == looked and not again.verification["trusted"]
            said = verification(b, first.statement, None)
            assert "V5" in said["passed"] and "not trusted" in next(iter(said["unchecked"].values()))

    run(body())


def test_a_step_that_failed_is_raised_as_what_it_means(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, b):
            await publish(a, TEXT.encode())
            statement = (await fetch(b, REFERENCE, FORCED)).statement

            def report(level: Level, **changes: Any) -> LevelReport:
                return LevelReport((LevelResult(level, "failed", why="it differs", **changes),))

            with pytest.raises(Untrusted, match="it differs"):
                raise_for(b, statement, report(Level.POLICY))
            with pytest.raises(
                IntegrityError, match=r"failed verification \(sampled positions\): it differs"
            ) as caught:
                raise_for(b, statement, report(Level.SAMPLES, proven=True))
            assert "trust audits" in caught.value.hint  # type: ignore[operator]
            with pytest.raises(IntegrityError) as caught:
                raise_for(b, statement, report(Level.SAMPLES))
            assert "--level 7" in caught.value.hint  # type: ignore[operator]
            raise_for(b, statement, report(Level.PROBE))  # a probe that differs proves nothing
            refuse_unusable(statement, {}, {})
            with pytest.raises(Untrusted, match="sampled positions: no text") as refused:
                refuse_unusable(statement, {"V5": "no text"}, {"V7": "not asked for"})
            assert refused.value.details["unchecked"] == {"V5": "no text", "V7": "not asked for"}

    run(body())
