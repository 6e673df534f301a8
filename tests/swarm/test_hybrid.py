"""Computing and fetching at once, between processes: the answer is a whole prefill's, whatever the peer does."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import DOCUMENT, ROOT, Daemon, kvswap, last_json, until

pytestmark = [pytest.mark.swarm]
Start = Callable[..., Daemon]
STEPS = "16"


@dataclass(frozen=True)
class Before:
    """Two nodes that stand still: one has published the document, the other has computed it and knows how long it takes."""

    publisher: Path
    reader: Path
    document: Path
    digest: str  # of the prefilled answer
    rate: str  # bytes per second at which sending all of it takes as long as computing it


COMMON = {"KVSWAP_ALSO_CODEC": ""}


@pytest.fixture(scope="module")
def before(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Before:
    """Made once: publishing and computing are what costs here."""
    root = tmp_path_factory.mktemp("before")
    document = root / "document.txt"
    document.write_text(DOCUMENT.read_text()[:9000])
    a, b = Daemon(root / "a", [], COMMON), Daemon(root / "b", [], COMMON)
    try:
        a.start()
        made = last_json(kvswap(a.home, "publish", str(document), "--json"))
        b.start()
        b.client.trust_add(a.publisher)
        prefilled = answered(asking(b, document, "--prefill"))
        # By the figures that will plan, whatever they came to.
        computing = last_json(kvswap(b.home, "plan", str(document), "--json"))["prefill"]["seconds"]
    finally:
        for node in (b, a):
            node.stop()
    rate = str(int(made["wire_bytes"] / computing))
    return Before(a.home, b.home, document, prefilled["logits_digest"], rate)


@pytest.fixture
def pair(daemon: Start, before: Before, tmp_path: Path) -> tuple[Daemon, Daemon, Path, str]:
    """A slow publisher, a reader, the document, and the digest of the prefilled answer."""
    shutil.copytree(before.publisher, tmp_path / "a")
    shutil.copytree(before.reader, tmp_path / "b")
    a = daemon("a", KVSWAP_UPLOAD_BYTES_PER_SECOND=before.rate, **COMMON)
    b = daemon("b", "--bootstrap", a.address, KVSWAP_ASSUMED_LINK_BYTES_PER_SECOND=before.rate, **COMMON)
    until(lambda: b.client.status()["peers"], what="B to meet A")
    return a, b, before.document, before.digest


def asking(node: Daemon, document: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kvswap", "--home", str(node.home), "ask", str(document), "What is this about?"]
    command += ["--max-tokens", STEPS, "--ignore-eos", "--json", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def iter_until(process: subprocess.Popen[str], event: str) -> list[str]:
    """The lines up to an event, as they come."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if json.loads(line).get("event") == event:
            break
    return lines


def answered(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None and process.stderr is not None
    out, err = process.stdout.read(), process.stderr.read()
    assert process.wait(600) == 0, err
    made: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return made


def test_both_at_once_and_what_came_is_kept(pair: tuple[Daemon, Daemon, Path, str]) -> None:
    _, b, document, expected = pair
    plan = last_json(kvswap(b.home, "plan", str(document), "--json"))
    assert plan["action"] == "hybrid" and plan["hybrid"]["seconds"] < min(
        plan["fetch"]["seconds"], plan["prefill"]["seconds"]
    )
    made = answered(asking(b, document))
    assert made["logits_digest"] == expected and made["claim"] == "bitwise"
    assert made["plan"]["action"] == "hybrid"
    assert made["computed_tokens"] > 0 and made["fetched_tokens"] > 0 and made["wire_bytes"] > 0
    kept = b.client.status()["store_bytes"]
    assert kept > 0
    fetched = last_json(kvswap(b.home, "fetch", str(document), "--force", "--json"))
    assert 0 < fetched["wire_bytes"] < fetched["raw_bytes"]
    assert b.client.status()["store_bytes"] == kept + fetched["wire_bytes"]
    again = answered(asking(b, document))
    assert again["logits_digest"] == expected and again["computed_tokens"] == 0


@pytest.mark.faults
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("chunks", [0, 2])
def test_a_peer_that_goes_away_costs_only_computing_the_rest(
    pair: tuple[Daemon, Daemon, Path, str], how: signal.Signals, chunks: int
) -> None:
    a, b, document, expected = pair
    process = asking(b, document)
    begun = [json.loads(line)["event"] for line in iter_until(process, "plan")]
    assert "found" in begun
    if chunks:
        until(lambda: b.client.status()["store_bytes"] > (chunks - 1) * 2_000_000, what="chunks to arrive")
    assert a.process is not None
    a.process.send_signal(how)
    try:
        made = answered(process)
    finally:
        a.process.send_signal(signal.SIGCONT)
    assert made["logits_digest"] == expected
    assert made["computed_tokens"] > 0
