from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvswap.artifact import dsse
from kvswap.core import wire
from kvswap.core.errors import IntegrityError, KvswapError, MalformedManifest, Untrusted, UsageError
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.trust import Policy, PolicyFile, read_statement, require_trust, verify_envelope
from kvswap.trust.levels import PROOF_RULES
from kvswap.trust.policy import Ban, Publisher
from tests.support import key, make_artifact

NOW = 1_700_000_000
MADE = make_artifact(now=NOW)
ENVELOPE = MADE.statement.envelope


def test_a_right_envelope_is_accepted_and_named_by_its_payload() -> None:
    statement = verify_envelope(ENVELOPE, NOW + 10)
    assert statement.artifact == Cid.of(MADE.manifest.encode())


def test_pae_is_the_one_of_the_specification() -> None:
    assert dsse.pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(ENVELOPE) - 1), st.integers(1, 255))
def test_no_flipped_byte_survives(position: int, flip: int) -> None:
    changed = bytearray(ENVELOPE)
    changed[position] ^= flip
    with pytest.raises(KvswapError):
        verify_envelope(bytes(changed), NOW + 10)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(ENVELOPE) - 1))
def test_no_truncation_survives(length: int) -> None:
    with pytest.raises(KvswapError):
        verify_envelope(ENVELOPE[:length], NOW + 10)


def test_another_signer_of_the_same_payload_is_refused() -> None:
    mallory = key(66)
    stolen = dsse.seal(MADE.manifest.encode(), str(mallory.peer_id), mallory.sign)
    with pytest.raises(IntegrityError, match="publisher"):
        read_statement(stolen)


def test_keyid_decides_nothing() -> None:
    mallory = key(66)
    relabelled = dsse.seal(MADE.manifest.encode(), MADE.manifest.publisher, mallory.sign)
    with pytest.raises(IntegrityError, match="signature"):
        read_statement(relabelled)


def test_a_payload_of_another_type_cannot_be_passed_off() -> None:
    other = dsse.seal(MADE.manifest.encode(), MADE.manifest.publisher, key().sign, "application/vnd.kvswap.offer.v1")
    with pytest.raises(MalformedManifest):
        read_statement(other)
    envelope = wire.parse(other) | {"payload_type": dsse.PAYLOAD_TYPE}
    with pytest.raises(IntegrityError):
        read_statement(wire.pack(envelope))


def test_life_is_judged_by_the_readers_clock() -> None:
    verify_envelope(ENVELOPE, NOW - 100)  # clocks differ a little
    for bad in (NOW - 10_000, NOW + 86_400, NOW + 10**9):
        with pytest.raises(Untrusted):
            verify_envelope(ENVELOPE, bad)


def test_the_policy_decides_and_names_the_command() -> None:
    nobody = Policy(str(key(9).peer_id))
    with pytest.raises(Untrusted) as caught:
        require_trust(MADE.statement, nobody)
    assert caught.value.hint == f"kvswap trust add {MADE.manifest.publisher}"
    require_trust(MADE.statement, Policy(MADE.manifest.publisher))


