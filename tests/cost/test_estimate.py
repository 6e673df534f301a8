from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvswap.cost import CacheNeed, Calibration, Link, PrefillCurve, Prices, decide
from kvswap.trust.noise import NoiseRecord, SpreadRecord

CURVE = PrefillCurve(a=0.5, b=0.001, block_tokens=100)
# 250 tokens on CURVE: (0.5 + 0) + (0.5 + 0.1) + (0.5 + 0.2) / 2 = 1.45 s


@pytest.mark.parametrize(
    ("case", "missing", "curve", "link", "prices", "action", "seconds", "dollars"),
    [
        # 2 * 0.1 + 5e6 / 10e6 + 10e6 / 100e6 = 0.2 + 0.5 + 0.1 = 0.8 s < 1.45 s
        ("a fast link", 5_000_000, CURVE, Link(10e6, 0.1), Prices(), "fetch", 0.8, 0.0),
        # 0.2 + 5e6 / 1e6 + 0.1 = 5.3 s > 1.45 s
        ("a slow link", 5_000_000, CURVE, Link(1e6, 0.1), Prices(), "prefill", 1.45, 0.0),
        # half is here already: 0.2 + 0.5e6 / 1e6 + 0.1 = 0.8 s
        ("resumed", 500_000, CURVE, Link(1e6, 0.1), Prices(), "fetch", 0.8, 0.0),
        ("all of it here", 0, CURVE, None, Prices(), "fetch", 0.1, 0.0),
        ("nobody has it", 5_000_000, CURVE, None, Prices(), "prefill", 1.45, 0.0),
        ("no model here", 5_000_000, None, Link(1e3, 1.0), Prices(), "fetch", 5002.1, 0.0),
        ("neither", 5_000_000, None, None, Prices(), "none", 0.0, 0.0),
        # fetch saves 0.65 s, worth 0.65 * 0.0005 = $0.000325, and costs 0.005 GB * 0.05 = $0.00025
        ("egress that pays", 5_000_000, CURVE, Link(10e6, 0.1), Prices(per_gb=0.05), "fetch", 0.8, 0.00025),
        # at $0.09/GB it costs $0.00045: more than the time saved is worth
        ("metered egress", 5_000_000, CURVE, Link(10e6, 0.1), Prices(per_gb=0.09), "prefill", 1.45, 0.0),
        # unless this machine costs $0.001 a second: prefill is $0.00145 + $0.000725
        ("a dear machine", 5_000_000, CURVE, Link(10e6, 0.1), Prices(0.09, 0.001), "fetch", 0.8, 0.00045),
        # a dear machine and a slow link: 5.3 s * 0.0005 = 0.00265 against 0.00145 + 0.000725 = 0.002175
        ("dear and slow", 5_000_000, CURVE, Link(1e6, 0.1), Prices(0.0, 0.001), "prefill", 1.45, 0.00145),
    ],
)
def test_cases_worked_by_hand(
    case: str,
    missing: int,
    curve: PrefillCurve | None,
    link: Link | None,
    prices: Prices,
    action: str,
    seconds: float,
    dollars: float,
) -> None:
    plan = decide(CacheNeed(tokens=250, load_seconds=0.1, missing_bytes=missing), curve=curve, link=link, prices=prices)
    assert plan.action == action, case
    assert plan.seconds == pytest.approx(seconds)
    assert plan.dollars == pytest.approx(dollars)
    assert plan.reason


@pytest.mark.parametrize("missing", [0, 1000])
@pytest.mark.parametrize("link", [None, Link(1e6, 0.1)])
def test_what_was_not_measured_is_not_told_as_what_cannot_be_done(missing: int, link: Link | None) -> None:
    told = {
        able: decide(
            CacheNeed(tokens=250, load_seconds=0.1, missing_bytes=missing),
            curve=None,
            link=link,
            prices=Prices(),
            able=able,
        )
        for able in (True, False)
    }
    assert "not measured" in told[True].reason and "cannot" not in told[True].reason
    assert "cannot prefill" in told[False].reason or "neither a model" in told[False].reason
    assert told[True].action == told[False].action


def test_equal_scores_prefill_because_it_needs_nobody() -> None:
    flat = PrefillCurve(a=1.0, b=0.0, block_tokens=100)
    plan = decide(
        CacheNeed(tokens=100, load_seconds=0.0, missing_bytes=10), curve=flat, link=Link(10.0, 0.0), prices=Prices()
    )
    assert plan.action == "prefill"


def test_a_curve_is_fitted_exactly_through_exact_samples() -> None:
    samples = [(n * 100, 100, 0.5 + 0.001 * n * 100) for n in range(5)] + [(500, 50, (0.5 + 0.5) / 2)]
    curve = PrefillCurve.fit(samples, 100)
    assert (curve.a, curve.b) == (pytest.approx(0.5), pytest.approx(0.001))
    assert curve.seconds(250) == pytest.approx(1.45)
    assert curve.seconds(250, start=100) == pytest.approx(0.95)


def test_noise_never_makes_work_negative() -> None:
    curve = PrefillCurve.fit([(0, 100, 1.0), (100, 100, 0.9), (200, 100, 0.8)], 100)
    assert curve.b == 0.0
    assert curve.seconds(10_000) > 0
    with pytest.raises(ValueError, match="no samples"):
        PrefillCurve.fit([], 100)


