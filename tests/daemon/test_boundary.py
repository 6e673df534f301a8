"""The local API answers in JSON whatever happens: exceptions of every kind, headers, bodies and paths of every form."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from kvswap.api import AskRequest, OtherEvent, PrefixRequest
from kvswap.core.errors import KvswapError, NotFound
from kvswap.core.limits import LIMITS
from kvswap.core.runfile import RunFile
from kvswap.daemon.guard import guard
from kvswap.daemon.requests import body_of, parse, prefix_query_of, stream
from kvswap.net.failing import errors
from tests.core.test_failures import REAL, is_told
from tests.support import Daemon, run

TOKEN = {"Authorization": "Bearer t"}


async def ask(handler: Any, path: str = "/x", **options: Any) -> tuple[int, list[dict[str, Any]]]:
    """Status and JSON lines of an answer."""
    app = web.Application(middlewares=[errors, guard("t")], client_max_size=1000)
    app.router.add_route("*", "/x", handler)
    async with TestClient(TestServer(app)) as client:
        method = options.pop("method", "POST")
        async with client.request(method, path, **{"headers": TOKEN, **options}) as response:
            return response.status, [json.loads(line) for line in (await response.text()).splitlines()]


def told(value: dict[str, Any]) -> KvswapError:
    error = KvswapError.from_dict(value["error"])
    is_told(error)
    return error


@pytest.mark.parametrize("name", [n for n in REAL if n != "broken pipe"])
@pytest.mark.parametrize("how", ["handler", "stream"])
def test_whatever_a_handler_raises_is_json(name: str, how: str, caplog: pytest.LogCaptureFixture) -> None:
    make, codes = REAL[name]

    async def handler(request: web.Request) -> web.StreamResponse:
        async def work(progress: Any) -> dict[str, Any]:
            await progress(OtherEvent(kind="x"))
            make()
            return {}

        if how == "stream":
            return await stream(request, work)
        make()
        return web.Response()

    status, lines = run(ask(handler))
    error = told(lines[-1])
    assert error.exit_code in codes
    assert status == (200 if how == "stream" else error.http_status)
    assert any(record.exc_info for record in caplog.records)  # the traceback is in the log


def test_a_connection_that_the_work_lost_is_not_the_callers() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        async def work(progress: Any) -> dict[str, Any]:
            raise ConnectionResetError("of the model process")

        return await stream(request, work)

    assert told(run(ask(handler))[1][-1]).exit_code == 1


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        ("/nothing", {}, 404),
        ("/x/%ff", {}, 404),
        ("/x", {"data": b"x" * 2000}, 413),
        ("/x", {"data": b"{}", "headers": {**TOKEN, "Content-Encoding": "gzip"}, "compress": False}, 400),
    ],
)
def test_what_the_http_library_refuses_is_json(path: str, options: dict[str, Any], status: int) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.json_response(await body_of(request))

    got, lines = run(ask(handler, path, **options))
    assert got == status
    told(lines[-1])


BODIES = {
    "no json": b"{",
    "deep": b"[" * 900,
    "deep map": b'{"a":' * 190,
    "a list": b"[]",
    "a number": b"3",
    "nan": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "not utf-8": b'{"a": "\xff"}',
    "utf-16 cut": b"\xff\xfe{",
    "a long number": b'{"a": ' + b"9" * 900 + b"",
    "null": b"null",
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_object_is_refused(name: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.json_response(await body_of(request))

    status, lines = run(ask(handler, data=BODIES[name]))
    assert status == 400 and told(lines[-1]).exit_code == 2


WRONG = [None, True, -1, 0.5, 1e400, float("nan"), 10**400, "1", [], {}, "\ud800", "\0" * 3]


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize(
    "field", ["samples", "max_seconds", "max_dollars", "max_bytes", "objective", "group", "text", "seconds", "curve"]
)
def test_a_field_of_the_wrong_kind_is_refused_or_taken_but_never_a_fault(field: str, value: Any) -> None:
    model = {"model": "00" * 32, "dtype": "float32", "block_tokens": 16, "chain": ["00" * 32]}
    ids = {"ids": base64.b64encode(b"\1\0\0\0").decode(), "parts": True}
    for work in (
        lambda b: parse({"ref": "x", "question": "q", **b}, AskRequest),
        lambda b: prefix_query_of(parse(b, PrefixRequest)),
        lambda b: prefix_query_of(parse(b | ids, PrefixRequest)),
    ):
        try:
            work({**model, field: value})
        except KvswapError as error:
            assert error.exit_code == 2
            is_told(error)


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("field", ["model", "dtype", "block_tokens", "chain", "ids"])
def test_a_beginning_of_the_wrong_form_is_refused(field: str, value: Any) -> None:
    model = {"model": "00" * 32, "dtype": "float32", "block_tokens": 16, "chain": ["00" * 32]}
    if field in ("chain", "dtype") and not isinstance(value, list):
        pytest.skip("an empty chain is none")
    with pytest.raises(KvswapError) as caught:
        body = {**model, field: value} if value != [] else {**model, field: ["zz"]}
        prefix_query_of(parse(body, PrefixRequest))
    is_told(caught.value)


def raw(node: Daemon, head: bytes, body: bytes = b"") -> tuple[int, Any]:
    """Send bytes as they are."""
    port = int(RunFile.read(node.home).url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.sendall(head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        data = b""
        while piece := connection.recv(1 << 16):
            data += piece
    top, _, rest = data.partition(b"\r\n\r\n")
    return int(top.split()[1]), json.loads(rest)


def test_a_real_daemon_answers_every_form_in_json(daemon: Callable[..., Daemon]) -> None:
    node = daemon("a", "--no-p2p")
    good = b"Authorization: Bearer " + RunFile.read(node.home).token.encode() + b"\r\n"
    host = b"Host: 127.0.0.1\r\n"
    refused = [
        (b"POST /v1/ask HTTP/1.1\r\n" + host + b"Authorization: Bearer \xff\r\n", b"", 401),
        (b"POST /v1/ask HTTP/1.1\r\n" + host + b"Authorization: \xc3\xa9\r\n", b"", 401),
        (b"POST /v1/ask HTTP/1.1\r\nHost: \xff\r\n" + good, b"", 403),
        (b"POST /v1/ask HTTP/1.1\r\n" + host + b"Origin: \xff\r\n" + good, b"", 403),
        (b"POST /v1/ask HTTP/1.1\r\n" + host + good, b"[" * 100_000, 400),
        (b"POST /v1/ask HTTP/1.1\r\n" + host + good, b'{"ref": "\\ud800", "question": "q"}', 400),
        (b"POST /v1/gc HTTP/1.1\r\n" + host + good, b'{"target_bytes": 1' + b"0" * 30 + b"}", 400),
        (b"GET /v1/nothing HTTP/1.1\r\n" + host + good, b"", 404),
        (b"PUT /v1/ask HTTP/1.1\r\n" + host + good, b"", 405),
        (b"GET /v1/artifacts/%ff HTTP/1.1\r\n" + host + good, b"", 400),
        (b"GET /v1/artifacts/sha256:zz HTTP/1.1\r\n" + host + good, b"", 400),
        (b"GET /v1/beginnings?wait=nan HTTP/1.1\r\n" + host + good, b"", 400),
        (b"GET /v1/chunks/%00 HTTP/1.1\r\n" + host + good, b"", 400),
        (b"DELETE /v1/trust/%1b HTTP/1.1\r\n" + host + good, b"", 400),
        (b"POST /v1/trust HTTP/1.1\r\n" + host + good, b'{"peer": "\\ud800"}', 400),
        (b"POST /v1/groups HTTP/1.1\r\n" + host + good, b'{"name": "\\ud800"}', 400),
        (b"POST /v1/hosts HTTP/1.1\r\n" + host + good, b'{"invitation": "\\ud800"}', 400),
    ]
    for head, body, expected in refused:
        status, answer = raw(node, head, body)
        assert status == expected, (head, status, answer)
        assert answer["error"]["message"] and answer["error"]["cause"] and answer["error"]["hint"], head
    status, _ = raw(node, b"GET /v1/artifacts?document=%ED%A0%80 HTTP/1.1\r\n" + host + good)
    assert status in (200, 400)
    assert node.client.status()["artifacts"] == 0
    text = (node.home / "stderr.log").read_text()
    assert "Traceback" not in text
    assert LIMITS.api_body_bytes and NotFound.exit_code == 5 and isinstance(node.home, Path)
