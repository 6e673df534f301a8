"""Documents for some and not for others, between processes: what members get, and what everybody else sees."""

from __future__ import annotations

import base64
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvswap.artifact.manifest import Manifest
from kvswap.core import wire
from kvswap.core.ids import peer_of
from kvswap.net import messages
from kvswap.net.client import session
from kvswap.trust import Group, read_statement
from kvswap.trust.groups import keys_of
from tests.support import DOCUMENT, Daemon, kvswap, last_json, run, until
from tests.swarm.bare import stranger

pytestmark = [pytest.mark.swarm]
Start = Callable[..., Daemon]
TEXT = DOCUMENT.read_text()[:1200]
ASK = ("What?", "--max-tokens", "8", "--ignore-eos", "--json")


def node(daemon: Start, tiny_models: dict[str, Path], name: str, *peers: Daemon) -> Daemon:
    bootstrap = [part for peer in peers for part in ("--bootstrap", peer.address)]
    flags = ("--model", str(tiny_models["llama"]), "--dtype", "float32")
    started = daemon(name, *bootstrap, *flags, KVSWAP_BLOCK_TOKENS="64")
    until(lambda: started.client.status()["peers"] >= len(peers), what=f"{name} to meet its peers")
    return started


def secrets(manifest: Manifest) -> list[bytes]:
    """What would lead from what is seen to what was published."""
    assert manifest.document is not None
    digests = [manifest.model.digest, manifest.model.weights, manifest.document.sha256, manifest.prefix.token_digest]
    digests += [
        *manifest.prefix.chain,
        *(digest for layer in manifest.tensors for digest in layer),
        *(c.raw for c in manifest.chunks),
    ]
    return [*digests, *(d.hex().encode() for d in digests), TEXT[:24].encode()]


def everything(home: Path) -> bytes:
    """All that a node has written in its store, about its peers, and of what it verified."""
    for path in home.rglob("*.sqlite3"):
        sqlite3.connect(path).execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return b"".join(p.read_bytes() for p in sorted(home.rglob("*")) if p.is_file() and "keys" not in p.parts)


async def told(of: Daemon, document: str, artifact: str) -> bytes:
    """Everything that a peer of no group is told who asks for these over libp2p."""
    async with stranger(of) as transport:
        me = messages.Provider(transport.peer, [])
        async with session(transport, peer_of(of.address)) as asking:
            replies: list[Any] = [
                await asking.ask(messages.Find("curious", document=document), messages.FindReply),
                await asking.ask(messages.Find("curious", artifact=artifact), messages.FindReply),
                await asking.ask(messages.Join(artifact, me, False), messages.JoinReply),
                await asking.ask(messages.GetPrefixIndex(0), messages.PrefixIndexReply),
                await asking.ask(messages.GetManifest(artifact), bytes),
            ]
    assert replies[0].found == [] and [f.artifact for f in replies[1].found] == [artifact]
    return b"".join(wire.pack(wire.plain(reply)) for reply in replies)