def test_measurements_are_kept_and_damage_is_forgiven(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "calibration.json"
    calibration = Calibration(path)
    assert calibration.curve("m", 100) is None
    calibration.add_prefill("m", [(0, 100, 0.5), (100, 100, 0.6)])
    calibration.add_rate("p", 10e6)
    calibration.add_rate("p", 20e6)
    calibration.add_latency("p", 0.01)
    calibration.add_load({"planes": 10**9, "raw": 10**6}, 2.0)
    calibration.add_load({"planes": 10**9, "raw": 10**9}, 2.0)  # of which it was says nothing
    calibration.add_encode("predictive", 10**8, 5 * 10**7, 2.0)
    calibration.add_encode("predictive", 10**8, None, 2.0)
    calibration.save()
    again = Calibration(path)
    assert again.curve("m", 100) == PrefillCurve(pytest.approx(0.5), pytest.approx(0.001), 100)
    link = again.link("p", 1.0)
    assert (link.bytes_per_second, link.latency, link.measured) == (pytest.approx(13e6, rel=1e-3), 0.01, True)
    assert link.spread == 1.0 and link.age < 60 and link.start_seconds == 0.02
    again.add_start("p", 0.3)
    assert again.link("p", 1.0).start_seconds == 0.3
    assert again.link("q", 5.0).measured is False
    assert again.load_seconds({"planes": 10**9}) == 2.0
    assert again.load_seconds({"raw": 10**9}) == pytest.approx(1.25)  # nothing measured: the usual
    assert again.codecs()["predictive"] == {"encode": pytest.approx(5e7), "ratio": 2.0}
    for damage in (
        "",
        "[]",
        "{broken",
        '{"prefill": {"m": 5}}',
        '{"peers": []}',
        '{"codecs": {"planes": {"load": "x"}, "raw": 1}}',
    ):
        path.write_text(damage)
        broken = Calibration(path)
        assert broken.curve("m", 100) is None
        assert (broken.pace("m"), broken.under_way("m")) == (1.0, 1.1)
        assert broken.link("p", 5.0).bytes_per_second == 5.0
        assert broken.load_seconds({"planes": 10**9, "raw": 8 * 10**8}) == pytest.approx(3.5)
        assert broken.codecs().get("raw") is None


def test_what_was_measured_long_ago_weighs_little(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    calibration = Calibration(tmp_path / "c.json")
    calibration.add_rate("p", 10e6)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 5 * 86_400)
    assert calibration.link("p", 1.0).age == pytest.approx(5 * 86_400, abs=5)
    calibration.add_rate("p", 20e6)
    assert calibration.link("p", 1.0).bytes_per_second > 19.9e6


def test_the_present_load_is_counted_and_forgotten(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    calibration = Calibration(tmp_path / "c.json")
    calibration.add_prefill("m", [(n * 100, 100, 1.0) for n in range(20)])
    assert calibration.pace("m") == 1.0
    calibration.add_prefill("m", [(0, 100, 3.0), (100, 100, 3.0)])  # few blocks, on a machine that is busy
    assert calibration.curve("m", 100).a == pytest.approx(3.0, rel=0.01)  # type: ignore[union-attr]
    calibration.add_hybrid("m", [(0, 100, 3.6)])
    assert calibration.under_way("m") == pytest.approx(1.2, rel=0.01)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 7_200)
    assert calibration.curve("m", 100).a == pytest.approx(1.0, rel=0.01)  # type: ignore[union-attr]
    calibration.add_hybrid("other", [(0, 100, 3.6)])  # never measured: says nothing
    assert calibration.under_way("other") == 1.1


def test_a_short_run_does_not_replace_a_long_one(tmp_path) -> None:  # type: ignore[no-untyped-def]
    calibration = Calibration(tmp_path / "c.json")
    calibration.add_prefill("m", [(n * 100, 100, 1.0 + n) for n in range(20)])
    calibration.add_prefill("m", [(0, 100, 9.0)])
    now = calibration.curve("m", 100)
    assert now is not None and now.b / now.a == pytest.approx(0.01)  # its slope is still the long one's


def test_what_is_measured_is_imported_when_it_is_asked_for() -> None:
    """A client needs an objective, and nothing of the files that a node remembers in."""
    from kvswap import cost
    from kvswap.cost.calibration import Calibration

    assert cost.Calibration is Calibration and "Calibration" not in vars(cost)
    assert {name for name in cost.__all__ if not hasattr(cost, name)} == set()
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        cost.Nothing  # noqa: B018
    code = "import sys, kvswap.cost; assert 'kvswap.cost.calibration' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


def test_honest_noise_is_kept_and_what_is_none_was_never_measured(tmp_path: Path) -> None:
    spread = SpreadRecord([[3, 4]], 5, 6)
    noise = NoiseRecord(samples=None, recompute=spread, fingerprints=spread, intervals=spread)
    path = tmp_path / "calibration.json"
    calibration = Calibration(path)
    calibration.add_noise("model", noise)
    assert calibration.noise("model") == noise and calibration.noise("other") is None
    calibration.save()
    calibration.close()
    kept = json.loads(path.read_text())
    assert kept["noise"]["model"]["recompute"] == [[[3, 4]], 5, 6]  # the form that it always had
    for damaged in ({}, 5, {**kept["noise"]["model"], "recompute": [[[3.5]], 1, 1]}, {"recompute": []}):
        path.write_text(json.dumps(kept | {"noise": {"model": damaged}}))
        again = Calibration(path)
        assert again.noise("model") is None
        again.close()
