"""What an engine worked on is billed, whenever and however a read ends: a real host before a real HTTP engine.

The engine gives pieces of one token on command and writes down what it was given; no model is behind it, nothing
else is made up.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import itertools
import json
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from kvswap.core.limits import LIMITS
from kvswap.host import app as host_app
from kvswap.host import hosted_request as host_reading
from kvswap.host.admission import Admission
from kvswap.host.app import HostApi, Served
from kvswap.host.engine import EngineClient, Piece
from kvswap.host.prompts import ParsedPrompt
from kvswap.host.usage_log import UsageLog, today
from kvswap.trust.hosting import Receipt, sign_offer, sign_receipt
from tests.support import run
from tests.trust.test_hosting import HOST, TARIFF, offer, read

DOCUMENT = "sha256:" + "1" * 64
PROMPT, CACHED, MOST = 901, 600, 64


class Words:
    """In the place of `Prompts`: every prompt is of as many tokens."""

    def chat(self, body: dict[str, Any]) -> ParsedPrompt:
        options = {"max_tokens": MOST, "user": body["user"]}
        return ParsedPrompt([7] * PROMPT, DOCUMENT, CACHED, options, MOST, bool(body.get("stream")), True)

    completion = chat


@dataclasses.dataclass
class Script:
    """What the engine does with one request: `pieces` after the headers, and then `end`."""

    pieces: int = 3
    end: str = "finish"  # silent, reset, error, garbage, refuse, broken: the last two instead of an answer
    headers: bool = True  # False: it comes to `end` without having said anything
    text: str = "a "
    seconds: float = 0.0  # between pieces
    given: int = 0
    salt: str = ""
    delivered: int = 0
    reached: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)  # its end


class FakeVllm:
    """Speaks vLLM's completions."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        script = self.scripts[body["user"]]
        script.given, script.salt = len(body["prompt"]), body["cache_salt"]
        if script.end in ("refuse", "broken"):
            return web.json_response({"error": {"message": "no"}}, status=400 if script.end == "refuse" else 500)
        response = web.StreamResponse()
        if script.headers:
            await response.prepare(request)
            for number in range(script.pieces):
                choice = {"text": script.text, "token_ids": [number], "finish_reason": None}
                await response.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
                script.delivered += 1
                await asyncio.sleep(script.seconds)
        script.reached.set()
        if script.end == "silent":
            await asyncio.sleep(3600)
        if script.end == "reset" and request.transport is not None:
            request.transport.abort()
        if script.end == "error":
            await response.write(b'data: {"error": "out of memory"}\n\n')
        if script.end == "garbage":
            await response.write(b"data: {nonsense\n\n")
        if script.end == "finish":
            await response.write(b'data: {"choices": [{"text": "", "token_ids": [], "finish_reason": "stop"}]}\n\n')
            told = {"prompt_tokens": PROMPT, "completion_tokens": script.delivered}
            told["prompt_tokens_details"] = {"cached_tokens": CACHED + 1}  # type: ignore[assignment]
            await response.write(f"data: {json.dumps({'choices': [], 'usage': told})}\n\ndata: [DONE]\n\n".encode())
        return response


@dataclasses.dataclass
class Scene:
    url: str
    engine: FakeVllm
    usage_log: UsageLog
    noted: Counter[str]  # pieces that the host has had, by user

    def invite(self, name: str, daily: int = 0) -> str:
        return self.usage_log.invite(name, daily)

    def id_of(self, name: str) -> str:
        return next(c.id for c in self.usage_log.clients() if c.name == name)

    def billed(self, name: str) -> list[Receipt]:
        return [r.read for r in self.usage_log.receipts(self.id_of(name))]

    def used(self, name: str) -> int:
        return self.usage_log.used(self.id_of(name), today())


async def _serve(application: web.Application, **more: Any) -> tuple[web.AppRunner, str]:
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=1, **more)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


@asynccontextmanager
async def scene(tmp_path: Path, concurrent: int = 500) -> AsyncIterator[Scene]:
    vllm = FakeVllm()
    application = web.Application(client_max_size=1 << 26)
    application.router.add_post("/v1/completions", vllm.complete)
    behind, engine_url = await _serve(application)
    usage_log = UsageLog(tmp_path / "host.sqlite3")
    engine = EngineClient(engine_url)
    served = Served("m", bytes(32), "bfloat16", TARIFF)
    words: Any = Words()
    api = HostApi(served, HOST, usage_log, Admission(usage_log, b"secret", concurrent), words, engine)
    before, url = await _serve(api.application())
    try:
        yield Scene(url, vllm, usage_log, Counter())
    finally:
        await before.cleanup()
        await engine.close()
        await behind.cleanup()
        usage_log.close()


