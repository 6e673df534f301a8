"""Hosts are joined and left beside the event loop, whatever the disk takes for it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from kvswap.daemon.hosts_api import HostsApi
from kvswap.net.host_connection import Invitation
from kvswap.net.hosts import Hosts
from tests.support import run
from tests.trust.test_hosting import HOST

PEER = str(HOST.peer_id)


def test_joining_and_leaving_a_host_write_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrote: list[int] = []
    for name in ("fsync", "unlink"):
        real = getattr(os, name)

        def noting(*arguments: Any, real: Any = real, **options: Any) -> Any:
            wrote.append(threading.get_ident())
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, noting)

    async def body() -> None:
        hosts = Hosts(tmp_path)
        node: Any = SimpleNamespace(hosts=hosts, events=SimpleNamespace(add=lambda *_, **__: None))
        app = web.Application()
        app.add_routes(HostsApi(node).routes())
        async with TestClient(TestServer(app)) as client:
            text = Invitation("https://127.0.0.1:9", PEER, "secret").to_text()
            assert (await client.post("/v1/hosts", json={"invitation": text})).status == 200
            assert [i.peer for i in hosts.all()] == [PEER] and len(wrote) >= 1
            joined = len(wrote)
            assert (await client.delete(f"/v1/hosts/{PEER}")).status == 200
            assert hosts.all() == [] and len(wrote) > joined
        assert threading.get_ident() not in wrote

    run(body())
