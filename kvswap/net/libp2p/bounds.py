"""The tables of py-libp2p 0.8.1 that strangers fill, exchanged for bounded ones.

Listed by `tests/swarm/test_tables.py`, which floods a live node and looks at every container: what grows is here, or
is cleared when a peer goes, or does not come in (`gossip`, `doors`).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from libp2p.host.ping import ID as PING
from libp2p.kad_dht import kad_dht, peer_routing, provider_store, value_store

from kvswap.core.bounded import Bounded
from kvswap.net.libp2p.mapped import Mapped, small

_REQUEST_BYTES = 64 * 1024  # of the DHT
_ANSWER_BYTES = 128 * 1024  # with twenty providers and twenty peers, each with its addresses and record
_PEERS = 1_024


def cap_messages() -> None:
    """Let no message of the DHT be larger than it needs to be; py-libp2p takes 4 MiB."""
    for module, size in (
        (kad_dht, _REQUEST_BYTES),
        (peer_routing, _REQUEST_BYTES),
        (value_store, _REQUEST_BYTES),
        (provider_store, _ANSWER_BYTES),
    ):
        module.MAX_DHT_MESSAGE_SIZE = size


def exchange(owner: Any, name: str, entries: int = _PEERS, default: Callable[[], Any] | None = None) -> Bounded:
    """Put a bounded table in the place of a dict."""
    made: Mapped = small(f"libp2p {name.strip('_').replace('_', ' ')}", entries, default)
    for key, value in dict(getattr(owner, name)).items():
        made[key] = value
    setattr(owner, name, made)
    return made.table


class NoAutoConnect:
    """Dials nobody.  py-libp2p's own dials whatever addresses strangers have put into the peer store."""

    _is_connecting = True  # it is never asked to begin

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def run_background_task(self, nursery: Any) -> None: ...

    async def maybe_connect(self) -> None: ...

    def record_disconnect(self, peer: Any) -> None: ...


def bound(host: Any, dht: Any, gossip: Any) -> list[Bounded]:
    """Exchange the tables of a host, its DHT and its GossipSub router; return the new ones, for `status`."""
    swarm = host.get_network()
    swarm.set_resource_manager(None)  # `doors` has the limits; it keeps a record of every peer
    swarm.auto_connector = NoAutoConnect()
    swarm._negative_peer_cache._max_size = _PEERS
    gossip.recent_message_deliveries = defaultdict(lambda: deque(maxlen=16))
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
