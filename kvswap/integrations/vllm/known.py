"""What beginnings the node could find: a request that hits nothing is told so here, without asking anybody.

A look-up takes the node 2 ms, but vLLM's processes spin for a second after every step, and where they have all
processors each hand-over between engine and node waits for them.  Most prompts hit nothing; for them a digest of their
first block and a search in memory will do.  What is published is known here a moment later.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from kvswap.client import Client
from kvswap.core.upkeep import Backoff, Problems, forever_in_thread

_WAIT_SECONDS = 20.0
_REST_SECONDS = 5.0
_SHORTEST_SECONDS = 0.05  # between two looks, however often it changes
_KEY = np.dtype(">u8")


class Known:
    """Kept up to date by a thread.  Until it has heard, and whenever the node is not reached, all may be there."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._keys: Any = None  # sorted, native uint64
        self._closed = threading.Event()
        self._version = ""
        threading.Thread(
            target=forever_in_thread,
            args=("known", self._look, self._closed, Problems()),
            kwargs={"pause": _SHORTEST_SECONDS, "backoff": Backoff(_REST_SECONDS, _REST_SECONDS)},
            name="kvswap-known",
            daemon=True,
        ).start()

    def close(self) -> None:
        self._closed.set()

    def may_have(self, digest: bytes) -> bool:
        """Whether something begins with the block of this chain digest, as far as is known."""
        keys = self._keys
        if keys is None:
            return True
        key = np.uint64(int.from_bytes(digest[:8], "big"))
        at = int(np.searchsorted(keys, key))
        return at < len(keys) and bool(keys[at] == key)

    def _look(self) -> None:
        """Wait until what is published has changed, and keep it."""
        try:
            self._version, packed = self._client.beginnings(self._version, _WAIT_SECONDS)
            self._keys = self.sorted(packed) if packed is not None else None
        except BaseException:
            self._version, self._keys = "", None  # all may be there
            raise

    @staticmethod
    def sorted(packed: bytes) -> Any:
        """Keys as `may_have` searches them.  Raises `ValueError`."""
        return np.unique(np.frombuffer(packed, _KEY).astype(np.uint64))
