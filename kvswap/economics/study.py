"""The questions of the study.

They are the paper's example, the same with costs instead of tariffs, the price of egress, and where shipping wins.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kvswap.economics.figures import Figures
from kvswap.economics.model import (
    break_even_egress,
    break_even_link,
    break_even_readers,
    prefill_speed,
    shared,
)

GB = 1e9
_POINTS = 60  # prices in a sweep
_MONTH = 1.0  # months for which a document is kept


@dataclass(frozen=True, slots=True)
class Line:
    """A number that the paper published beside the one computed here, in dollars."""

    what: str
    published: float
    computed: float

    @property
    def off(self) -> float:
        """The relative deviation of the computed number from the published one."""
        return self.computed / self.published - 1


@dataclass(frozen=True, slots=True)
class Way:
    """A way of giving the document to all readers.

    Its dollars in all and per reader, and the number of readers from which it is cheaper than the tariff (None: never).
    """

    what: str
    dollars: float
    per_reader: float
    break_even_readers: float | None


@dataclass(frozen=True, slots=True)
class Where:
    """The link and the egress price from which shipping a model's KV wins over prefilling on a machine."""

    model: str
    machine: str
    tokens_per_second: float
    link_raw: float  # bits a second
    link_coded: float
    egress_per_gb: float | None  # dollars; None where the machine has no price


@dataclass(frozen=True, slots=True)
class Study:
    """The answers to all questions, as they are printed."""

    date: str
    paper: list[Line]
    ways: list[Way]
    break_even_egress: dict[str, dict[str, float]]  # dollars per GB, by price of prefill, then by codec
    sweep: dict[str, list[tuple[float, float]]]  # (dollars per GB, dollars in all), by codec
    levels: dict[str, float]  # dollars in all, of ways that do not depend on egress
    where: list[Where]
    best: str  # the codec of the last column

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


def study(f: Figures) -> Study:
    """Answer all questions from the given figures."""
    e, t = f.example, f.tariffs
    raw = e.tokens * e.bytes_per_token
    tariff = e.tokens * t.input_per_million_tokens / 1e6
    parameters = next((m.parameters for m in f.models if m.bytes_per_token == e.bytes_per_token), 4e9)
    speed = prefill_speed(f.machines[next(iter(f.machines))], parameters)
    physical = e.tokens / speed * t.machine_per_hour / 3600
    egress = t.egress_per_gb / GB
    keep = t.storage_per_gb_month / GB * _MONTH
    best = max((name for name in f.ratios if "int8" not in name), key=lambda name: f.ratios[name])
    paper = [
        Line("everybody prefills", f.published.prefill, e.readers * tariff),
        Line("everybody reads a provider's cache", f.published.cached, e.readers * tariff * t.cached_fraction),
        Line("a host serves it, at the measured speed-up", f.published.hosted, e.readers * tariff / e.speed_up),
        Line("ship 16-bit KV", f.published.ship_raw, e.readers * raw * egress),
        Line("ship int8", f.published.ship_int8, e.readers * raw / f.ratios["int8"] * egress),
    ]
    ways = [
        Way("prefill, API tariff", e.readers * tariff, tariff, None),
        Way("prefill, rented machine", e.readers * physical, physical, None),
        Way("host, rented machine", e.readers * physical / e.speed_up, physical / e.speed_up, None),
    ]
    for name, ratio in f.ratios.items():
        size = raw / ratio
        each = shared(prefill=physical, readers=e.readers, load=0.0, move=size * egress, keep=size * keep)
        count = break_even_readers(prefill=tariff, load=0.0, move=size * egress, keep=size * keep)
        ways.append(Way(f"ship {name}", e.readers * each, each, count))
    prices = [f.egress.least * (f.egress.most / f.egress.least) ** (i / (_POINTS - 1)) for i in range(_POINTS)]
    sweep = {
        name: [(p, e.readers * raw / f.ratios[name] * p / GB) for p in prices]
        for name in dict.fromkeys(("raw", "int8", best))
    }
    even = {
        what: {name: GB * break_even_egress(cost, raw / ratio) for name, ratio in f.ratios.items()}
        for what, cost in (("API tariff", tariff), ("rented machine", physical))
    }
    levels = {way.what: way.dollars for way in ways[:3]}
    return Study(f.date, paper, ways, even, sweep, levels, _where(f, best), best)


def _where(f: Figures, best: str) -> list[Where]:
    out = []
    for m in f.models:
        for machine, flops in f.machines.items():
            speed = prefill_speed(flops, m.parameters)
            hourly = f.machine_prices.get(machine)
            price = None
            if hourly is not None:
                price = GB * break_even_egress(hourly / 3600 / speed, m.bytes_per_token / f.ratios[best])
            link = break_even_link(m.bytes_per_token, speed)
            out.append(Where(m.name, machine, speed, 8 * link, 8 * link / f.ratios[best], price))
    return out
