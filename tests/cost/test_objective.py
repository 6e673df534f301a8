"""What the caller minds, and what the caller will not pay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvswap.cost import CacheNeed, Link, Objective, Option, Plan, PrefillCurve, Prices, beside_host, decide

CURVE = PrefillCurve(a=1.0, b=0.0, block_tokens=100)
PRICES = Prices(per_gb=1.0, per_second=0.001, value_per_second=0.0005)


def plan(objective: Objective, megabytes: int = 100, rate: float = 50e6) -> Plan:
    """Prefill: 10 s and one cent.  Fetch: 2 s and ten cents, of 100 MB."""
    return decide(
        CacheNeed(tokens=1_000, load_seconds=0.0, missing_bytes=megabytes * 10**6),
        curve=CURVE,
        link=Link(rate, 0.0),
        prices=PRICES,
        objective=objective,
    )


@pytest.mark.parametrize(("by", "action"), [("time", "fetch"), ("money", "prefill"), ("mix", "prefill")])
def test_what_counts_decides(by: str, action: str) -> None:
    assert plan(Objective(by)).action == action


@pytest.mark.parametrize(
    ("objective", "action", "said"),
    [
        (Objective("time", max_dollars=0.05), "prefill", "fetch takes 0.1 dollars"),
        (Objective("time", max_bytes=99_999_999), "prefill", "1e+08 bytes"),
        (Objective("money", max_seconds=5.0), "fetch", "prefill takes 10 seconds"),
        (Objective("money", max_seconds=1.0), "none", "over the budget of 1"),
        (Objective("mix", max_seconds=5.0, max_dollars=0.05), "none", "fetch takes"),
    ],
)
def test_a_budget_is_kept_whatever_counts(objective: Objective, action: str, said: str) -> None:
    chosen = plan(objective)
    assert chosen.action == action and said in chosen.reason


def test_nobody_to_fetch_from_and_no_budget_to_prefill() -> None:
    chosen = decide(
        CacheNeed(tokens=1_000, load_seconds=0.0, missing_bytes=1),
        curve=CURVE,
        link=None,
        prices=PRICES,
        objective=Objective(max_seconds=9.0),
    )
    assert chosen.action == "none"


@given(
    st.sampled_from(["mix", "time", "money"]),
    st.none() | st.floats(0, 20),
    st.none() | st.floats(0, 1),
    st.none() | st.integers(0, 2 * 10**8),
)
def test_what_is_chosen_is_within_the_budget_and_the_best_of_what_is(
    by: str, seconds: float | None, dollars: float | None, size: int | None
) -> None:
    objective = Objective(by, seconds, dollars, size)
    chosen = plan(objective)
    options = {name: o for name, o in (("fetch", chosen.fetch), ("prefill", chosen.prefill)) if o is not None}
    allowed = {name: o for name, o in options.items() if o.over(objective) is None}
    if not allowed:
        assert chosen.action == "none"
    else:
        assert chosen.action == min(allowed, key=lambda name: allowed[name].score(PRICES, objective))


@pytest.mark.parametrize(
    ("by", "host", "action"),
    [
        ("time", Option(1.0, 1.0), "host"),
        ("time", Option(3.0, 0.0), "fetch"),
        ("money", Option(60.0, 0.001), "host"),
        ("money", Option(0.1, 0.5), "prefill"),
        ("mix", Option(5.0, 0.001), "host"),
        ("mix", Option(5.0, 0.1), "prefill"),
    ],
)
def test_a_host_is_one_more_way(by: str, host: Option, action: str) -> None:
    beside = beside_host(plan(Objective(by)), host, PRICES, Objective(by))
    assert (beside.action, beside.host) == (action, host)
    assert beside.action != "host" or (beside.seconds, beside.dollars) == (host.seconds, host.dollars)


def test_a_host_over_a_budget_is_none_and_where_all_else_is_it_is_the_only_one() -> None:
    poor = Objective(max_dollars=0.001)
    assert beside_host(plan(poor), Option(1.0, 0.002), PRICES, poor).action == "none"
    assert beside_host(plan(poor), Option(1.0, 0.0005), PRICES, poor).action == "host"
