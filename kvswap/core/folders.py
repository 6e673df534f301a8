"""A folder of texts as one document: its files in a stable order, each under a line with its path.

The order is that of the paths, whatever the file system says, so that two people with one folder have one document,
and a changed file leaves the beginning up to it as it was.  Left out are names that begin with a dot, what a
`.gitignore` in the folder or below it names, symbolic links, and what is no UTF-8 text.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvswap.core.documents import check_size
from kvswap.core.errors import InvalidDocument
from kvswap.core.failures import as_kvswap_error
from kvswap.core.files import read_file
from kvswap.core.limits import LIMITS
from kvswap.core.text import is_printable, printable

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

_IGNORE = ".gitignore"
_FILES = 20_000  # looked at; of these a model of today reads a hundred


@dataclass(frozen=True, slots=True)
class FolderFile:
    """A file of a folder: its path in it with `/`, the SHA-256 of its bytes in hex, and their number."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class FolderText:
    """A folder as one document, and what it is made of; `left_out` are files that are no text."""

    text: str
    files: tuple[FolderFile, ...]
    left_out: tuple[str, ...]


def read_folder(folder: Path) -> FolderText:
    """Read a folder as one document.  Raises `InvalidDocument` for one without texts, or with too much of it."""
    pieces: list[str] = []
    files: list[FolderFile] = []
    left_out: list[str] = []
    total = 0
    for number, (shown, path) in enumerate(_walk(folder, folder, [])):
        if number >= _FILES:
            raise InvalidDocument(
                f"{printable(str(folder))} has more than {_FILES} files", hint="name a folder below it"
            )
        check_size(total + path.stat().st_size, printable(str(folder)))
        data = read_file(path, LIMITS.document_bytes)
        text = _text(data)
        if text is None or not is_printable(shown):
            left_out.append(shown)
            continue
        piece = f"=== {shown} ===\n{text.rstrip()}\n\n"
        total += len(piece.encode())
        check_size(total, printable(str(folder)))
        pieces.append(piece)
        files.append(FolderFile(shown, hashlib.sha256(data).hexdigest(), len(data)))
    if not pieces:
        raise InvalidDocument(
            f"{printable(str(folder))} has no text files",
            cause="they are left out by a .gitignore, begin with a dot, or are no UTF-8 text",
            hint="name the folder that has them",
        )
    return FolderText("".join(pieces), tuple(files), tuple(left_out))


def _text(data: bytes) -> str | None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return text if text.strip() and "\0" not in text else None


def _walk(folder: Path, root: Path, ignored: list[tuple[Path, GitIgnoreSpec]]) -> Iterator[tuple[str, Path]]:
    """Yield the files below a folder with their paths from the root, in the order of these."""
    ignored = [*ignored, *_ignore_file(folder)]
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise as_kvswap_error(error, f"reading {printable(str(folder))}") from error
    # As whole paths are sorted: a folder's files come where its name with a slash would.
    for entry in sorted(entries, key=lambda entry: os.fsencode(entry.name) + (b"/" if entry.is_dir() else b"")):
        path = Path(entry.path)
        if entry.name.startswith(".") or entry.is_symlink():
            continue
        is_folder = entry.is_dir(follow_symlinks=False)
        if _left_out(path, is_folder, ignored):
            continue
        if is_folder:
            yield from _walk(path, root, ignored)
        elif entry.is_file(follow_symlinks=False):
            yield path.relative_to(root).as_posix(), path


def _ignore_file(folder: Path) -> list[tuple[Path, GitIgnoreSpec]]:
    """Return the rules of a folder's `.gitignore`, if it has one."""
    path = folder / _IGNORE
    if not path.is_file() or path.is_symlink():
        return []
    from pathspec import GitIgnoreSpec

    lines = read_file(path, LIMITS.config_bytes).decode("utf-8", "replace").splitlines()
    return [(folder, GitIgnoreSpec.from_lines(lines))]


def _left_out(path: Path, is_folder: bool, ignored: list[tuple[Path, GitIgnoreSpec]]) -> bool:
    """Return True if the nearest `.gitignore` that says anything of a path leaves it out."""
    for folder, rules in reversed(ignored):
        verdict = rules.check_file(path.relative_to(folder).as_posix() + ("/" if is_folder else "")).include
        if verdict is not None:
            return verdict
    return False
