from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvswap.core.errors import UsageError
from kvswap.core.ids import Cid, PeerId, document_digest, parse_document, parse_reference
from tests.support import key


@given(st.binary(max_size=200))
def test_a_cid_round_trips_through_text_and_bytes(data: bytes) -> None:
    cid = Cid.of(data)
    assert Cid.parse(str(cid)) == cid
    assert Cid.from_bytes(bytes(cid)) == cid


def test_the_text_form_of_a_cid_is_the_multiformats_one() -> None:
    # BLAKE3 of nothing, from the BLAKE3 paper's test vectors
    empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert Cid.of(b"").digest.hex() == empty
    assert bytes(Cid.of(b"")).hex() == "01551e20" + empty
    assert str(Cid.of(b"")).startswith("bafkr4i")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "../../etc/passwd",
        "bafkr4i" + "a" * 100,
        "BAFKR4I",
        "bafkr4i\0",
        "Qm" + "a" * 44,
        str(Cid.of(b"x")) + "\n",
    ],
)
def test_malformed_ids_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Cid.parse(text)


def test_there_is_one_spelling_of_a_cid() -> None:
    text = str(Cid.of(b"x"))
    spare = text[:-1] + chr(ord(text[-1]) + 1)  # base32 has unused bits at the end
    with pytest.raises(UsageError):
        Cid.parse(spare)


def test_a_peer_id_is_libp2ps() -> None:
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.id import ID

    for number in range(5):
        seed = key(number).seed
        theirs = ID.from_pubkey(create_new_key_pair(seed).public_key)
        assert str(key(number).peer_id) == str(theirs)
        assert PeerId.parse(str(theirs)) == key(number).peer_id


@pytest.mark.parametrize("text", ["", "12D3KooW", "12D3KooW" + "0" * 44, "Qm" + "a" * 44, "1" * 52])
def test_malformed_peer_ids_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        PeerId.parse(text)


def test_a_document_digest_is_sha256sum() -> None:
    assert document_digest(b"abc") == "sha256:" + hashlib.sha256(b"abc").hexdigest()
    assert parse_reference(document_digest(b"abc")) == document_digest(b"abc")
    for bad in ("sha256:", "sha256:" + "A" * 64, "sha256:" + "a" * 63, "sha512:" + "a" * 64):
        with pytest.raises(UsageError):
            parse_document(bad)
