"""What goes through the proxy is what llama-server says."""

from __future__ import annotations

import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.llama.proxies import Proxy, document, until

# What differs between two answers of the same server to the same request.
VOLATILE = re.compile(rb'"(?:id|created|[a-z_]*_ms|[a-z_]*_per_second|media_marker)": ?(?:"[^"]*"|[-0-9.e+]+)')


@pytest.fixture(scope="module")
def started(ggufs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    one = Proxy(tmp_path_factory.mktemp("passing") / "home", ggufs["dense"], ("--metrics",))
    one.start()
    yield one
    one.end()


def direct(proxy: Proxy) -> str:
    return str(json.loads((proxy.home / "llama.json").read_text())["server"])


def asked(url: str, method: str, path: str, body: bytes | None) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(url + path, body, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, "temperature": 0, "cache_prompt": False}
REQUESTS: list[tuple[str, str, Any]] = [
    ("GET", "/health", None),
    ("GET", "/props", None),
    ("GET", "/v1/models?x=%2Fa%20b", None),
    ("GET", "/no/such/path", None),
    ("HEAD", "/health", None),
    ("OPTIONS", "/v1/chat/completions", None),
    ("POST", "/tokenize", {"content": "naïve \U0001f600 text", "with_pieces": True}),
    ("POST", "/apply-template", CHAT),
    ("POST", "/v1/chat/completions", CHAT),
    ("POST", "/v1/chat/completions", CHAT | {"stream": True, "stream_options": {"include_usage": True}}),
    ("POST", "/completion", {"prompt": "a b c", "n_predict": 4, "temperature": 0, "cache_prompt": False}),
    ("POST", "/completion", {"prompt": ["a", "b"], "n_predict": 2, "temperature": 0, "cache_prompt": False}),
    ("POST", "/v1/completions", {"prompt": [65, 66, 67], "max_tokens": 4, "temperature": 0, "cache_prompt": False}),
    (
        "POST",
        "/v1/messages",
        {"model": "x", "max_tokens": 4, "temperature": 0, "messages": [{"role": "user", "content": "q"}]},
    ),
    (
        "POST",
        "/v1/messages",
        {"max_tokens": 3, "stream": True, "temperature": 0, "messages": [{"role": "user", "content": "q"}]},
    ),
    ("POST", "/v1/chat/completions", b"{not json"),
    ("POST", "/v1/chat/completions", b""),
    ("POST", "/v1/chat/completions", {"messages": "no list"}),
    ("POST", "/v1/embeddings", {"input": "x"}),
    ("POST", "/slots/0?action=dance", {}),
    ("POST", "/slots/zero?action=erase", {}),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda one: f"{one[0]} {one[1]} {str(one[2])[:20]}")
def test_an_answer_is_the_same_as_without_the_proxy(started: Proxy, request_: tuple[str, str, Any]) -> None:
    method, path, body = request_
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    asked(direct(started), method, path, data)  # so that both find the same cached
    ours, theirs = (asked(url, method, path, data) for url in (started.url, direct(started)))
    assert ours[0] == theirs[0]
    assert VOLATILE.sub(b"", ours[2]) == VOLATILE.sub(b"", theirs[2])
    unlike = {"Date", "Content-Length", "Keep-Alive", "Connection", "Transfer-Encoding"}
    assert {k: v for k, v in ours[1].items() if k not in unlike} == {
        k: v for k, v in theirs[1].items() if k not in unlike
    }


def test_tokens_of_a_stream_come_one_by_one(started: Proxy) -> None:
    """Each event is a chunk of its own on the connection, not some of them at once."""
    connection = http.client.HTTPConnection("127.0.0.1", started.port, timeout=120)
    body = {"prompt": document(50), "n_predict": 40, "stream": True, "temperature": 0, "ignore_eos": True}
    connection.request("POST", "/completion", json.dumps(body))
    answer = connection.getresponse()
    assert answer.getheader("Transfer-Encoding") == "chunked"
    events = 0
    while line := answer.readline():
        events += line.startswith(b"data: ")
    connection.close()
    assert events >= 10  # bytes that are no character yet come together


def test_a_client_that_leaves_ends_its_request(started: Proxy) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", started.port, timeout=120)
    body = {"prompt": "x", "n_predict": 100_000, "stream": True, "ignore_eos": True, "n_discard": 0}
    connection.request("POST", "/completion", json.dumps(body))
    connection.getresponse().read(20)
    assert json.loads(started.ask("/slots")[2])[0]["is_processing"]
    connection.sock.close()  # type: ignore[union-attr]
    connection.close()
    until(lambda: not json.loads(started.ask("/slots")[2])[0]["is_processing"], "the server stops")
    until(lambda: started.status()["pending"] == 0, "nothing is pending")


def test_a_large_body_goes_through(started: Proxy) -> None:
    """One that is too large to be looked at, of which the server says itself that it is no JSON."""
    body = b"{" + b"x" * (34 << 20)
    ours, theirs = (asked(url, "POST", "/completion", body) for url in (started.url, direct(started)))
    assert ours[0] == theirs[0] >= 400 and ours[2] == theirs[2]


def test_a_key_and_a_prefix_are_the_servers(ggufs: dict[str, Path], tmp_path: Path) -> None:
    one = Proxy(tmp_path / "home", ggufs["dense"], ("--api-key", "secret", "--api-prefix", "/llm"))
    one.start(ready=False)
    try:
        key = {"Authorization": "Bearer secret"}
        until(lambda: b'"keeping": true' in _quiet(one, "/llm/kvswap/status", key), "it keeps")
        assert one.ask("/llm/kvswap/status")[0] == 401 and one.ask("/llm/props")[0] == 401
        assert one.ask("/llm/completion", {"prompt": "x", "n_predict": 1})[0] == 401
        assert one.ask("/llm/completion", {"prompt": "x", "n_predict": 1}, key)[0] == 200
    finally:
        one.end()


def _quiet(proxy: Proxy, path: str, headers: dict[str, str]) -> bytes:
    try:
        return proxy.ask(path, headers=headers)[2]
    except OSError:
        return b""


def test_an_address_that_is_taken_is_said(started: Proxy, ggufs: dict[str, Path], tmp_path: Path) -> None:
    second = Proxy(tmp_path / "second", ggufs["dense"], port=started.port)
    second.start(ready=False)
    assert second.process is not None and second.process.wait(120) == 2
    assert f"cannot listen on 127.0.0.1:{started.port}" in (second.home / "output.log").read_text()


def test_a_flag_that_the_bundled_server_has_not_is_named(ggufs: dict[str, Path], tmp_path: Path) -> None:
    one = Proxy(tmp_path / "home", ggufs["dense"], ("--mlock",))
    one.start(ready=False)
    assert one.process is not None and one.process.wait(120) == 2
    assert "no flag '--mlock'" in (one.home / "output.log").read_text()
