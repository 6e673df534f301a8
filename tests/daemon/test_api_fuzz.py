"""Every route of the local API, asked in generated ways: each answer is a result or one of our errors.

Routes come from the application's own table, and the fields that a route reads from the constants of its handler's
code, so that a new route or field is tried without a line here.
"""

from __future__ import annotations

import collections
import http.client
import inspect
import itertools
import json
import os
import random
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any
from unittest.mock import MagicMock

import pytest

from kvswap.core import errors, wire
from kvswap.core.errors import KvswapError
from kvswap.core.runfile import RunFile
from kvswap.daemon.app import Api
from kvswap.daemon.page.guard import is_page
from kvswap.worker import protocol
from tests.core.test_failures import is_told
from tests.support import Daemon

pytestmark = pytest.mark.faults

SEED = 20_260
SECONDS = float(os.environ.get("KVSWAP_FUZZ_SECONDS", "30"))  # of requests at most, on any machine
SHA = "sha256:" + "0" * 64
PEER = "12D3KooWKnDdG3iXw9eTFijk3EWSunZcFi54Zka4wmtqtt6rPxc8"
DIGEST = b"\0" * 32
MODEL = {
    "label": "m", "weights": DIGEST, "config": DIGEST, "tokenizer": DIGEST, "adapters": [], "parameters": 1
}  # fmt: skip
NUMERICS = {
    "schedule": "engine", "attention": "sdpa", "compute_dtype": "float32", "torch": "2", "transformers": "5",
    "device": "cpu", "isa": "AVX2", "threads": 1, "claim": "tolerance",
}  # fmt: skip
SOUND: dict[str, Any] = {  # of each field that a route may read, what it takes
    "ref": SHA, "text": "a text", "question": "q", "peer": PEER, "name": "lab", "tokens": 1000,
    "corpus": "/nowhere", "model": "00" * 32, "dtype": "float32", "block_tokens": 16, "chain": ["00" * 32],
    "local": True, "curve": [0.1, 0.001], "samples": 4, "level": 3, "objective": "mix", "wait": "0", "follow": "0",
}  # fmt: skip
WRONG: list[Any] = [
    None, True, False, 0, -1, 1, 0.5, 1e308, 10**400, 2**63, 2**64, -(2**63), "", "x", "\0", "\x1b[31m", "\u202e",
    "\ud800", "../../etc/passwd", "/dev/zero", "/", "x" * 70_000, [], [None], [[]], [1, 2], ["zz"], {}, {"a": 1},
    "sha256:" + "g" * 64, "nan", "é" * 100, "0" * 64, "kvswap-read:", "kvswap-group:", "AAAA", SHA, PEER, [1e308] * 2,
]  # fmt: skip
PARTS = [
    "x", "%00", "%2e%2e", "..", "sha256:" + "z" * 64, "sha256:", "bafk", "%ff", "%1b%5b31m", "a" * 3000, "%ed%a0%80",
    PEER, SHA, "12D3KooW", "%2F", "%C3%A9", "-1", "1e400", "nan", "%20",
]  # fmt: skip
RAW = [
    b"", b"null", b"[]", b"{", b"\xff", b"\xff\xfe{\0}\0", b'{"a":' * 5_000, b"[" * 200_000, b'{"ref":"x","ref":[]}',
    b'"x"', b'{"a":' + b"9" * 5000 + b"}", b"\0", b'{"ref": NaN}', b"\0\0\0\1\x80", b"\xff\xff\xff\xff", b"\0\0\0\1\xc1",
]  # fmt: skip
HEADERS = [
    {"Content-Type": "text/plain; charset=nonsense"}, {"Content-Encoding": "gzip"}, {"Content-Encoding": "nonsense"},
    {"Expect": "100-continue"}, {"Expect": "nonsense"}, {"Content-Type": "application/x-www-form-urlencoded"},
    {"Range": "bytes=5-1"}, {"If-None-Match": "\xff"}, {"Accept": "text/html"}, {"Upgrade": "websocket"},
]  # fmt: skip
CODES = {kind.code for kind in errors._subclasses(KvswapError)}
OWN_FAULTS = {"internal", "error"}  # kvswap's own: nothing that is sent may lead to one
PEERS = {kind.code for kind in errors._subclasses(errors.PeerError)} - {"p2p_down"}  # nobody was asked here


