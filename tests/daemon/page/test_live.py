"""What keeps pages current: made once for all, sent when it changed, and not made while nobody looks."""

from __future__ import annotations

import asyncio

import pytest

from kvswap.core.upkeep import Problems
from kvswap.daemon.page import live
from kvswap.daemon.page.live import LiveParts
from tests.support import run


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_EVERY_SECONDS", 0.01)


def test_pages_get_what_changed_and_share_what_is_made() -> None:
    made = {"log": 0, "peers": 0}
    text = {"log": "a", "peers": "b"}

    def maker(name: str):  # type: ignore[no-untyped-def]
        async def make() -> str:
            made[name] += 1
            return text[name]

        return make

    async def body() -> None:
        shown = LiveParts({name: maker(name) for name in text}, Problems())
        pages = [shown.follow() for _ in range(3)]
        seen: list[dict[str, str]] = [{} for _ in pages]

        async def until(name: str, value: str) -> None:
            for page, what in zip(pages, seen, strict=True):
                while what.get(name) != value:
                    what |= await anext(page)

        await until("log", "a")
        await until("peers", "b")
        assert shown.pages == 3
        text["log"] = "c"
        before = made["log"]
        await until("log", "c")
        assert made["log"] - before < 10 * len(pages)  # by rounds, and not by pages: each round makes it once
        for page in pages:
            await page.aclose()
        assert shown.pages == 0
        rounds = dict(made)
        await asyncio.sleep(0.1)
        assert made == rounds  # nobody looks

    run(body())


def test_a_part_that_cannot_be_made_is_noted_and_the_rest_goes_on() -> None:
    broken = True

    async def make() -> str:
        if broken:
            raise ValueError("no")
        return "well"

    async def body() -> None:
        nonlocal broken
        problems = Problems()
        shown = LiveParts({"node": make}, problems)
        page = shown.follow()
        waiting = asyncio.ensure_future(anext(page))
        while "page" not in problems:
            await asyncio.sleep(0)
        broken = False
        while not (await waiting).get("node"):
            waiting = asyncio.ensure_future(anext(page))
        assert "page" not in problems
        await page.aclose()

    run(body())