def test_the_trust_list_is_kept_and_never_guessed(tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    policy = PolicyFile(path, key(9).peer_id)
    peer = str(key(1).peer_id)
    policy.add(peer, "Ada")
    assert PolicyFile(path, key(9).peer_id).policy.trusts(peer)
    assert policy.remove(peer)
    assert not policy.remove(peer)
    assert not PolicyFile(path, key(9).peer_id).policy.trusts(peer)
    with pytest.raises(UsageError):
        policy.add("../../x")
    path.write_text("{broken")
    with pytest.raises(UsageError):
        PolicyFile(path, key(9).peer_id)


def test_what_older_rules_condemned_is_lifted_and_told(tmp_path: Path) -> None:
    """V3, V5, V7 and what an auditor said; not V2.  Nothing is written for it, and old names stay."""
    path = tmp_path / "trust.json"
    peers = [str(key(number).peer_id) for number in range(10, 14)]
    whys = [
        "V3: 401 of 401 positions of layer 0",
        "V2: K of layer 3 is not finite everywhere",
        "1 of 32 positions",
        "V7: x",
    ]
    rows = [
        {"peer": p, "since": 5, "why": w, "artifact": "a", "evidence": "e"} for p, w in zip(peers, whys, strict=True)
    ]
    trusted = [{"peer": peers[0], "label": "", "added": 1, "how": "added"}]
    path.write_text(json.dumps({"publishers": trusted, "distrusted": rows}))
    before = path.read_bytes()
    file = PolicyFile(path, key().peer_id)
    assert path.read_bytes() == before
    assert set(file.policy.banned) == {peers[1]} and {row["peer"] for row in file.lifted()} == {*peers} - {peers[1]}
    assert file.policy.trusts(peers[0]) and not file.policy.trusts(peers[2])
    file.ban(peers[2], "V5: proved", "a", "e")  # judged again
    file.add(peers[3])
    again = PolicyFile(path, key().peer_id)
    assert set(again.policy.banned) == {peers[1], peers[2]}
    assert [row["peer"] for row in again.lifted()] == [peers[0]]
    assert {row["peer"] for row in json.loads(path.read_text())["distrusted"]} == {peers[1], peers[2]}


def test_no_number_of_strangers_that_were_caught_fills_the_trust_list(tmp_path: Path) -> None:
    """A node that caught many starts again; who the user lists, and who was caught last, stays known."""
    path, own, friend = tmp_path / "trust.json", key(1).peer_id, str(key(2).peer_id)
    kept = PolicyFile(path, own)
    kept.add(friend)
    kept.ban(friend, "V5: " + "\u00e9" * 496, "an artifact", "an audit")
    why = kept.policy.banned[friend].why
    unknown = [f"stranger {number}" for number in range(30_000)]
    rows = {name: Ban(name, 1, why, "b" * 60, "b" * 60, PROOF_RULES) for name in unknown}
    kept.policy = replace(kept.policy, banned={**kept.policy.banned, **rows})
    kept.ban("the last", "V6: it lied", "an artifact", "an audit")
    again = PolicyFile(path, own).policy
    assert again.ban_of(friend) is not None and not again.trusts(friend)
    assert again.ban_of("the last") and all(again.ban_of(stranger) for stranger in unknown[-900:])
    assert len(again.banned) <= 1_001 and again.ban_of(unknown[0]) is None


def test_a_trust_list_that_grew_before_it_was_bounded_is_read(tmp_path: Path) -> None:
    path, own = tmp_path / "trust.json", key(1).peer_id
    caught = [
        {
            "peer": f"stranger {n}",
            "since": n,
            "why": "V5: " + "x" * 496,
            "artifact": "a" * 60,
            "evidence": "",
            "rules": 2,
        }
        for n in range(3_000)
    ]
    path.write_text(json.dumps({"publishers": [], "distrusted": caught}))
    assert path.stat().st_size > LIMITS.config_bytes
    assert PolicyFile(path, own).policy.ban_of("stranger 2999") is not None


def test_a_publisher_that_renames_itself_for_ever_fills_no_list(tmp_path: Path) -> None:
    policy = PolicyFile(tmp_path / "trust.json", key(1).peer_id)
    policy.policy = replace(policy.policy, publishers={f"a key {n}": Publisher(f"a key {n}") for n in range(1_000)})
    assert not policy.follow(str(key(2).peer_id), "", "a key 999") and len(policy.policy.publishers) == 1_000
    policy.policy = replace(policy.policy, publishers={str(key(3).peer_id): Publisher(str(key(3).peer_id), "a friend")})
    assert policy.follow(str(key(2).peer_id), "a friend", str(key(3).peer_id))
    assert policy.policy.publishers[str(key(2).peer_id)].label == "a friend"
