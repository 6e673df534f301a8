"""A node that nobody can dial, reached through a relay; the relay sees no key and no byte of the caches."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support import Daemon, Ingested, last_json, until
from tests.swarm.test_faults import Start, check_complete, fetch, made, nodes  # noqa: F401 - fixtures

pytestmark = [pytest.mark.swarm]


def circuits(node: Daemon) -> list[str]:
    return [a for a in node.client.identity()["addresses"] if "/p2p-circuit/" in a]


def test_a_node_without_a_listening_address_serves_through_a_relay(nodes: Start, made: Ingested) -> None:  # noqa: F811
    relay = nodes("relay", KVSWAP_RELAY="true")
    hidden = nodes("hidden", holds=True, KVSWAP_LISTEN="", KVSWAP_RELAYS=relay.address)
    (address,) = until(lambda: circuits(hidden), what="the reservation")
    assert address == f"{relay.address}/p2p-circuit/p2p/{hidden.ready['peer']}"
    reader = nodes("reader", KVSWAP_BOOTSTRAP=address)
    until(
        lambda: any(p["peer"] == hidden.ready["peer"] and p["connected"] for p in reader.client.peers()),
        what="the reader to reach the hidden node",
    )
    done = fetch(reader, made)
    assert done.returncode == 0, done.stderr
    assert last_json(done)["from"] == [hidden.ready["peer"]]
    check_complete(reader, made)
    assert relay.client.status()["store_bytes"] == 0
    # nobody was asked for HTTPS at the relay's address
    assert not [e for e in reader.client.events() if e["event"] == "without_bulk"]


def test_a_relayed_connection_becomes_a_direct_one_and_chunks_go_over_https(nodes: Start, made: Ingested) -> None:  # noqa: F811
    """The reader is told the circuit's address alone; hole punching finds the way that is there."""
    relay = nodes("relay", KVSWAP_RELAY="true")
    hidden = nodes("hidden", holds=True, KVSWAP_RELAYS=relay.address)
    (address,) = until(lambda: circuits(hidden), what="the reservation")
    reader = nodes("reader", KVSWAP_BOOTSTRAP=address)

    def row() -> dict[str, Any] | None:
        rows = [p for p in reader.client.peers() if p["peer"] == hidden.ready["peer"] and p["connected"]]
        return rows[0] if rows else None

    until(row, what="the reader to reach the hidden node")
    until(lambda: (r := row()) is not None and not r["relayed"], what="the direct connection")
    done = fetch(reader, made)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [e for e in events if e.get("event") == "transfer"][-1]["over"] == ["https"]
    check_complete(reader, made)


@pytest.mark.faults
def test_a_node_gets_its_reservation_again_when_the_relay_comes_back(nodes: Start) -> None:  # noqa: F811
    relay = nodes("relay", KVSWAP_RELAY="true", KVSWAP_LISTEN="/ip4/127.0.0.1/tcp/0")
    port = relay.address.split("/")[4]
    hidden = nodes("hidden", KVSWAP_LISTEN="", KVSWAP_RELAYS=relay.address)
    until(lambda: circuits(hidden), what="the reservation")
    relay.stop()
    until(lambda: not circuits(hidden), what="the loss to be noticed")
    relay.env["KVSWAP_LISTEN"] = f"/ip4/127.0.0.1/tcp/{port}"
    relay.start()
    until(lambda: circuits(hidden), what="the reservation to come back")


def test_a_node_that_was_not_asked_to_relay_does_not(nodes: Start) -> None:  # noqa: F811
    plain = nodes("plain")
    hidden = nodes("hidden", KVSWAP_LISTEN="", KVSWAP_RELAYS=plain.address)
    until(lambda: hidden.client.status()["peers"], what="the two to meet")
    assert circuits(hidden) == []
