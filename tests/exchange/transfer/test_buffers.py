from __future__ import annotations

import asyncio
import mmap

from hypothesis import given, settings
from hypothesis import strategies as st

from kvswap.exchange.node.buffers import Buffers
from tests.support import run


def test_memory_is_aligned_bounded_and_reused() -> None:
    async def body() -> None:
        buffers = Buffers(budget=10 * mmap.PAGESIZE)
        async with buffers.lease(5 * mmap.PAGESIZE - 3) as first:
            assert len(first) == 5 * mmap.PAGESIZE and buffers.used_bytes == len(first)
            async with buffers.lease(5 * mmap.PAGESIZE):
                order: list[int] = []

                async def late(number: int) -> None:
                    async with buffers.lease(2 * mmap.PAGESIZE):
                        order.append(number)

                waiting = [asyncio.create_task(late(n)) for n in range(3)]
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                assert order == []
                waiting[1].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert order == [0, 2] and buffers.used_bytes == 0
        async with buffers.lease(5 * mmap.PAGESIZE) as again:
            assert again is first or len(again) == len(first)

    run(body())


def test_one_larger_than_the_budget_has_its_turn_alone() -> None:
    async def body() -> None:
        buffers = Buffers(budget=mmap.PAGESIZE)
        async with buffers.lease(1):
            large = asyncio.create_task(buffers.lease(100 * mmap.PAGESIZE).__aenter__())
            await asyncio.sleep(0)
            assert not large.done()
        assert len(await asyncio.wait_for(large, 600)) == 100 * mmap.PAGESIZE

    run(body())


def test_a_large_one_is_not_overtaken_by_small_ones() -> None:
    async def body() -> None:
        buffers = Buffers(budget=10 * mmap.PAGESIZE)
        order: list[str] = []

        async def use(name: str, pages: int) -> None:
            async with buffers.lease(pages * mmap.PAGESIZE):
                order.append(name)
                await asyncio.sleep(0)

        async def small(name: str) -> None:  # asks again as soon as it is done, for ever
            while "large" not in order:
                await use(name, 4)

        tasks = [asyncio.create_task(small(f"small {n}")) for n in range(4)]
        await asyncio.sleep(0)
        await use("large", 8)
        assert len(order) <= 6  # those that were there before it, and no more
        await asyncio.gather(*tasks)
        assert buffers.used_bytes == 0

    run(body())


@given(st.lists(st.tuples(st.integers(1, 14), st.integers(0, 6), st.booleans()), min_size=1, max_size=25))
@settings(max_examples=150, deadline=None)
def test_whoever_leaves_when_the_budget_holds_and_everybody_has_a_turn(asked: list[tuple[int, int, bool]]) -> None:
    """Sizes in pages, turns of the loop until it is given back, and whether it is cancelled before that."""

    async def body() -> None:
        buffers = Buffers(budget=10 * mmap.PAGESIZE)
        served: list[int] = []

        async def use(number: int, pages: int, turns: int) -> None:
            async with buffers.lease(pages * mmap.PAGESIZE):
                assert buffers.used_bytes <= max(10, pages) * mmap.PAGESIZE
                served.append(number)
                for _ in range(turns):
                    await asyncio.sleep(0)

        tasks = [asyncio.create_task(use(n, pages, turns)) for n, (pages, turns, _) in enumerate(asked)]
        for number, (_, turns, cancelled) in enumerate(asked):
            if cancelled:
                for _ in range(turns):
                    await asyncio.sleep(0)
                tasks[number].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert buffers.used_bytes == 0 and not buffers._waiting
        assert served == sorted(served)
        assert {n for n, (_, _, cancelled) in enumerate(asked) if not cancelled} <= set(served)

    run(body())
