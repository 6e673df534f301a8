from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvswap.artifact import dsse
from kvswap.core import wire
from kvswap.core.errors import IntegrityError, KvswapError, MalformedManifest, Untrusted, UsageError
from kvswap.core.ids import Cid
from kvswap.trust import Policy, PolicyFile, read_statement, require_trust, verify_envelope
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
