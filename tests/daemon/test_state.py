"""What `status` counts, and that what one engine leaves unfinished is in nobody's way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from kvswap.core import wire
from kvswap.core.upkeep import Problems
from kvswap.daemon.app import Api
from kvswap.daemon.supervisor import ModelProcess
from kvswap.daemon.watch import Watch
from kvswap.exchange import Node
from kvswap.store import Outcome
from kvswap.trust.levels import RULES
from kvswap.worker import protocol
from tests.exchange.test_fetch import world
from tests.support import key, make_artifact, run

HEADERS = {"Authorization": "Bearer t"}


def served(node: Node) -> TestServer:
    return TestServer(Api(node, ModelProcess(node.settings, Problems()), Watch()).application("t"))


def test_status_counts_what_is_neither_used_nor_offered(tmp_path: Path) -> None:
    """What is disputed or found wrong of what is here, as `ls` names it; nothing of what has gone."""

    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node(trust=False)
            made = [make_artifact(key(20 + n), tokens=40, seed=n) for n in range(4)]
            for one in made[:3]:
                w.give(node, one)
            for one, verdict in zip(made, ("disputed", "disputed", "wrong", "disputed"), strict=True):
                node.trust.records.put_outcome(Outcome(one.id, one.manifest.publisher, verdict, RULES))  # type: ignore[arg-type]
            node.trust.policy.add(made[1].manifest.publisher)  # no stranger disputes what the user trusts
            async with TestClient(served(node)) as client:
                async with client.get("/v1/status", headers=HEADERS) as response:
                    status = await response.json()
                assert (status["artifacts"], status["disputed"], status["wrong"]) == (3, 1, 1)

    run(body())


@pytest.mark.parametrize("after", ["nothing", "a head"])
def test_an_engine_that_stops_in_the_middle_holds_nothing_that_others_wait_for(tmp_path: Path, after: str) -> None:
    """Its frames are used as they come, since all of them would fill memory: so no slot is taken for them."""
    made = make_artifact(tokens=40).manifest
    head = {
        "model": wire.plain(made.model), "dtype": "bfloat16", "ids": list(range(40)), "block_tokens": 16,
        "numerics": wire.plain(made.numerics) | {"claim": "tolerance"},
    }  # fmt: skip

    def frame(value: dict[str, Any]) -> bytes:
        data = wire.pack(value)
        return protocol.HEADER.pack(len(data)) + data

    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node()
            go_on = asyncio.Event()

            async def slow() -> AsyncIterator[bytes]:
                if after == "a head":
                    yield frame(head)
                yield b"\x00"
                await go_on.wait()

            async with TestClient(served(node)) as client:

                async def post(data: Any) -> dict[str, Any]:
                    async with client.post("/v1/computed", data=data, headers=HEADERS) as response:
                        last: dict[str, Any] = json.loads((await response.text()).splitlines()[-1])
                        return last

                stuck = [asyncio.create_task(post(slow())) for _ in range(20)]
                await asyncio.sleep(0.1)
                told = await post(frame(head) + frame({"result": "none"}))  # which is none: told at once
                assert "without a result" in told["error"]["message"]
                for method, path in (("GET", "/v1/status"), ("POST", "/v1/gc")):
                    async with client.request(method, path, headers=HEADERS, json={}) as response:
                        assert response.status == 200
                assert not any(task.done() for task in stuck)
                go_on.set()
                for told in await asyncio.gather(*stuck):
                    assert "frame is missing" in told["error"]["message"]
                assert node.store.artifacts() == []

    run(body())
