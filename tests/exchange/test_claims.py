"""What a manifest says of itself is refused from strangers before a byte, and said aloud of those one trusts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvswap.artifact.layout import needed
from kvswap.artifact.manifest import Divergence
from kvswap.artifact.specs import LayerSpec, TensorSpec
from kvswap.core.errors import Untrusted, UsageError
from kvswap.core.ids import Cid
from kvswap.exchange.fetch import fetch
from kvswap.exchange.request import Terms
from kvswap.exchange.verify import run_checks, verify_artifact
from kvswap.trust.accusation import claims, uncheckable
from kvswap.trust.levels import Level
from tests.exchange.test_fetch import DOCUMENT, world
from tests.support import Ingested, make_artifact, run

TERMS = Terms(force=True, allow_untrusted=True)


def claiming(claim: str) -> Ingested:
    """An artifact of which its publisher says that nobody can check it."""
    plain = make_artifact(tokens=40).manifest

    def prefix(**changes: Any) -> dict[str, Any]:
        return {"prefix": msgspec.structs.replace(plain.prefix, **changes)}

    changes: dict[str, Any] = {
        "inexact": {"codec": "int8", "divergence": Divergence(32, 32, 32, 0)},
        "no probe": {"probe": msgspec.structs.replace(plain.probe, tokens=[])},
        "no special tokens": prefix(special_tokens=False),
        "a template": prefix(template="chat"),
        "states alone": {
            "specs": (LayerSpec("state", (TensorSpec("conv.0", "checkpoint", (4, 3)),)),),
            "checkpoints": [40],
        },
    }[claim]
    return make_artifact(tokens=40, **changes)


@pytest.mark.parametrize("claim", ["inexact", "no special tokens", "a template", "states alone"])
def test_a_claim_that_turns_checks_off_is_refused_or_said_aloud(tmp_path: Path, claim: str) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = claiming(claim)
            a, stranger, friend = await w.node(), await w.node(trust=False), await w.node()
            w.give(a, made)
            for allow_lossy in (True, False):
                with pytest.raises(Untrusted, match="cannot be verified") as refused:
                    await fetch(stranger, DOCUMENT, msgspec.structs.replace(TERMS, allow_lossy=allow_lossy))
                assert refused.value.exit_code == 4 and refused.value.details["unchecked"]
            assert not any(stranger.store.has_chunk(cid) for cid in made.chunks)  # and nothing was fetched for it
            said: list[dict[str, Any]] = []

            async def hear(event: dict[str, Any]) -> None:
                said.append(event)

            done = await fetch(friend, DOCUMENT, Terms(force=True, allow_lossy=True), hear)
            assert str(done.statement.artifact) == made.id
            (reason,) = {event["reason"] for event in said if event["event"] == "uncheckable"}
            assert [e["reason"] for e in friend.events.recent() if e["event"] == "uncheckable"] == [reason]
            report = await verify_artifact(friend, Cid.parse(made.id))
            assert list(report["claims"].values()) == [reason]

    run(body())


def test_a_probe_is_nothing_that_a_stranger_needs(tmp_path: Path) -> None:
    """An engine beside a node without a model makes none: that is said, and every check of the others is made."""

    async def body() -> None:
        async with world(tmp_path) as w:
            made = claiming("no probe")
            a, stranger = await w.node(), await w.node(trust=False)
            w.give(a, made)
            with pytest.raises(Untrusted, match="could not be verified") as refused:  # this node has no model
                await fetch(stranger, DOCUMENT, TERMS)
            assert all(stranger.store.has_chunk(made.manifest.chunks[i].id) for i in needed(made.manifest))
            assert {"V2", "V3", "V5"} <= refused.value.details["unchecked"].keys()
            assert "probe" not in refused.value.message
            assert list(claims(made.manifest)) == ["probe"] and uncheckable(made.manifest) == {}

    run(body())


def test_a_text_that_is_not_the_document_is_the_callers_mistake(tmp_path: Path) -> None:
    """Nobody is condemned for it, nothing is deleted, and it is told before anything is fetched."""

    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=40)
            a, b = await w.node(), await w.node()
            w.give(a, made)
            with pytest.raises(UsageError, match="not the document"):
                await fetch(b, Cid.parse(made.id), Terms(force=True), text="another text")
            assert not any(b.store.has_chunk(cid) for cid in made.chunks)
            w.give(b, made)
            for levels in (None, tuple(Level)):
                with pytest.raises(UsageError, match="not the document"):
                    await verify_artifact(b, Cid.parse(made.id), levels=levels, text="another text")
            assert b.trust.policy.bans() == [] and b.store.artifacts() != [] and b.trust.records.audits() == []
            await run_checks(b, made.statement, [Level.POLICY, Level.DIGESTS], text="a document for tests")

    run(body())


def test_an_unproved_difference_condemns_nobody(tmp_path: Path) -> None:
    """Whatever the model process says: without all grounds nothing is removed, signed or held against anybody."""
    from kvswap.exchange.verify import ban_if_proven
    from kvswap.trust.levels import LevelResult

    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=40)
            node = await w.node()
            w.give(node, made)
            for step in (
                LevelResult(Level.TOKENS, "failed", why="x"),
                LevelResult(Level.TOKENS, "skipped", why="x", proven=True),
                LevelResult(Level.PROBE, "failed", why="x", proven=True),
                LevelResult(Level.AGREEMENT, "failed", why="x"),
            ):
                assert not ban_if_proven(node, made.statement, step)
            assert node.trust.policy.bans() == [] and node.store.artifacts() != []
            assert ban_if_proven(node, made.statement, LevelResult(Level.TOKENS, "failed", why="x", proven=True))
            assert [row["rules"] for row in node.trust.policy.bans()] == [2] and node.store.artifacts() == []

    run(body())


def test_a_beginning_of_a_strangers_artifact_is_not_used(tmp_path: Path) -> None:
    """Of strangers what was verified whole; a part of it cannot be."""
    from kvswap.exchange.model_port import Wanted
    from kvswap.exchange.prefix import longest_cached_prefix

    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=40)
            wanted = Wanted(made.manifest.model.digest, made.manifest.layout.dtype)
            a, stranger, friend = await w.node(), await w.node(trust=False), await w.node()
            w.give(a, made)
            for node, found in ((stranger, False), (friend, True)):
                began = await longest_cached_prefix(node, wanted, made.manifest.prefix.chain[:3], 8, TERMS)
                assert (began is not None) == found

    run(body())


def test_a_chunk_that_is_damaged_here_is_nobody_elses_fault(tmp_path: Path) -> None:
    """What does not decode is removed as its publisher's doing only if the chunks are those that were signed."""
    from kvswap.core.errors import IntegrityError
    from kvswap.store.files import chunk_path
    from tests.exchange.test_fetch import SlowModel

    class Refusing(SlowModel):
        async def run(self, *_: Any, **__: Any) -> Any:
            raise IntegrityError("chunk x decodes to other bytes than were signed")

    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=40)
            node = await w.node(model=Refusing())
            w.give(node, made)
            cid = made.manifest.chunks[-1].id
            path = chunk_path(node.store.chunks_directory, cid)
            path.write_bytes(path.read_bytes()[:-1] + b"\0")
            with pytest.raises(IntegrityError, match=str(cid)):
                await run_checks(node, made.statement, [Level.STRUCTURE])
            assert [row.id for row in node.store.artifacts()] == [made.id]
            node.store.put_chunk(made.chunks[cid], cid)
            with pytest.raises(IntegrityError, match="decodes"):
                await run_checks(node, made.statement, [Level.STRUCTURE])
            assert node.store.artifacts() == [] and node.trust.policy.bans() == []

    run(body())
