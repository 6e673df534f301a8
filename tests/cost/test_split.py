"""Where computing from the front and fetching from the back meet, on a simulated clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvswap.cost import CacheNeed, Link, Objective, PrefillCurve, Prices, Split, Work, decide

TICK = 0.01
MB = 1_000_000


@dataclass
class Run:
    """What came of a simulated run."""

    seconds: float
    computed: int
    waited: float
    stuck: bool = False


def simulate(
    work: Work,
    link: Callable[[float], float],
    expected: float,
    *,
    pace: float = 1.0,
    ends: float | None = None,
    **options: object,
) -> Run:
    """Bytes come from the last unit to the first at `link(seconds)`; computing takes `pace` of what is expected."""
    split = Split(work, expected, 0.0, **options)  # type: ignore[arg-type]
    now = seen = waited = 0.0
    computing: float | None = None  # until when
    computed = 0
    lowest = int(str(options.get("lowest", 0)))
    wanted = list(reversed(range(lowest, len(work))))
    left = {unit: float(work.wire[unit]) for unit in wanted}
    told = 0.0
    while now < 10_000:
        now += TICK
        dead = ends is not None and now >= ends
        came = 0.0 if dead else link(now) * TICK
        seen += came
        while came > 0 and (open_ := [u for u in wanted if left[u] > 0 and u >= split.front]):
            take = min(came, left[open_[0]])
            left[open_[0]] -= take
            came -= take
            if left[open_[0]] <= 1e-6:
                left[open_[0]] = 0.0
                split.arrived(open_[0])
        if now - told >= 0.1:
            under_way = sum(work.wire[u] - left[u] for u in wanted if 0 < left[u] < work.wire[u])
            split.got(int(seen), int(under_way), now)
            told = now
        if dead:
            split.ended()
        if computing is not None:
            if now < computing:
                continue
            split.computed(work.compute[split.front] * pace)
            computing, computed = None, computed + 1
        step = split.step()
        if step == "met":
            return Run(now, computed, waited)
        if step == "stuck":
            return Run(now, computed, waited, True)
        if step == "compute":
            computing = now + work.compute[split.front] * pace
        else:
            waited += TICK
    raise AssertionError("it never ended")


def even(units: int, seconds: float, megabytes: float, load: float = 0.0) -> Work:
    return Work([seconds / units] * units, [int(megabytes * MB / units)] * units, [load / units] * units)


@given(st.floats(2, 60), st.floats(2, 60), st.integers(40, 80))
def test_both_together_share_the_work_almost_without_loss(prefill: float, fetch: float, units: int) -> None:
    ran = simulate(even(units, prefill, 100), lambda _: 100 * MB / fetch, 100 * MB / fetch)
    ideal = 1 / (1 / prefill + 1 / fetch)
    assert ran.seconds <= 1.1 * ideal + max(prefill, fetch) / units + 0.2  # which is how late it hears of arrivals


@given(st.floats(0, 20), st.floats(1, 40), st.integers(2, 60))
def test_a_link_that_dies_costs_no_more_than_prefilling_all(ends: float, fetch: float, units: int) -> None:
    prefill = 10.0
    ran = simulate(even(units, prefill, 100), lambda _: 100 * MB / fetch, 100 * MB / fetch, ends=ends)
    # A unit may have been waited for that does not come any more: until the link is known to be dead.
    waited = min(ends, ran.waited)
    assert not ran.stuck and ran.seconds <= prefill + waited + (units + 2) * TICK


def test_a_link_that_goes_silent_is_not_waited_for() -> None:
    """Nobody says that it ended: its rate does."""
    ran = simulate(even(40, 20, 100), lambda t: 10 * MB if t < 3 else 0.0, 10 * MB)
    assert ran.computed == 28  # twelve came
    assert ran.seconds <= 15 and ran.waited < 0.5


def test_a_link_that_turns_fast_stops_the_computing() -> None:
    work = even(40, 40, 100)
    slow = simulate(work, lambda _: 1 * MB, 1 * MB)
    fast = simulate(work, lambda t: 1 * MB if t < 5 else 200 * MB, 1 * MB)
    assert slow.computed > 25
    assert fast.seconds < 6.5 and fast.computed <= 6


def test_a_link_that_turns_slow_is_made_up_for() -> None:
    work = even(40, 40, 100)
    ran = simulate(work, lambda t: 50 * MB if t < 1 else 0.5 * MB, 50 * MB)
    assert ran.seconds < 22  # half of it came in the first second, the rest takes 20 to compute
    assert ran.computed > 15


def test_rates_that_change_all_the_time() -> None:
    work = even(60, 30, 100)
    ran = simulate(work, lambda t: (20 if int(t * 2) % 3 else 0.1) * MB, 5 * MB)
    mean = 100 / ((20 + 20 + 0.1) / 3)
    assert ran.seconds <= 1.25 / (1 / 30 + 1 / mean)


def test_a_machine_that_is_slower_than_expected_leaves_more_to_the_link() -> None:
    work = even(40, 10, 100)
    quick = simulate(work, lambda _: 10 * MB, 10 * MB)
    busy = simulate(work, lambda _: 10 * MB, 10 * MB, pace=4.0)
    assert busy.computed < quick.computed / 1.8
    assert busy.seconds <= 1.15 / (1 / 40 + 1 / 10)


def test_without_the_text_it_waits_and_says_when_nothing_comes() -> None:
    work = even(10, 1, 100)
    assert simulate(work, lambda _: 10 * MB, 10 * MB, computes=False).computed == 0
    assert simulate(work, lambda _: 10 * MB, 10 * MB, computes=False, ends=3.0).stuck


def test_computing_as_a_last_resort() -> None:
    work = even(10, 1, 100)
    ran = simulate(work, lambda _: 10 * MB, 10 * MB, eager=False)
    assert ran.computed == 0 and ran.seconds == pytest.approx(10, abs=0.1)
    ran = simulate(work, lambda _: 10 * MB, 10 * MB, eager=False, ends=5.05)
    assert ran.computed == 5 and not ran.stuck


def test_units_below_the_lowest_are_computed() -> None:
    ran = simulate(even(10, 10, 100), lambda _: 1000 * MB, 1000 * MB, lowest=4)
    assert ran.computed == 4


def test_what_is_here_is_neither_waited_for_nor_computed() -> None:
    work = Work([1.0] * 6, [0, 0, 5 * MB, 5 * MB, 0, 0], [0.0] * 6)
    split = Split(work, 100 * MB, 0.0, front=2)
    assert (split.front, split.back) == (2, 4)
    split.arrived(3)
    split.arrived(2)
    assert split.step() == "met"
    assert Split(Work([1.0], [0], [0.0]), 0.0, 0.0).step() == "met"


# -- the plan ----------------------------------------------------------------------------------------

CURVE = PrefillCurve(a=1.0, b=0.0, block_tokens=100)


def plan(rate: float, *, objective: Objective | None = None, prices: Prices | None = None, megabytes: int = 100):  # type: ignore[no-untyped-def]
    """Prefill takes 10 s in 10 units."""
    return decide(
        CacheNeed(tokens=1_000, load_seconds=0.0, missing_bytes=megabytes * MB, work=even(10, 10, megabytes)),
        curve=CURVE,
        link=Link(rate, 0.0),
        prices=prices or Prices(),
        objective=objective or Objective("time"),
    )


@pytest.mark.parametrize(
    ("rate", "action"), [(1000 * MB, "fetch"), (10 * MB, "hybrid"), (5 * MB, "hybrid"), (0.5 * MB, "prefill")]
)
def test_the_link_decides_whether_both_is_worth_it(rate: float, action: str) -> None:
    chosen = plan(rate)
    assert chosen.action == action
    assert chosen.hybrid is not None and chosen.hybrid.seconds >= 1 / (1 / 10 + rate / (100 * MB)) - 1e-9
    options = [o.seconds for o in (chosen.prefill, chosen.fetch, chosen.hybrid) if o is not None]
    assert chosen.seconds <= min(options) / 0.97 + 1e-9


def test_a_budget_of_bytes_moves_the_meeting() -> None:
    chosen = plan(20 * MB, objective=Objective("time", max_bytes=40 * MB))
    assert chosen.action == "hybrid" and chosen.hybrid is not None
    assert chosen.hybrid.bytes == 40 * MB and chosen.seconds == pytest.approx(6.0)


def test_money_decides_for_one_of_the_two() -> None:
    prices = Prices(per_gb=1.0, per_second=0.001)
    assert plan(10 * MB, objective=Objective("money"), prices=prices).action == "prefill"
    prices = Prices(per_gb=0.01, per_second=0.001)
    assert plan(10 * MB, objective=Objective("money"), prices=prices).action == "fetch"


@given(st.floats(1e4, 1e10), st.floats(0.1, 100), st.integers(1, 300))
def test_the_hybrid_is_never_better_than_sharing_without_loss(rate: float, prefill: float, units: int) -> None:
    work = even(units, prefill, 50)
    curve = PrefillCurve(prefill / 10, 0.0, 100)
    chosen = decide(
        CacheNeed(tokens=1_000, load_seconds=0.0, missing_bytes=sum(work.wire), work=work),
        curve=curve,
        link=Link(rate, 0.0),
        prices=Prices(),
        objective=Objective("time"),
    )
    fetch = sum(work.wire) / rate
    assert chosen.hybrid is None or chosen.hybrid.seconds >= 0.999 / (1 / prefill + 1 / fetch)
    assert chosen.prefill is not None and chosen.seconds <= min(prefill, fetch) / 0.97 + 1e-6
