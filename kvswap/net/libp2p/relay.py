"""Circuit relay v2, for nodes behind NAT (https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md).

A node that cannot be dialled keeps a reservation at a relay and announces that it is reachable there, at
`<relay>/p2p-circuit/p2p/<node>`.  A peer that dials that address gets an end-to-end Noise connection through the relay,
which sees neither keys nor plaintext.  How much of this, and of hole punching, works in py-libp2p 0.8.1 is described in
`docs/reach.md`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import multiaddr
import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo, info_from_p2p_addr
from libp2p.relay.circuit_v2 import PROTOCOL_ID, CircuitV2Protocol, CircuitV2Transport, RelayLimits
from libp2p.relay.circuit_v2.config import RelayConfig, RelayRole

from kvswap.core.errors import PeerError
from kvswap.core.limits import LIMITS
from kvswap.core.upkeep import Problems, forever

_CIRCUIT = "/p2p-circuit"
_CHECK_SECONDS = 5.0
_RENEW_SECONDS = 600.0


def is_circuit(address: str) -> bool:
    """Return True if an address leads through a relay."""
    return _CIRCUIT in address


class Relays:
    """The reservations of this node at relays, its dialling through relays, and its own relaying if `serve` is set."""

    def __init__(
        self, host: Any, connect: Callable[[PeerInfo], Awaitable[None]], relays: tuple[str, ...], serve: bool
    ) -> None:
        self._host = host
        self._connect = connect
        self._relays = relays
        limits = RelayLimits(
            duration=int(LIMITS.relay_seconds),
            data=LIMITS.relay_bytes,
            max_circuit_conns=LIMITS.relay_circuits,
            max_reservations=LIMITS.relay_reservations,
        )
        self.service = CircuitV2Protocol(host, limits=limits, allow_hop=serve)
        roles = RelayRole.STOP | RelayRole.CLIENT | (RelayRole.HOP if serve else RelayRole(0))
        self._transport = CircuitV2Transport(host, self.service, RelayConfig(roles=roles, limits=limits))
        self._reserved: dict[str, float] = {}  # relay address -> when

    def addresses(self) -> list[str]:
        """Return the multiaddrs at which this node is reachable through its relays."""
        return [f"{relay}{_CIRCUIT}/p2p/{self._host.get_id()}" for relay in self._reserved]

    async def keep_reserved(self, problems: Problems) -> None:
        """Keep a reservation at every relay until cancelled; a relay that fails is retried and noted in `problems`."""

        async def round_of(nursery: trio.Nursery) -> None:
            for relay in self._relays:
                try:
                    with trio.fail_after(LIMITS.dial_seconds):
                        await self._reserve(relay, nursery)
                    problems.clear_one(f"relay {relay}")
                except Exception as error:  # noqa: BLE001 - tried again in a moment, whatever it was
                    problems.note(f"relay {relay}", error)

        async def hold() -> None:  # a task that the library starts in the nursery may end it
            self._reserved.clear()
            async with trio.open_nursery() as nursery:
                step = partial(round_of, nursery)
                await forever("relays", step, problems, pause=_CHECK_SECONDS, sleep=trio.sleep)

        await forever("relays", hold, problems, pause=_CHECK_SECONDS, sleep=trio.sleep)

    async def _reserve(self, relay: str, nursery: trio.Nursery) -> None:
        info = info_from_p2p_addr(multiaddr.Multiaddr(relay))
        connected = info.peer_id in self._host.get_connected_peers()
        since = self._reserved.get(relay)
        if connected and since is not None and trio.current_time() - since < _RENEW_SECONDS:
            return
        self._reserved.pop(relay, None)
        if not connected:
            await self._connect(info)
        stream = await self._host.new_stream(info.peer_id, [TProtocol(PROTOCOL_ID)])
        try:
            if await self._transport.reserve(stream, info.peer_id, nursery):
                self._reserved[relay] = trio.current_time()
            else:
                logging.getLogger("kvswap.net").warning("the relay %s gives no reservation", relay)
        finally:
            with contextlib.suppress(Exception):
                await stream.close()

    async def dial(self, peer: ID, addresses: list[str]) -> None:
        """Connect to a peer through the first relay that works.  Raises `PeerError` if none does."""
        failure: Exception | None = None
        for address in addresses:
            whole = address if address.endswith(f"/p2p/{peer}") else f"{address}/p2p/{peer}"
            try:
                await self._transport.dial(multiaddr.Multiaddr(whole))
                return
            except Exception as error:  # noqa: BLE001 - any relay may fail in any way
                failure = error
        raise PeerError(f"no relay leads to {peer}: {failure!r}") from failure


def is_relayed(connection: Any) -> bool:
    """Return True if a connection of the swarm goes through a relay, so that its remote address is the relay's."""
    kind = getattr(connection, "get_connection_type", lambda: None)()
    return getattr(kind, "name", "") == "RELAYED"
