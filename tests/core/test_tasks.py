"""Waiting that no number of cancellations cuts short."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvswap.core.tasks import end, until_done
from tests.support import run


@given(st.lists(st.sampled_from(["cancel", "step", "finish"]), max_size=12), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_it_ends_when_all_are_done_and_not_before_and_says_that_it_was_cancelled(moves, count):
    async def body():
        futures = [asyncio.get_running_loop().create_future() for _ in range(count)]
        waiting = asyncio.create_task(until_done(futures))
        await asyncio.sleep(0)
        cancelled = False
        for move in moves:
            if waiting.done():
                break
            if move == "cancel":
                waiting.cancel()
                cancelled = True
            elif move == "step":
                await asyncio.sleep(0)
            elif (left := [f for f in futures if not f.done()]) and len(left) > 1:
                left[0].set_exception(ValueError("not mine to raise"))
            assert not waiting.done()
        for future in futures:
            if not future.done():
                future.set_result(None)
        await asyncio.wait([waiting])
        assert waiting.cancelled() == cancelled
        for future in futures:
            future.exception()

    run(body())


def test_a_time_out_around_it_is_told_when_it_is_over():
    async def body():
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.05, future.set_result, None)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await until_done([future])
        assert future.done()

    run(body())


def test_end_cancels_each_once_and_waits_for_all():
    async def body():
        ends, order = asyncio.Event(), []

        async def stubborn(name):
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                await ends.wait()  # a second cancellation would cut this short
                order.append(name)
                raise

        tasks = [asyncio.create_task(stubborn(n)) for n in range(3)]
        never_begun = asyncio.create_task(stubborn("never"))
        never_begun.cancel()
        await asyncio.sleep(0)
        ending = asyncio.create_task(end([*tasks, never_begun]))
        for _ in range(3):
            await asyncio.sleep(0)
            ending.cancel()
        await asyncio.sleep(0)
        assert not ending.done()
        ends.set()
        await asyncio.wait([ending])
        assert order == [0, 1, 2] and all(t.cancelled() for t in tasks)

    run(body())
