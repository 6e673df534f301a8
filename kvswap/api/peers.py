"""The results about peers."""

from __future__ import annotations

from msgspec import field

from kvswap.api.result import Result


class PeerRow(Result, frozen=True, kw_only=True):
    """A peer, and what was experienced with it."""

    peer: str
    publisher: str | None
    connected: bool
    relayed: bool
    """True if the connection goes through another peer."""
    bytes_in: int
    """Chunk bytes that came from it."""
    bytes_out: int
    """Chunk bytes that it took."""
    rate: float | None
    """Bytes a second of transfers from it; None: never measured."""
    latency: float | None
    """The round trip in seconds; None: never measured."""
    ratio: float | None
    """Bytes given for each byte taken; None before anything was taken."""
    failures: int
    invalid_chunks: int = field(name="lies")
    """Chunks that were not what was asked for."""
    blocked: bool
    seen: float | None
    """Unix seconds of the last time that it answered; None: never."""


class BlockResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap block` and `unblock`."""

    peer: str
    blocked: bool


class LeaveResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap host leave` and `trust rm`."""

    peer: str
    removed: bool


class PeersResult(Result, frozen=True, kw_only=True):
    """The peers of this node."""

    peers: list[PeerRow]
