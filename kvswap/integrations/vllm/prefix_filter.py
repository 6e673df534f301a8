"""A filter of the prefixes that the node could find, so that a request which hits nothing needs no look-up.

A look-up takes the node 2 ms, but vLLM's processes spin for a second after every step, and while they keep all
processors busy, each hand-over between engine and node waits for them.  Most prompts hit nothing; for them a digest of
their first block and a search in memory suffice.  A newly published prefix is known here a moment later.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from kvswap.client import Client
from kvswap.core.upkeep import Backoff, Problems, forever_in_thread

_WAIT_SECONDS = 20.0
_BACKOFF_SECONDS = 5.0
_SHORTEST_SECONDS = 0.05  # between two updates, however often the index changes
_KEY = np.dtype(">u8")


class PrefixFilter:
    """A filter of published prefixes, which a thread keeps up to date.

    Before the first update, and while the node is not reached, every prompt counts as a possible hit.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._keys: Any = None  # sorted, native uint64
        self._closed = threading.Event()
        self._version = ""
        threading.Thread(
            target=forever_in_thread,
            args=("known", self._look, self._closed, Problems()),
            kwargs={"pause": _SHORTEST_SECONDS, "backoff": Backoff(_BACKOFF_SECONDS, _BACKOFF_SECONDS)},
            name="kvswap-known",
            daemon=True,
        ).start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def may_have(self, digest: bytes) -> bool:
        """Return True if a published prefix may start with the block of this chain digest."""
        keys = self._keys
        if keys is None:
            return True
        key = np.uint64(int.from_bytes(digest[:8], "big"))
        at = int(np.searchsorted(keys, key))
        return at < len(keys) and bool(keys[at] == key)

    def _look(self) -> None:
        """Wait until the node's prefix index has changed, and fetch it."""
        try:
            self._version, packed = self._client.prefix_index(self._version, _WAIT_SECONDS)
            self._keys = self.sorted(packed) if packed is not None else None
        except BaseException:
            self._version, self._keys = "", None  # every prompt is a possible hit
            raise

    @staticmethod
    def sorted(packed: bytes) -> Any:
        """Decode packed keys and sort them for `may_have`.  Raises `ValueError` if they are not whole 64-bit keys."""
        return np.unique(np.frombuffer(packed, _KEY).astype(np.uint64))