@pytest.mark.faults
def test_members_share_and_others_learn_nothing(daemon: Start, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    document = tmp_path / "document.txt"
    document.write_text(TEXT)
    a = node(daemon, tiny_models, "a")
    assert kvswap(a.home, "group", "new", "team").returncode == 0
    exported = kvswap(a.home, "group", "export", "team").stdout
    published = last_json(kvswap(a.home, "publish", str(document), "--group", "team", "--json"))
    assert published["group"] == "team" and not published["reused"]
    again = last_json(kvswap(a.home, "publish", str(document), "--group", "team", "--json"))
    assert again["reused"] and again["artifact"] == published["artifact"]
    assert last_json(kvswap(a.home, "ls", "--json"))["artifacts"][0]["group"] == "team"

    b = node(daemon, tiny_models, "b", a)
    joined = kvswap(b.home, "group", "import", "--name", "colleagues", typed=exported)
    assert joined.returncode == 0 and "colleagues" in joined.stdout
    b.client.trust_add(a.publisher)
    done = kvswap(b.home, "fetch", str(document), "--group", "colleagues", "--force", "--json")
    assert done.returncode == 0, done.stderr
    assert last_json(done)["artifact"] == published["artifact"]
    answers = [last_json(kvswap(b.home, "ask", str(document), *ASK, *more)) for more in (("--force",), ("--prefill",))]
    assert answers[0]["artifact"] == published["artifact"] and answers[0]["computed_tokens"] == 0
    assert answers[0]["logits_digest"] == answers[1]["logits_digest"]
    report = last_json(kvswap(b.home, "verify", str(document), "--level", "5", "--json"))
    assert {"V1", "V2", "V3", "V5"} <= set(report["passed"])
    assert b.client.show(published["artifact"])["group"] == "colleagues"
    assert "key" not in b.client.show(published["artifact"])
    cache = in_another_process(b, published["artifact"], tiny_models["llama"])
    assert cache == str(published["tokens"])

    # somebody who is in no group, and trusts the publisher
    c = node(daemon, tiny_models, "c", a, b)
    c.client.trust_add(a.publisher)
    assert kvswap(c.home, "fetch", str(document), "--force").returncode == 5
    refused = kvswap(c.home, "fetch", published["artifact"], "--force")
    assert refused.returncode == 4 and "group" in refused.stderr, refused.stderr
    assert kvswap(c.home, "fetch", str(document), "--group", "team").returncode == 5
    assert kvswap(c.home, "ask", published["artifact"], "What?", "--force").returncode == 4

    envelope = base64.b64decode(a.client.show(published["artifact"])["envelope"])
    manifest = read_statement(envelope, keys_of([Group.from_text(exported)])).manifest
    heard = run(told(a, published["document"], published["artifact"]))
    for where in (a, b, c):
        where.stop()
    for where in (a, b, c):
        seen = everything(where.home) + heard
        for secret in secrets(manifest):
            assert secret not in seen, where.home.name

    # who loses the key has numbers left
    assert kvswap(b.start().home, "group", "rm", "colleagues").returncode == 0
    rows = last_json(kvswap(b.home, "ls", "--json"))["artifacts"]
    assert [(r["artifact"], r["label"], r["tokens"]) for r in rows] == [(published["artifact"], "(sealed)", 0)]
    assert kvswap(b.home, "show", published["artifact"]).returncode == 4
    assert kvswap(b.home, "fetch", published["artifact"]).returncode == 4


def in_another_process(of: Daemon, artifact: str, model: Path) -> str:
    """How long the cache is that an agent script loads."""
    script = (
        "import sys, kvswap, torch; from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32)\n"
        "print(kvswap.Client().fetch(sys.argv[1]).load(model).get_seq_length())"
    )
    env: dict[str, Any] = os.environ | {"KVSWAP_HOME": str(of.home)}
    done = subprocess.run([sys.executable, "-c", script, artifact, str(model)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.faults
def test_a_shared_beginning_is_found_within_the_group(
    daemon: Start, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """By salted chain digests: the same beginning, another end, and the rest is prefilled."""
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text(TEXT)
    second.write_text(TEXT + " And something else entirely, which nobody has published yet.")
    a = node(daemon, tiny_models, "a")
    kvswap(a.home, "group", "new", "team")
    published = last_json(kvswap(a.home, "publish", str(first), "--group", "team", "--json"))
    b = node(daemon, tiny_models, "b", a)
    kvswap(b.home, "group", "import", typed=kvswap(a.home, "group", "export", "team").stdout)
    b.client.trust_add(a.publisher)
    answer = last_json(kvswap(b.home, "ask", str(second), *ASK, "--force", "--group", "team"))
    assert answer["artifact"] == published["artifact"] and answer["fetched_tokens"] >= 64
    alone = last_json(kvswap(b.home, "ask", str(second), *ASK, "--prefill"))
    assert answer["logits_digest"] == alone["logits_digest"]
