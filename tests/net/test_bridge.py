"""Calls into trio end, whatever becomes of it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from kvswap.core.errors import KvswapError, NetworkTimeout, P2pDown
from kvswap.net.libp2p import bridge
from kvswap.net.libp2p.bridge import TrioThread
from tests.support import run


class Trouble(BaseException):
    """No `Exception`: what ends a process, or trio."""


async def started(end: trio.Event | None = None, how: BaseException | None = None) -> tuple[TrioThread, Any]:
    """A thread whose main ends with `how` as soon as `fail` is called."""
    made, box = TrioThread(), []

    async def main(ready: Any) -> None:
        box.append(trio.Event())
        ready()
        await box[0].wait()
        if how is not None:
            raise how

    await made.start(main, 30)
    return made, lambda: made._soon(box[0].set)


@given(
    how=st.sampled_from([None, ValueError("x"), Trouble("y"), ExceptionGroup("z", [OSError("w")])]),
    moves=st.lists(st.sampled_from(["call", "fails", "for ever", "cancel", "turn", "end", "post"]), max_size=40),
)
@settings(max_examples=40, deadline=None)
def test_every_call_ends_when_trio_does(how: BaseException | None, moves: list[str]) -> None:
    async def quick() -> int:
        return 1

    async def fails() -> int:
        raise ValueError("its own")

    async def stays() -> int:
        await trio.sleep_forever()
        return 0

    async def nothing() -> None:
        await trio.sleep(0)

    async def body() -> None:
        made, end = await started(how=how)
        calls: list[asyncio.Task[Any]] = []
        for move in [*moves, "call", "for ever", "end", "call", "call"]:
            if move == "turn":
                await asyncio.sleep(0.001)
            elif move == "cancel" and calls:
                calls[-1].cancel()
            elif move == "end":
                try:
                    end()
                except P2pDown:
                    pass
            elif move == "post":
                try:
                    made.post(nothing)
                except P2pDown:
                    pass
            elif move in ("call", "fails", "for ever"):
                function = {"call": quick, "fails": fails, "for ever": stays}[move]
                calls.append(asyncio.create_task(made.call(function, seconds=3600)))
        for task in calls:
            await asyncio.wait([task])
            if not task.cancelled() and task.exception() is not None:
                assert isinstance(task.exception(), P2pDown | ValueError)
        assert not made._open
        await made.stop()
        assert not made.alive and made.failure

    run(body())


def test_thousands_of_calls_under_way_end_when_trio_breaks() -> None:
    async def work() -> None:
        await trio.sleep(0.001)

    async def body() -> None:
        made, end = await started(how=RuntimeError("broken"))

        done = 0

        async def caller() -> None:
            nonlocal done
            while True:
                try:
                    await made.call(work, seconds=3600)
                    done += 1
                except KvswapError:
                    return

        tasks = [asyncio.create_task(caller()) for _ in range(200)]
        while done < 2000:
            await asyncio.sleep(0.005)
        end()
        await asyncio.gather(*tasks)
        await made.stop()

    run(body())


def test_a_trio_that_answers_nobody_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "_GRACE_SECONDS", 0.05)

    async def quick() -> int:
        return 1

    async def body() -> None:
        made, end = await started()
        go = threading.Event()
        made._soon(go.wait)  # the thread is stuck
        with pytest.raises(NetworkTimeout):
            await made.call(quick, seconds=0.05)
        go.set()
        assert await made.call(quick, seconds=30) == 1
        end()
        await made.stop()

    run(body())
