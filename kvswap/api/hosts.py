"""The results about the hosts that invited this node."""

from __future__ import annotations

from kvswap.api.plans import TariffFigures
from kvswap.api.result import Result


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


class HostsResult(Result, frozen=True, kw_only=True):
    """The hosts that invited this node."""

    hosts: list[HostRow]


class JoinResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap host join`."""

    peer: str
    url: str
