"""Accepting connections goes on when the system has no room for one."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from kvswap.core import upkeep
from kvswap.core.upkeep import Problems
from kvswap.net.bulk import BulkIdentity, BulkServer, Tokens
from tests.support import key, run


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_a_thread_that_cannot_be_started_costs_one_connection(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep.Backoff, "after", lambda self, failures: 0.01)

    async def body() -> None:
        problems, start, broken = Problems(), threading.Thread.start, 3
        server = BulkServer(BulkIdentity.create(key()), Tokens(), None, problems)  # type: ignore[arg-type]
        await server.start(["127.0.0.1"], 0)

        def fails(self: Any) -> None:
            nonlocal broken
            if self.name == "kvswap-serve" and broken:
                broken -= 1
                raise error
            start(self)

        monkeypatch.setattr(threading.Thread, "start", fails)
        for number in range(3):
            refused = socket.create_connection(("127.0.0.1", server.port))
            refused.setblocking(False)
            assert await asyncio.get_running_loop().sock_recv(refused, 1) == b""  # hung up on, not left to wait
            refused.close()
            assert server.connections == 0 and not server._hosts
        assert "accepting https" in problems
        taken = socket.create_connection(("127.0.0.1", server.port))
        while server.connections != 1:
            await asyncio.sleep(0.01)
        assert "accepting https" not in problems
        taken.close()
        await server.stop()

    run(body())
