"""Requests that begin alike share one look-up and hold up nobody else; what is queued when the engine ends is sent."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from kvswap.api import PlanSummary, PrefixResult
from kvswap.core.errors import DaemonNotRunning, KvswapError, NotFound
from kvswap.integrations.vllm import node_client as nodes
from kvswap.integrations.vllm.capture import Captures
from kvswap.integrations.vllm.node_client import Files, NodeClient
from tests.support import identity

BLOCK = 4


class Client:
    """Answers when it is told to."""

    def __init__(self, error: KvswapError | None = None) -> None:
        self.asked: list[bytes] = []
        self.go = threading.Event()
        self.error = error

    def cached_prefix(self, packed: bytes, **_: Any) -> PrefixResult:
        self.asked.append(packed)
        self.go.wait(600)
        if self.error is not None:
            raise self.error
        plan = PlanSummary(action="fetch", seconds=0.0, dollars=0.0, reason="")
        return PrefixResult(artifact=packed.hex(), tokens=len(packed) // 4, whole=True, plan=plan)

    def details(self, artifact: str) -> Files:
        return Files(artifact, "", "", None)


def node(client: Client, monkeypatch: pytest.MonkeyPatch, threads: int = 64) -> NodeClient:
    monkeypatch.setattr(nodes, "Client", lambda home: client)
    monkeypatch.setattr(nodes, "_THREADS", threads)
    engine = SimpleNamespace(identity=identity(), dtype="bfloat16", hybrid=False)
    settings = SimpleNamespace(home=None, lookup_seconds=1.0, group=None, block_tokens=BLOCK, force=False, local=False)
    return NodeClient(engine, settings)  # type: ignore[arg-type]


def ids(document: int, more: int = 0) -> list[int]:
    return [document] * BLOCK + [7] * more


def test_alike_requests_take_one_thread_and_one_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    made = node(client, monkeypatch, threads=2)
    alike = [made.search(ids(1), 1.0) for _ in range(70)]
    other = made.search(ids(2), 1.0)
    while len(client.asked) < 2:
        pass  # both are under way at once, with two threads
    client.go.set()
    for search in [*alike, other]:
        assert search.ended.wait(600) and search.match is not None
    assert len(client.asked) == 2
    made.close()


def test_those_that_go_on_differently_ask_for_themselves_when_the_first_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client()
    made = node(client, monkeypatch)
    leader = made.search(ids(1), 1.0)
    longer = [made.search(ids(1, more=n % 3), 1.0) for n in range(30)]
    assert all(s.under_way is leader for s in longer)
    client.go.set()
    for number, search in enumerate(longer):
        assert search.ended.wait(600)
        assert search.match is not None and search.match.tokens == BLOCK + number % 3
    assert len(client.asked) == 3
    made.close()


@pytest.mark.parametrize("error", [NotFound("nobody"), DaemonNotRunning("gone")])
def test_nothing_for_the_first_is_nothing_for_all(error: KvswapError, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(error)
    made = node(client, monkeypatch)
    searches = [made.search(ids(1, more=n), 1.0) for n in range(30)]
    client.go.set()
    for search in searches:
        assert search.ended.wait(600) and search.match is None and search.why == error.message
    assert len(client.asked) == 1
    made.close()


def test_the_end_of_the_engine_ends_every_search(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    made = node(client, monkeypatch, threads=1)
    searches = [made.search(ids(n % 5, more=n % 2), 1.0) for n in range(40)]
    made.close()
    client.go.set()
    for search in searches:
        assert search.ended.wait(600)


def test_what_is_queued_when_the_engine_ends_is_sent() -> None:
    made = Captures.__new__(Captures)
    made._pool, made._open, made._lock, made._bytes = ThreadPoolExecutor(1), {}, threading.Lock(), 50
    go, sent = threading.Event(), []

    def publish(frames: Any) -> dict[str, Any]:
        go.wait(600)
        sent.append(frames)
        return {"reused": False, "tokens": 1, "artifact": "x", "claim": "tolerance"}

    made._engine = SimpleNamespace(dtype="float32")  # type: ignore[assignment]
    made._client = SimpleNamespace(publish_computed=publish)  # type: ignore[assignment]
    made._frames = lambda captured: captured.size  # type: ignore[method-assign,assignment,return-value]
    for size in range(5, 10):
        made._pool.submit(made._send, SimpleNamespace(size=size, ids=[], tensors=[]))  # type: ignore[arg-type]
    made._open["unfinished"] = SimpleNamespace(size=15)  # type: ignore[assignment]
    closing = threading.Thread(target=made.close)
    closing.start()
    go.set()
    closing.join()
    assert sent == [5, 6, 7, 8, 9] and made._bytes == 0 and not made._open
