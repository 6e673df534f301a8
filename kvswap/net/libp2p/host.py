"""The part of the node that runs in the trio thread: the libp2p host, Kademlia and GossipSub.

Pitfalls of py-libp2p 0.8.1 that this file is shaped by (measured; `docs/adr/0004-libp2p.md`):
* `new_host()` would also offer plaintext and TLS, with which one can impersonate a peer: Noise only.
* A stopped peer blocks a read for ever: every await has its own time-out (in the bridge).
* `read(n)` is partial and truncation looks like an end: frames carry their length (`frames`).
* A writer gives up after 5 s without window: readers drain to memory first.
* ADD_PROVIDER is limited to 10 in 10 s for a sender: provider records are paced.
* GossipSub's heartbeat defaults to 120 s.
* mDNS (`mdns`) would advertise 0.0.0.0: only concrete addresses are listened on.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import multiaddr
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.relay.circuit_v2 import DCUtRProtocol
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service

from kvswap.core.bounded import Bounded, Table
from kvswap.core.errors import P2pDown, PeerError
from kvswap.core.limits import LIMITS
from kvswap.core.settings import Settings
from kvswap.core.upkeep import Problems, forever
from kvswap.net.dialling import BY_HAND, allowed, common, plain_host
from kvswap.net.libp2p.bounds import bound, cap_messages
from kvswap.net.libp2p.connection_limits import Connections, StreamLimit, Streams
from kvswap.net.libp2p.gate import Gate
from kvswap.net.libp2p.gossip import Gossip
from kvswap.net.libp2p.mdns import LocalDiscovery
from kvswap.net.libp2p.relay import Relays, is_circuit, is_relayed
from kvswap.net.libp2p.stores import BoundedPeerStore, NoValues, Providers, trimmed
from kvswap.net.messages import PROTOCOL, TOPIC
from kvswap.net.transport import PeerAddress

_GOSSIP = TProtocol("/meshsub/1.1.0")
_PROVIDE_EVERY_SECONDS = 1.2  # the receiving side allows 10 records in 10 s
_KNOWN_PEERS = 1_024
_MOST = 1_024  # connections of both directions; `connection_limits` bounds the inbound ones
# Streams of one peer, of all peers, and the seconds that one may take.
_PROTOCOLS = (
    (TProtocol("/ipfs/kad/1.0.0"), 4, 64, 30.0),
    (TProtocol("/ipfs/id/1.0.0"), 2, 64, 15.0),
    (TProtocol("/ipfs/id/push/1.0.0"), 1, 32, 15.0),
    (TProtocol("/ipfs/ping/1.0.0"), 2, 64, 120.0),
    (_GOSSIP, 2, 1_024, math.inf),
)


def multihash(key: bytes) -> bytes:
    """Return the DHT key of a 32-byte digest: its SHA2-256 multihash form."""
    return bytes([0x12, 0x20]) + key


logging.getLogger("libp2p").setLevel(logging.CRITICAL)  # it logs every hang-up as an error


@dataclass(frozen=True, slots=True)
class Callbacks:
    """The functions that a host calls, in the trio thread: with a stream, a gossip message, a peer to judge."""

    on_stream: Callable[[Any, str], None]  # stream, peer
    on_gossip: Callable[[str, str, bytes], None]  # origin, the peer that it came through, message
    favoured: Callable[[str], bool] = lambda peer: False  # peers whose records and connections go last


class TrioHost:
    """The libp2p host, used only in the trio thread: by `run`, and by calls through the bridge.

    Nothing here uses asyncio.
    """

    def __init__(
        self,
        seed: bytes,
        settings: Settings,
        listen: tuple[str, ...],
        callbacks: Callbacks,
        problems: Problems | None = None,
    ) -> None:
        """Put the parts of py-libp2p together; `listen` takes the place of the setting of that name."""
        self._problems = problems if problems is not None else Problems()
        self._listen = [multiaddr.Multiaddr(a) for a in listen]
        self._mdns_wanted, self._wants_relays = settings.mdns, bool(settings.relays)
        self._on_stream, self._favoured = callbacks.on_stream, callbacks.favoured
        favoured = callbacks.favoured
        self._known: Table[str, PeerInfo] = Table(
            "peers dialled", entries=_KNOWN_PEERS, size=lambda peer, info: 4096, keep=lambda peer, info: favoured(peer)
        )
        self._seen: Table[str, str] = Table(  # peer -> the IP address that it was last connected at
            "peers seen", entries=_KNOWN_PEERS, keep=lambda peer, host: favoured(peer)
        )
        keys = create_new_key_pair(seed)
        self._own = ID.from_pubkey(keys.public_key)
        self._peers = BoundedPeerStore(self._keeps)
        self.host = _new_host(keys, self._peers, settings.announce)
        self._discovery = LocalDiscovery(self.host, self._listen)
        self._gate = Gate(self.vicinity)
        self._gate.guard(self.host.get_network())
        self._gate.allow(settings.relays, typed=True)
        self.host.set_stream_handler(TProtocol(PROTOCOL), self._handle_stream)
        self._relays = Relays(self.host, self._connect, settings.relays, settings.relay)
        self._punching = DCUtRProtocol(self.host) if settings.hole_punching else None
        cap_messages()
        self.dht = KadDHT(self.host, DHTMode.SERVER, enable_values=False)
        self.dht.provider_store = providers = Providers(self.host, self.dht.peer_routing)
        self.dht.value_store = NoValues(host=self.host, local_peer_id=self.host.get_id())
        self._gossip = _new_gossip()
        self.pubsub = Gossip(self.host, self._gossip, callbacks.on_gossip, self.host_of, favoured)
        self._doors(providers)
        self._provide_lock = trio.Lock()
        self._provided_at = -_PROVIDE_EVERY_SECONDS

    def _doors(self, providers: Providers) -> None:
        """Put limits on inbound connections, streams and protocols, and bounded tables in the place of py-libp2p's."""
        network = self.host.get_network()
        self.tables: list[Bounded] = [
            providers.rows,
            self._peers.table,
            self._peers.records,
            self._known,
            self._seen,
            self._gate.table,
            self.pubsub.seen_messages.table,
            self.pubsub.rate.table,
            self.pubsub.rate_of_one.table,
            *bound(self.host, self.dht, self._gossip),
        ]
        connections = Connections(network, self._favoured)
        streams = Streams(self.host._swarm_stream_handler, self.host_of, self._favoured)
        network.set_stream_handler(streams)
        self.tables += [connections, connections.places, *connections.tables, streams.places]
        handlers = self.host.get_mux().handlers
        for protocol, per_peer, most, seconds in _PROTOCOLS:
            self.host.set_stream_handler(protocol, StreamLimit(handlers[protocol], per_peer, most, seconds))
        # Its own limit is twelve streams of all peers together, without a time-out.
        self.dht._inbound_limiter = trio.CapacityLimiter(1_000)

    def _keeps(self, peer: ID) -> bool:
        """Return True for peers whose records are never evicted: this node, connected peers and favoured ones."""
        return peer == self._own or peer in self.host.get_network().connections or self._favoured(str(peer))

    # -- life ------------------------------------------------------------------------------------

    async def run(self, ready: Callable[[], None]) -> None:
        """Listen and serve until cancelled; `ready` is called once the node listens.

        Raises `P2pDown` if it cannot listen.
        """
        async with (
            self.host.run(listen_addrs=self._listen),
            background_trio_service(self.dht),
            background_trio_service(self.pubsub),
            background_trio_service(self._gossip),
            background_trio_service(self._relays.service),
            contextlib.AsyncExitStack() as stack,
            trio.open_nursery() as nursery,
        ):
            if self._listen and not self.host.get_transport_addrs():  # py-libp2p only logs it
                wanted = ", ".join(str(a) for a in self._listen)
                raise P2pDown(f"cannot listen on {wanted}", cause="the port is taken, or the address is not ours")
            if self._punching is not None:
                await stack.enter_async_context(background_trio_service(self._punching))
            await self.pubsub.wait_until_ready()
            await self.pubsub.subscribe(TOPIC)
            for name, step, pause in (
                ("discovery", self._dial_discovered, 0.0),
                ("routing table", self._fill_routing_table, 1.0),
            ):
                nursery.start_soon(partial(forever, name, step, self._problems, pause=pause, sleep=trio.sleep))
            if self._wants_relays:
                nursery.start_soon(self._relays.keep_reserved, self._problems)
            if self._mdns_wanted and self._listen:
                nursery.start_soon(self._discovery.run)
            ready()
            await trio.sleep_forever()

    async def _dial_discovered(self) -> None:
        info = await self._discovery.next()
        self._gate.allow(map(str, info.addrs))
        try:
            with trio.move_on_after(LIMITS.dial_seconds):
                await self._connect(info)
        except Exception:  # noqa: BLE001 - a hint that led nowhere
            return

    async def _fill_routing_table(self) -> None:
        """Add peers that dialled this node to the routing table, as those that it dialled already are."""
        for peer in self.host.get_connected_peers():
            if (host := self.host_of(str(peer))) is not None:
                self._seen.put(str(peer), host, str(peer))
            if not self.dht.routing_table.peer_in_table(peer):
                try:
                    with trio.move_on_after(5):
                        await self.dht.add_peer(peer, skip_server_mode_check=True)
                except Exception:  # noqa: BLE001, S112 - tried again in a second
                    continue

    # -- called through the bridge -----------------------------------------------------------------

    def addresses(self) -> list[str]:
        """Return the multiaddrs at which this node can be dialled, those through its relays included."""
        return [str(a) for a in self.host.get_addrs()] + self._relays.addresses()

    def connected(self) -> list[str]:
        """Return the PeerIds of all peers with a live connection."""
        every = list(self.host.get_network().connections.items())
        return [str(peer) for peer, connections in every if any(not c.is_closed for c in connections)]

    def _forget_closed(self, peer: ID) -> None:
        """Remove connections that are being closed from py-libp2p's list.

        py-libp2p opens no stream on them, and does not dial a peer that is listed.
        """
        network = self.host.get_network()
        for connection in list(network.get_connections(peer)):
            if connection.is_closed:
                network.remove_conn(connection)

    def connected_since(self, peer: str) -> float | None:
        """Return when the newest connection to a peer was made (Unix seconds), or None without a connection."""
        made = [c._created_at for c in self.host.get_network().get_connections(ID.from_string(peer))]
        return max(made, default=None)

    def host_of(self, peer: str) -> str | None:
        """Return the IP address of the direct connection to a peer, or None without one."""
        for connection in self.host.get_network().get_connections(ID.from_string(peer)):
            remote = connection.muxed_conn.get_remote_address()
            if remote is not None and not is_relayed(connection) and (host := plain_host(remote[0])) is not None:
                return str(host)
        return None

    def relayed(self, peer: str) -> bool:
        """Return True if there are connections to a peer and all go through relays."""
        connections = self.host.get_network().get_connections(ID.from_string(peer))
        return bool(connections) and all(map(is_relayed, connections))

    def vicinity(self) -> str | None:
        """Return the `sender` for addresses sent by an unknown one of the connected peers; see `dialling.common`."""
        direct = [p for p in self.connected() if not self.relayed(p)]
        return common(map(self.host_of, direct))

    async def _connect(self, info: PeerInfo) -> None:
        # py-libp2p refuses for a minute to dial a peer that it failed to reach; the caller decides how long to wait.
        self.host.get_network().unblock_peer(info.peer_id)
        self._forget_closed(info.peer_id)
        await self.host.connect(info)
        self._remember(info)
        await self.dht.add_peer(info.peer_id, skip_server_mode_check=True)

    def _remember(self, info: PeerInfo) -> None:
        self._known.put(str(info.peer_id), PeerInfo(info.peer_id, trimmed(info.addrs)), str(info.peer_id))

    async def connect(self, address: PeerAddress) -> None:
        """Dial a peer unless it is connected: directly, then through relays.

        Raises `PeerError`, or one of libp2p's own exceptions.
        """
        peer = ID.from_string(address.peer)
        self._forget_closed(peer)
        if peer in self.host.get_connected_peers():
            return
        reachable = allowed(address.addresses, address.sender)
        self._gate.allow(reachable, typed=address.sender == BY_HAND)
        circuits = [a for a in reachable if is_circuit(a)]
        addresses = [_transport_part(a) for a in reachable if not is_circuit(a)]
        if not addresses and not circuits:
            addresses = self._remembered(address.peer)
        if addresses and await self._tried(PeerInfo(peer, addresses), last=not circuits):
            return
        if not circuits:
            least = "that may be dialled on that word " if address.addresses else ""
            raise PeerError(f"no address {least}of {address.peer} is known")
        await self._relays.dial(peer, circuits)

    def _remembered(self, peer: str) -> list[multiaddr.Multiaddr]:
        """Return where a peer was reached before, or else the addresses that it announced while it was connected."""
        if (known := self._known.get(peer)) is not None:
            return list(known.addrs)
        store, who = self.host.get_peerstore(), ID.from_string(peer)
        said = [str(a) for a in store.addrs(who)] if who in store.peer_ids() else []
        itself = allowed(said, self._seen.get(peer) or self.vicinity())
        self._gate.allow(itself)
        return [_transport_part(a) for a in itself if not is_circuit(a)]

    async def _tried(self, info: PeerInfo, last: bool) -> bool:
        """Dial directly and return True if that succeeded; raise the failure only if nothing else is left to try."""
        try:
            with trio.fail_after(math.inf if last else LIMITS.dial_seconds / 3):
                await self._connect(info)
        except Exception:
            if last:
                raise
            return False
        return True

    async def disconnect(self, peer: str) -> None:
        """Close all connections to a peer."""
        await self.host.disconnect(ID.from_string(peer))

    async def open(self, peer: str) -> Any:
        """Connect to a peer if necessary, and open a stream of the exchange protocol.

        Raises `PeerError`, or one of libp2p's own exceptions.
        """
        await self.connect(PeerAddress(peer))
        return await self.host.new_stream(ID.from_string(peer), [TProtocol(PROTOCOL)])

    async def provide(self, key: bytes) -> None:
        """Publish a provider record for a 32-byte key in the DHT, waiting for its turn (one in 1.2 s)."""
        async with self._provide_lock:
            wait = self._provided_at + _PROVIDE_EVERY_SECONDS - trio.current_time()
            if wait > 0:
                await trio.sleep(wait)
            self._provided_at = trio.current_time()
            await self.dht.provider_store.provide(multihash(key))

    async def find_providers(self, key: bytes) -> list[PeerAddress]:
        """Look up the providers of a 32-byte key in the DHT, without this node."""
        found = await self.dht.provider_store.find_providers(multihash(key))
        me = self.host.get_id()
        by_peer = {str(i.peer_id): tuple(str(a) for a in i.addrs[:8]) for i in found if i.peer_id != me}
        return [PeerAddress(peer, addresses, sender=self.vicinity()) for peer, addresses in by_peer.items()]

    async def announce(self, data: bytes) -> None:
        """Publish a message to the gossip topic."""
        await self.pubsub.publish(TOPIC, data)

    async def _handle_stream(self, stream: Any) -> None:
        self._on_stream(stream, str(stream.muxed_conn.peer_id))


