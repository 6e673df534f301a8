"""Memory that a thread still uses belongs to it, whatever is cancelled, how often and when."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvswap.core.errors import KvswapError
from kvswap.core.ids import Cid
from kvswap.exchange.fetch import fetch
from kvswap.exchange.node.buffers import Buffers
from kvswap.exchange.transfer.sources import PeerSource
from kvswap.exchange.transfer.tasks import run_to_end
from kvswap.net.bulk.client import BulkClient
from tests.exchange.test_fetch import needed, world
from tests.support import make_artifact, run


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_write_that_is_cancelled_any_number_of_times_keeps_its_memory(pauses: list[int]) -> None:
    async def body() -> None:
        gate, written, buffers = threading.Event(), [], Buffers(4096)

        def write(view: memoryview) -> None:
            gate.wait()
            written.append(bytes(view))

        async def flight(fill: int) -> None:
            async with buffers.lease(4096) as memory:
                memory[:] = bytes([fill]) * 4096
                await run_to_end(write, memoryview(memory))

        first = asyncio.create_task(flight(1))
        await asyncio.sleep(0)
        second = asyncio.create_task(flight(2))  # waits for the memory of the first
        for turns in pauses:
            for _ in range(turns):
                await asyncio.sleep(0)
            first.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        gate.set()
        await asyncio.wait([first, second])
        assert first.cancelled() and all(len(set(page)) == 1 for page in written)
        assert written[-1][0] == 2 and second.exception() is None
        if len(written) == 2:
            assert written[0][0] == 1

    run(body())


@pytest.mark.parametrize("how", ["internal error", "cancelled twice", "cancelled often"])
def test_what_a_broken_off_transfer_lists_is_right(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow disk, with the memory used by others as soon as the transfer has given it back."""

    async def refresh(source: PeerSource) -> None:
        await writing.wait()
        raise RuntimeError("not an error of ours")

    async def body() -> None:
        nonlocal writing
        writing = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with world(tmp_path) as w:
            made = make_artifact(tokens=100)
            a, b = await w.node(bulk=True), await w.node(bulk=True)
            w.give(a, made)
            put, under_way = b.store.put_chunk, threading.Semaphore(0)

            def slow(*arguments: Any) -> Cid:
                loop.call_soon_threadsafe(writing.set)
                time.sleep(0.1)
                try:
                    return put(*arguments)
                finally:
                    under_way.release()

            monkeypatch.setattr(b.store, "put_chunk", slow)
            if how == "internal error":
                monkeypatch.setattr(PeerSource, "refresh", refresh)
            task = asyncio.create_task(fetch(b, Cid.parse(made.id)))
            await writing.wait()
            if how != "internal error":
                for _ in range(2 if how == "cancelled twice" else 20):
                    task.cancel()
                    await asyncio.sleep(0.002)
            with pytest.raises((asyncio.CancelledError, RuntimeError, KvswapError)):
                await task
            for memory in b.buffers._free:
                memory[:] = b"\xaa" * len(memory)  # the next chunk of somebody else
            while b.buffers.used_bytes:  # of what still runs
                await asyncio.sleep(0.01)
            wrong = [c for c in {made.manifest.files[i].id for i in needed(made.manifest)} if b.store.has_chunk(c)]
            assert wrong  # some were on their way
            assert [c for c in wrong if Cid.of(b.store._files.path(c).read_bytes()) != c] == []

    writing: Any = None
    run(body())


def test_a_download_that_is_cancelled_twice_keeps_its_memory_until_its_thread_is_done() -> None:
    async def body() -> None:
        client, gate, began = BulkClient(), threading.Event(), asyncio.Event()
        loop, memory = asyncio.get_running_loop(), bytearray(8)

        def slow(target: Any, cid: Cid, into: memoryview, *_: Any) -> bytes:
            loop.call_soon_threadsafe(began.set)
            gate.wait()
            into[:] = b"\xff" * 8
            return bytes(32)

        client._get = slow  # type: ignore[method-assign]
        task = asyncio.create_task(client.get(None, Cid.of(b""), memoryview(memory)))  # type: ignore[arg-type]
        await began.wait()
        for _ in range(4):
            task.cancel()
            await asyncio.sleep(0.01)
        assert not task.done()
        gate.set()
        await asyncio.wait([task])
        assert task.cancelled() and memory == b"\xff" * 8
        await client.close()

    run(body())


def test_a_flight_that_is_cancelled_before_it_began_is_no_flight_any_more(tmp_path: Path) -> None:
    from kvswap.exchange.transfer.flights import Flights

    async def body() -> None:
        async with world(tmp_path) as w:
            made, node = make_artifact(tokens=20), await w.node()
            flights = Flights(node, lambda index: None)
            await flights.plan(made.manifest.files, [0], wave=1)
            flights.set_peer("peer", {0}, None)
            assert flights.schedule.next("peer", 0.0) == 0
            task = flights.start(PeerSource(node, "peer", made.id, 1), 0)
            task.cancel()  # as another that was faster does
            await asyncio.wait([task])
            await asyncio.sleep(0)
            assert flights.under_way == {}
            assert flights.schedule.flights("peer") == 0 and flights.schedule.next("peer", 0.0) == 0

    run(body())
