from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from kvswap.core.errors import PeerBusy
from kvswap.exchange.serving.fair import Pacer, UploadQuota
from tests.support import run


def test_a_peer_with_many_requests_does_not_crowd_out_one_with_few() -> None:
    async def body() -> None:
        headroom = UploadQuota(capacity=10, per_peer=10, waiting_per_peer=100)
        await headroom.acquire("first", 10)
        order: list[str] = []

        async def one(peer: str) -> None:
            await headroom.acquire(peer, 10)
            order.append(peer)
            headroom.release(peer, 10)

        tasks = [asyncio.create_task(one("greedy")) for _ in range(20)]
        tasks += [asyncio.create_task(one("modest")) for _ in range(2)]
        await asyncio.sleep(0)
        headroom.release("first", 10)
        await asyncio.gather(*tasks)
        assert order.index("modest") <= 1 and order[:4].count("modest") == 2
        assert headroom.used == 0

    run(body())


def test_room_is_bounded_for_all_and_for_each() -> None:
    async def body() -> None:
        headroom = UploadQuota(capacity=100, per_peer=40, waiting_per_peer=2)
        await headroom.acquire("a", 30)
        waiting = [asyncio.create_task(headroom.acquire("a", 30)) for _ in range(2)]
        await asyncio.sleep(0)
        assert not any(w.done() for w in waiting)
        with pytest.raises(PeerBusy):
            await headroom.acquire("a", 1)
        await headroom.acquire("b", 40)
        assert headroom.used == 70
        waiting[0].cancel()
        await asyncio.gather(waiting[0], return_exceptions=True)
        headroom.release("a", 30)
        await waiting[1]
        assert headroom.used == 70

    run(body())


def test_one_that_is_cancelled_as_it_is_served_gives_its_room_back() -> None:
    async def body() -> None:
        headroom = UploadQuota(10, 10, 10)
        await headroom.acquire("a", 10)
        waiting = asyncio.create_task(headroom.acquire("b", 10))
        await asyncio.sleep(0)
        headroom.release("a", 10)  # b's turn, in the same moment
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert headroom.used == 0

    run(body())


def test_the_rate_is_kept_and_shared() -> None:
    async def body() -> None:
        loop = asyncio.get_running_loop()
        pacer, got, began = Pacer(1_000_000), Counter[str](), loop.time()

        async def draw(peer: str, pieces: int) -> None:
            for _ in range(pieces):
                await pacer.take(peer, 10_000)
                got[peer] += 10_000

        greedy = [asyncio.create_task(draw("greedy", 20)) for _ in range(4)]
        await draw("modest", 20)
        assert got["greedy"] <= 2 * got["modest"]  # five streams, two peers: halves
        took = loop.time() - began
        assert (got.total() - 40_000) / 1_000_000 <= took + 0.05  # never faster than told
        for task in greedy:
            task.cancel()
        await asyncio.gather(*greedy, return_exceptions=True)

    run(body())


def test_no_rate_is_no_wait() -> None:
    async def body() -> None:
        await asyncio.wait_for(Pacer(0).take("a", 10**12), 600)

    run(body())


def test_a_busy_pacer_has_one_timer_and_wakes_once_a_piece() -> None:
    async def body() -> None:
        loop, pacer, wakes = asyncio.get_running_loop(), Pacer(20_000_000), 0
        dispatch = pacer._dispatch

        def counted() -> None:
            nonlocal wakes
            wakes += 1
            dispatch()

        pacer._dispatch = counted  # type: ignore[method-assign]
        pieces = 0

        async def draw(peer: str) -> None:
            nonlocal pieces
            while True:
                await pacer.take(peer, 10_000)
                pieces += 1

        tasks = [asyncio.create_task(draw(f"peer {n}")) for n in range(8)]
        while pieces < 600:
            await asyncio.sleep(0.01)
            timers = [t for t in loop._scheduled if not t.cancelled() and "Pacer" in repr(t)]  # type: ignore[attr-defined]
            assert len(timers) <= 1
        assert wakes <= 3 * pieces + 100  # one when it is asked for, one when it may go out
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(body())
