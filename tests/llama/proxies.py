"""`kvswap llama` as a process, with a real llama-server behind it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvswap.integrations.llamacpp.proxy.launch import free_port

_TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds the weather. "


def until(met: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    """Wait until something is so, and return what it is."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := met():
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {seconds:g} s")


def document(words: int, of: str = "") -> str:
    """A text of about so many times six tokens, that begins as no other of another name."""
    return of + (_TEXT * (words // 14 + 1))[: 6 * words]


@dataclass
class Proxy:
    """A proxy of one home; `port` stays over restarts."""

    home: Path
    model: Path
    flags: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    port: int = field(default_factory=free_port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, ready: bool = True) -> None:
        self.home.mkdir(exist_ok=True, parents=True)
        command = [sys.executable, "-m", "kvswap", "llama", "--home", str(self.home), "-m", str(self.model)]
        command += [
            "-c",
            "8192",
            "-np",
            "1",
            "-t",
            "2",
            "--no-warmup",
            "--lookup-seconds",
            "600",
            "--port",
            str(self.port),
            *self.flags,
        ]
        with (self.home / "output.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | self.env)
        if ready:
            self.wait()

    def wait(self) -> None:
        """Wait until the server answers and it is decided whether anything is kept."""
        until(self._ready, "the proxy is ready")

    def _ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError((self.home / "output.log").read_text()[-3000:])
        try:
            status = self.status()
        except (OSError, ValueError):
            return False
        return bool(status["keeping"]) or status["reason"] not in ("llama-server is loading its model",)

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it, and return its exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)

    def restart(self) -> None:
        assert self.end() == 0
        self.start()

    def server_pid(self) -> int:
        """The process of the llama-server."""
        assert self.process is not None
        import psutil

        (child,) = psutil.Process(self.process.pid).children()
        return int(child.pid)

    # -- asking --------------------------------------------------------------------------------------

    def ask(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"} | (headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    def post(self, path: str, body: Any) -> Any:
        status, _, text = self.ask(path, body)
        assert status == 200, text
        return json.loads(text)

    def status(self) -> dict[str, Any]:
        return json.loads(self.ask("/kvswap/status")[2])

    def counts(self) -> dict[str, Any]:
        return self.status()["counts"]

    def complete(self, prompt: Any, tokens: int = 8, **more: Any) -> dict[str, Any]:
        """Greedy tokens after a prompt, with the server's own counts."""
        return self.post(
            "/completion", {"prompt": prompt, "n_predict": tokens, "temperature": 0, "return_tokens": True} | more
        )

    def chat(self, *texts: str, tokens: int = 8, **more: Any) -> dict[str, Any]:
        """An answer to a chat whose texts are the system's, the user's and the assistant's in turn."""
        roles = ["system", *(("user", "assistant")[at % 2] for at in range(len(texts) - 1))]
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
        return self.post("/v1/chat/completions", {"messages": messages, "max_tokens": tokens, "temperature": 0} | more)

    def until_saved(self) -> dict[str, Any]:
        """Wait until what was answered so far is saved and on the disk, and return the counts."""
        return until(lambda: (c := self.status())["pending"] == 0 and c["counts"], "everything is saved")
