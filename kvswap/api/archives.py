"""The answers of exporting and importing an artifact as one file."""

from __future__ import annotations

from kvswap.api.result import Result


class Exported(Result, frozen=True, kw_only=True):
    """An artifact that was written as one file."""

    artifact: str
    file: str
    """The path that was written; `-` for a stream."""
    bytes: int
    """The length of the archive."""
    files: int
    """Files of the artifact in it, beside the manifest."""
    left_out: int
    """Files of the artifact that this node does not have, and that no reader of the whole document needs."""
    sha256: str
    """The digest of the archive, in hex: the same artifact with the same files gives the same archive."""


class Imported(Result, frozen=True, kw_only=True):
    """An artifact that came as one file, verified, and is in the store now."""

    artifact: str
    document: str | None
    """The document's name as members see it; None for a private one."""
    label: str
    tokens: int
    publisher: str
    trusted: bool
    """False: it is here, and not used before its publisher is trusted, or it is verified by recomputing."""
    standing: str
    """The word of `kvswap ls --json` for how it stands."""
    bytes: int
    """The length of the archive."""
    files: int
    new_files: int
    """Files that were not in the store before."""
    group: str | None
    """The group that it is encrypted for."""
