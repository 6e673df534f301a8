"""The paper's numbers come out, the formulas agree with each other, and the page is whole."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvswap.cli.main import main
from kvswap.core.errors import UsageError
from kvswap.economics import page, read, study
from kvswap.economics.figures import SHIPPED
from kvswap.economics.model import break_even_egress, break_even_link, break_even_readers, shared

MONEY = st.floats(1e-9, 1e6)


def test_the_five_published_numbers_come_out() -> None:
    lines = study(read()).paper
    assert len(lines) == 5
    assert [abs(line.off) < 0.001 for line in lines[:3]] == [True] * 3
    assert all(abs(line.off) < 0.03 for line in lines[3:])  # printed with two digits


@given(MONEY, MONEY, MONEY, MONEY)
def test_at_the_break_even_both_ways_cost_the_same(prefill: float, load: float, move: float, keep: float) -> None:
    readers = break_even_readers(prefill=prefill, load=load, move=move, keep=keep)
    if readers is None:
        assert load + move >= prefill  # then no number of readers helps
    elif readers < 1e9:
        each = shared(prefill=prefill, readers=readers, load=load, move=move, keep=keep)
        assert each == pytest.approx(prefill, rel=1e-5)


def test_at_the_break_even_prices_shipping_costs_what_prefilling_does() -> None:
    figures = read()
    done = study(figures)
    size = figures.example.tokens * figures.example.bytes_per_token
    tariff = figures.example.tokens * figures.tariffs.input_per_million_tokens / 1e6
    assert done.break_even_egress["API tariff"]["raw"] / 1e9 * size == pytest.approx(tariff)
    assert done.break_even_egress["API tariff"]["raw"] == pytest.approx(0.0339, abs=1e-4)
    assert break_even_egress(1.0, 4.0) == 0.25
    assert break_even_link(100.0, 50.0, 2.0) == 2_500.0
    for where in done.where:
        ratio = figures.ratios[done.best]
        assert where.link_raw / where.link_coded == pytest.approx(ratio)
    assert done.best == "predictive"  # of the lossless ones


def test_the_page_is_well_formed_and_loads_nothing() -> None:
    text = page.page(study(read())).replace('xmlns="http://www.w3.org/2000/svg"', "")  # a name, not an address
    assert "http" not in text and "<script" not in text
    for svg in text.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + svg.split("</svg>")[0] + "</svg>")
    assert text.count("<svg") == 2


@pytest.mark.parametrize(
    "change",
    [
        ("readers = 80_000_000", "readers = 0"),
        ("readers = 80_000_000", "readers = 'many'"),
        ("raw = 1.0", ""),
        ("least = 0.00001", "least = 9.0"),
        ("[example]", "[other]"),
        ('date = "2026-11-01"', "date ="),
        ('"RTX 4090" = 0.35', '"RTX 4091" = 0.35'),
    ],
)
def test_figures_that_cannot_be_used_are_named(tmp_path: Path, change: tuple[str, str]) -> None:
    text = SHIPPED.read_text()
    assert change[0] in text
    path = tmp_path / "figures.toml"
    path.write_text(text.replace(*change, 1))
    with pytest.raises(UsageError, match="cannot be used"):
        read(path)


def test_the_command_says_the_same_in_text_json_and_html(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.html"
    assert main(["economics", "--html", str(report)]) == 0
    text = capsys.readouterr().out
    assert "$1,509,600" in text and "never" in text
    assert "$1,509,600" in report.read_text()
    assert main(["--json", "economics", "--readers", "10"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["paper"][0]["computed"] == pytest.approx(10 * 3774 * 5e-6)
