"""Peers that lie, as real processes over real libp2p."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import ROOT, Daemon, kvswap, last_json, until
from tests.swarm.test_main_job import digest_of, small, tiny_flags

pytestmark = [pytest.mark.swarm]


class Liar(Daemon):
    """A daemon of `tests.swarm.liar` on this home."""

    kind = "flip"

    def start(self) -> Daemon:
        self.flags = [f for f in self.flags if f]
        command = [sys.executable, "-m", "tests.swarm.liar", self.kind, "daemon", "--json", "--home", str(self.home)]
        log = (self.home / "stderr.log").open("a")
        self.process = subprocess.Popen(
            [*command, "--no-mdns", *self.flags], stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
        )
        assert self.process.stdout is not None
        self.ready = __import__("json").loads(self.process.stdout.readline())
        return self


@pytest.mark.parametrize("kind", ["flip", "truncate"])
def test_a_lying_peer_is_marked_and_an_honest_one_serves(
    daemon: Callable[..., Daemon], tiny_models: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    flags = tiny_flags(tiny_models)
    a = daemon("a", *flags)
    document = small(tmp_path, size=4000)
    assert kvswap(a.home, "publish", str(document)).returncode == 0
    honest = daemon("honest", "--bootstrap", a.address, *flags)
    honest.client.trust_add(a.publisher)
    until(lambda: honest.client.status()["peers"], what="the two to meet")
    assert kvswap(honest.home, "fetch", digest_of(document), "--force").returncode == 0
    a.stop()
    liar = Liar(a.home, flags)
    liar.kind = kind
    liar.start()
    try:
        alone = daemon("alone", "--bootstrap", liar.address, *flags)
        alone.client.trust_add(a.publisher)
        until(lambda: alone.client.status()["peers"], what="the reader to meet the liar")
        done = kvswap(alone.home, "fetch", digest_of(document), "--force", "--json")
        assert done.returncode == 6, done.stderr
        assert last_json(kvswap(alone.home, "verify", "--store", "--json"))["checked"] == 0  # nothing was indexed
        peer = alone.client.peers()[0]
        assert peer["lies"] >= 1 and peer["peer"] == liar.ready["peer"]
        both = daemon("both", "--bootstrap", liar.address, "--bootstrap", honest.address, *flags)
        both.client.trust_add(a.publisher)
        until(lambda: both.client.status()["peers"] == 2, what="the reader to meet both")
        done = kvswap(both.home, "fetch", digest_of(document), "--force", "--json")
        assert done.returncode == 0, done.stderr
        assert last_json(done)["from"] == [honest.ready["peer"]]
        assert last_json(kvswap(both.home, "verify", "--store", "--json"))["clean"] is True
    finally:
        liar.stop()
