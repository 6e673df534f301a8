"""Figures as the page writes them."""

from __future__ import annotations

import time

import pytest

from kvswap.daemon.page import words


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (words.size(0), "0 B"),
        (words.size(999), "999 B"),
        (words.size(20_700_000), "20.7 MB"),
        (words.size(3e15), "3,000.0 TB"),
        (words.duration(0.25), "250 ms"),
        (words.duration(90), "90.0 s"),
        (words.duration(600), "10 min"),
        (words.duration(86_400), "24 h"),
        (words.duration(10 * 86_400), "10 days"),
        (words.dollars(0.00123), "$0.0012"),
        (words.dollars(1234.5), "$1,234.50"),
        (words.number(1234567), "1,234,567"),
        (words.short("12D3KooWJfSTyQ2Lb2ZTvxUwsRhLpqNxxxxxxxxxxxx"), "12D3KooWJf…xxxxxx"),
        (words.counted(1, "peer"), "1 peer"),
        (words.counted(2000, "peer"), "2,000 peers"),
        (words.short(None), ""),
        (words.ago(None), "never"),
    ],
)
def test_figures(made: str, expected: str) -> None:
    assert made == expected


def test_moments() -> None:
    assert words.ago(time.time() - 7200).endswith("ago")
    assert words.ago(time.time() + 7200).startswith("in ")
    assert len(words.clock(time.time())) == 8
    assert len(words.date(time.time())) == 16
