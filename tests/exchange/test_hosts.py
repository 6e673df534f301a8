"""A host that lies about what it read, beside one that does not: the answer is shown, and the bill is disputed."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from aiohttp import web

from kvswap.core.errors import NotFound, PeerError, PlanSaysPrefill
from kvswap.core.ids import document_digest
from kvswap.cost import Objective
from kvswap.net.host_connection import Invitation
from kvswap.trust.hosting import Receipt, sign_offer, sign_receipt
from tests.support import Daemon, key
from tests.trust.test_hosting import HOST, TARIFF, offer, read

DOCUMENT = document_digest(b"a manual")
TOKENS = 1_000
PEER = str(HOST.peer_id)


@dataclass
class Liar:
    """Speaks a host's HTTP on loopback and says what the test wants; no model is behind it."""

    changes: dict[str, Any] = field(default_factory=dict)  # to the record of a read
    shown: dict[str, Any] = field(default_factory=dict)  # to what it says of the document
    signer: Any = HOST
    silent: bool = False
    made: int = 3
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def get_offer(self, request: web.Request) -> web.Response:
        now = int(time.time())
        self.offer = sign_offer(offer(issued=now, expires=now + 600), HOST)
        return web.json_response({"offer": base64.b64encode(self.offer.envelope).decode()})

    async def get_document(self, request: web.Request) -> web.Response:
        return web.json_response({"document": DOCUMENT, "tokens": TOKENS, "first_seconds": 0.1} | self.shown)

    def record(self) -> Receipt:
        right = read(
            self.offer,
            document=bytes.fromhex(DOCUMENT[7:]),
            read=TOKENS,
            prefilled=10,
            made=self.made,
            picodollars=TARIFF.picodollars(TOKENS, 10, self.made),
        )
        changed = msgspec.structs.replace(right, **self.changes)
        if "picodollars" in self.changes:
            return changed
        return msgspec.structs.replace(
            changed, picodollars=TARIFF.picodollars(changed.read, changed.prefilled, changed.made)
        )

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(await request.json())
        response = web.StreamResponse()
        await response.prepare(request)
        for number in range(self.made):
            choice = {"delta": {"content": f"{number} "}, "token_ids": [number]}
            await response.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
        usage: dict[str, Any] = {"kvswap": {}}
        if not self.silent:
            changed = msgspec.structs.replace(self.record(), host=str(self.signer.peer_id))
            usage["kvswap"]["receipt"] = base64.b64encode(sign_receipt(changed, self.signer).envelope).decode()
        await response.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())
        return response


@contextmanager
def serving() -> Iterator[Liar]:
    """Run a host in a thread of its own."""
    made, started, loop = Liar(), threading.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        app = web.Application()
        app.add_routes([web.get("/v1/offer", made.get_offer), web.get("/v1/documents/{ref}", made.get_document)])
        app.add_routes([web.post("/v1/chat/completions", made.chat)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()

    loop.create_task(serve())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    assert started.wait(600)
    yield made
    loop.call_soon_threadsafe(loop.stop)
    thread.join(600)


@pytest.fixture
def sends_invalid_data() -> Iterator[Liar]:
    with serving() as made:
        yield made


@pytest.fixture
def reader(daemon: Callable[..., Daemon], sends_invalid_data: Liar) -> Daemon:
    node = daemon("reader", "--no-p2p", KVSWAP_MODELS="/nowhere")
    node.client.host_join(Invitation(sends_invalid_data.url, PEER, "token").to_text(), plain=True)
    return node


def ask(node: Daemon, **more: Any) -> dict[str, Any]:
    return node.client.ask(DOCUMENT, "Why?", max_tokens=3, host=PEER, **more)


def test_an_honest_bill_is_taken(reader: Daemon, sends_invalid_data: Liar) -> None:
    answer = ask(reader)
    assert (answer["text"], answer["token_ids"], answer["claim"]) == ("0 1 2", [0, 1, 2], "the host's word")
    assert answer["host"]["problem"] is None
    assert answer["host"]["dollars"] == pytest.approx(TARIFF.picodollars(TOKENS, 10, 3) / 1e12)
    (asked,) = sends_invalid_data.asked
    assert asked["document"] == DOCUMENT and "a manual" not in json.dumps(asked)  # of the text, nothing


@pytest.mark.parametrize(
    ("lie", "word"),
    [
        ({"changes": {"picodollars": 10**9}}, "by the offer"),
        ({"changes": {"made": 4}}, "charges"),
        ({"changes": {"prefilled": 10_000}}, "charges"),
        ({"changes": {"read": TOKENS * 3}}, "charges"),
        ({"changes": {"document": bytes(32)}}, "another request"),
        ({"changes": {"document": None}}, "another request"),
        ({"changes": {"offer": bytes(32)}}, "another offer"),
        ({"signer": key(9)}, "another offer"),
        ({"silent": True}, "no record"),
    ],
)
def test_a_wrong_bill_is_said_to_be_wrong(
    reader: Daemon, sends_invalid_data: Liar, lie: dict[str, Any], word: str
) -> None:
    for name, value in lie.items():
        setattr(sends_invalid_data, name, value)
    answer = ask(reader)
    assert answer["text"] == "0 1 2" and word in answer["host"]["problem"]
    (event,) = [e for e in reader.client.events() if e["event"] == "asked_host"]
    assert event["problem"] == answer["host"]["problem"]


@pytest.mark.parametrize("shown", [{"tokens": -1}, {"tokens": 10**12}, {"tokens": "many"}, {"tokens": None}])
def test_what_it_says_of_a_document_has_to_make_sense(
    reader: Daemon, sends_invalid_data: Liar, shown: dict[str, Any]
) -> None:
    sends_invalid_data.shown = shown
    with pytest.raises(PeerError):
        ask(reader)
    assert not sends_invalid_data.asked


@pytest.mark.parametrize("first", [float("nan"), -1.0, 1e9, None])
def test_a_time_that_makes_no_sense_is_as_good_as_none(
    reader: Daemon, sends_invalid_data: Liar, first: float | None
) -> None:
    sends_invalid_data.shown = {"first_seconds": first}
    assert reader.client.plan(DOCUMENT, host="auto")["host"]["seconds"] == 5.0


def test_nothing_is_asked_over_a_budget_or_unless_one_says_so(reader: Daemon, sends_invalid_data: Liar) -> None:
    with pytest.raises(PlanSaysPrefill):
        ask(reader, objective=Objective(max_dollars=1e-9))
    with pytest.raises(NotFound):
        reader.client.ask(DOCUMENT, "Why?", max_tokens=3)
    assert not sends_invalid_data.asked
    assert reader.client.ask(DOCUMENT, "Why?", max_tokens=3, host="auto")["plan"]["action"] == "host"
