"""Every route of the local API over a store of which every use fails: told by kind, in JSON, with nothing left open."""

from __future__ import annotations

import errno
import inspect
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from kvswap.core.errors import KvswapError
from kvswap.core.upkeep import Problems
from kvswap.daemon.app import Api
from kvswap.daemon.page.guard import is_page
from kvswap.daemon.supervisor import ModelProcess
from kvswap.daemon.watch import Watch
from kvswap.store import Store
from kvswap.store.ledger import Ledger
from kvswap.store.records import Records
from tests.core.test_failures import is_told
from tests.exchange.test_fetch import world
from tests.support import run


def database(code: int) -> sqlite3.Error:
    kind = (
        sqlite3.DatabaseError if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) else sqlite3.OperationalError
    )
    error = kind("as SQLite says it")
    error.sqlite_errorcode = code  # type: ignore[attr-defined]
    return error


KINDS: dict[str, tuple[Exception, int]] = {
    "disk full": (OSError(errno.ENOSPC, "No space left on device", "/x"), 12),
    "database full": (database(sqlite3.SQLITE_FULL), 12),
    "shared memory full": (database(sqlite3.SQLITE_IOERR_SHMSIZE), 12),
    "read-only": (OSError(errno.EROFS, "Read-only file system", "/x"), 1),
    "database read-only": (database(sqlite3.SQLITE_READONLY), 1),
    "another's": (PermissionError(errno.EACCES, "Permission denied", "/x"), 1),
    "failing": (OSError(errno.EIO, "Input/output error", "/x"), 1),
    "no handles": (OSError(errno.EMFILE, "Too many open files"), 1),
    "gone": (FileNotFoundError(errno.ENOENT, "No such file", "/x"), 1),
    "damaged": (database(sqlite3.SQLITE_CORRUPT), 6),
    "locked": (database(sqlite3.SQLITE_BUSY), 11),
}
REF = "sha256:" + "0" * 64
PEER = "12D3KooWKnDdG3iXw9eTFijk3EWSunZcFi54Zka4wmtqtt6rPxc8"
CID = "bafkr4i" + "a" * 52
PARTS = {"ref": REF, "peer": PEER, "cid": CID, "name": "lab"}
BODY = {
    "ref": REF, "text": "a text", "question": "q", "peer": PEER, "name": "lab", "tokens": 1000, "corpus": "/nowhere",
    "model": "00" * 32, "dtype": "float32", "block_tokens": 16, "chain": ["00" * 32], "force": True, "store": True,
}  # fmt: skip


def fail_everywhere(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Whatever is asked of the store, its records or the ledger raises."""

    def fail(*arguments: Any, **named: Any) -> Any:
        raise error

    for kind in (Store, Records, Ledger):
        for name, function in inspect.getmembers(kind, inspect.isfunction):
            if not name.startswith("_") and name not in ("close", "open"):
                monkeypatch.setattr(kind, name, fail)


@pytest.mark.parametrize("name", KINDS)
def test_every_route_tells_a_failing_store_by_its_kind(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    error, code = KINDS[name]

    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node()
            application = Api(node, ModelProcess(node.settings, Problems()), Watch()).application("t")
            told: list[KvswapError] = []
            with monkeypatch.context() as patch:
                fail_everywhere(patch, error)
                async with TestClient(TestServer(application)) as client:
                    for route in list(application.router.routes()):
                        path = route.resource.canonical if route.resource is not None else "/"
                        if route.method == "HEAD" or path in ("/v1/events", "/v1/computed", "/metrics"):
                            continue
                        if is_page(path):  # refused before it is handled: who has no session sees none of this
                            continue
                        for part, value in PARTS.items():
                            path = path.replace("{" + part + "}", value)
                        sent = {"json": BODY} if route.method == "POST" else {"params": {"follow": "0"}}
                        headers = {"Authorization": "Bearer t"}
                        async with client.request(route.method, path, headers=headers, **sent) as response:
                            lines = [json.loads(line) for line in (await response.text()).splitlines()]
                        assert lines, (route.method, path)
                        if "error" in lines[-1]:
                            told.append(KvswapError.from_dict(lines[-1]["error"]))
                            is_told(told[-1])
                            assert told[-1].code != "internal", (path, told[-1].message)
            assert sum(one.exit_code == code for one in told) >= 5, [one.message for one in told]
            assert not {one.exit_code for one in told} - {code, 2, 5, 4}, [one.message for one in told]

    run(body())