class Route:
    """A method and a path with places, and the words that its handler reads."""

    def __init__(self, method: str, path: str, handler: Any) -> None:
        self.method, self.path = method, path
        self.places = re.findall(r"\{(\w+)\}", path)
        self.words = sorted(_words(handler))

    def at(self, *values: str) -> str:
        return re.sub(r"\{\w+\}", "%s", self.path) % values

    def sound(self) -> str:
        path = self.at(*({"ref": SHA, "peer": PEER}.get(place, "lab") for place in self.places))
        return f"{path}?follow=0" if "follow" in self.words else path  # events would have no end


def _words(handler: Any) -> set[str]:
    """Names among the constants of a handler's code and of the functions of its room that it calls."""
    found: set[str] = set()
    seen: set[Any] = set()

    def walk(function: Any) -> None:
        if inspect.isfunction(function) and function.__module__.startswith("kvswap.daemon") and function not in seen:
            seen.add(function)
            code(function.__code__, function.__globals__)

    def code(value: CodeType, names: dict[str, Any]) -> None:
        for constant in value.co_consts:
            if isinstance(constant, CodeType):
                code(constant, names)
            else:
                found.update(c for c in (constant if isinstance(constant, tuple) else (constant,)) if _is_name(c))
        for name in value.co_names:
            walk(names.get(name))
            walk(getattr(type(handler.__self__), name, None))

    walk(handler.__func__)
    return found


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[a-z][a-z_]{1,20}", value) is not None


def routes() -> list[Route]:
    app = Api(MagicMock(), MagicMock(), MagicMock()).application("t")
    table = [r for r in app.router.routes() if r.method != "HEAD" and r.resource is not None]
    return [Route(r.method, r.resource.canonical, r.handler) for r in table]  # type: ignore[union-attr]


Case = tuple[str, str, bytes, dict[str, str]]


def cases(route: Route) -> Iterator[Case]:
    """Requests of one route, in a fixed order."""
    method = route.method
    for number, _ in enumerate(route.places):
        for part in PARTS:
            values = [{"ref": SHA, "peer": PEER}.get(place, "lab") for place in route.places]
            values[number] = part
            yield method, route.at(*values), b"{}", {}
    for headers in HEADERS:
        yield method, route.sound(), b"{}", headers
    if method != "POST":
        for word, part in itertools.product(route.words, PARTS):
            if word != "follow":
                yield method, f"{route.sound()}{'&' if '?' in route.sound() else '?'}{word}={part}", b"", {}
        return
    for raw in RAW:
        yield method, route.sound(), raw, {}
    base = {name: value for name, value in SOUND.items() if name in route.words}
    for word, value in itertools.product(route.words, WRONG):
        yield method, route.sound(), json.dumps(base | {word: value}).encode(), {}
    if route.path == "/v1/computed":
        yield from ((method, route.sound(), body, {}) for body in frames())


def frames() -> Iterator[bytes]:
    """Bodies of frames: each field of the head, and each frame after it, in wrong forms."""
    head = {"model": MODEL, "dtype": "float32", "ids": [1, 2, 3], "block_tokens": 16, "numerics": NUMERICS}
    ref = {"block": 0, "run": 0, "cid": DIGEST, "length": 1, "raw": DIGEST, "raw_length": 1, "codec": "planes"}
    chunk = {"event": "chunk", "ref": ref, "data": b"x", "us": 1}
    good = protocol.frame(head)
    packed = [value for value in WRONG if not isinstance(value, str) or "\ud800" not in value]
    packed = [value for value in packed if not isinstance(value, int) or -(2**63) <= value < 2**64]
    for name, value in itertools.product([*head, "group", "compare"], packed):
        yield protocol.frame({**head, name: value})
    for part, struct in (("model", MODEL), ("numerics", NUMERICS)):
        for name, value in itertools.product(struct, packed[:12]):
            yield protocol.frame({**head, part: {**struct, name: value}})
    for name, value in itertools.product(chunk, packed):
        yield good + protocol.frame({**chunk, name: value})
        yield good + protocol.frame({"event": "chunk", name: value})
    for value in packed:
        yield good + protocol.frame({"event": value})
        yield good + protocol.frame({"event": "fingerprint", "data": value}) + protocol.frame({"result": {}})
        yield good + protocol.frame({"result": value})
        yield good + protocol.frame({"result": {"layout": value, "tensors": value}})
        yield good + protocol.HEADER.pack(3) + wire.pack(value)[:3]


