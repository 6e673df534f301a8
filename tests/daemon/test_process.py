"""The daemon as a process: one per home, clean ends, and what users and scripts see of it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from kvswap.core.errors import KvswapError
from kvswap.core.runfile import RunFile
from tests.core.test_failures import is_told
from tests.support import DOCUMENT, Daemon, kvswap, last_json, until


def call(node: Daemon, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    run = RunFile.read(node.home)
    url = urlsplit(run.url)
    connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=600)
    sent = {"Authorization": f"Bearer {run.token}", **{k.replace("_", "-"): v for k, v in headers.items()}}
    sent = {k: v for k, v in sent.items() if v}
    connection.request(method, path, body, sent)
    response = connection.getresponse()
    data = response.read()
    connection.close()
    try:
        return response.status, json.loads(data)
    except ValueError:
        return response.status, data.decode()


def test_a_home_has_one_daemon(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    node = daemon("a")
    second = kvswap(node.home, "daemon")
    assert second.returncode == 11
    assert "in use" in second.stderr and "Hint" in second.stderr
    assert node.client.status()["p2p"] is True  # and the first is none the worse


def test_without_a_daemon_every_verb_says_how_to_start_one(tmp_path: Path) -> None:
    for arguments in (["status"], ["ls"], ["fetch", "sha256:" + "0" * 64], ["trust", "ls"], ["peers"], ["id"]):
        extra = arguments[1:]
        done = kvswap(tmp_path, arguments[0], *extra) if arguments[0] != "trust" else None
        if done is not None:
            assert done.returncode == 10, arguments
            assert "kvswap daemon" in done.stderr
    (tmp_path / "daemon.json").write_text('{"url": "http://127.0.0.1:9", "token": "x", "pid": 999999999}')
    assert kvswap(tmp_path, "status").returncode == 10
    (tmp_path / "daemon.json").write_text(json.dumps({"url": "http://127.0.0.1:9", "token": "x", "pid": os.getpid()}))
    assert kvswap(tmp_path, "status").returncode == 10
    (tmp_path / "daemon.json").write_text("{broken")
    assert kvswap(tmp_path, "status").returncode == 10


def test_sigterm_ends_it_in_order_and_it_starts_again(daemon: Callable[..., Daemon]) -> None:
    node = daemon("a", cold=True)
    first = node.ready["peer"]
    run = RunFile.read(node.home)
    assert (node.home / "daemon.json").stat().st_mode & 0o077 == 0
    assert node.stop(signal.SIGTERM) == 0
    assert not (node.home / "daemon.json").exists()
    node.start()
    assert node.ready["peer"] == first
    assert RunFile.read(node.home).token != run.token
    assert node.stop(signal.SIGINT) == 0


def test_a_killed_daemon_leaves_a_home_that_starts(daemon: Callable[..., Daemon]) -> None:
    node = daemon("a")
    node.stop(signal.SIGKILL)
    assert kvswap(node.home, "status").returncode == 10  # the run-file names a process that is gone
    node.start()
    assert node.client.status()["degraded"] == {}


def test_an_idle_daemon_is_small_and_imports_no_torch(daemon: Callable[..., Daemon]) -> None:
    node = daemon("a", cold=True)
    assert node.process is not None
    process = psutil.Process(node.process.pid)
    assert process.memory_info().rss < 250e6
    maps = {m.path for m in process.memory_maps()}
    assert not any("libtorch" in path for path in maps)


def test_the_guard(daemon: Callable[..., Daemon]) -> None:
    node = daemon("a")
    assert call(node, "/v1/status")[0] == 200
    assert call(node, "/healthz", Authorization="")[0] == 200
    assert call(node, "/readyz", Authorization="") == (200, {"ok": True, "p2p": True, "degraded": {}})
    for headers in (
        {"Authorization": ""},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic abc"},
    ):
        assert call(node, "/v1/status", **headers)[0] == 401
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "0.0.0.0", ""):
        assert call(node, "/v1/status", Host=host or "x")[0] == 403, host
    for origin in ("http://evil.example", "null", "http://localhost.evil.example"):
        assert call(node, "/v1/status", Origin=origin)[0] == 403, origin
    assert call(node, "/v1/status", Origin="http://localhost:3000")[0] == 200
    assert call(node, "/healthz", Authorization="", Host="evil.example")[0] == 403


def test_metrics_and_events(daemon: Callable[..., Daemon]) -> None:
    node = daemon("a")
    status, text = call(node, "/metrics")
    assert status == 200
    assert "kvswap_p2p_up 1.0" in text and "kvswap_bytes_in_total 0.0" in text
    node.client.trust_add("12D3KooWKnDdG3iXw9eTFijk3EWSunZcFi54Zka4wmtqtt6rPxc8")
    assert [e["event"] for e in node.client.events()][-1] == "trusted"
    following = node.client.events(follow=True)
    next(following)
    node.client.trust_remove("12D3KooWKnDdG3iXw9eTFijk3EWSunZcFi54Zka4wmtqtt6rPxc8")
    following.close()


def test_bad_requests_get_clear_errors(daemon: Callable[..., Daemon]) -> None:
    node = daemon("a")
    for path, body in (
        ("/v1/fetch", b"{not json"),
        ("/v1/fetch", b"[]"),
        ("/v1/fetch", b"{}"),
        ("/v1/fetch", b'{"ref": 5}'),
        ("/v1/fetch", b'{"ref": "../../etc/passwd"}'),
        ("/v1/ask", b'{"ref": "sha256:' + b"0" * 64 + b'", "question": "x", "max_tokens": "many"}'),
        ("/v1/trust", b'{"peer": "nobody"}'),
    ):
        status, answer = call(node, path, "POST", body)
        assert status == 400, path
        assert answer["error"]["code"] == "usage"
    assert call(node, "/v1/artifacts/..%2f..%2fetc")[0] == 400
    assert call(node, "/v1/chunks/nothing")[0] == 400
    assert call(node, "/v1/nothing")[0] == 404
    assert call(node, "/v1/publish", "POST", b"x" * (41 << 20))[0] == 413


def test_p2p_that_cannot_start_degrades_the_node(daemon: Callable[..., Daemon]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        node = daemon("a", "--listen", f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}")
        status = node.client.status()
        assert status["p2p"] is False and "p2p" in status["degraded"]
        assert node.client.artifacts() == []
        done = kvswap(node.home, "fetch", "sha256:" + "0" * 64)
        assert done.returncode == 5 and "no peer" in done.stderr


def test_without_p2p_it_works_alone(daemon: Callable[..., Daemon]) -> None:
    node = daemon("a", "--no-p2p")
    assert node.client.identity()["addresses"] == []
    assert kvswap(node.home, "id", "--json").returncode == 0


def test_the_json_contract_of_the_small_verbs(daemon: Callable[..., Daemon]) -> None:
    node = daemon("a")
    identity = last_json(kvswap(node.home, "id", "--json"))
    assert set(identity) >= {"peer", "publisher", "addresses"}
    assert identity["addresses"][0].endswith(f"/p2p/{identity['peer']}")
    assert identity["peer"] != identity["publisher"]
    assert last_json(kvswap(node.home, "ls", "--json")) == {"artifacts": []}
    assert last_json(kvswap(node.home, "peers", "--json")) == {"peers": []}
    assert last_json(kvswap(node.home, "status", "--json"))["store_bytes"] == 0
    assert last_json(kvswap(node.home, "gc", "--json"))["freed_bytes"] == 0


def test_the_model_process_is_supervised(
    daemon: Callable[..., Daemon], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    node = daemon(
        "a", "--model", str(tiny_models["llama"]), "--dtype", "float32", cold=True, KVSWAP_IDLE_UNLOAD_SECONDS="3600"
    )
    text = tmp_path / "t.txt"
    text.write_text("Some words to read. " * 20)
    assert kvswap(node.home, "publish", str(text), "--json").returncode == 0
    pid = node.client.status()["model"]["pid"]
    assert psutil.pid_exists(pid)
    os.kill(pid, signal.SIGKILL)
    until(lambda: node.client.status()["model"]["pid"] is None, what="the process to be gone")
    text.write_text("Other words to read. " * 20)
    done = kvswap(node.home, "publish", str(text), "--json")
    assert done.returncode == 0, done.stderr
    again = node.client.status()["model"]["pid"]
    assert again != pid
    node.stop(signal.SIGTERM)
    until(lambda: not psutil.pid_exists(again), what="the model process to end with its node")


def test_a_killed_daemon_takes_its_model_process_along(
    daemon: Callable[..., Daemon], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    node = daemon("a", "--model", str(tiny_models["llama"]), "--dtype", "float32")
    text = tmp_path / "t.txt"
    text.write_text("Some words to read. " * 20)
    assert kvswap(node.home, "publish", str(text)).returncode == 0
    pid = node.client.status()["model"]["pid"]
    node.stop(signal.SIGKILL)
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, what="the end")


def test_an_idle_model_is_unloaded(daemon: Callable[..., Daemon], tiny_models: dict[str, Path], tmp_path: Path) -> None:
    node = daemon("a", "--model", str(tiny_models["llama"]), "--dtype", "float32", KVSWAP_IDLE_UNLOAD_SECONDS="0.3")
    text = tmp_path / "t.txt"
    text.write_text("Some words to read. " * 20)
    assert kvswap(node.home, "publish", str(text)).returncode == 0
    until(lambda: node.client.status()["model"]["pid"] is None, what="the model to be unloaded")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ending_while_the_model_works(
    daemon: Callable[..., Daemon], tiny_models: dict[str, Path], tmp_path: Path, number: int
) -> None:
    import threading

    node = daemon("a", "--model", str(tiny_models["llama"]), "--dtype", "float32")
    text = tmp_path / "t.txt"
    text.write_text(DOCUMENT.read_text()[:4000])
    started = threading.Event()
    failures: list[BaseException] = []

    def publish() -> None:
        try:
            node.client.publish(text.read_text(), on_event=lambda _: started.set())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=publish)
    thread.start()
    assert started.wait(600)
    assert node.stop(number) == 0
    thread.join(600)
    for failure in failures:  # none where it was just done
        assert isinstance(failure, KvswapError)
        is_told(failure)
        assert "daemon" in failure.message and "library" not in failure.cause  # no model process failed
    node.start()
    assert kvswap(node.home, "verify", "--store", "--json").returncode == 0
