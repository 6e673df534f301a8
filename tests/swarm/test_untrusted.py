"""Artifacts of publishers whom nobody listed: verified before they are used, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attacks.kit import ATTACKS, MALLORY, Scene, forge
from tests.support import DOCUMENT, Daemon, kvswap, last_json, stock, until

pytestmark = [pytest.mark.swarm]
Start = Callable[..., Daemon]
TEXT = DOCUMENT.read_text()[:1200]


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "document.txt"
    path.write_text(TEXT)
    return path


def flags(tiny_models: dict[str, Path], kind: str = "llama") -> tuple[str, ...]:
    return ("--model", str(tiny_models[kind]), "--dtype", "float32")


def sends_invalid_data(daemon: Start, tiny_models: dict[str, Path], tmp_path: Path, attack: str) -> tuple[Daemon, str]:
    """A node that offers a well-signed lie about the document."""
    import time

    from kvswap.model.load import load_model
    from tests.attacks import kit

    loaded = load_model(tiny_models["llama"], "llama", "float32")
    ids = loaded.tokenize(TEXT)
    scene = Scene(loaded, TEXT, ids, loaded.tokenize(DOCUMENT.read_text()[5000:8000])[: len(ids)], 64)
    kit.NOW = int(time.time()) - 10
    made = forge(scene, ATTACKS[attack](scene))
    home = tmp_path / "liar"
    home.mkdir()
    stock(home, made)
    return daemon("liar", *flags(tiny_models), KVSWAP_BLOCK_TOKENS="64"), made.id


def reader(
    daemon: Start, tiny_models: dict[str, Path], *peers: Daemon, name: str = "reader", kind: str = "llama"
) -> Daemon:
    bootstrap = [part for peer in peers for part in ("--bootstrap", peer.address)]
    node = daemon(name, *bootstrap, *flags(tiny_models, kind), KVSWAP_BLOCK_TOKENS="64")
    until(lambda: node.client.status()["peers"] >= len(peers), what="the reader to meet its peers")
    return node


def test_an_honest_stranger_is_verified_with_the_text_and_without(
    daemon: Start, tiny_models: dict[str, Path], document: Path, tmp_path: Path
) -> None:
    a = daemon("a", *flags(tiny_models), KVSWAP_BLOCK_TOKENS="64")
    published = last_json(kvswap(a.home, "publish", str(document), "--json"))
    b = reader(daemon, tiny_models, a)
    refused = kvswap(b.home, "fetch", published["document"], "--force")
    assert refused.returncode == 4 and "--allow-untrusted" in refused.stderr and "trust add" in refused.stderr
    done = kvswap(b.home, "fetch", published["document"], "--force", "--allow-untrusted", "--json")
    assert done.returncode == 0, done.stderr
    said = last_json(done)["verification"]  # only the digest was given: the tokens were read back from layer 0
    assert set(said["passed"]) >= {"V1", "V2", "V3", "V5"} and set(said["unchecked"]) == {"V0", "V4", "V6", "V7"}
    audits = b.client.audits()
    assert [(x["verdict"], x["step"], x["artifact"]) for x in audits] == [("passed", "V5", published["artifact"])]
    asked = kvswap(b.home, "ask", str(document), "What?", "--max-tokens", "4", "--allow-untrusted", "--force", "--json")
    assert asked.returncode == 0, asked.stderr
    assert last_json(asked)["artifact"] == published["artifact"]
    assert len(b.client.audits()) == 1  # verified once
    assert kvswap(b.home, "fetch", published["artifact"]).returncode == 0  # and that is as good as trust in it
    report = last_json(kvswap(b.home, "verify", str(document), "--level", "7", "--json"))
    assert set(report["passed"]) >= {"V1", "V2", "V3", "V4", "V5", "V7"} and report["coverage"]["one_position"] == 1.0


@pytest.mark.faults
def test_windows_of_an_untrusted_publisher_are_verified_by_intervals(
    daemon: Start, tiny_models: dict[str, Path], document: Path
) -> None:
    """Sliding layers keep too little of the text for single positions: drawn intervals are computed, and that is said."""
    a = daemon("a", *flags(tiny_models, "gemma3"), KVSWAP_BLOCK_TOKENS="64")
    published = last_json(kvswap(a.home, "publish", str(document), "--json"))
    b = reader(daemon, tiny_models, a, kind="gemma3")
    done = kvswap(b.home, "fetch", str(document), "--force", "--allow-untrusted", "--json")
    assert done.returncode == 0, done.stderr
    assert '"event":"intervals"' in done.stdout.replace(" ", ""), done.stdout
    assert "V5" in last_json(done)["verification"]["passed"]
    assert b.client.audits() == [] and b.client.trust_list()["distrusted"] == []
    b.client.trust_add(a.publisher)
    report = last_json(kvswap(b.home, "verify", str(document), "--level", "7", "--json"))
    assert report["artifact"] == published["artifact"]
    assert {"V5", "V7"} <= set(report["passed"])


@pytest.mark.faults
def test_a_liar_is_caught_its_lie_removed_and_nothing_of_it_used_again(
    daemon: Start, tiny_models: dict[str, Path], document: Path, tmp_path: Path
) -> None:
    """Its layer 0 is right: only computing again shows it.  Another node that trusts the auditor hears of it."""
    a, artifact = sends_invalid_data(daemon, tiny_models, tmp_path, "swapped history")
    b = reader(daemon, tiny_models, a)
    done = kvswap(b.home, "fetch", str(document), "--force", "--allow-untrusted", "--json")
    assert done.returncode == 6 and "sampled positions" in done.stderr, done.stderr
    assert b.client.artifacts() == []
    caught = b.client.trust_list()["distrusted"]
    assert [row["peer"] for row in caught] == [str(MALLORY.peer_id)] and caught[0]["artifact"] == artifact
    assert any(e["event"] == "publisher_caught" for e in b.client.events())
    again = kvswap(b.home, "fetch", str(document), "--force", "--allow-untrusted")
    assert again.returncode == 4 and "is banned" in again.stderr
    shown = kvswap(b.home, "trust", "audits", str(MALLORY.peer_id))
    assert "failed" in shown.stdout and artifact in shown.stdout
    assert "BANNED" in kvswap(b.home, "trust", "ls").stdout


@pytest.mark.faults
def test_an_auditor_one_trusts_warns_of_a_liar(
    daemon: Start, tiny_models: dict[str, Path], document: Path, tmp_path: Path
) -> None:
    """The auditor has removed the lie; what it found it still tells."""
    a, artifact = sends_invalid_data(daemon, tiny_models, tmp_path, "swapped history")
    b = reader(daemon, tiny_models, a)
    assert kvswap(b.home, "fetch", str(document), "--force", "--allow-untrusted").returncode == 6
    b.client.trust_add(str(MALLORY.peer_id))
    again = kvswap(b.home, "fetch", artifact, "--force")
    assert again.returncode == 4 and "audit" in again.stderr  # its own audit of this one stands
    c = reader(daemon, tiny_models, a, b, name="c")
    c.client.trust_add(b.publisher, "auditor")
    c.client.trust_add(str(MALLORY.peer_id))
    warned = kvswap(c.home, "fetch", str(document), "--force")
    assert warned.returncode == 4 and "is banned" in warned.stderr, warned.stderr
    assert [row["peer"] for row in c.client.trust_list()["distrusted"]] == [str(MALLORY.peer_id)]
    d = reader(daemon, tiny_models, a, b, name="d")  # who does not trust the auditor is told nothing by it
    d.client.trust_add(str(MALLORY.peer_id))
    assert kvswap(d.home, "fetch", str(document), "--force").returncode == 0


@pytest.mark.faults
def test_a_withdrawn_artifact_is_not_used_any_more(
    daemon: Start, tiny_models: dict[str, Path], document: Path, tmp_path: Path
) -> None:
    a = daemon("a", *flags(tiny_models), KVSWAP_BLOCK_TOKENS="64")
    published = last_json(kvswap(a.home, "publish", str(document), "--json"))
    b = reader(daemon, tiny_models, a)
    b.client.trust_add(a.publisher)
    assert kvswap(b.home, "fetch", published["artifact"], "--force").returncode == 0
    assert kvswap(b.home, "withdraw", published["artifact"]).returncode == 2  # not its own
    done = kvswap(a.home, "withdraw", str(document), "--why", "a typing error")
    assert done.returncode == 0, done.stderr
    until(lambda: not b.client.artifacts(), what="B to hear that it was withdrawn")
    assert any(e["event"] == "withdrawn" and e["reason"] == "a typing error" for e in b.client.events())
    assert kvswap(a.home, "fetch", published["artifact"]).returncode in (4, 5)


@pytest.mark.faults
def test_who_trusts_a_publisher_follows_its_new_key_and_its_changed_source(
    daemon: Start, tiny_models: dict[str, Path], document: Path, tmp_path: Path
) -> None:
    a = daemon("a", *flags(tiny_models), KVSWAP_BLOCK_TOKENS="64")
    first = a.client.publish(TEXT, source="https://example.org/manual")
    b = reader(daemon, tiny_models, a)
    b.client.trust_add(a.publisher)
    assert kvswap(b.home, "fetch", first["artifact"], "--force").returncode == 0
    rotated = last_json(kvswap(a.home, "trust", "rotate", "--json"))
    assert rotated["old"] == a.publisher and a.client.identity()["publisher"] == rotated["new"]
    other = tmp_path / "other.txt"
    other.write_text(TEXT[100:])
    published = last_json(kvswap(a.home, "publish", str(other), "--json"))
    done = kvswap(b.home, "fetch", published["document"], "--force")
    assert done.returncode == 0, done.stderr
    assert {p["peer"]: p["how"] for p in b.client.trust_list()["publishers"]}[rotated["new"]].startswith("after")
    a.stop()
    a.start()  # the new key is the one on disk, and the old one still says so
    assert a.publisher == rotated["new"]
    # a source that changed takes the place of what stood there
    now = a.client.publish(TEXT[:800], source="https://example.org/manual")
    later = a.client.publish(TEXT[:900], source="https://example.org/manual")
    shown = a.client.show(later["artifact"])["manifest"]["life"]
    assert shown["supersedes"] == now["artifact"]
    gone = kvswap(a.home, "show", now["artifact"])
    assert gone.returncode == 5
