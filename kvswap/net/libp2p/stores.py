"""The bounded stores for what remote peers tell libp2p: provider records, addresses and protocols of peers.

py-libp2p's own stores have no cap on addresses, keys or bytes, and keep entries for a day or more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from libp2p.kad_dht.provider_store import PROVIDER_RECORD_EXPIRATION_INTERVAL, ProviderStore
from libp2p.kad_dht.value_store import ValueStore
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import PeerStore
from multiaddr import Multiaddr

from kvswap.core.bounded import Table
from kvswap.core.limits import MIB
from kvswap.core.rows import RowBounds, Rows
from kvswap.net.libp2p.mapped import Mapped

ADDRESSES = 8  # kept of one peer
ADDRESS_BYTES = 256  # a longer address is not kept
_RECORD_BYTES = 2_048  # of a signed peer record; a DHT answer holds twenty
_PROTOCOLS = 64
_PROTOCOL_BYTES = 128
_KEYS = 4_096  # provider records in all
_PROVIDERS = 20  # provider records of one key
_OF_ONE_SENDER = 512  # provider records sent by one peer
_PEERS = 2_048
_PEER_BYTES = 6_144  # a peer with all it may have, about


def trimmed(addresses: Sequence[Any]) -> list[Any]:
    """Return the first addresses that are short enough."""
    return [a for a in list(addresses)[: 8 * ADDRESSES] if len(a.to_bytes()) <= ADDRESS_BYTES][:ADDRESSES]


@dataclass(frozen=True, slots=True)
class _Record:
    addresses: tuple[bytes, ...]
    at: float


class Providers(ProviderStore):  # type: ignore[misc]
    """The provider records of the DHT, bounded by key and by sending peer; this node's own records are kept."""

    def __init__(self, host: Any, peer_routing: Any) -> None:
        super().__init__(host, peer_routing)
        own = str(host.get_id())
        self.rows: Rows[_Record] = Rows(
            "provider records",
            RowBounds(
                entries=_KEYS,
                per_row=_PROVIDERS,
                nbytes=12 * MIB,
                per_sender=_OF_ONE_SENDER,
                bytes_per_sender=2 * MIB,
            ),
            keep=lambda key, record: key[1] == own,
            size=lambda key, record: 256 + sum(64 + len(a) for a in record.addresses),
        )
        self.providers: dict[bytes, Any] = {}  # the base class's own, which stays empty

    def add_provider(self, key: bytes, provider: Any) -> None:
        """Store that a peer announced to have a key, with up to eight of its addresses."""
        if provider is None or not provider.peer_id or len(key) > 80:
            return
        peer = str(provider.peer_id)
        addresses = tuple(a.to_bytes() for a in trimmed(provider.addrs))
        self.rows.put(bytes(key), peer, _Record(addresses, time.time()), peer)

    def get_providers(self, key: bytes) -> list[Any]:
        """Return the peers that announced to have a key, and drop expired records."""
        now, found = time.time(), []
        for peer, record in self.rows.row(bytes(key)).items():
            if now - record.at > PROVIDER_RECORD_EXPIRATION_INTERVAL:
                self.rows.pop(bytes(key), peer)
            else:
                found.append(PeerInfo(ID.from_string(peer), [Multiaddr(a) for a in record.addresses]))
        return found

    def cleanup_expired(self) -> None:
        """Drop expired records."""
        for key in self.rows.names():
            self.get_providers(key)

    def get_provided_keys(self, peer_id: Any) -> list[bytes]:
        """Return the keys that a peer announced to have."""
        return [key for key in self.rows.names() if str(peer_id) in self.rows.row(key)]

    def size(self) -> int:
        """Return the number of records."""
        return len(self.rows)


class NoValues(ValueStore):  # type: ignore[misc]
    """A DHT value store that accepts nothing: kvswap uses no values, and a remote peer's could be a megabyte."""

    def put(self, *_: Any, **__: Any) -> None:
        """Refuse a value.  Raises `ValueError`."""
        raise ValueError("this node keeps no values")

    def put_record(self, *_: Any, **__: Any) -> None:
        """Refuse a value.  Raises `ValueError`."""
        raise ValueError("this node keeps no values")


class BoundedPeerStore(PeerStore):  # type: ignore[misc]
    """The bounded peer store: addresses, protocols and keys of peers; those that `keep` selects are never evicted."""

    def __init__(self, keep: Callable[[Any], bool]) -> None:
        super().__init__(max_records=_PEERS, max_peers=2 * _PEERS)
        self.table: Table[Any, Any] = Table(
            "peer store",
            entries=_PEERS,
            nbytes=_PEERS * (_PEER_BYTES + 512),
            keep=lambda peer, data: keep(peer),
            size=lambda peer, data: _PEER_BYTES,
        )
        self.records: Table[Any, Any] = Table(
            "peer records",
            entries=_PEERS,
            nbytes=_PEERS * (_RECORD_BYTES + 512),
            keep=lambda peer, state: keep(peer),
            size=lambda peer, state: _RECORD_BYTES,
        )
        self.peer_data_map = Mapped(self.table)
        self.peer_record_map = Mapped(self.records)

    def add_addrs(self, peer_id: Any, addrs: Sequence[Any], ttl: int = 0) -> None:
        """Store up to eight addresses of a peer; the newest replace older ones."""
        known = self.peer_data_map.get(peer_id)
        new = trimmed(addrs)
        if known is not None and len(known.addrs) + len(new) > ADDRESSES:
            known.addrs = [a for a in known.addrs if a not in new][: max(0, ADDRESSES - len(new))]
        super().add_addrs(peer_id, new, ttl)

    def consume_peer_record(self, envelope: Any, ttl: int) -> bool:
        """Store a signed peer record and return True if it is valid.

        One that is too large is ignored, and True returned.
        """
        if len(envelope.marshal_envelope()) > _RECORD_BYTES:
            return True
        return bool(super().consume_peer_record(envelope, ttl))

    def set_protocols(self, peer_id: Any, protocols: Sequence[str]) -> None:
        """Store the protocols of a peer, cut to a bounded number."""
        super().set_protocols(peer_id, _short(protocols))

    def add_protocols(self, peer_id: Any, protocols: Sequence[str]) -> None:
        """Add to the protocols of a peer, cut to a bounded number."""
        known = self.peer_data_map.get(peer_id)
        super().set_protocols(peer_id, _short([*(known.protocols if known is not None else ()), *protocols]))

    def put(self, peer_id: Any, key: str, val: Any) -> None:
        """Store a short metadata value of a peer; strings are cut, and keys beyond eight are ignored."""
        known = self.peer_data_map.get(peer_id)
        if len(key) > 32 or (known is not None and len(known.metadata) >= 8 and key not in known.metadata):
            return
        super().put(peer_id, key, val[:_PROTOCOL_BYTES] if isinstance(val, str) else val)


def _short(protocols: Sequence[str]) -> list[str]:
    return [p for p in dict.fromkeys(map(str, list(protocols)[: 4 * _PROTOCOLS])) if len(p) <= _PROTOCOL_BYTES][
        :_PROTOCOLS
    ]