@asynccontextmanager
async def asking(at: Scene, token: str, user: str, stream: bool) -> AsyncIterator[aiohttp.ClientResponse]:
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}, timeout=timeout) as session:
        body = {"prompt": "x", "user": user, "stream": stream}
        async with session.post(f"{at.url}/v1/completions", json=body) as response:
            yield response


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in response.content:
        data = line.removeprefix(b"data:").strip()
        if data and data != b"[DONE]":
            yield json.loads(data)


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = dataclasses.replace(LIMITS, host_first_seconds=8, host_piece_seconds=8)
    monkeypatch.setattr(host_reading, "LIMITS", limits)


def noting(monkeypatch: pytest.MonkeyPatch, at: Scene) -> None:
    """Count what reaches the host, so that a client can hang up at that moment and not somewhere near it."""
    real = host_reading.HostedRequest._note

    def note(self: Any, piece: Any) -> None:
        real(self, piece)
        at.noted[self.asked.options["user"]] += len(piece.ids)

    monkeypatch.setattr(host_reading.HostedRequest, "_note", note)


CASES = [
    (stream, end, pieces)
    for stream, end, pieces in itertools.product(
        (False, True),
        ("finish", "silent", "reset", "error", "garbage", "hang up", "refuse", "broken"),
        (None, 0, 1, 5),
    )
    if not (end in ("refuse", "broken") and pieces is not None) and not (end == "finish" and not pieces)
]


