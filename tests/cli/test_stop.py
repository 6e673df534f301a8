"""`kvswap stop`: the daemon ends as by a signal, and the verb waits until it has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvswap.cli.commands.stop import ended
from kvswap.cli.main import main
from kvswap.cli.output import Output
from kvswap.core.runfile import RunFile
from tests.support import Daemon, kvswap, last_json, until


def test_it_returns_when_the_daemon_has_ended(daemon: Callable[..., Daemon]) -> None:
    node = daemon("a", "--no-p2p")
    done = kvswap(node.home, "stop", "--json")
    assert done.returncode == 0, done.stderr
    told = last_json(done)
    assert told["stopped"] and told["home"] == str(node.home) and ended(told["pid"])
    assert not (node.home / "daemon.json").exists() and not (node.home / "daemon.sock").exists()
    assert node.process is not None and node.process.wait(60) == 0
    assert "a client asked for it" in (node.home / "kvswap.log").read_text()
    again = kvswap(node.home, "stop")
    assert again.returncode == 10
    node.start()  # the home is free
    assert node.client.status()["home"] == str(node.home)


def test_it_may_be_told_not_to_wait(daemon: Callable[..., Daemon]) -> None:
    node = daemon("a", "--no-p2p")
    done = kvswap(node.home, "stop", "--timeout", "0")
    assert done.returncode == 0 and "asked process" in done.stdout
    assert node.process is not None and node.process.wait(60) == 0


def test_one_that_does_not_end_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    client = SimpleNamespace(stop=lambda: SimpleNamespace(pid=os.getpid(), home="/x"))
    monkeypatch.setattr(Output, "client", property(lambda self: client))
    assert main(["stop", "--timeout", "0.2"]) == 1
    shown = capsys.readouterr().err
    assert f"process {os.getpid()}" in shown and f"kill {os.getpid()}" in shown


def test_a_frozen_daemon_is_told(
    daemon: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kvswap.client import calls

    node = daemon("a", "--no-p2p", cold=True)
    pid = RunFile.read(node.home).pid
    os.kill(pid, signal.SIGSTOP)
    try:
        monkeypatch.setattr(calls, "SHORT_SECONDS", 0.3)
        monkeypatch.setattr(calls.Call, "head_seconds", property(lambda self: 0.3))
        assert main(["--home", str(node.home), "stop"]) == 10
        assert "does not answer" in capsys.readouterr().err
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_process_that_nobody_waited_for_has_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    assert until(lambda: ended(child.pid), what="the end of a process")
    child.wait()
    assert ended(child.pid) and not ended(os.getpid()) and not ended(1)


def test_an_api_without_an_end_says_so(tmp_path: Path) -> None:
    from aiohttp.test_utils import TestClient

    from tests.daemon.test_state import HEADERS, served
    from tests.exchange.test_fetch import world
    from tests.support import run

    async def body() -> None:
        async with world(tmp_path) as w:
            async with TestClient(served(await w.node())) as client:
                async with client.post("/v1/stop", headers=HEADERS) as response:
                    told: dict[str, Any] = await response.json()
                    assert response.status == 400 and "another program" in told["error"]["cause"]

    run(body())