def _transport_part(address: str) -> multiaddr.Multiaddr:
    """Return a multiaddr without its /p2p/ part."""
    return multiaddr.Multiaddr(address.split("/p2p/")[0])


def _new_host(keys: KeyPair, peers: BoundedPeerStore, announce: tuple[str, ...]) -> Any:
    """Make a libp2p host that speaks Noise and yamux alone, and dials nobody by itself."""
    host = new_host(
        key_pair=keys,
        sec_opt={NOISE: NoiseTransport(keys, create_noise_key_pair().private_key)},
        muxer_opt={TProtocol(YAMUX): Yamux},
        # Dial a peer only when something is wanted of it, not every peer that is known.
        connection_config=ConnectionConfig(
            min_connections=0, low_watermark=0, high_watermark=_MOST, max_connections=_MOST
        ),
        peerstore_opt=peers,
        announce_addrs=[multiaddr.Multiaddr(a) for a in announce] or None,
        disable_identify_address_discovery=True,
    )
    host.get_network().retry_config = RetryConfig(max_retries=0)  # callers decide when to retry
    return host


def _new_gossip() -> GossipSub:
    return GossipSub(
        protocols=[_GOSSIP],
        degree=6,
        degree_low=3,
        degree_high=12,
        heartbeat_interval=1,
        time_to_live=60,
        adaptive_gossip_enabled=False,
    )
