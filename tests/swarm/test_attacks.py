"""What strangers do to a live node: each attack ends as docs/security.md says, and costs no fetch from who delivered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from kvswap.core.errors import KvswapError
from kvswap.core.ids import peer_of
from tests.support import Daemon, key, run, until
from tests.swarm import attackers
from tests.swarm.bare import stranger
from tests.swarm.siege import Siege, artifact

pytestmark = [pytest.mark.swarm, pytest.mark.faults]
MEMORY = 400e6
KINDS = [kind for kind in attackers.KINDS if kind not in ("connections", "streams")]


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    made = Siege.begin(tmp_path_factory.mktemp("siege"), artifact())
    yield made
    made.end()


def check(siege: Siege) -> None:
    """The document comes, whole, from the honest peer alone, and the node stays small and goes on.

    It is asked for until it comes: how long a look-up waits is no machine's, and the attackers have a core.
    """
    got = until(siege.fetch, what="the document")
    assert got.peers == [siege.honest.ready["peer"]]
    assert siege.victim.client.verify(store=True)["clean"] is True
    assert siege.peak_rss() < MEMORY


@pytest.mark.parametrize("kind", KINDS)
def test_beside_an_attack_who_delivered_before_is_fetched_from(siege: Siege, kind: str) -> None:
    with siege.attacked(kind):
        check(siege)
    assert siege.victim.client.status()["p2p"]


@pytest.mark.alone
def test_beside_connections_and_streams_of_many_identities_who_delivered_keeps_its_place(siege: Siege) -> None:
    """Fetched from and served, also after it came again; a stranger comes in when they have gone."""
    honest = siege.honest.ready["peer"]
    with siege.attacked("connections", "streams"):
        check(siege)
        siege.honest.stop()
        siege.honest.start()
        until(lambda: honest in connected(siege.victim), what="the honest peer to be let in again")
        check(siege)
        siege.honest.client.trust_add(str(key().peer_id))
        siege.honest.client.remove(siege.made.id)
        siege.honest.client.collect(0)
        report = until(lambda: siege.honest.client.fetch(siege.made.id, force=True), what="the document there").report
        assert report["from"] == [siege.victim.ready["peer"]]

    async def body() -> None:
        while True:
            try:
                async with stranger(siege.victim) as transport:
                    await transport.open(peer_of(siege.victim.address))
                    return
            except KvswapError:
                await asyncio.sleep(0.1)

    run(body())


def connected(node: Daemon) -> list[str]:
    return [row["peer"] for row in node.client.peers() if row["connected"]]


@pytest.mark.alone
def test_beside_all_of_them_who_delivered_before_is_fetched_from(siege: Siege) -> None:
    with siege.attacked(*attackers.KINDS):
        check(siege)
