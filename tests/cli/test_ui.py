"""`kvswap ui`: opens a browser, or prints the link where there is none."""

from __future__ import annotations

import webbrowser
from types import SimpleNamespace

import pytest

from kvswap.api import UiResult
from kvswap.cli.main import main
from kvswap.cli.output import Output


@pytest.mark.parametrize("able", [True, False])
@pytest.mark.parametrize("flags", [[], ["--no-browser"], ["--plain-host"]])
def test_the_link_is_opened_or_printed(
    able: bool, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []

    def ui(plain: bool) -> UiResult:
        return UiResult(url="http://127.0.0.1:1/" if plain else "http://x.localhost:1/", seconds=600.0)

    def start(url: str) -> bool:
        opened.append(url)
        return able

    monkeypatch.setattr(Output, "client", property(lambda self: SimpleNamespace(ui=ui)))
    monkeypatch.setattr(webbrowser, "open", start)
    assert main(["ui", *flags]) == 0
    shown = capsys.readouterr()
    url = "http://127.0.0.1:1/" if "--plain-host" in flags else "http://x.localhost:1/"
    assert opened == ([] if "--no-browser" in flags else [url])
    assert (url in shown.out) != (able and "--no-browser" not in flags)
    assert ("cookie" in shown.err) == ("--plain-host" in flags)
