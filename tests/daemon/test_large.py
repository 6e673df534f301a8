"""A node with a large store, used in every way at once: nothing keeps its event loop from the others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvswap.exchange.node.identity import keys_of
from tests.store.large import fill
from tests.support import Daemon, until

pytestmark = pytest.mark.faults

ARTIFACTS = 400  # `benchmarks/bench_loop.py` takes 20,000


def test_the_loop_waits_for_no_query(tmp_path: Path) -> None:
    """The watch counts each access to a database on the loop, so that this depends on no machine's speed."""
    large = fill(tmp_path / "a", ARTIFACTS, 10)
    bare = {"KVSWAP_MODELS": str(tmp_path / "none")}  # without a model everything may be fetched
    a = Daemon(tmp_path / "a", env=bare).start()
    b = Daemon(tmp_path / "b", ["--bootstrap", a.address], env=bare)
    try:
        b.start()
        client, reader = a.client, b.client
        reader.trust_add(a.publisher)
        until(lambda: reader.status()["peers"], what="a connection")
        assert len(client.artifacts()) == ARTIFACTS

        def fetched(artifact: str) -> None:
            assert reader.fetch(artifact, force=True).id == artifact

        with ThreadPoolExecutor(4) as pool:
            done = [
                *(pool.submit(fetched, artifact) for artifact in large.own[:10]),
                pool.submit(client.artifacts),
                pool.submit(client.show, large.own[20]),
                pool.submit(client.trust_add, large.other),
                pool.submit(client.trust_list),
                pool.submit(client.pin, large.own[21]),
                pool.submit(client.remove, large.own[22]),
                pool.submit(client.withdraw, large.own[23], "a test"),
                pool.submit(client.verify, store=True),
                pool.submit(client.audits),
                *(pool.submit(fetched, artifact) for artifact in large.own[30:40]),
            ]
            for one in done:
                one.result()
            # What nobody can fetch beside.
            for one in [pool.submit(client.collect, 0), pool.submit(client.rotate), pool.submit(client.artifacts)]:
                one.result()
        loop, other = client.status()["loop"], reader.status()["loop"]
        assert loop["queries"] == 0
        assert other["queries"] == 0
        assert loop["watched_seconds"] > 0
        assert client.status()["artifacts"] == len(client.artifacts()) == 1  # what is pinned
    finally:
        b.stop()
        a.stop()


@pytest.mark.parametrize("sorted_here", [49, 50])
def test_pages_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sorted_here: int) -> None:
    """However many artifacts came in the same moment, each is listed once, newest first."""
    from kvswap.store import Store

    monkeypatch.setattr("kvswap.store.artifacts._SORTED", sorted_here)
    fill(tmp_path, 50, 2, files=False)
    store = Store.open(tmp_path / "store")
    try:
        rows = store.artifacts()
        for limit in (1, 7, 49, 50, 51):
            page, paged = store.page(None, limit), []
            while page:
                paged += page
                page = store.page(page[-1], limit)
            assert paged == rows
            pages = list(store.pages(limit))
            assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)
            assert [row for page in pages for row in page] == rows
        assert {row.id for row in rows if row.publisher == str(keys_of(tmp_path)[1].peer_id)} == set(
            store.ids_of(str(keys_of(tmp_path)[1].peer_id))
        )
    finally:
        store.close()
