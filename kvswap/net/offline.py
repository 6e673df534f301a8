"""No place in the network: what a node has instead of a transport when it takes no part."""

from __future__ import annotations

from typing import NoReturn

from kvswap.core.bounded import Filling
from kvswap.core.errors import P2pDown
from kvswap.net.transport import AnnouncementHandler, PeerAddress, Stream, StreamHandler


class Offline:
    """Implements `Transport`: nobody is there, and whatever needs somebody raises `P2pDown`."""

    peer = ""
    alive = False
    failed = ""

    async def start(self, on_stream: StreamHandler, on_announcement: AnnouncementHandler) -> None:
        """Raise `P2pDown`."""
        _refuse()

    async def stop(self) -> None:
        """Do nothing: nothing runs."""

    def favour(self, favoured: object) -> None:
        """Do nothing: nobody has a place."""

    def fillings(self) -> list[Filling]:
        """Return none."""
        return []

    def addresses(self) -> list[str]:
        """Return none."""
        return []

    async def connect(self, address: PeerAddress) -> None:
        """Raise `P2pDown`."""
        _refuse()

    def connected(self) -> list[str]:
        """Return nobody."""
        return []

    def connected_since(self, peer: str) -> float | None:
        """Return None."""
        return None

    async def disconnect(self, peer: str) -> None:
        """Do nothing: nobody is connected."""

    def host_of(self, peer: str) -> str | None:
        """Return None."""
        return None

    def relayed(self, peer: str) -> bool:
        """Return False."""
        return False

    def vicinity(self) -> str | None:
        """Return None."""
        return None

    async def open(self, peer: str) -> Stream:
        """Raise `P2pDown`."""
        _refuse()

    async def provide(self, key: bytes) -> None:
        """Tell nobody."""

    async def find_providers(self, key: bytes) -> list[PeerAddress]:
        """Return nobody."""
        return []

    async def announce(self, data: bytes) -> None:
        """Tell nobody."""


def _refuse() -> NoReturn:
    raise P2pDown("this node takes no part in the network", hint="kvswap status")
