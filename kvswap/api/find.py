"""The answer of a search: who has an artifact or a document."""

from __future__ import annotations

from msgspec import field

from kvswap.api.result import Result


class Holder(Result, frozen=True, kw_only=True):
    """A peer that offers an artifact."""

    peer: str
    whole: bool
    """False while it is still fetching it itself."""
    bytes_per_second: float | None
    """The rate of earlier transfers from it; None where there was none."""
    asks_per_gb: float
    """The price that it asks for a gigabyte, in dollars."""


class FoundArtifact(Result, frozen=True, kw_only=True):
    """An artifact that was found.

    `signed`: the manifest came and its signature is right; else all but `artifact` is what peers say.
    """

    artifact: str
    signed: bool
    here: str | None
    """The state in this node's store: `complete`, `partial`, or None."""
    holders: list[Holder]
    publisher: str
    trusted: bool
    problem: str | None
    """Why it would not be used here as things are; None where nothing is known against it."""
    document: str | None
    label: str | None
    model: str
    """The model's identity, in hex."""
    dtype: str
    tokens: int
    wire_bytes: int
    raw_bytes: int | None
    codec: str | None
    lossless: bool | None = field(name="exact")
    group: str | None
    issued: int | None
    """Unix seconds."""
    expires: int | None
    """Unix seconds."""


class FoundPrefix(Result, frozen=True, kw_only=True):
    """The longest published prefix of a document that itself nobody offers."""

    artifact: str
    tokens: int
    of: int
    """Tokens of the document."""
    publisher: str
    here: bool
    """True if all that is needed of it is in this node's store."""
    peers: list[str]


class FindResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap find`: the artifacts, those first that would be used here."""

    reference: str
    artifacts: list[FoundArtifact]
    prefix: FoundPrefix | None
    left_out: int
    """Artifacts that are not of the model or the publisher asked for."""
    peers: int
    """Peers that answered."""
