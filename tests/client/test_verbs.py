"""Each verb of both clients against a real node without a model: what it does there, and what it says."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvswap import AsyncClient, Client
from kvswap.client import calls
from kvswap.client.values import Artifact, AsyncArtifact
from kvswap.core.errors import (
    InvalidDocument,
    KvswapError,
    NotFound,
    UsageError,
)
from tests.support import Daemon, Ingested, key, make_artifact, stock

PEER, OTHER = str(key(7).peer_id), str(key(8).peer_id)


@pytest.fixture(scope="module")
def made() -> Ingested:
    return make_artifact(tokens=30)


@pytest.fixture(params=["sync", "async"])
def do(
    request: pytest.FixtureRequest, daemon: Callable[..., Daemon], made: Ingested, tmp_path: Path
) -> Callable[..., Any]:
    """Calls a verb of one of the clients; what it yields as a list."""
    stock(tmp_path / "a", made)
    node = daemon("a", "--no-p2p", KVSWAP_MODELS=str(tmp_path / "none"))

    async def asynchronously(name: str, *given: Any, **named: Any) -> Any:
        async with AsyncClient(node.home) as client:
            called = getattr(client, name)(*given, **named)
            return [item async for item in called] if inspect.isasyncgen(called) else await called

    def call(name: str, *given: Any, **named: Any) -> Any:
        if request.param == "async":
            return asyncio.run(asynchronously(name, *given, **named))
        with Client(node.home) as client:
            called = getattr(client, name)(*given, **named)
            return list(called) if inspect.isgenerator(called) else called

    return call


def test_what_is_here_is_listed_shown_kept_and_removed(do: Callable[..., Any], made: Ingested) -> None:
    assert [row["artifact"] for row in do("ls")] == [made.id] and do("status")["artifacts"] == 1
    shown = do("show", made.id)
    assert shown["manifest"]["prefix"]["tokens"] == 30 and do("details", made.id)["manifest"] == shown["manifest"]
    assert do("pin", made.id)["artifacts"] == [made.id]
    do("gc", 0)
    assert do("status")["artifacts"] == 1  # what is pinned stays
    assert do("pin", made.id, False)["artifacts"] == [made.id]
    assert do("verify", store=True)["clean"] is True
    assert do("rm", made.id)["freed_bytes"] > 0 and do("ls") == []
    with pytest.raises(NotFound):
        do("show", made.id)


def test_what_is_whole_here_is_fetched_from_nobody(do: Callable[..., Any], made: Ingested) -> None:
    do("trust_add", made.manifest.publisher)
    artifact = do("fetch", made.id, force=True)
    assert isinstance(artifact, Artifact | AsyncArtifact) and artifact.id == made.id
    assert artifact.report["wire_bytes"] == 0 and artifact.tokens == 30


def test_publishers_are_trusted_and_not(do: Callable[..., Any]) -> None:
    do("trust_add", PEER, "ada")
    assert {row["peer"]: row["label"] for row in do("trust_ls")["publishers"]}[PEER] == "ada"
    do("trust_rm", PEER)
    assert PEER not in {row["peer"] for row in do("trust_ls")["publishers"]}
    before = do("id")["publisher"]
    assert do("trust_rotate")["old"] == before != do("id")["publisher"]
    assert do("audits") == do("audits", PEER) == []


def test_peers_are_blocked_and_known(do: Callable[..., Any]) -> None:
    do("block", PEER)
    assert [(row["peer"], row["blocked"]) for row in do("peers")] == [(PEER, True)]
    do("block", PEER, False)
    assert not any(row["blocked"] for row in do("peers"))


def test_a_group_is_made_told_to_another_and_forgotten(do: Callable[..., Any]) -> None:
    do("group_new", "team")
    exported = do("group_export", "team")
    assert [row["name"] for row in do("groups")] == ["team"] and "key" not in do("groups")[0]
    do("group_remove", "team")
    assert do("groups") == []
    do("group_import", exported["key"], "other")
    assert do("group_export", "other")["key"] != "" and [row["name"] for row in do("groups")] == ["other"]


def test_hosts_come_by_invitation(do: Callable[..., Any]) -> None:
    assert do("hosts") == []
    for verb, given in (("host_join", "no invitation"), ("host_leave", PEER)):
        with pytest.raises(KvswapError) as told:
            do(verb, given)
        assert told.value.message and told.value.exit_code in (2, 5)


def test_what_is_not_its_own_is_not_taken_back(do: Callable[..., Any], made: Ingested) -> None:
    with pytest.raises(UsageError):
        do("withdraw", made.id, "a typing error")


def test_events_are_told_in_their_order(do: Callable[..., Any]) -> None:
    do("trust_rotate")
    told = do("events")
    assert "rotated" in [event["event"] for event in told]
    assert [event["id"] for event in told] == sorted(event["id"] for event in told)


NEEDS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("publish", ("a text",), {"codec": "planes", "truncate": True, "source": "x"}),
    ("ask", ("sha256:" + "0" * 64, "Why?"), {"text": "a text", "max_tokens": 3}),
    ("codec_train", ("/nowhere",), {"tokens": 10}),
    ("fetch", ("sha256:" + "0" * 64,), {"tofu": True, "samples": 3}),
    ("plan", ("sha256:" + "0" * 64,), {"inexact": True}),
    ("verify", ("sha256:" + "0" * 64,), {"level": 2}),
    ("beginning", (bytes(4 * 300),), {"model": bytes(32), "dtype": "bfloat16", "curve": (0.1, 0.0), "local": True}),
]


def test_what_needs_a_model_or_a_peer_says_so(do: Callable[..., Any]) -> None:
    for verb, given, named in NEEDS:
        with pytest.raises(KvswapError) as told:
            do(verb, *given, **named)
        assert told.value.exit_code in (2, 5, 7) and told.value.message, verb


def test_the_prefixes_that_are_here_are_told_with_their_version(do: Callable[..., Any], made: Ingested) -> None:
    version, keys = do("beginnings")
    assert version and keys is not None and len(keys) % 8 == 0
    again, _ = do("beginnings", version, 0.01)
    assert again == version


def test_what_an_engine_computed_has_to_be_whole(do: Callable[..., Any]) -> None:
    with pytest.raises(KvswapError) as told:
        do("publish_computed", [b"\0\0"])
    assert told.value.exit_code == 2


def test_no_document_leaves_that_is_none(do: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidDocument):
        do("publish", tmp_path / "x")


def test_both_clients_are_what_the_package_offers() -> None:
    import kvswap
    from kvswap import client

    assert kvswap.Client is client.Client and kvswap.AsyncClient is client.AsyncClient
    assert kvswap.KvswapError is KvswapError and kvswap.errors.NotFound is NotFound
    assert kvswap.Objective("money").by == "money"
    for module in (kvswap, client):
        assert all(hasattr(module, name) for name in module.__all__)
        with pytest.raises(AttributeError, match="nothing"):
            module.nothing  # noqa: B018


def test_every_call_says_where_it_goes() -> None:
    assert calls.peers().path == "/v1/peers" and calls.status().method == "GET"
