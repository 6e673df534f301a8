from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvswap.artifact import assembly, sealing, tensors, transcode
from kvswap.artifact.sealing import TAG_BYTES, Seal
from kvswap.core.errors import IntegrityError
from tests.artifact.test_tensors import deep
from tests.support import Ingested, group, make_artifact, seal_for

SEAL = Seal(bytes(range(32)))
PLACES = st.tuples(*[st.integers(0, 2**32 - 1)] * 3)


@settings(max_examples=100, deadline=None)
@given(PLACES, st.binary(max_size=500))
def test_what_was_closed_opens_in_its_place_and_in_no_other(place: sealing.ChunkPosition, data: bytes) -> None:
    closed = SEAL.close(place, data)
    assert len(closed) == len(data) + TAG_BYTES and SEAL.open(place, closed) == data
    elsewhere = (place[0], place[1], place[2] ^ 1)
    for seal, where, what in (
        (SEAL, elsewhere, closed),
        (Seal(bytes(32)), place, closed),
        (SEAL, place, bytes([closed[0] ^ 1]) + closed[1:]),
        (SEAL, place, closed[:-1]),
        (SEAL, place, b""),
    ):
        with pytest.raises(IntegrityError):
            seal.open(where, what)


def test_no_two_files_of_an_artifact_have_a_place_in_common() -> None:
    """A nonce twice under one key would give both texts away."""
    manifest = deep().manifest
    places = [sealing.chunk_position(ref) for ref in manifest.chunks]
    places += [sealing.MANIFEST, sealing.PREDICTOR, sealing.FINGERPRINT]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("codec", ["raw", "planes", "predictive"])
def test_a_sealed_cache_is_the_published_one(codec: str) -> None:
    plain = deep() if codec == "predictive" else make_artifact(tokens=61, block_tokens=8, codec=codec)
    made = seal_for(plain, group())
    loaded = assembly.load(made.manifest, made.chunks.__getitem__, seal=made.statement.seal)
    tensors.verify_tensors(plain.manifest, loaded)
    again = list(transcode.transcode(made.manifest, made.chunks.__getitem__, "raw", None, seal=made.statement.seal))
    assert [c.ref.raw for c in again] == [ref.raw for ref in plain.manifest.chunks]


def test_nothing_is_decoded_without_the_key_or_when_damaged() -> None:
    made: Ingested = seal_for(make_artifact(tokens=30, block_tokens=8), group())
    for seal in (None, SEAL):
        with pytest.raises(IntegrityError):
            assembly.load(made.manifest, made.chunks.__getitem__, seal=seal)
    victim = made.manifest.chunks[-1].id
    broken = {**made.chunks, victim: np.random.default_rng(0).bytes(len(made.chunks[victim]))}
    with pytest.raises(IntegrityError, match="digest"):
        assembly.load(made.manifest, broken.__getitem__, seal=made.statement.seal)
