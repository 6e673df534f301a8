"""Bounded replacements for the tables of py-libp2p 0.8.1 that remote peers fill.

`tests/swarm/test_tables.py` floods a live node and checks every container: what grows is replaced here, is cleared when
a peer disconnects, or is kept out (`gossip`, `connection_limits`).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from libp2p.host.ping import ID as PING
from libp2p.kad_dht import kad_dht, peer_routing, provider_store, value_store

from kvswap.core.bounded import Bounded
from kvswap.net.libp2p.gossip import RecentMessages
from kvswap.net.libp2p.mapped import Mapped, small

_REQUEST_BYTES = 64 * 1024  # of a DHT request
_ANSWER_BYTES = 128 * 1024  # of a DHT answer: twenty providers and twenty peers, each with addresses and record
_PEERS = 1_024


def cap_messages() -> None:
    """Limit the size of DHT messages to what they need; py-libp2p accepts 4 MiB."""
    for module, size in (
        (kad_dht, _REQUEST_BYTES),
        (peer_routing, _REQUEST_BYTES),
        (value_store, _REQUEST_BYTES),
        (provider_store, _ANSWER_BYTES),
    ):
        module.MAX_DHT_MESSAGE_SIZE = size


def exchange(owner: Any, name: str, entries: int = _PEERS, default: Callable[[], Any] | None = None) -> Bounded:
    """Replace the dict in `owner`'s attribute `name` by a bounded table, keeping its entries, and return the table."""
    made: Mapped = small(f"libp2p {name.strip('_').replace('_', ' ')}", entries, default)
    for key, value in dict(getattr(owner, name)).items():
        made[key] = value
    setattr(owner, name, made)
    return made.table


class NoAutoConnect:
    """A replacement for py-libp2p's auto-connector that dials nobody.

    py-libp2p's own dials all addresses that remote peers have put into the peer store.
    """

    _is_connecting = True  # it is never asked to begin

    async def start(self) -> None:
        """Do nothing."""

    async def stop(self) -> None:
        """Do nothing."""

    async def run_background_task(self, nursery: Any) -> None:
        """Do nothing."""

    async def maybe_connect(self) -> None:
        """Do nothing."""

    def record_disconnect(self, peer: Any) -> None:
        """Do nothing."""


def bound(host: Any, dht: Any, gossip: Any) -> list[Bounded]:
    """Replace the tables of a host, its DHT and its GossipSub router by bounded ones; return these, for `status`."""
    swarm = host.get_network()
    swarm.set_resource_manager(None)  # `connection_limits` has the limits; it keeps a record of every peer
    swarm.auto_connector = NoAutoConnect()
    swarm._negative_peer_cache._max_size = _PEERS
    gossip.recent_message_deliveries = defaultdict(lambda: deque(maxlen=16))
    gossip.mcache = recent = RecentMessages(gossip.mcache.window_size, gossip.mcache.history_size)
    pings = getattr(host.get_mux().handlers.get(PING), "__self__", None)
    scorer = gossip.scorer
    by_topic: Callable[[], Any] = lambda: defaultdict(float)  # noqa: E731
    return [
        exchange(swarm, "_round_robin_index"),
        exchange(swarm.tag_store, "_tags"),
        exchange(host, "_identified_peers"),
        exchange(pings, "_inbound_streams"),
        exchange(pings, "_outbound_streams"),
        exchange(dht, "_provider_rate_limits"),
        recent.table,
        exchange(gossip, "equivocation_detection", 2_048),
        exchange(gossip, "message_rate_limits", default=lambda: defaultdict(list)),
        exchange(gossip, "iwant_request_limits", default=lambda: defaultdict(list)),
        exchange(gossip, "ihave_message_limits", default=lambda: defaultdict(list)),
        exchange(gossip, "graft_flood_tracking", default=by_topic),
        exchange(gossip, "dont_send_message_ids"),
        exchange(gossip, "peer_protocol"),
        exchange(scorer, "time_in_mesh", default=by_topic),
        exchange(scorer, "first_message_deliveries", default=by_topic),
        exchange(scorer, "mesh_message_deliveries", default=by_topic),
        exchange(scorer, "invalid_messages", default=by_topic),
        exchange(scorer, "behavior_penalty", default=float),
        exchange(scorer, "app_specific_scores", default=float),
        exchange(scorer, "graft_flood_penalties", default=float),
        exchange(scorer, "iwant_spam_penalties", default=float),
        exchange(scorer, "ihave_spam_penalties", default=float),
        exchange(scorer, "equivocation_penalties", default=float),
    ]
