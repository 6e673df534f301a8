"""The plan: a pure function of measured rates, sizes and prices.

    seconds(prefill) = sum over blocks of (a + b * tokens before the block), scaled by block length
    seconds(fetch)   = 2 * latency + missing wire bytes / link rate + seconds of loading
    dollars(prefill) = seconds * price per second of this machine
    dollars(fetch)   = missing wire bytes * price per byte
    score            = dollars + seconds * what a second of waiting is worth

The lower score wins; at equal scores prefill does, because it needs nobody.

>>> curve = PrefillCurve(a=0.5, b=0.0001, block_tokens=256)
>>> plan = decide(tokens=1024, load_seconds=0.05, missing_bytes=16_000_000,
...               curve=curve, link=Link(12.5e6, 0.01), prices=Prices())
>>> plan.action
'fetch'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PrefillCurve:
    """Seconds of one full block after `n` tokens: a + b * n.  Linear in n because attention is."""

    a: float
    b: float
    block_tokens: int

    @classmethod
    def fit(cls, samples: Sequence[tuple[int, int, float]], block_tokens: int) -> PrefillCurve:
        """Least squares over (tokens before, tokens in the block, seconds); short blocks are scaled up."""
        points = [(at, seconds * block_tokens / tokens) for at, tokens, seconds in samples if tokens > 0]
        if not points:
            raise ValueError("no samples")
        n = len(points)
        mean_x = sum(x for x, _ in points) / n
        mean_y = sum(y for _, y in points) / n
        spread = sum((x - mean_x) ** 2 for x, _ in points)
        slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
        slope = max(0.0, slope)  # noise over few blocks may point downwards; work never shrinks
        return cls(max(1e-6, mean_y - slope * mean_x), slope, block_tokens)

    def seconds(self, tokens: int, start: int = 0) -> float:
        """Prefill of tokens [start, tokens) on the canonical schedule."""
        total = 0.0
        for first in range(start, tokens, self.block_tokens):
            share = min(self.block_tokens, tokens - first) / self.block_tokens
            total += (self.a + self.b * first) * share
        return total


@dataclass(frozen=True, slots=True)
class Link:
    """To the best peer: bytes per second, round trip in seconds, and whether it was ever measured."""

    bytes_per_second: float
    latency: float
    measured: bool = True


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars: per fetched gigabyte, per second of prefill, per second of waiting."""

    per_gb: float = 0.0
    per_second: float = 0.0
    value_per_second: float = 0.0005


@dataclass(frozen=True, slots=True)
class Option:
    """One way of getting the cache."""

    seconds: float
    dollars: float

    def score(self, prices: Prices) -> float:
        return self.dollars + self.seconds * prices.value_per_second


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, what it costs, why, and what the other way would cost (None: not possible)."""

    action: str
    seconds: float
    dollars: float
    reason: str
    prefill: Option | None
    fetch: Option | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def decide(
    *,
    tokens: int,
    load_seconds: float,
    missing_bytes: int,
    curve: PrefillCurve | None,
    link: Link | None,
    prices: Prices,
) -> Plan:
    """Choose.  `curve` None: this node cannot prefill; `link` None: nobody to fetch from.

    `load_seconds`: verifying, decoding and loading what is here then.
    """
    prefill = None
    if curve is not None:
        seconds = curve.seconds(tokens)
        prefill = Option(seconds, seconds * prices.per_second)
    fetch = None
    if missing_bytes == 0:
        fetch = Option(load_seconds, 0.0)
    elif link is not None:
        seconds = 2 * link.latency + missing_bytes / link.bytes_per_second + load_seconds
        fetch = Option(seconds, missing_bytes / 1e9 * prices.per_gb)
    if prefill is None and fetch is None:
        return Plan("none", 0.0, 0.0, "neither a model to prefill with nor a peer to fetch from", None, None)
    if fetch is None:
        assert prefill is not None  # noqa: S101 - one of the two is there
        return Plan("prefill", prefill.seconds, prefill.dollars, "nobody offers it", prefill, None)
    if prefill is None:
        return Plan("fetch", fetch.seconds, fetch.dollars, "this node cannot prefill", None, fetch)
    better = fetch.score(prices) < prefill.score(prices)
    reason = _reason(better, prefill, fetch, missing_bytes, link)
    chosen = fetch if better else prefill
    return Plan("fetch" if better else "prefill", chosen.seconds, chosen.dollars, reason, prefill, fetch)


def _reason(better: bool, prefill: Option, fetch: Option, missing: int, link: Link | None) -> str:
    get = "fetch" if missing else "load"
    if missing == 0:
        where = "it is in the local store"
    else:
        assert link is not None  # noqa: S101 - fetch was possible
        kind = "measured" if link.measured else "assumed"
        where = f"{missing / 1e6:.1f} MB to fetch at {link.bytes_per_second / 1e6:.1f} MB/s ({kind})"
    figures = f"{get} {fetch.seconds:.2f} s"
    if fetch.dollars or prefill.dollars:
        figures += f" and ${fetch.dollars:.6f}"
    figures += f", prefill {prefill.seconds:.2f} s"
    if fetch.dollars or prefill.dollars:
        figures += f" and ${prefill.dollars:.6f}"
    verdict = f"{get}ing is worth it" if better else "prefilling here is better"
    return f"{verdict}: {figures}; {where}"
