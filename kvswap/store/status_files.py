"""Publisher status records in a second place: withdrawals, and how often we signed, outlive `trust.sqlite3`.

A directory with a file for this node's own publisher and each that it trusts: the envelope as it was signed, so it is
checked when it is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from kvswap.core.atomic import write_atomic
from kvswap.core.errors import UsageError
from kvswap.core.files import read_regular
from kvswap.core.ids import PeerId
from kvswap.core.limits import LIMITS

_KIND = ".head"
_KEPT = 4_096


class StatusFiles:
    """The newest status record of some publishers, by PeerId."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, publisher: str, envelope: bytes) -> None:
        """Write the newest status record of a publisher.  Best effort: the database has it as well."""
        with contextlib.suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = self._directory / f"{publisher}{_KIND}"
            if path.exists() or len(list(self._directory.iterdir())) < _KEPT:
                write_atomic(path, envelope)

    def has(self, publisher: str) -> bool:
        """Return True if there is a status record of this publisher."""
        return (self._directory / f"{publisher}{_KIND}").exists()

    def all(self) -> Iterator[tuple[str, bytes]]:
        """Yield the publisher and envelope of each that can be read; nothing of it is checked."""
        for path in sorted(self._directory.glob(f"*{_KIND}")):
            with contextlib.suppress(OSError, UsageError):
                yield str(PeerId.parse(path.stem)), read_regular(path, LIMITS.status_record_bytes)
