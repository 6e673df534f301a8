"""A node, an honest peer that delivered to it before, and attackers in a process of their own, held to one core."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from kvswap.artifact.specs import LayerSpec
from kvswap.net import messages
from tests.support import ROOT, Daemon, Ingested, key, make_artifact, stock, until
from tests.swarm.attackers import Aim

SPECS = (LayerSpec.key_value("full", 4, 64, 64),) * 8


def artifact() -> Ingested:
    """20 MB in 20 chunks."""
    return make_artifact(tokens=4096, block_tokens=256, specs=SPECS, lifetime=5 * 86_400)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Fetched:
    """A fetch that ended well: how long it took, by its caller's clock, and from whom."""

    seconds: float
    peers: list[str]


@dataclass
class Siege:
    """The victim, and who delivered to it before."""

    root: Path
    made: Ingested
    victim: Daemon
    honest: Daemon
    attackers: list[subprocess.Popen[str]] = field(default_factory=list)

    @classmethod
    def begin(cls, root: Path, made: Ingested) -> Siege:
        """Start both, and let the victim fetch once."""
        port = free_port()
        stock(root / "honest", made)
        env = {"KVSWAP_MODELS": str(root / "none")}
        listen = ["--listen", f"/ip4/127.0.0.1/tcp/{free_port()}"]  # where it is found again
        honest = Daemon(root / "honest", listen, env).start()
        victim = Daemon(root / "victim", ["--bootstrap", honest.address], env | {"KVSWAP_BULK_PORT": str(port)})
        siege = cls(root, made, victim.start(), honest)
        victim.client.trust_add(str(key().peer_id))
        until(lambda: victim.client.status()["peers"], what="the victim to meet the honest peer")
        aim = Aim(
            victim.address,
            port,
            str(made.manifest.document.reference) if made.manifest.document else "",
            messages.Found(
                made.id,
                made.manifest.model.digest,
                made.manifest.layout.dtype,
                made.manifest.prefix.tokens,
                made.manifest.wire_bytes,
                made.manifest.publisher,
                True,
            ),
            made.statement.envelope,
            {str(file.id): file.length for file in made.manifest.files},
        )
        (root / "aim.json").write_bytes(msgspec.json.encode(aim))
        siege.fetch()
        return siege

    def fetch(self) -> Fetched:
        """Fetch the document anew.  Raises what the fetch does."""
        client = self.victim.client
        if client.artifacts():
            client.remove(self.made.id)
            client.collect(0)
        began = time.monotonic()
        report = client.fetch(str(self.made.manifest.document.reference), force=True).report  # type: ignore[union-attr]
        return Fetched(time.monotonic() - began, report["from"])

    @contextmanager
    def attacked(self, *kinds: str, ready: float = 600) -> Iterator[Attackers]:
        """While it lasts, strangers do all of these, on the last core."""
        core = max(os.sched_getaffinity(0))
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.swarm.attackers", str(self.root / "aim.json"), *kinds],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),  # noqa: PLW1509
        )
        attackers = Attackers(process)
        try:
            attackers.wait(ready)
            yield attackers
        finally:
            attackers.end()

    def pid(self) -> int:
        assert self.victim.process is not None
        return self.victim.process.pid

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid()}/clear_refs").write_text("5")

    def peak_rss(self) -> int:
        """The most memory that the victim had since the last `forget_peak`, in bytes."""
        lines = Path(f"/proc/{self.pid()}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

    def end(self) -> None:
        for node in (self.victim, self.honest):
            node.stop()


@dataclass
class Attackers:
    process: subprocess.Popen[str]
    did: dict[str, Any] = field(default_factory=dict)

    def wait(self, seconds: float) -> None:
        """Until each kind has begun, or so long."""
        import select

        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], seconds)
        if readable:
            line = self.process.stdout.readline()
            assert line == "ready\n", line

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            out, _ = self.process.communicate(timeout=600)
            self.did = json.loads(out.splitlines()[-1])
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
