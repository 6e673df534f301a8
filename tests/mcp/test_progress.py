"""Progress grows, is never behind, and ends with its call."""

from __future__ import annotations

import asyncio

from kvswap.api import PrefillEvent, TokenEvent, TransferEvent
from kvswap.mcp.progress import CallProgress
from tests.support import run


def transfer(done: int, total: int) -> TransferEvent:
    return TransferEvent(
        done=0, chunks=1, bytes=done, arriving=0, total_bytes=total, rate=0, seconds=0, peers=[], sent={}, over=[]
    )


async def reports(*events: object, slow: bool = False) -> list[tuple[float, float | None, str | None]]:
    """What is sent of these events, each taken when the one before was sent; `slow`: all before the first."""
    made: list[tuple[float, float | None, str | None]] = []
    sent = asyncio.Event()

    async def report(progress: float, total: float | None, message: str | None) -> None:
        made.append((progress, total, message))
        sent.set()

    progress = CallProgress(4)
    async with progress.sent(report):
        for event in events:
            progress(event)  # type: ignore[arg-type]
            if not slow:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        if slow:
            await sent.wait()
    return made


def test_it_only_grows_through_all_stages() -> None:
    made = run(
        reports(
            PrefillEvent(block=1, blocks=4, tokens=8),
            PrefillEvent(block=4, blocks=4, tokens=32),
            transfer(10, 100),
            transfer(5, 100),  # less than before: a chunk that was wrong
            transfer(100, 100),
            TokenEvent(text="a"),
            TokenEvent(text="b"),
        )
    )
    values = [progress for progress, _, _ in made]
    assert values == [0.25, 1.0, 1.1, 2.0, 2.25, 2.5]
    assert [total for _, total, _ in made] == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    assert made[0][2] == "8 tokens prefilled" and made[-1][2] == "2 tokens of the answer"


def test_of_many_that_come_at_once_the_newest_is_sent() -> None:
    made = run(reports(*(transfer(n, 1000) for n in range(1, 1001)), slow=True))
    assert made == [(1.0, 1.0, "1000 of 1000 bytes fetched")]


def test_events_without_a_share_say_nothing() -> None:
    assert run(reports(PrefillEvent(block=1, tokens=8), transfer(0, 0))) == []
