"""What of this machine's files an agent may publish: those below folders that the user named, and no others.

An agent does what a page that it read tells it to, and a published cache reveals its text.  So the path of a call is
walked name by name from an open folder: no `..`, no name with a dot in front, no symbolic link, and at the end a
regular file with one name - a second hard link may be a file of anywhere else.  What is opened is what is read: nothing
can be exchanged between check and use.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

from kvswap.core.documents import check_document, check_size
from kvswap.core.errors import KvswapError, LocalFault, UsageError
from kvswap.core.files import kind_of
from kvswap.core.limits import LIMITS
from kvswap.core.text import printable

_log = logging.getLogger("kvswap.mcp")
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_HINT = "kvswap mcp --allow-publish DIR, which is for the user to say"
_PIECE = 1 << 20


class NotAllowed(UsageError):
    """A file that no call of a tool may publish."""

    code = "not_allowed"
    usual = ("it is outside of what the user allowed", _HINT)


@dataclass(frozen=True, slots=True)
class AllowedFolders:
    """The folders below which files may be published, and the group that these are sealed for."""

    folders: tuple[Path, ...] = ()
    group: str | None = None

    @classmethod
    def below(cls, folders: Sequence[Path], group: str | None = None) -> AllowedFolders:
        """Resolve the folders that a user named, once: links in these names are the user's own."""
        return cls(tuple(folder.resolve(strict=True) for folder in folders), group)

    @property
    def allowed(self) -> bool:
        """True if anything may be published."""
        return bool(self.folders)

    def read(self, path: str) -> str:
        """Return the text of a file below one of the folders, an absolute path or one from a folder on.

        Raises `NotAllowed` for any other, `InvalidDocument` for what is no text.  What is refused is logged.
        """
        try:
            return check_document(self._bytes(path), printable(path)[:200])
        except KvswapError as error:
            _log.warning("publishing %s for an agent was refused: %s", printable(path)[:200], error.message)
            raise

    def note(self, path: str, artifact: str) -> None:
        """Log that a file was published."""
        _log.warning("published %s for an agent as %s", printable(path)[:200], artifact)

    def _bytes(self, path: str) -> bytes:
        if not self.folders:
            raise NotAllowed("nothing may be published", cause="the user has allowed no folder")
        given = PurePath(path)
        found: NotAllowed | None = None
        for folder in self.folders:
            if given.is_absolute() and not given.is_relative_to(folder):
                continue
            names = (given.relative_to(folder) if given.is_absolute() else given).parts
            try:
                return _read_below(folder, names, printable(path)[:200])
            except FileNotFoundError:
                found = found or NotAllowed(f"there is no {printable(path)[:200]} below an allowed folder")
            except (OSError, ValueError) as error:
                raise LocalFault(f"{printable(path)[:200]} cannot be read: {error}") from error
        raise found or NotAllowed(f"{printable(path)[:200]} is not below an allowed folder")


def _read_below(folder: Path, names: Sequence[str], shown: str) -> bytes:
    """Read a regular file, walking from a folder to it.  Raises `NotAllowed`, `OSError`, `InvalidDocument`."""
    if not names:
        raise NotAllowed(f"{shown} is a folder")
    if any(name.startswith(".") for name in names):
        raise NotAllowed(f"{shown} has a name that begins with a dot", cause="such files are settings and secrets")
    current = os.open(folder, _FLAGS | os.O_DIRECTORY)
    try:
        for name in names[:-1]:
            below = _opened(name, os.O_DIRECTORY, current, shown)
            os.close(current)
            current = below
        file = _opened(names[-1], 0, current, shown)
    finally:
        os.close(current)
    try:
        return _content(file, shown)
    finally:
        os.close(file)


def _opened(name: str, flags: int, folder: int, shown: str) -> int:
    try:
        return os.open(name, _FLAGS | flags, dir_fd=folder)
    except OSError:
        with suppress(OSError):
            if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                raise NotAllowed(f"{shown} goes through a symbolic link", cause="it may lead anywhere") from None
        raise


def _content(file: int, shown: str) -> bytes:
    about = os.fstat(file)
    if not stat.S_ISREG(about.st_mode):
        raise NotAllowed(f"{shown} is {kind_of(about.st_mode)}, not a regular file")
    if about.st_nlink > 1:
        raise NotAllowed(
            f"{shown} has {about.st_nlink} hard links",
            cause="it may be a file from outside of the folder under a second name",
            hint="copy it",
        )
    check_size(about.st_size, shown)
    pieces, length = [], 0
    while length <= LIMITS.document_bytes and (piece := os.read(file, _PIECE)):
        pieces.append(piece)
        length += len(piece)
    return b"".join(pieces)
