"""The port of an origin: files under names, each call with a deadline and a cap of bytes.

A name is made by kvswap, of ids and digests; what a place lists under other names is none of ours.  Every method
raises `NotFound` for a file that is not there, `OriginRefused` for missing rights, `NetworkTimeout` for silence, and
`OriginError` for whatever else goes wrong there: never this node's own errors.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from kvswap.core.errors import OriginError, UsageError
from kvswap.core.text import printable

OnBytes = Callable[[int], None]
_NAME = re.compile(r"(?=.{1,200}\Z)[A-Za-z0-9][A-Za-z0-9.-]*(?:/[A-Za-z0-9][A-Za-z0-9.-]*)*")

NEW = ""
"""The tag of a file that does not exist."""


class Changed(OriginError):
    """The error of a file that somebody else wrote since it was read."""

    code = "origin_changed"


@dataclass(frozen=True, slots=True)
class Blob:
    """A file's bytes, and the tag of just this version of it."""

    data: bytes
    tag: str


@dataclass(frozen=True, slots=True)
class Listed:
    """A file's name and its size in bytes."""

    name: str
    size: int


class Backend(Protocol):
    """A place that keeps files."""

    @property
    def writes(self) -> bool:
        """True if files can be written there."""

    async def check(self) -> None:
        """Raise what is wrong where even the place itself is not there, or may not be read."""

    async def get(self, name: str, most: int) -> Blob:
        """Read a file of at most `most` bytes."""

    async def read_into(self, name: str, into: memoryview, on_bytes: OnBytes, start: int | None = None) -> None:
        """Fill `into` with a whole file of just that length, or with its bytes from `start` on.

        `on_bytes` is called with each number of bytes that came.  When this returns or raises, nothing is written to
        `into` any more.  Raises `IntegrityError` for a file of another length.
        """

    async def put(self, name: str, data: bytes, tag: str | None = None) -> None:
        """Write a file as a whole, readers see the old one or the new one; with `tag` only in place of that version.

        Raises `Changed` if another version is there.
        """

    async def same(self, name: str, data: bytes) -> bool:
        """Return True if a file is there and holds these bytes, by its size and the checksum of the place."""

    async def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""

    def files(self, prefix: str) -> AsyncIterator[Listed]:
        """Yield the files whose names begin with `prefix`, which is empty or ends with a slash."""

    async def close(self) -> None:
        """End all connections."""


def checked_name(name: str) -> str:
    """Return a name that is fit for a file at an origin.  Raises `UsageError`."""
    if not is_name(name):
        raise UsageError(f"{printable(name)[:80]!r} is no name of a file at an origin", cause="a path, not an id")
    return name


def is_name(name: str) -> bool:
    """Return True for a name that kvswap may have given: no part of it is hidden, empty or leads elsewhere."""
    return _NAME.fullmatch(name) is not None