class Asker:
    """Sends requests to one daemon and keeps what is wrong with their answers."""

    def __init__(self, node: Daemon) -> None:
        run = RunFile.read(node.home)
        self._port = int(run.url.rpartition(":")[2])
        self._token = {"Authorization": "Bearer " + run.token}
        self.wrong: dict[tuple[str, str], Case] = {}
        self.told: collections.Counter[str] = collections.Counter()

    def ask(self, case: Case, route: Route) -> None:
        method, path, body, headers = case
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        try:
            connection.request(method, path, body, {**self._token, **headers})
            with connection.getresponse() as response:
                data, status = response.read(), response.status
                kind = response.headers.get_content_type()
        except (OSError, http.client.HTTPException) as error:
            self._wrong(f"no answer: {error!r}", case, route)
            return
        finally:
            connection.close()
        if is_page(route.path) and "json" not in kind:  # a person reads it: who it is for is tests/daemon/page's
            problem = None if status in (200, 303, 308, 401, 403) else f"{status} {kind}"
        else:
            problem = self._judge(status, kind, data)
        if problem is not None:
            self._wrong(problem, case, route)

    def _wrong(self, problem: str, case: Case, route: Route) -> None:
        self.wrong.setdefault((f"{route.method} {route.path}", re.sub(r"\d+|'[^']*'", "#", problem)[:160]), case)

    def _judge(self, status: int, kind: str, data: bytes) -> str | None:
        if "json" not in kind:
            return None if status == 200 and kind in ("text/plain", "application/octet-stream") else f"{status} {kind}"
        try:
            lines = [json.loads(line) for line in data.splitlines()]
        except ValueError:
            return f"{status} no JSON: {data[:80]!r}"
        last = lines[-1] if lines else {}
        if "error" not in last:
            return None if status == 200 else f"{status} without an error: {data[:80]!r}"
        error = last["error"]
        self.told[error["code"]] += 1
        if not {"code", "message", "cause", "hint"} <= error.keys():
            return f"{status} {error}"
        if error["code"] in OWN_FAULTS | PEERS or error["code"] not in CODES:
            return f"{status} {error['code']}: {error['message']}"
        try:
            is_told(KvswapError.from_dict(error))
        except AssertionError:
            return f"{status} {error['code']}: {error['message'][:60]!r} {error['cause'][:40]!r} {error['hint'][:40]!r}"
        return None


def test_every_route_answers_whatever_it_is_asked(daemon: Callable[..., Daemon], tmp_path: Any) -> None:
    models = tmp_path / "models"
    models.mkdir()
    node = daemon("a", "--no-p2p", KVSWAP_MODELS=str(models))
    asker, chance = Asker(node), random.Random(SEED)
    table = [route for route in routes() if route.path != "/v1/stop"]  # which would end it: tests/cli/test_stop.py
    assert len(table) > 30 and all(urllib.parse.quote(r.path, safe="/{}_") == r.path for r in table)
    rotation = [r for r in table if r.path == "/v1/rotate"]  # what it makes is kept for ever: once
    waiting = [(route, case) for route in table if route not in rotation for case in cases(route)]
    chance.shuffle(waiting)  # so that what a slow machine has no time for is a bit of every route
    waiting += [(route, next(cases(route))) for route in rotation]
    until, count = time.monotonic() + SECONDS, 0
    for route, case in waiting:
        asker.ask(case, route)
        count += 1
        if time.monotonic() > until:
            break
    print(f"seed {SEED}: {count} of {len(waiting)} requests, errors {dict(asker.told)}")
    shown = [
        f"{where}: {what}  <- {case[1][:80]} {case[2][:120]!r} {case[3]}" for (where, what), case in asker.wrong.items()
    ]
    assert not shown, "\n".join(shown)
    assert node.client.status()["artifacts"] == 0 and node.process is not None and node.process.poll() is None
    assert "Traceback" not in (node.home / "stderr.log").read_text()
    log = node.home / "kvswap.log"  # the HTTP library writes of requests that break off; nothing of ours failed
    assert not log.exists() or "kvswap.failures" not in log.read_text(), log.read_text()[-3000:]
