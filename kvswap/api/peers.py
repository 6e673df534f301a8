"""The results about peers and hosts."""

from __future__ import annotations

from msgspec import field

from kvswap.api.plans import TariffFigures
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


class HostRow(Result, frozen=True, kw_only=True):
    """A host that invited this node: its offer, or its problem."""

    peer: str
    url: str | None
    """None: its invitation is of no use."""
    seconds: float | None
    """The usual seconds to its first token; None: it was never asked."""
    model: str | None = None
    """The label of the model that it serves; None: it made no offer."""
    dtype: str | None = None
    tariff: TariffFigures | None = None
    problem: str | None
    """Why there is no offer."""


class JoinResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap host join`."""

    peer: str
    url: str


class LeaveResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap host leave` and `trust rm`."""

    peer: str
    removed: bool


class HostsResult(Result, frozen=True, kw_only=True):
    """The hosts that invited this node."""

    hosts: list[HostRow]


class PeersResult(Result, frozen=True, kw_only=True):
    """The peers of this node."""

    peers: list[PeerRow]
