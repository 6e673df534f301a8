"""A host may answer with any JSON at any place: what comes out is an answer, or one of our errors that names it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kvswap.api import AskRequest, PlanSummary
from kvswap.core.errors import KvswapError, PeerError, Unexpected
from kvswap.core.ids import document_digest
from kvswap.core.upkeep import Problems
from kvswap.cost import Calibration, Objective, Option
from kvswap.exchange.ask_host import Hosted, ask_host, hosted
from kvswap.exchange.node.events import EventLog
from kvswap.net.host_connection import HostConnection, Invitation
from kvswap.net.hosts import Hosts
from tests.trust.test_hosting import HOST, offer, sign_offer

PEER = str(HOST.peer_id)
DOCUMENT = document_digest(b"a manual")
OFFER = sign_offer(offer(), HOST)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["\ud800", "é", "====", "12", base64.b64encode(OFFER.envelope).decode()]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["choices", "delta", "content", "token_ids", "usage", "kvswap", "receipt", "error", "code", "message"]
)
SHAPES = st.recursive(VALUES, lambda inner: st.dictionaries(NAMES, inner, max_size=4) | st.lists(inner, max_size=2))


def line(value: Any) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


class Shaped(HostConnection):
    """A host that answers with these lines, whatever it is asked."""

    def __init__(self, lines: list[bytes]) -> None:
        super().__init__(Invitation("http://127.0.0.1:9", PEER, "token"))
        self._lines = lines

    @asynccontextmanager
    async def _request(self, *arguments: Any) -> AsyncIterator[Any]:
        yield SimpleNamespace(content=self)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for one in self._lines:
            yield one

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        yield b"".join(self._lines)


def node_of(tmp: Path, lines: list[bytes]) -> Any:
    known = Hosts(tmp / "hosts")
    known._known[PEER] = Invitation("http://127.0.0.1:9", PEER, "token")
    known._connections[PEER] = Shaped(lines)
    return SimpleNamespace(
        hosts=known, calibration=Calibration(tmp / "calibration.json", Problems()), events=EventLog(), store=None
    )


async def asked(tmp: Path, lines: list[bytes]) -> dict[str, Any]:
    chosen = Hosted(PEER, OFFER, 100, Option(0.1, 0.1))
    shown: list[str] = []

    async def progress(event: dict[str, Any]) -> None:
        shown.append(json.dumps(event.to_json(), ensure_ascii=False, allow_nan=False).encode().decode())

    request = AskRequest(ref=DOCUMENT, question="Why?", max_tokens=3, host=PEER)
    plan = PlanSummary(action="host", seconds=0.0, dollars=0.0, reason="asked for")
    answer = await ask_host(node_of(tmp, lines), chosen, request, plan, progress)
    json.dumps(answer.to_json(), ensure_ascii=False, allow_nan=False).encode()  # it can be told to anybody
    return answer


WRONG: list[Any] = [
    {"choices": {"a": 1}},
    {"choices": 5},
    {"choices": "text"},
    {"choices": [None]},
    {"choices": [[]]},
    {"choices": [{"delta": None}]},
    {"choices": [{"delta": "text"}]},
    {"choices": [{"delta": {"content": 5}}]},
    {"choices": [{"delta": {}, "token_ids": {"a": 1}}]},
    {"choices": [{"delta": {}, "token_ids": [True]}]},
    {"choices": [{"delta": {}, "token_ids": [-1]}]},
    {"choices": [{"delta": {}, "token_ids": [2**70]}]},
    {"choices": [{"delta": {}, "token_ids": "12"}]},
    {"usage": 5},
    {"usage": "text"},
    {"usage": [1]},
]


@pytest.mark.parametrize("chunk", WRONG, ids=str)
def test_another_shape_of_an_answer_is_the_hosts_fault(tmp_path: Path, chunk: Any) -> None:
    with pytest.raises(PeerError, match="another format"):
        asyncio.run(asked(tmp_path, [line(chunk)]))


@pytest.mark.parametrize(
    "usage", [{"kvswap": 5}, {"kvswap": []}, {"kvswap": {"receipt": "é"}}, {"kvswap": {"receipt": [1]}}, {}], ids=str
)
def test_a_record_of_another_shape_is_none(tmp_path: Path, usage: Any) -> None:
    lines = [line({"choices": [{"delta": {"content": "It \ud800 is."}}]}), line({"choices": None, "usage": usage})]
    answer = asyncio.run(asked(tmp_path, lines))
    assert answer["host"]["problem"] == "the host gave no record of the read"
    assert answer["text"].startswith("It ") and answer["text"].endswith(" is.")


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=st.lists(SHAPES, min_size=1, max_size=3))
@example(chunks=[{"choices": "\ud800"}])
@example(chunks=[{"choices": {"a": 1}}])
@example(chunks=[{"error": {"code": ["not_found"], "message": "\ud800"}}])
def test_no_answer_of_a_host_is_told_as_a_fault_of_ours(tmp_path: Path, chunks: list[Any]) -> None:
    try:
        asyncio.run(asked(tmp_path, [line(chunk) for chunk in chunks]))
    except KvswapError as error:
        assert not isinstance(error, Unexpected)
        json.dumps(error.to_dict(), ensure_ascii=False).encode()


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shown=VALUES
    | st.dictionaries(st.sampled_from(["offer", "tokens", "first_seconds", "document"]), VALUES, max_size=4)
)
@example(shown={"offer": "é", "tokens": True})
@example(shown={"offer": base64.b64encode(OFFER.envelope).decode(), "tokens": 10, "first_seconds": 10**400})
def test_nothing_that_a_host_says_of_itself_is_told_as_a_fault_of_ours(tmp_path: Path, shown: Any) -> None:
    node = node_of(tmp_path, [json.dumps(shown).encode()])
    node.hosts._offers[PEER] = OFFER  # as heard before; without it the offer is read as well
    for before in ({PEER: OFFER}, {}):
        node.hosts._offers = dict(before)
        try:
            (found,) = asyncio.run(hosted(node, PEER, DOCUMENT, "Why?", 3, Objective()))
            json.dumps(found.way().to_json(), allow_nan=False)
        except KvswapError as error:
            assert not isinstance(error, Unexpected)
            json.dumps(error.to_dict(), ensure_ascii=False).encode()


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_bytes_that_are_no_json_are_the_hosts_fault(tmp_path: Path, data: bytes) -> None:
    for lines in ([b"data: " + data], [data]):
        try:
            asyncio.run(asked(tmp_path, lines))
        except KvswapError as error:
            assert not isinstance(error, Unexpected)
