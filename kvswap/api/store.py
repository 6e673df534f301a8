"""The results about the artifacts in a node's store."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import field

from kvswap.api.result import OpenResult, Result


class StoredArtifact(Result, frozen=True, kw_only=True, gc=False):
    """An artifact in the store.  Times are Unix seconds."""

    artifact: str
    document: str | None
    """The document's digest; None: it is private."""
    model: str
    """The model's identity, in hex."""
    label: str
    """The model's label."""
    dtype: str
    tokens: int
    raw_bytes: int
    wire_bytes: int
    publisher: str
    expires: int
    added: float
    used: float
    pinned: bool
    complete: bool
    group: str | None
    """The group that it is encrypted for; `?`: one whose key is not here."""
    standing: str
    """The standing of the artifact: `own`, `trusted`, `verified`, `unverified`, `disputed`, `wrong` and so on."""
    why: str | None
    """The reason for the standing."""
    disputed_with: list[str]
    """The artifacts of others that contradict it."""


class ArtifactDetails(StoredArtifact, frozen=True, kw_only=True):
    """An artifact in the store with what was signed: all that a process needs to read it."""

    manifest: dict[str, Any]
    """The manifest, as `manifests/FORMAT.md` says."""
    envelope: str
    """The manifest with its signature, in base64."""
    chunks_directory: str
    """The directory of the chunk files."""
    key: str | None = None
    """The key that opens the files of an encrypted one, in hex; only where it was asked for."""


class ShownArtifact(OpenResult, frozen=True, kw_only=True):
    """The result of `kvswap show`: the manifest in `more`, whose fields come first in JSON, and how it stands here."""

    artifact: str
    complete: bool
    pinned: bool
    standing: str
    why: str | None
    disputed_with: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, as `--json` prints it."""
        json: dict[str, Any] = msgspec.to_builtins(self)
        return {**json.pop("more", {}), **json}


class RemovalPreview(Result, frozen=True, kw_only=True):
    """The result of `kvswap rm --dry-run`."""

    would_remove: str
    wire_bytes: int


class RemoveResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap rm`."""

    removed: str
    """The artifact, or the first of a document."""
    artifacts: list[str]
    freed_bytes: int
    origins: list[str] = field(default_factory=list)
    """Origins from which it was taken as well, as this node had pushed it there."""
    still_at: dict[str, str] = field(default_factory=dict)
    """Origins from which it could not be taken, and why."""


class PinResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap pin` and `unpin`."""

    artifact: str
    """The artifact, or the first of a document."""
    artifacts: list[str]
    pinned: bool


class CollectResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap gc`."""

    freed_bytes: int
    store_bytes: int
    """The bytes that the store holds now."""


class WithdrawResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap withdraw`."""

    withdrawn: list[str]
    """The artifacts that this node stands by no more."""
    why: str
    sequence: int
    """The number of the status record that says so."""
    origins: list[str] = field(default_factory=list)
    """Origins from which it was taken as well, as this node had pushed it there."""
    still_at: dict[str, str] = field(default_factory=dict)
    """Origins from which it could not be taken, and why."""


class ArtifactsResult(Result, frozen=True, kw_only=True):
    """The artifacts in the store, newest first."""

    artifacts: list[StoredArtifact]
