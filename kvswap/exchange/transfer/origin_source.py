"""An origin as a source of chunks: parallel GETs of the files that the manifest names."""

from __future__ import annotations

from kvswap.core.ids import Cid
from kvswap.net import PeerAddress
from kvswap.origins.origin import Origin
from kvswap.origins.port import OnBytes


class OriginSource:
    """An origin where an artifact was found, for one transfer."""

    kind = "origin"
    joined = True

    def __init__(self, origin: Origin, chunks: int) -> None:
        """`chunks`: files of the artifact; an origin has them all, until it turns out otherwise."""
        self._origin = origin
        self.peer = origin.url
        self.has = set(range(chunks))
        self.others: list[PeerAddress] = []

    async def open(self, address: PeerAddress) -> None:
        """Do nothing: the first request connects."""

    async def refresh(self) -> None:
        """Do nothing: what is there does not come while it is read."""

    async def chunk(self, cid: Cid, into: memoryview, on_bytes: OnBytes) -> Cid | None:
        """Fill `into` with a chunk, as `Source.chunk`."""
        await self._origin.file(cid, into, on_bytes)
        return None

    async def close(self) -> None:
        """Do nothing: the origin's connections are kept."""