def test_what_the_engine_worked_on_is_billed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pieces`: how many come before the end; None: not even headers do.  All of them at once, a client each."""

    async def one(at: Scene, stream: bool, end: str, pieces: int | None) -> None:
        name = f"{end} {pieces} {stream}"
        token = at.invite(name, daily=10_000)
        script = Script(pieces or 0, "silent" if end == "hang up" else end, headers=pieces is not None)
        at.engine.scripts[name] = script
        status, finish, failed, got = 0, None, False, []

        async def ask() -> None:
            nonlocal status, finish, failed
            async with asking(at, token, name, stream) as response:
                status = response.status
                if status == 200 and stream:
                    async for event in events(response):
                        failed |= "error" in event
                        for choice in event.get("choices", ()):
                            got.extend(choice["token_ids"])
                            finish = choice["finish_reason"] or finish
                elif status == 200:
                    (choice,) = (await response.json())["choices"]
                    got.extend(choice["token_ids"])
                    finish = choice["finish_reason"]

        task = asyncio.create_task(ask())
        if end == "hang up":
            await until(lambda: script.reached.is_set() and at.noted[name] == script.delivered)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await until(lambda: at.billed(name))
        else:
            await task
        assert script.given == PROMPT
        free = end in ("refuse", "broken") or (not pieces and end in ("silent", "reset", "error", "garbage"))
        if free:
            assert at.billed(name) == [] and at.used(name) == 0 and status >= 400
            return
        (bill,) = at.billed(name)
        assert bill.read + bill.prefilled == script.given and bill.made == script.delivered == (pieces or 0)
        assert bill.read == (CACHED + 1 if end == "finish" else CACHED)
        if end == "hang up" and not pieces:
            assert at.used(name) == PROMPT + MOST  # what was reserved stays used
        else:
            assert at.used(name) == PROMPT + bill.made
        if end == "silent":
            assert (status, finish) == (200, "length") and len(got) == bill.made
        elif end == "finish":
            assert (status, finish) == (200, "stop") and len(got) == bill.made
        elif end != "hang up":
            assert failed and len(got) == bill.made if stream else status >= 500

    async def body() -> None:
        async with scene(tmp_path) as at:
            noting(monkeypatch, at)
            await asyncio.gather(*(one(at, *case) for case in CASES))
            assert at.usage_log.check() == len(at.usage_log.receipts(most=1000))

    run(body())


def test_a_client_that_is_lost_while_its_broken_read_ends_is_billed(tmp_path: Path) -> None:
    """A write fails first, and before the end of that is written the server cancels whoever answers."""

    async def body() -> None:
        ending, written = asyncio.Event(), asyncio.Event()
        prompt = ParsedPrompt([7] * PROMPT, DOCUMENT, CACHED, {}, MOST, True, True)
        bills: list[tuple[int, int, int | None]] = []

        async def complete(sent: Any) -> AsyncIterator[Piece]:
            sent()
            yield Piece("a", (1,))
            try:
                await asyncio.sleep(3600)
            finally:
                ending.set()
                await asyncio.sleep(0)  # as closing a connection does

        async def record(*bill: Any) -> Any:
            bills.append(bill)
            written.set()

        async def answer() -> None:
            async with contextlib.aclosing(hosted.pieces()) as pieces:  # type: ignore[type-var]
                async for _ in pieces:
                    raise ConnectionResetError("a failed write")

        hosted = host_reading.HostedRequest(prompt, PROMPT + MOST, complete, record)
        task = asyncio.create_task(answer())
        await ending.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConnectionResetError):
            await task
        async with asyncio.timeout(60):
            await written.wait()
        assert bills == [(CACHED, 1, None)]

    run(body())


def test_hanging_up_again_and_again_ends_with_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with scene(tmp_path) as at:
            token = at.invite("bob", daily=3_000)
            given = 0
            for number in range(6):
                script = at.engine.scripts[str(number)] = Script(0, "silent", headers=False)
                task = asyncio.create_task(_status(at, token, str(number)))
                await until(lambda s=script, t=task: s.reached.is_set() or t.done())
                if task.done():
                    assert task.result() == 429
                    continue
                given += script.given
                task.cancel()
                await until(lambda n=number: len(at.billed("bob")) == n + 1)
            assert given == 3 * PROMPT
            assert sum(r.read + r.prefilled for r in at.billed("bob")) == given

    run(body())


async def _status(at: Scene, token: str, user: str) -> int:
    async with asking(at, token, user, True) as response:
        await response.read()
        return response.status


def test_an_answer_that_takes_too_long_ends_and_is_billed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_reading, "LIMITS", dataclasses.replace(LIMITS, host_seconds=1.0))

    async def body() -> None:
        async with scene(tmp_path) as at:
            token = at.invite("bob")
            for stream in (False, True):
                at.engine.scripts["x"] = Script(10_000, seconds=0.02)
                async with asking(at, token, "x", stream) as response:
                    if stream:
                        got = [c async for e in events(response) for c in e.get("choices", ())]
                        ids, finish = sum((c["token_ids"] for c in got), []), got[-1]["finish_reason"]
                    else:
                        (choice,) = (await response.json())["choices"]
                        ids, finish = choice["token_ids"], choice["finish_reason"]
                assert finish == "length"
                bill = at.billed("bob")[-1]
                assert bill.made == len(ids) and bill.read + bill.prefilled == PROMPT

    run(body())


def test_who_reads_nothing_is_billed_what_the_engine_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is not held up by a client that is slow, and one that takes nothing is hung up on."""

    async def body() -> None:
        async with scene(tmp_path) as at:
            noting(monkeypatch, at)
            token = at.invite("slow")
            script = at.engine.scripts["x"] = Script(2_000, text="x" * 8_000)
            async with asking(at, token, "x", True):  # and not a byte of the answer is read
                await until(lambda: at.noted["x"] == 2_000)
            await until(lambda: at.billed("slow"))
            (bill,) = at.billed("slow")
            assert script.delivered == 2_000 == bill.made
            monkeypatch.setattr(host_app, "LIMITS", dataclasses.replace(LIMITS, upload_piece_seconds=0.5))
            token = at.invite("dead")
            script = at.engine.scripts["y"] = Script(10**9, text="x" * 8_000)
            async with asking(at, token, "y", True):
                await until(lambda: at.billed("dead"))
            (bill,) = at.billed("dead")
            assert 0 < bill.made <= script.delivered

    run(body())


def test_with_a_journal_that_cannot_be_written_nobody_reads_for_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be recorded is owed: it is recorded before anybody is answered again."""

    async def body() -> None:
        full, real = True, UsageLog.add_receipt

        def add_receipt(self: UsageLog, *given: Any) -> Any:
            if full:
                raise sqlite3.OperationalError("database or disk is full")
            return real(self, *given)

        monkeypatch.setattr(UsageLog, "add_receipt", add_receipt)
        async with scene(tmp_path) as at:
            token = at.invite("alice", daily=10_000)
            for name in ("first", "second", "third", "fourth"):
                at.engine.scripts[name] = Script(3)
            async with asking(at, token, "first", True) as response:
                assert any("error" in event for event in [e async for e in events(response)])
            for _ in range(3):
                async with asking(at, token, "second", False) as response:
                    assert response.status >= 500 and at.engine.scripts["second"].given == 0
            full = False
            await asyncio.gather(*(answered(at, token, name) for name in ("third", "fourth")))
            assert [bill.made for bill in at.billed("alice")] == [3, 3, 3]
            assert at.used("alice") == 3 * (PROMPT + 3)

    async def answered(at: Scene, token: str, name: str) -> None:
        async with asking(at, token, name, False) as response:
            assert response.status == 200

    run(body())


def test_who_has_used_up_the_day_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with scene(tmp_path, concurrent=1) as at:
            token = at.invite("alice", daily=PROMPT + MOST)
            at.engine.scripts["all"] = Script(MOST)
            async with asking(at, token, "all", False) as response:
                assert response.status == 200
            monkeypatch.setattr(Words, "completion", lambda *_: pytest.fail("the prompt was made into tokens"))
            for _ in range(3):
                async with asking(at, token, "all", False) as response:
                    assert response.status == 429 and "a day" in (await response.json())["error"]["message"]

    run(body())


def test_a_body_that_comes_slowly_takes_no_place(tmp_path: Path) -> None:
    async def body() -> None:
        async with scene(tmp_path, concurrent=1) as at:
            slow, quick = at.invite("slow"), at.invite("quick")
            host, port = at.url.removeprefix("http://").split(":")
            head = f"POST /v1/completions HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {slow}\r\nContent-Length: 99\r\n\r\n"
            writers = []
            for _ in range(LIMITS.host_bodies):
                _, writer = await asyncio.open_connection(host, int(port))
                writer.write(head.encode() + b'{"prompt": ')
                await writer.drain()
                writers.append(writer)
            at.engine.scripts["q"] = Script(1)
            assert await _status(at, quick, "q") == 200  # the only place there is, was free
            refused = None
            while refused != 429:  # those of one client alone are bounded
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(head.encode() + b'{"prompt": ')
                writers.append(writer)
                with contextlib.suppress(TimeoutError):
                    refused = int((await asyncio.wait_for(reader.readline(), 1)).split()[1])
            for writer in writers:
                writer.close()

    run(body())


def test_a_guest_sees_nothing_of_a_former_one_of_the_same_name(tmp_path: Path) -> None:
    async def body() -> None:
        async with scene(tmp_path) as at:
            salts = []
            for number in range(3):
                token = at.invite("bob", daily=PROMPT + MOST + 10)
                script = at.engine.scripts["x"] = Script(2)
                assert await _status(at, token, "x") == 200  # a quota of its own
                salts.append(script.salt)
                async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:
                    async with session.get(f"{at.url}/v1/usage") as response:
                        reads = (await response.json())["reads"]
                assert [r["number"] for r in reads] == [number + 1]
                assert at.usage_log.name_of(reads[0]["client"]) == "bob" != reads[0]["client"]
                at.usage_log.revoke("bob")
                assert at.usage_log.name_of(reads[0]["client"]) == "bob"  # people still know whose it was
            assert len(set(salts)) == 3
            assert len(at.usage_log.last_receipts("bob", 10)) == 3 == at.usage_log.check()

    run(body())


_OLD = """
    CREATE TABLE clients (
        name TEXT PRIMARY KEY, token BLOB NOT NULL UNIQUE, daily_tokens INTEGER NOT NULL, concurrent INTEGER NOT NULL,
        added REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE documents (
        document TEXT PRIMARY KEY, name TEXT NOT NULL, text TEXT NOT NULL, artifact TEXT NOT NULL, added REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE offers (digest BLOB PRIMARY KEY, envelope BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE reads (
        number INTEGER PRIMARY KEY, client TEXT NOT NULL, day INTEGER NOT NULL, tokens INTEGER NOT NULL,
        envelope BLOB NOT NULL
    );
    CREATE INDEX reads_client ON reads (client, day);
    PRAGMA user_version = 1;
"""


def test_a_journal_of_before_opens_and_its_clients_stay_who_they_are(tmp_path: Path) -> None:
    path = tmp_path / "host.sqlite3"
    signed, previous = sign_offer(offer(), HOST), bytes(32)
    with sqlite3.connect(path) as db:
        db.executescript(_OLD)
        db.execute("INSERT INTO offers VALUES (?, ?)", (signed.digest, signed.envelope))
        db.execute("INSERT INTO clients VALUES ('bob', ?, 5000, 0, 1.0)", (hashlib.sha256(b"token").digest(),))
        for number, who in enumerate(("bob", "gone", "bob"), 1):
            made = msgspec.structs.replace(
                read(signed), number=number, previous=previous, client=who, ended=int(time.time())
            )
            kept = sign_receipt(made, HOST)
            previous = kept.digest
            db.execute("INSERT INTO reads VALUES (?, ?, ?, ?, ?)", (number, who, today(), 100, kept.envelope))
    path.chmod(0o600)
    usage_log = UsageLog(path)
    assert usage_log.check() == 3
    bob = usage_log.client("token")
    assert bob is not None and (bob.name, bob.daily_tokens) == ("bob", 5000)
    assert usage_log.used(bob.id, today()) == 200 and len(usage_log.receipts(bob.id)) == 2
    assert Admission(usage_log, b"s", 1).salt(bob) == __import__("hmac").digest(b"s", b"bob", "sha256").hex()
    usage_log.revoke("bob")
    for name in ("bob", "gone"):
        new = usage_log.client(usage_log.invite(name))
        assert new is not None and usage_log.used(new.id, today()) == 0 and not usage_log.receipts(new.id)
    assert len(usage_log.last_receipts("bob", 9)) == 2 and usage_log.check() == 3
    usage_log.close()
