"""What goes wrong between peers, each with real processes over real libp2p and HTTPS.

In all of them: no unverified byte is indexed, nothing hangs past its time-out, and the event log says
why.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvswap.artifact.layout import needed
from kvswap.artifact.specs import LayerSpec
from kvswap.core.limits import LIMITS
from tests.support import Daemon, Ingested, Running, key, kvswap, last_json, make_artifact, stock, until

pytestmark = [pytest.mark.swarm, pytest.mark.faults]
Start = Callable[..., Daemon]
SPECS = (LayerSpec.key_value("full", 4, 64, 64),) * 4
SLOW = {"KVSWAP_UPLOAD_BYTES_PER_SECOND": "8000000"}


@pytest.fixture(scope="module")
def made() -> Ingested:
    """20 MB in 20 chunks."""
    return make_artifact(tokens=8192 // 2, block_tokens=256, specs=SPECS * 2, lifetime=5 * 86_400)


@pytest.fixture
def nodes(daemon: Start, tmp_path: Path, made: Ingested) -> Start:
    """Starts nodes without a model: `nodes(name, kind=…, holds=True, to=[…])`."""

    def start(name: str, *, kind: str | None = None, holds: bool = False, to: Any = (), **options: Any) -> Daemon:
        if holds:
            stock(tmp_path / name, made)
        flags = [flag for other in to for flag in ("--bootstrap", other.address)]
        program = ("tests.swarm.invalid_sender", kind) if kind else ("kvswap",)
        node = daemon(name, *flags, program=program, KVSWAP_MODELS=str(tmp_path / "none"), **options)
        if not holds:
            node.client.trust_add(str(key().peer_id))
        if to:
            until(lambda: node.client.status()["peers"] >= len(to), what=f"{name} to meet the others")
        return node

    return start


def fetch(node: Daemon, made: Ingested, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    return kvswap(node.home, "fetch", made.id, "--force", "--json", timeout=timeout)


def begin(node: Daemon, made: Ingested) -> Running:
    """A fetch under way: returns once chunks are arriving."""
    process = Running(node.home, "fetch", made.id, "--force", "--json")
    until(lambda: node.client.status()["store_bytes"] > 0, what="the first chunk")
    return process


def check_complete(node: Daemon, made: Ingested) -> None:
    wanted = sum(made.manifest.chunks[i].length for i in needed(made.manifest))
    assert node.client.status()["store_bytes"] == wanted
    check_store(node)


def check_store(node: Daemon) -> None:
    """Every listed chunk has its digest."""
    report = last_json(kvswap(node.home, "verify", "--store", "--json"))
    assert report["clean"] is True and report["quarantined"] == 0, report


def reasons(node: Daemon, kind: str) -> list[str]:
    return [event["reason"] for event in node.client.events() if event["event"] == kind]


PLANES = {"https": {}, "libp2p": {"KVSWAP_BULK": "false"}}


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("kind", ["flip", "truncate", "swap"])
def test_a_liar_gives_nothing_and_is_remembered(nodes: Start, made: Ingested, kind: str, plane: str) -> None:
    sends_invalid_data = nodes("liar", kind=kind, holds=True, **PLANES[plane])
    alone = nodes("alone", to=[sends_invalid_data], **PLANES[plane])
    done = fetch(alone, made)
    assert done.returncode == 6, done.stderr
    assert last_json(kvswap(alone.home, "verify", "--store", "--json"))["checked"] == 0  # nothing was indexed
    (peer,) = alone.client.peers()
    assert peer["lies"] == 1 and peer["bytes_in"] == 0 and reasons(alone, "peer_lied")
    asked = sends_invalid_data.client.status()["bytes_out"]
    assert fetch(alone, made).returncode in (5, 9)  # it is not even asked again
    assert sends_invalid_data.client.status()["bytes_out"] == asked
    honest = nodes("honest", holds=True, **PLANES[plane])
    both = nodes("both", to=[sends_invalid_data, honest], **PLANES[plane])
    done = fetch(both, made)
    assert done.returncode == 0, done.stderr
    assert last_json(done)["from"] == [honest.ready["peer"]]
    check_complete(both, made)


@pytest.mark.parametrize("kind", ["claim", "breaking", "silent", "trickle"])
def test_a_useless_peer_costs_little_beside_a_good_one(nodes: Start, made: Ingested, kind: str) -> None:
    bad, good = nodes("bad", kind=kind, holds=True), nodes("good", holds=True)
    reader = nodes("reader", kind="patient", to=[bad, good])  # it has an hour: what it waited for would take that
    done = fetch(reader, made)
    assert done.returncode == 0, done.stderr
    assert last_json(done)["from"] == [good.ready["peer"]]
    check_complete(reader, made)


@pytest.mark.parametrize("kind", ["claim", "breaking", "silent", "trickle"])
def test_a_useless_peer_alone_is_given_up_in_bounded_time(nodes: Start, made: Ingested, kind: str) -> None:
    bad = nodes("bad", kind=kind, holds=True)
    reader = nodes("reader", to=[bad])
    done = fetch(reader, made)
    assert done.returncode == 9, done.stderr
    assert "resumes" in done.stderr and reasons(reader, "peer_failed")
    check_store(reader)


@pytest.mark.parametrize("kind", ["certificate", "expired"])
def test_without_a_usable_bulk_plane_libp2p_carries_the_chunks(nodes: Start, made: Ingested, kind: str) -> None:
    bad = nodes("bad", kind=kind, holds=True)
    reader = nodes("reader", to=[bad])
    done = fetch(reader, made)
    assert done.returncode == 0, done.stderr
    (reason,) = reasons(reader, "without_bulk")
    assert ("certificate" if kind == "certificate" else "401") in reason
    check_complete(reader, made)


def test_a_token_that_ends_under_way_is_renewed(nodes: Start, made: Ingested) -> None:
    server = nodes("server", kind="forgetful", holds=True, **SLOW)
    reader = nodes("reader", to=[server])
    done = fetch(reader, made)
    assert done.returncode == 0, done.stderr
    assert reasons(reader, "without_bulk") == []
    check_complete(reader, made)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_peer_that_dies_or_freezes_half_way_is_replaced(nodes: Start, made: Ingested, how: signal.Signals) -> None:
    victim, other = nodes("victim", holds=True, **SLOW), nodes("other", holds=True, **SLOW)
    reader = nodes("reader", to=[victim, other])
    process = begin(reader, made)
    assert victim.process is not None
    victim.process.send_signal(how)
    try:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        check_complete(reader, made)
    finally:
        victim.process.send_signal(signal.SIGCONT)


def test_a_frozen_peer_alone_is_given_up(nodes: Start, made: Ingested) -> None:
    victim = nodes("victim", holds=True, **SLOW)
    reader = nodes("reader", to=[victim])
    process = begin(reader, made)
    assert victim.process is not None
    victim.process.send_signal(signal.SIGSTOP)
    try:
        _, err = process.communicate(timeout=600)
        assert process.returncode == 9, err
        assert reasons(reader, "peer_failed")
    finally:
        victim.process.send_signal(signal.SIGCONT)
    check_store(reader)


def test_a_peer_that_comes_back_under_another_address_is_found_again(nodes: Start, made: Ingested) -> None:
    victim = nodes("victim", holds=True, **SLOW)
    reader = nodes("reader", to=[victim])
    process = begin(reader, made)
    before = victim.address
    assert reader.process is not None
    reader.process.send_signal(signal.SIGSTOP)  # however long the other takes to start
    try:
        victim.stop(signal.SIGKILL)
        victim.flags = ["--bootstrap", reader.address]
        victim.start()
    finally:
        reader.process.send_signal(signal.SIGCONT)
    assert victim.address != before
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    check_complete(reader, made)


def test_a_reader_killed_thirty_times_resumes_and_never_holds_a_wrong_byte(nodes: Start, made: Ingested) -> None:
    server = nodes("server", holds=True, KVSWAP_UPLOAD_BYTES_PER_SECOND="10000000")
    reader = nodes("reader", to=[server])
    wire = sum(made.manifest.chunks[i].length for i in needed(made.manifest))
    largest = max(c.length for c in made.manifest.chunks)
    rng = random.Random(7)
    kills = 0
    while kills < 30:
        process = begin(reader, made)
        time.sleep(rng.random() * 0.15)  # a random point, not a wait
        reader.stop(signal.SIGKILL)
        process.communicate(timeout=600)
        kills += 1
        if kills % 10 == 0:  # begin again from nothing, so that every phase is hit
            shutil.rmtree(reader.home / "store")
        reader.start()
        until(lambda: reader.client.status()["peers"], what="the reader to be back")
    done = fetch(reader, made)
    assert done.returncode == 0, done.stderr
    check_complete(reader, made)
    # Three whole transfers, and at most what was in flight at each kill.
    sent = server.client.status()["bytes_out"]
    assert sent <= 4 * wire + kills * LIMITS.chunks_per_peer * largest


def test_a_full_disk_ends_the_fetch_clearly_and_leaves_the_store_right(
    nodes: Start, daemon: Start, made: Ingested, tmp_path: Path
) -> None:
    probe = subprocess.run(["unshare", "-r", "-m", "true"], capture_output=True)
    if probe.returncode:
        pytest.skip("no user namespaces here")
    server = nodes("server", holds=True)
    small = tmp_path / "reader"
    small.mkdir()
    script = f'mount -t tmpfs -o size=6m tmpfs {small} && exec "$@"'
    # Inside its mount namespace the home is a small disk; the run-file is read through /proc.
    reader = daemon(
        "reader",
        "--bootstrap",
        server.address,
        wrapper=("unshare", "-r", "-m", "sh", "-c", script, "sh"),
        KVSWAP_MODELS=str(tmp_path / "none"),
    )
    assert reader.process is not None
    inside = Path(f"/proc/{reader.process.pid}/root{small}")
    from kvswap import Client
    from kvswap.core.errors import StoreFull

    client = Client(inside)
    client.trust_add(str(key().peer_id))
    until(lambda: client.status()["peers"], what="the reader to meet the server")
    with pytest.raises(StoreFull):
        client.fetch(made.id, force=True)
    assert client.verify(store=True)["clean"] is True
    assert client.status()["store_bytes"] > 0  # what fitted is kept


@pytest.mark.parametrize("server_clock,reader_clock", [("future", None), ("past", None), (None, "future")])
def test_a_clock_two_days_off_changes_nothing(
    nodes: Start, made: Ingested, server_clock: str | None, reader_clock: str | None
) -> None:
    server = nodes("server", kind=server_clock, holds=True)
    reader = nodes("reader", kind=reader_clock, to=[server])
    done = fetch(reader, made)
    assert done.returncode == 0, done.stderr
    assert reasons(reader, "without_bulk") == []
    check_complete(reader, made)


def test_a_reader_two_days_behind_is_told_that_the_artifact_is_from_its_future(nodes: Start, made: Ingested) -> None:
    server = nodes("server", holds=True)
    reader = nodes("reader", kind="past", to=[server])
    done = fetch(reader, made)
    assert done.returncode == 4 and "clock" in done.stderr, done.stderr
    assert reader.client.status()["store_bytes"] == 0
