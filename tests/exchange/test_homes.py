"""What the disk holds is enough: an index that is damaged or gone costs nothing, and an old home opens whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvswap.core.settings import Settings
from kvswap.cost import Calibration
from kvswap.exchange import Node
from kvswap.exchange.node.identity import keys_of
from kvswap.store import Store
from kvswap.trust import PolicyFile
from tests.store.homes import DAMAGES, old_home
from tests.support import NoModel, make_artifact


@contextmanager
def opened(home: Path) -> Iterator[Node]:
    """A node on a home, as the daemon makes it, without a network."""
    store = Store.open(home / "store")
    node_key, publisher = keys_of(home)
    policy = PolicyFile(home / "trust.json", publisher.peer_id)
    settings = Settings(home=home, models=home / "models", p2p=False)
    calibration = Calibration(home / "calibration.json", store.problems)
    node = Node(settings, store, None, NoModel(), publisher, policy, calibration, node_key)  # type: ignore[arg-type]
    try:
        yield node
    finally:
        node.ledger.close()
        node.trust.records.close()
        store.close()


def held(node: Node) -> dict[str, dict[str, object]]:
    names = ("pinned", "complete", "document", "publisher", "expires")
    return {row.id: {name: getattr(row, name) for name in names} for row in node.store.artifacts()}


def expected_of(expected: dict[str, dict[str, dict[str, object]]]) -> dict[str, dict[str, object]]:
    return {
        artifact: {name: value for name, value in row.items() if name != "added"}
        for artifact, row in expected["artifacts"].items()
    }


def test_a_home_of_2b501d5_opens_and_loses_nothing(tmp_path: Path) -> None:
    home, expected = old_home(tmp_path)
    for _ in range(2):
        with opened(home) as node:
            assert held(node) == expected_of(expected)
            assert node.store.used_bytes == expected["used_bytes"]
            assert node.identity.own == expected["publisher"]
            assert [row["peer"] for row in node.trust.policy.rows()] == expected["trusted"]
            assert [row["peer"] for row in (*node.trust.policy.bans(), *node.trust.policy.lifted())] == expected[
                "distrusted"
            ]
            assert set(node.trust.records.withdrawn_by(expected["publisher"])) == {expected["withdrawn"]}
            assert node.trust.records.withdrawn(expected["withdrawn_by_friend"], expected["friend"])
            head = node.trust.records.status_record(expected["publisher"])
            assert head is not None and head[0] == expected["sequence"]
            assert {1, 2, 3} <= node.trust.records.checks(expected["checked"])
            assert len(node.trust.records.audits()) == 1
            assert node.ledger.blocked(expected["blocked"]) and node.ledger.peers()[expected["peer"]].bytes_out == 2500
            assert [g.name for g in node.trust.groups.all()] == [expected["group"]]
            assert [h.peer for h in node.hosts.all()] == [expected["host"]]
            report = node.store.verify()
            assert report.clean and not report.adopted


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("first", ["at the first start", "later"])
def test_an_index_that_is_damaged_or_gone_is_made_anew_from_the_disk(
    tmp_path: Path, damage: Callable[[Path], None], first: str, caplog: pytest.LogCaptureFixture
) -> None:
    home, expected = old_home(tmp_path)
    with opened(home):
        pass  # what only the index held is on disk from now on
    if first == "later":
        with opened(home) as node:
            made = make_artifact(node.identity.publisher, seed=77, text=b"made later")
            from kvswap.exchange.node.listing import list_artifact

            for cid, data in made.chunks.items():
                node.store.put_chunk(data, cid)
            list_artifact(node.store, made.statement)
            node.store.pin(made.id, True)
            node.store.pin(expected["own"][1], False)
            before = held(node)
    else:
        before = expected_of(expected)
    damage(home / "store" / "index.sqlite3")
    caplog.clear()
    with opened(home) as node:
        assert held(node) == before
        assert node.store.verify().clean
        assert "index" in node.problems and "index" in caplog.text
        added = {row.id: row.added for row in node.store.artifacts()}
    for artifact, row in expected["artifacts"].items():
        assert abs(added[artifact] - row["added"]) < 1.0
    with opened(home) as node:
        assert held(node) == before and "index" not in node.problems


@pytest.mark.parametrize("damage", DAMAGES)
def test_withdrawals_and_our_own_sequence_outlive_a_damaged_trust_database(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    home, expected = old_home(tmp_path)
    with opened(home):
        pass
    damage(home / "trust.sqlite3")
    damage(home / "store" / "index.sqlite3")
    with opened(home) as node:
        assert set(node.trust.records.withdrawn_by(expected["publisher"])) == {expected["withdrawn"]}
        assert node.trust.records.withdrawn(expected["withdrawn_by_friend"], expected["friend"])
        head = node.trust.records.status_record(expected["publisher"])
        assert head is not None and head[0] >= expected["sequence"]
        assert expected["withdrawn"] not in held(node)
        assert "trust.sqlite3" in caplog.text and any("trust.sqlite3" in text for text in node.problems.values())


@pytest.mark.parametrize("damage", DAMAGES[:2])
@pytest.mark.parametrize("name", ["peers.sqlite3", "calibration.json"])
def test_what_is_only_history_is_set_aside_aloud(
    tmp_path: Path, damage: Callable[[Path], None], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    home, expected = old_home(tmp_path)
    damage(home / name)
    with opened(home) as node:
        assert held(node) == expected_of(expected)
        assert any(name in text for text in node.problems.values()) and name in caplog.text
    assert (home / name).with_suffix(".damaged").exists()


def test_what_was_removed_does_not_come_back(tmp_path: Path) -> None:
    home, expected = old_home(tmp_path)
    with opened(home) as node:
        node.store.remove(expected["own"][0])
    (home / "store" / "index.sqlite3").unlink()
    with opened(home) as node:
        assert expected["own"][0] not in held(node) and expected["own"][1] in held(node)
        assert node.store.verify().clean
