"""Who is fetching what from this node: told to others who fetch the same, so that they give to each other.

A reader is in a swarm while the stream is open on which it joined.
"""

from __future__ import annotations

from collections import OrderedDict

from kvswap.core.limits import LIMITS
from kvswap.net import messages

_SWARMS = 1_024
_READERS = 256


class Swarms:
    """Readers by artifact; bounded both ways."""

    def __init__(self) -> None:
        self._swarms: OrderedDict[str, dict[str, tuple[messages.Provider, int]]] = OrderedDict()

    def join(self, artifact: str, reader: messages.Provider) -> None:
        swarm = self._swarms.setdefault(artifact, {})
        known = swarm.pop(reader.peer, None)
        if len(swarm) < _READERS:
            swarm[reader.peer] = (reader, (known[1] if known else 0) + 1)
        self._swarms.move_to_end(artifact)
        while len(self._swarms) > _SWARMS:
            self._swarms.popitem(last=False)

    def leave(self, artifact: str, peer: str) -> None:
        swarm = self._swarms.get(artifact, {})
        if peer in swarm:
            reader, streams = swarm[peer]
            if streams > 1:
                swarm[peer] = (reader, streams - 1)
            else:
                del swarm[peer]
            if not swarm:
                del self._swarms[artifact]

    def readers(self, artifact: str, but: str = "") -> list[messages.Provider]:
        """Those of one swarm, the newest first; without `but`."""
        found = [reader for reader, _ in reversed(self._swarms.get(artifact, {}).values()) if reader.peer != but]
        return found[: LIMITS.find_results]
