"""The plan: a pure function of measured rates, sizes and prices.

    seconds(prefill) = sum over blocks of (a + b * tokens before the block), scaled by block length
    seconds(fetch)   = start + missing wire bytes / link rate + seconds of loading
    seconds(hybrid)  = those of the best meeting of both, see `split`
    dollars(prefill) = seconds * price per second of this machine
    dollars(fetch)   = missing wire bytes * price per byte
    score            = dollars + seconds * worth of a second of waiting

`start` is the overhead that does not depend on the size: looking up, joining, the last write; two round trips until
measured.  The lower score wins; at equal scores prefill does, because it needs nobody.  An objective may count time or
money alone, the other deciding between equals, and an option over a budget is none.

>>> curve = PrefillCurve(a=0.5, b=0.0001, block_tokens=256)
>>> plan = decide(CacheNeed(tokens=1024, missing_bytes=16_000_000, load_seconds=0.05),
...               curve=curve, link=Link(12.5e6, 0.01), prices=Prices())
>>> plan.action
'fetch'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kvswap.cost.objective import MIX, Objective
from kvswap.cost.split import Work, meetings

_HYBRID_GAIN = 0.97  # doing both must score below this part of the better of the two others
_GUESSED_FLOPS = 1e11  # per second, of a machine that was never measured: two cores
_MEETINGS = 256  # at most compared, of a document of many more units


@dataclass(frozen=True, slots=True)
class PrefillCurve:
    """The seconds of one full block after `n` tokens: a + b * n.  Linear in n because attention is."""

    a: float
    b: float
    block_tokens: int

    @classmethod
    def fit(cls, samples: Sequence[tuple[int, int, float]], block_tokens: int) -> PrefillCurve:
        """Fit a curve by least squares to samples (tokens before, tokens in the block, seconds).

        Short blocks are scaled up.  Raises `ValueError` without samples.
        """
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

    @classmethod
    def guess(cls, parameters: int, block_tokens: int) -> PrefillCurve:
        """Guess the curve of a machine that was never measured, from the number of the model's parameters.

        The first block that is computed corrects it.
        """
        return cls(2 * parameters * block_tokens / _GUESSED_FLOPS, 0.0, block_tokens)

    def seconds(self, tokens: int, start: int = 0) -> float:
        """Predict the seconds of prefilling the tokens [start, tokens) on the canonical schedule."""
        total = 0.0
        for first in range(start, tokens, self.block_tokens):
            share = min(self.block_tokens, tokens - first) / self.block_tokens
            total += (self.a + self.b * first) * share
        return total


@dataclass(frozen=True, slots=True)
class Link:
    """The link to the best peer: bytes per second, round trip in seconds, and whether it was ever measured."""

    bytes_per_second: float
    latency: float
    measured: bool = True
    start: float | None = None  # seconds of a fetch that do not depend on its size
    spread: float = 0.0  # mean deviation of recent rates from their mean, as a part of it
    age: float = 0.0  # seconds since the last measurement
    per_gb: float = 0.0  # US dollars that the peer asks, on top of the cost of any gigabyte here

    @property
    def start_seconds(self) -> float:
        """The fixed overhead of a fetch in seconds; two round trips where it was never measured."""
        return 2 * self.latency if self.start is None else self.start


@dataclass(frozen=True, slots=True)
class Prices:
    """The prices in US dollars.

    `per_gb`: a fetched gigabyte; `per_second`, `per_million_tokens`: prefill; `value_per_second`: a second of waiting.
    """

    per_gb: float = 0.0
    per_second: float = 0.0
    value_per_second: float = 0.0005
    per_million_tokens: float = 0.0

    def prefill(self, seconds: float, tokens: float) -> float:
        """Return the dollars of a prefill of that many seconds and tokens."""
        return seconds * self.per_second + tokens / 1e6 * self.per_million_tokens

    def fetch(self, size: int, link: Link) -> float:
        """Return the dollars of fetching `size` bytes over a link."""
        return size / 1e9 * (self.per_gb + link.per_gb)


@dataclass(frozen=True, slots=True)
class CacheNeed:
    """The cache that is needed: its tokens, the bytes of it that are not here, the seconds of loading it after a fetch.

    Loading is verifying, decoding and placing.  `work` has the document's units, where computing and fetching at once
    is possible; then loading goes on while the rest arrives.
    """

    tokens: int
    missing_bytes: int
    load_seconds: float = 0.0
    work: Work | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """A way of getting the cache: its seconds, dollars and bytes to fetch."""

    seconds: float
    dollars: float
    bytes: int = 0  # to be fetched

    def score(self, prices: Prices, objective: Objective = MIX) -> tuple[float, float]:
        """Return the score by which options are compared, the lower the better."""
        if objective.by == "time":
            return self.seconds, self.dollars
        if objective.by == "money":
            return self.dollars, self.seconds
        return self.dollars + self.seconds * prices.value_per_second, 0.0

    def over(self, objective: Objective) -> str | None:
        """Describe the first budget that the option exceeds; None where it keeps all."""
        for what, amount, most in (
            ("seconds", self.seconds, objective.max_seconds),
            ("dollars", self.dollars, objective.max_dollars),
            ("bytes", self.bytes, objective.max_bytes),
        ):
            if most is not None and amount > most:
                return f"{amount:.6g} {what}, over the budget of {most:.6g}"
        return None


@dataclass(frozen=True, slots=True)
class Plan:
    """The way to take, its seconds and dollars, the reason, and the other ways (None: not possible)."""

    action: str
    seconds: float
    dollars: float
    reason: str
    prefill: Option | None
    fetch: Option | None
    hybrid: Option | None = None  # the first part is computed while the last is fetched
    host: Option | None = None  # a host that has the cache answers the question

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


_CANNOT = "this node cannot prefill"


def decide(
    need: CacheNeed,
    *,
    curve: PrefillCurve | None,
    link: Link | None,
    prices: Prices,
    objective: Objective = MIX,
    able: bool = False,
) -> Plan:
    """Choose between fetching, prefilling, and both at once.

    `curve` None: this node cannot prefill, or with `able` it was never measured; `link` None: nobody to fetch from.
    """
    missing_bytes = need.missing_bytes
    prefill = hybrid = None
    if curve is not None:
        seconds = curve.seconds(need.tokens)
        prefill = Option(seconds, prices.prefill(seconds, need.tokens))
    fetch = None
    if missing_bytes == 0:
        fetch = Option(need.load_seconds, 0.0)
    elif link is not None:
        seconds = link.start_seconds + missing_bytes / link.bytes_per_second + need.load_seconds
        fetch = Option(seconds, prices.fetch(missing_bytes, link), missing_bytes)
    if need.work is not None and curve is not None and link is not None and missing_bytes:
        fetch, hybrid = _together(need.work, need.tokens, link, prices, objective)
    if prefill is None and fetch is None:
        lacks = (
            "prefill was not measured here yet, and there is no" if able else "neither a model to prefill with nor a"
        )
        return Plan("none", 0.0, 0.0, f"{lacks} peer to fetch from", None, None)
    plan = _one_of(prefill, fetch, missing_bytes, link, prices, objective)
    if prefill is None and able and plan.reason == _CANNOT:
        plan = replace(plan, reason="prefill was not measured here yet")
    if hybrid is None:
        return plan
    plan = replace(plan, hybrid=hybrid)
    rival = {"fetch": fetch, "prefill": prefill}.get(plan.action)
    if rival is not None:
        theirs, ours = rival.score(prices, objective), hybrid.score(prices, objective)
        if ours[0] >= _HYBRID_GAIN * theirs[0]:
            return plan
    reason = f"computing the first part while the last arrives takes {hybrid.seconds:.2f} s; {plan.reason}"
    return replace(plan, action="hybrid", seconds=hybrid.seconds, dollars=hybrid.dollars, reason=reason)


def beside_host(plan: Plan, host: Option, prices: Prices, objective: Objective = MIX) -> Plan:
    """Add the option of asking a host to a plan, and take it where it scores lower than what was chosen.

    `host`: the seconds to its first token, and the dollars that it charges for the whole answer.
    """
    plan = replace(plan, host=host)
    if host.over(objective) is not None:
        return plan
    own: Option | None = getattr(plan, plan.action, None) if plan.action != "none" else None
    if own is not None and own.score(prices, objective) <= host.score(prices, objective):
        return plan
    reason = f"a host answers after {host.seconds:.2f} s for ${host.dollars:.6f}; {plan.reason}"
    return replace(plan, action="host", seconds=host.seconds, dollars=host.dollars, reason=reason)


def _together(
    work: Work, tokens: int, link: Link, prices: Prices, objective: Objective
) -> tuple[Option, Option | None]:
    """Return the option of fetching everything, and the best of computing a part; None: all exceed a budget.

    Loading goes on while the rest arrives.
    """
    whole: Option | None = None
    best: Option | None = None
    every = -(-len(work) // _MEETINGS)
    computing = 0.0
    for meeting in meetings(work, link.bytes_per_second, start=link.start_seconds):
        dollars = prices.prefill(computing, tokens * meeting.at / len(work)) + prices.fetch(meeting.bytes, link)
        option = Option(meeting.seconds, dollars, meeting.bytes)
        if meeting.at < len(work):
            computing += work.compute[meeting.at]
        if whole is None:
            whole = option
            continue
        able = meeting.bytes and meeting.at % every == 0 and option.over(objective) is None
        if able and (best is None or option.score(prices, objective) < best.score(prices, objective)):
            best = option
    assert whole is not None  # noqa: S101 - the first meeting is one of all units
    return whole, best


def _one_of(
    prefill: Option | None,
    fetch: Option | None,
    missing_bytes: int,
    link: Link | None,
    prices: Prices,
    objective: Objective,
) -> Plan:
    """Choose between fetching and prefilling within the budgets."""
    too_much = {
        name: why
        for name, option in (("fetch", fetch), ("prefill", prefill))
        if option is not None and (why := option.over(objective)) is not None
    }
    if too_much:
        return _within(too_much, prefill, fetch)
    if fetch is None:
        assert prefill is not None  # noqa: S101 - one of the two is there
        return Plan("prefill", prefill.seconds, prefill.dollars, "nobody offers it", prefill, None)
    if prefill is None:
        return Plan("fetch", fetch.seconds, fetch.dollars, _CANNOT, None, fetch)
    better = fetch.score(prices, objective) < prefill.score(prices, objective)
    reason = _reason(better, prefill, fetch, missing_bytes, link)
    chosen = fetch if better else prefill
    return Plan("fetch" if better else "prefill", chosen.seconds, chosen.dollars, reason, prefill, fetch)


def _within(too_much: dict[str, str], prefill: Option | None, fetch: Option | None) -> Plan:
    """Choose among the options that keep the budgets, where some do not."""
    why = "; ".join(f"{name} takes {what}" for name, what in too_much.items())
    if fetch is not None and "fetch" not in too_much:
        return Plan("fetch", fetch.seconds, fetch.dollars, why, prefill, fetch)
    if prefill is not None and "prefill" not in too_much:
        return Plan("prefill", prefill.seconds, prefill.dollars, why, prefill, fetch)
    return Plan("none", 0.0, 0.0, why, prefill, fetch)


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
