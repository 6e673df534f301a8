from __future__ import annotations

import asyncio
import mmap

from kvswap.exchange.transfer.buffers import Buffers
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
        assert len(await asyncio.wait_for(large, 5)) == 100 * mmap.PAGESIZE

    run(body())
