"""`kvswap find`: a table for people, JSON for programs, and what to do next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvswap.cli.main import main
from tests.exchange.test_fetch import DOCUMENT
from tests.support import Daemon, key, kvswap, last_json, make_artifact, run, stock, until


@pytest.fixture
def pair(daemon: Callable[..., Daemon], tmp_path: Path) -> tuple[Daemon, Daemon]:
    """A node that has two artifacts of one document, and one that is connected to it."""
    (tmp_path / "a").mkdir()
    stock(tmp_path / "a", make_artifact(tokens=60), make_artifact(key(7), tokens=30, seed=4))
    a = daemon("a")
    b = daemon("b", "--bootstrap", a.address, KVSWAP_MODELS=str(tmp_path / "models"))  # no model: none is another
    until(lambda: b.client.status()["peers"], what="a connection")
    return a, b


def test_who_has_it_is_shown_and_nothing_is_fetched(pair: tuple[Daemon, Daemon], tmp_path: Path) -> None:
    a, b = pair
    peer = a.client.id()["peer"]
    done = kvswap(b.home, "find", DOCUMENT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[0] == "ARTIFACT" and sum(peer in line for line in lines) == 2
    assert sum("not used here as things are" in line for line in lines) == 2 and "tiny" in lines[1]
    assert b.client.ls() == []
    told = last_json(kvswap(b.home, "find", DOCUMENT, "--json", "--publisher", str(key(7).peer_id)))
    (one,) = told["artifacts"]
    assert one["publisher"] == str(key(7).peer_id) and one["holders"][0]["peer"] == peer and told["left_out"] == 1
    b.client.trust_add(str(key().peer_id))
    trusted = kvswap(b.home, "find", DOCUMENT)
    assert "kvswap fetch bafkr4" in trusted.stderr and "trusted" in trusted.stdout
    (tmp_path / "document.txt").write_text("a document for tests")
    assert kvswap(b.home, "find", str(tmp_path / "document.txt")).stdout == trusted.stdout
    assert kvswap(b.home, "find", "--text", str(tmp_path / "document.txt")).stdout == trusted.stdout
    here = last_json(kvswap(a.home, "find", one["artifact"], "--json"))["artifacts"][0]
    assert here["here"] == "complete" and here["artifact"] == one["artifact"]
    found = b.client.find(DOCUMENT, model="tiny")
    assert [x.trusted for x in found.artifacts] == [True, False]

    async def body() -> None:
        from kvswap import AsyncClient

        async with AsyncClient(b.home) as client:
            assert (await client.find(DOCUMENT, model="tiny")).artifacts == found.artifacts

    run(body())


@pytest.mark.parametrize(
    ("words", "code"),
    [("find", 2), (f"find {DOCUMENT} --text README.md", 2), ("find nonsense", 2), (f"find {DOCUMENT}", 10)],
)
def test_what_is_wrong_is_told(words: str, code: int, tmp_path: Path) -> None:
    assert main(["--home", str(tmp_path), *words.split()]) == code
