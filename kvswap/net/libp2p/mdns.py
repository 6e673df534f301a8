"""mDNS: finding peers on the local network, and being found there.

zeroconf runs in threads of its own and blocks for a second or two; what it finds comes to the trio thread through a
channel, and only addresses of the local network are dialled.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import multiaddr
import trio
from libp2p.discovery.events.peerDiscovery import peerDiscovery
from libp2p.discovery.mdns.mdns import create_mdns_discovery
from libp2p.peer.peerinfo import PeerInfo

from kvswap.net.dialling import Scope, allowed, scope_of

_NETWORK = "kvswap"  # our own service name: other libp2p applications are not dialled
_CLEAN_SECONDS = 120
_WAITING = 64  # peers found and not dialled yet
_ANY_HOST = {Scope.LOOPBACK: "127.0.0.1", Scope.PRIVATE: "10.0.0.1", Scope.LINK: "169.254.1.1"}  # as senders


class LocalDiscovery:
    """The search for peers over mDNS by one libp2p host, used in the trio thread."""

    def __init__(self, host: Any, listen: list[multiaddr.Multiaddr]) -> None:
        self._host, self._listen = host, listen
        self._received: trio.MemoryReceiveChannel[PeerInfo]
        self._found, self._received = trio.open_memory_channel[PeerInfo](_WAITING)
        self._trio: trio.lowlevel.TrioToken | None = None

    async def next(self) -> PeerInfo:
        """Wait for a peer that was found and has addresses that may be dialled; return it with these alone."""
        while True:
            info = await self._received.receive()
            addresses = [a for a in info.addrs if self._is_near(str(a))]
            if info.peer_id != self._host.get_id() and addresses:
                return PeerInfo(info.peer_id, addresses)

    async def run(self) -> None:
        """Announce this node, and listen for others, over mDNS until cancelled."""
        addresses = self._host.get_transport_addrs()
        port = int(addresses[0].value_for_protocol("tcp") or 0) if addresses else 0
        self._trio = trio.lowlevel.current_trio_token()

        def begin() -> Any:
            made = create_mdns_discovery(
                self._host.get_network(), port, private_network_fingerprint=_NETWORK, host=self._host
            )
            made.broadcaster.register()
            return made

        mdns: Any = None
        try:
            with self._listening():
                mdns = await trio.to_thread.run_sync(begin)
                while True:
                    await trio.sleep(_CLEAN_SECONDS)
                    mdns.listener.cleanup_stale_entries(max_age=2 * _CLEAN_SECONDS)
        except OSError as error:  # no multicast here: the other ways of finding peers remain
            logging.getLogger("kvswap.net").warning("mDNS is not available: %s", error)
        finally:
            if mdns is not None:
                with trio.CancelScope(shield=True), trio.move_on_after(2):
                    await trio.to_thread.run_sync(mdns.stop)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        peerDiscovery.register_peer_discovered_handler(self._offer)
        try:
            yield
        finally:
            peerDiscovery.unregister_peer_discovered_handler(self._offer)

    def _offer(self, info: PeerInfo) -> None:
        # Called from zeroconf's thread.
        def offer() -> None:
            with contextlib.suppress(trio.WouldBlock):
                self._found.send_nowait(info)

        with contextlib.suppress(trio.RunFinishedError):
            if self._trio is not None:
                self._trio.run_sync_soon(offer)

    def _is_near(self, address: str) -> bool:
        """Return True if an address found by mDNS may be dialled: one of the local network.

        If this node listens on loopback only, loopback addresses are allowed as well; otherwise not, as anybody on the
        local network can send such a packet and could name this machine's own ports.
        """
        own = {scope_of(a.value_for_protocol(a.protocols()[0].code)) for a in self._listen if len(a.protocols())}
        places = (Scope.PRIVATE, Scope.LINK, *((Scope.LOOPBACK,) if own == {Scope.LOOPBACK} else ()))
        return any(allowed([address], _ANY_HOST[place]) for place in places)
