"""Swarms: which peers are fetching an artifact from this node, told to each other so that they exchange chunks.

A reader is in a swarm while the stream is open on which it joined.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvswap.core.limits import LIMITS, MIB
from kvswap.core.rows import RowBounds, Rows
from kvswap.net import messages

_MEMBERSHIPS = 4_096
_READERS = 256
_OF_ONE_READER = 128


@dataclass(frozen=True, slots=True)
class _Reader:
    """A reader of an artifact, and the number of streams on which it joined."""

    provider: messages.Provider
    streams: int


class Swarms:
    """The readers of each artifact; bounded in artifacts, readers of one, and memberships of one reader."""

    def __init__(self) -> None:
        self.table: Rows[_Reader] = Rows(
            "swarms", RowBounds(_MEMBERSHIPS, per_row=_READERS, nbytes=8 * MIB, per_sender=_OF_ONE_READER)
        )

    def join(self, artifact: str, reader: messages.Provider) -> None:
        """Add a reader, or one more stream of it; where there is no room, nothing happens."""
        known = self.table.get(artifact, reader.peer)
        streams = known.streams if known is not None else 0
        if known is not None or len(self.table.row(artifact)) < _READERS:
            self.table.put(artifact, reader.peer, _Reader(reader, streams + 1), reader.peer)

    def leave(self, artifact: str, peer: str) -> None:
        """Remove one stream of a reader, and the reader with its last one."""
        known = self.table.get(artifact, peer)
        if known is None:
            return
        if known.streams > 1:
            self.table.put(artifact, peer, _Reader(known.provider, known.streams - 1), peer)
        else:
            self.table.pop(artifact, peer)

    def readers(self, artifact: str, but: str = "") -> list[messages.Provider]:
        """Return the readers of an artifact, the newest first, without the peer `but`."""
        found = [r.provider for peer, r in reversed(self.table.row(artifact).items()) if peer != but]
        return found[: LIMITS.find_results]
