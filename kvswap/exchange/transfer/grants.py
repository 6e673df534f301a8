"""Tokens that came with the answers to look-ups.

A peer that has an artifact whole hands over a token when it is found there: its chunks can be asked for
at once, a round trip sooner than after joining.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from kvswap.net import messages

_FRESH_SECONDS = 10.0  # a look-up is followed by its transfer, or not at all
_KEPT = 256


class Grants:
    """The latest of each peer, for a short time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: OrderedDict[str, tuple[messages.Grant, frozenset[str], float]] = OrderedDict()

    def put(self, peer: str, grant: messages.Grant, artifacts: Iterable[str]) -> None:
        """`artifacts`: what the peer says to have whole."""
        self._held.pop(peer, None)
        self._held[peer] = (grant, frozenset(artifacts), self._clock() + min(_FRESH_SECONDS, grant.seconds))
        while len(self._held) > _KEPT:
            self._held.popitem(last=False)

    def of(self, peer: str, artifact: str) -> messages.Grant | None:
        """What opens the chunks of this artifact at this peer, if it was found there just now."""
        grant, artifacts, until = self._held.get(peer, (None, frozenset(), 0.0))
        return grant if artifact in artifacts and self._clock() < until else None
