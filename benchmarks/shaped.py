"""Nodes in network namespaces on one bridge, their links shaped with `tc tbf`.  Linux, root, iproute2.

    with Network({"a": 100, "b": 1000}) as network:       Mbit/s of each node's uplink
        node = network.daemon("a", home)

A node is `kvswap daemon` in its namespace; the command line talks to it from inside, as a user would.
Only the uplink of a node is shaped unless `down` says otherwise: what it receives is what others send.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support import ROOT, Daemon

_NET = "10.213.0"
_numbers = itertools.count()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Network:
    """One bridge, one namespace for each name."""

    def __init__(self, uplinks: dict[str, float], down: dict[str, float] | None = None) -> None:
        self._up, self._down = uplinks, down or {}
        self._tag = f"k{os.getpid() % 10_000}{chr(97 + next(_numbers) % 26)}"  # names of links have 15 characters
        self._nodes: list[Daemon] = []
        self.address = {name: f"{_NET}.{number}" for number, name in enumerate(uplinks, start=1)}

    def __enter__(self) -> Network:
        self._delete()
        _ip("link", "add", f"{self._tag}b", "type", "bridge")
        _ip("link", "set", f"{self._tag}b", "up")
        for number, (name, rate) in enumerate(self._up.items()):
            outside, inside = f"{self._tag}v{number}", f"{self._tag}p{number}"
            _ip("netns", "add", self._ns(name))
            _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", self._ns(name))
            _ip("link", "set", outside, "master", f"{self._tag}b", "up")
            for command in (
                ("addr", "add", f"{self.address[name]}/24", "dev", inside),
                ("link", "set", inside, "up"),
                ("link", "set", "lo", "up"),
            ):
                _ip("-n", self._ns(name), *command)
            if rate:
                self._shape(["ip", "netns", "exec", self._ns(name)], inside, rate)
            if name in self._down:
                self._shape([], outside, self._down[name])
        return self

    @staticmethod
    def _shape(prefix: list[str], device: str, mbit: float) -> None:
        # A burst of 2 ms, and room for 30 ms of queue: what a home router does at best.
        burst = max(16_000, int(mbit * 1e6 / 8 * 0.002))
        limit = max(64_000, int(mbit * 1e6 / 8 * 0.03)) + burst
        command = ["tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", f"{mbit}mbit"]
        subprocess.run([*prefix, *command, "burst", str(burst), "limit", str(limit)], check=True)

    def _ns(self, name: str) -> str:
        return f"{self._tag}-{name}"

    def daemon(self, name: str, home: Path, *flags: str, **env: str) -> Daemon:
        """Start a node that listens on its address."""
        listen = f"/ip4/{self.address[name]}/tcp/0"
        node = Daemon(
            home,
            ["--listen", listen, *flags],
            {"KVSWAP_MODELS": str(home / "none"), "KVSWAP_QUOTA_BYTES": str(10**11), **env},
            wrapper=self.wrapper(name),
        ).start()
        self._nodes.append(node)
        return node

    def wrapper(self, name: str) -> tuple[str, ...]:
        """What runs a command in a node's namespace."""
        return ("ip", "netns", "exec", self._ns(name))

    def run(self, name: str, home: Path, *arguments: str) -> subprocess.Popen[str]:
        """`kvswap …` in a node's namespace, with --json."""
        command = [*self.wrapper(name), sys.executable, "-m", "kvswap", *arguments]
        command += ["--home", str(home), "--json"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)

    def ask(self, name: str, home: Path, *arguments: str) -> dict[str, Any]:
        """The JSON answer of `kvswap …`.  Raises with what it said."""
        return answer(self.run(name, home, *arguments))

    def meet(self, name: str, home: Path, count: int) -> None:
        """Wait until a node has so many connected peers."""
        deadline = time.monotonic() + 60
        while self.ask(name, home, "status")["peers"] < count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} has not met {count} peers")
            time.sleep(0.2)

    def sent(self, name: str) -> int:
        """Bytes that have left a node's link, headers included."""
        return int(Path(f"/sys/class/net/{self._outside(name)}/statistics/rx_bytes").read_text())

    def cut(self, name: str) -> None:
        """Nothing reaches a node any more, nor does anything leave it, and nobody is told."""
        _ip("link", "set", self._outside(name), "down")

    def mend(self, name: str) -> None:
        _ip("link", "set", self._outside(name), "up")

    def _outside(self, name: str) -> str:
        return f"{self._tag}v{list(self._up).index(name)}"

    def stop(self, *nodes: Daemon) -> None:
        for node in nodes:
            node.stop(signal.SIGTERM)
            self._nodes.remove(node)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self._nodes:
            node.stop(signal.SIGKILL)
        self._delete()

    def _delete(self) -> None:
        for name in self._up:
            subprocess.run(["ip", "netns", "del", self._ns(name)], capture_output=True)
        subprocess.run(["ip", "link", "del", f"{self._tag}b"], capture_output=True)


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The last line of a verb's JSON output."""
    out, err = process.communicate(timeout=600)
    if process.returncode:
        raise RuntimeError(f"exit {process.returncode}: {err}")
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found
