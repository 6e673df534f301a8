"""The check of a store: every file hashed again, and index and disk brought to say the same."""

from __future__ import annotations

from dataclasses import dataclass

from kvswap.core.errors import KvswapError
from kvswap.store.chunks import ListedChunks
from kvswap.store.ingest import ChunkWriter


@dataclass(slots=True)
class FilesChecked:
    """The outcome of a check of all files: numbers of chunks, and the first error of what could not be read."""

    checked: int = 0
    adopted: int = 0  # right, and not listed before
    quarantined: int = 0  # wrong, and set aside
    missing: int = 0  # listed, and gone
    unread: KvswapError | None = None


def check_files(chunks: ListedChunks, ingest: ChunkWriter) -> FilesChecked:
    """Hash every file again: right but unlisted files are adopted, wrong ones set aside.

    What cannot be read now stays as it is, and all others are looked at.
    """
    found = FilesChecked()
    for cid in chunks.files.all():
        try:
            length = chunks.whole(cid)
        except FileNotFoundError:
            continue  # collected since the files were listed
        except KvswapError as error:
            found.unread = found.unread or error
            continue
        found.checked += 1
        if length is None:
            chunks.forget(cid)
            chunks.files.set_aside(cid)
            found.quarantined += 1
        elif not chunks.has(cid):
            found.adopted += ingest.adopt(cid, length)
    found.missing = chunks.forget_missing()
    return found
