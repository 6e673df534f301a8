"""The results of planning: what each way of getting a cache costs, and which one is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import field

from kvswap.api.result import Result
from kvswap.api.status import CodecFigures

if TYPE_CHECKING:
    from kvswap.cost import Option, Plan


class PlanSummary(Result, frozen=True, kw_only=True):
    """The way that was taken, what it was expected to cost, and why."""

    action: str
    """The way: `fetch`, `prefill`, `hybrid` (both at once), `host`, or `none`."""
    seconds: float
    """The seconds to the first token."""
    dollars: float
    """The price in US dollars."""
    reason: str


class WayFigures(Result, frozen=True, kw_only=True):
    """The cost of one way of getting the cache."""

    seconds: float
    dollars: float
    bytes: int
    """The bytes to be fetched."""


class PlanFigures(PlanSummary, frozen=True, kw_only=True):
    """A plan with all ways that are possible; None: not possible."""

    prefill: WayFigures | None
    fetch: WayFigures | None
    hybrid: WayFigures | None
    """Both at once: the first part is computed while the last is fetched."""
    host: WayFigures | None


class TariffFigures(Result, frozen=True, kw_only=True):
    """The prices of a host, in US dollars for a million tokens."""

    read: float
    """The price of tokens that come from its cache."""
    prefill: float
    """The price of tokens that it has to compute."""
    make: float
    """The price of tokens that it generates."""


class HostWay(Result, frozen=True, kw_only=True):
    """A host that has the document, and what asking it costs."""

    peer: str
    model: str
    """The label of the model that it serves."""
    tokens: int
    """The tokens of the document."""
    seconds: float
    dollars: float
    tariff: TariffFigures


class SharedPrefix(Result, frozen=True, kw_only=True):
    """A published prefix of a document that itself nobody offers."""

    artifact: str
    tokens: int
    of: int
    """The tokens of the document."""
    missing_bytes: int
    peers: list[str] = field(name="from")
    """The peers that have it."""
    action: str
    """The way that is worth taking for these tokens: `fetch`, `prefill` or `hybrid`."""
    reason: str


class CurveFigures(Result, frozen=True, kw_only=True):
    """The cost of prefilling here: a block takes `a` seconds, and `b` more for each token before it."""

    a: float
    b: float
    block_tokens: int


class LinkFigures(Result, frozen=True, kw_only=True):
    """The link to a peer, as it was measured or is assumed."""

    bytes_per_second: float
    latency: float
    """The round trip in seconds."""
    measured: bool
    start: float | None
    """Seconds of a fetch that do not depend on its size; None: never measured."""
    spread: float
    """The mean deviation of recent rates from their mean, as a part of it."""
    age: float
    """Seconds since the last measurement."""
    per_gb: float
    """The price that the peer asks for a gigabyte, in US dollars."""


class PriceFigures(Result, frozen=True, kw_only=True):
    """The prices that were counted with, in US dollars."""

    per_gb: float
    """The price of a fetched gigabyte."""
    per_second: float
    """The price of a second of prefill."""
    value_per_second: float
    """The worth of a second of waiting, in US dollars."""
    per_million_tokens: float
    """The price of prefilling a million tokens."""


class PlanBasis(Result, frozen=True, kw_only=True):
    """The figures that a plan was calculated with."""

    prefill: CurveFigures | None
    """None: prefilling was not measured on this machine yet."""
    under_way: float
    """The factor by which computing a block takes longer while chunks arrive."""
    links: dict[str, LinkFigures]
    """The links, by peer."""
    codecs: dict[str, CodecFigures]
    prices: PriceFigures


class PlanResult(PlanFigures, frozen=True, kw_only=True):
    """The result of `kvswap plan`: what `ask` would do."""

    artifact: str | None
    """The artifact that would be used; None: nobody offers the document."""
    peers: list[str] = field(name="from")
    """The peers that have it."""
    codec: str | None = None
    lossless: bool | None = field(default=None, name="exact")
    state_bytes: int = 0
    """The bytes, before coding, of the states at the end of the document, whatever its length: a part of what is
    fetched.  0 for a model without states."""
    raw_bytes: int = 0
    """The bytes of the whole cache before coding."""
    shared_prefix: SharedPrefix | None
    """The longest published prefix, where nobody offers the document itself."""
    basis: PlanBasis
    hosts: list[HostWay]
    """The hosts that were asked for, the best first."""


def summary_of(plan: Plan | PlanFigures) -> PlanSummary:
    """Make the summary of a plan."""
    return PlanSummary(action=plan.action, seconds=plan.seconds, dollars=plan.dollars, reason=plan.reason)


def ways_of(plan: Plan) -> dict[str, Any]:
    """Return the fields of `PlanFigures` for what the planner chose."""
    return {
        "action": plan.action,
        "seconds": plan.seconds,
        "dollars": plan.dollars,
        "reason": plan.reason,
        "prefill": _way(plan.prefill),
        "fetch": _way(plan.fetch),
        "hybrid": _way(plan.hybrid),
        "host": _way(plan.host),
    }


def _way(option: Option | None) -> WayFigures | None:
    if option is None:
        return None
    return WayFigures(seconds=option.seconds, dollars=option.dollars, bytes=option.bytes)
