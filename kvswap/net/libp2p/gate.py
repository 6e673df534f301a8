"""The last check before a connection is opened, whichever part of libp2p asks for it.

The DHT, identify, hole punching and gossip dial addresses that remote peers wrote into the peer store, without a check.
So the rule of `net.dialling` is enforced where every dial passes, at the transports: addresses that were judged with a
known sender, or typed by the user, are let through; all others are judged as if an unknown one of the connected peers
had sent them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from typing import Any

from libp2p.io.trio import TrioTCPStream
from libp2p.transport.exceptions import OpenConnectionError

from kvswap.core.bounded import Table
from kvswap.net.dialling import endpoint_of, may_dial

_KEPT = 4_096
_by_name: ContextVar[bool] = ContextVar("dialling a name that the user typed", default=False)
Dial = Callable[..., Awaitable[Any]]


class Gate:
    """The check in front of every dial of one host's transports.

    `unknown()` returns the `sender` for addresses of which it is not known who sent them.
    """

    def __init__(self, unknown: Callable[[], str | None]) -> None:
        self._unknown = unknown
        self.table: Table[tuple[str, int], bool] = Table("addresses let through", entries=_KEPT)
        self._typed: set[tuple[str, int]] = set()

    def allow(self, addresses: Iterable[str], *, typed: bool = False) -> None:
        """Let these addresses through from now on, as they were judged already; typed ones are never forgotten."""
        for address in addresses:
            if (end := endpoint_of(address)) is None:
                continue
            if typed:
                self._typed.add((end.host, end.port))
            else:
                self.table.put((end.host, end.port), True)

    def allows(self, address: str) -> bool:
        """Return True if a transport may dial this address."""
        end = endpoint_of(address.split("/p2p/")[0])
        if end is None:
            return False
        if (end.host, end.port) in self._typed or _by_name.get():
            return True
        if end.named:
            return False
        return (end.host, end.port) in self.table or may_dial(address, self._unknown())

    def guard(self, swarm: Any) -> None:
        """Put the check in front of every transport of a swarm."""
        for transport in swarm.transport_manager.get_transports():
            transport.dial = self._guarded(transport.dial)
            if hasattr(transport, "dial_with_source"):
                transport.dial_with_source = self._guarded(transport.dial_with_source)

    def _guarded(self, dial: Dial) -> Dial:
        async def guarded(address: Any, *args: Any, **more: Any) -> Any:
            text = str(address)
            if not self.allows(text):
                raise OpenConnectionError(f"{text} is not dialled on the word of a peer")
            end = endpoint_of(text.split("/p2p/")[0])
            token = _by_name.set(end is not None and end.named)
            try:
                return await dial(address, *args, **more)
            finally:
                _by_name.reset(token)

        return guarded


def _remote_address(stream: Any) -> tuple[str, int] | None:
    """Return host and port of the other end.

    py-libp2p 0.8.1 returns None for IPv6, whose socket names have four parts.
    """
    if stream._cached_remote_address is None:
        try:
            host, port, *_ = stream.stream.socket.getpeername()
        except (AttributeError, OSError, TypeError, ValueError):
            return None
        stream._cached_remote_address = (str(host).partition("%")[0], int(port))
    known: tuple[str, int] = stream._cached_remote_address
    return known


TrioTCPStream.get_remote_address = _remote_address
