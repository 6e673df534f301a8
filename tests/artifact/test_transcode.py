"""One cache in several codecs: the same tensors, whatever the way there."""

from __future__ import annotations

import pytest

from kvswap.artifact.manifest import ChunkRef
from kvswap.artifact.tensors import EncodedChunk
from kvswap.artifact.transcode import transcode
from kvswap.core.errors import IntegrityError
from tests.support import FULL, SLIDING, Ingested, make_artifact, plain_predictor

SPECS = (FULL, FULL, SLIDING)


def transcoded(made: Ingested, codec: str) -> list[EncodedChunk]:
    predictor = plain_predictor(SPECS) if codec == "predictive" else None
    return list(transcode(made.manifest, made.chunks.__getitem__, codec, predictor))


def sums(refs: list[ChunkRef]) -> list[tuple[int, int, bytes, int]]:
    return [(ref.block, ref.run, ref.raw, ref.raw_length) for ref in refs]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("before", ["raw", "planes", "predictive"])
@pytest.mark.parametrize("after", ["raw", "planes", "predictive"])
def test_chunks_of_another_codec_hold_the_same_bits(before: str, after: str, dtype: str) -> None:
    made = make_artifact(tokens=300, block_tokens=128, specs=SPECS, codec=before, dtype=dtype)
    again = transcoded(made, after)
    assert sums([c.ref for c in again]) == sums(made.manifest.chunks)  # `decode_chunk` compared the bits with these
    straight = make_artifact(tokens=300, block_tokens=128, specs=SPECS, codec=after, dtype=dtype)
    if after != "predictive":  # there the helper forces the codec where it does not help
        assert [c.wire for c in again] == [straight.chunks[ref.id] for ref in straight.manifest.chunks]


def test_an_inexact_chunk_is_described_by_what_comes_back() -> None:
    made = make_artifact(tokens=300, block_tokens=128, specs=SPECS)
    again = transcoded(made, "int8")
    assert {c.ref.codec for c in again} == {"int8"}
    assert all(a.ref.raw != b.raw for a, b in zip(again, made.manifest.chunks, strict=True))


def test_a_damaged_chunk_is_named() -> None:
    made = make_artifact(tokens=300, block_tokens=128, specs=SPECS)
    bad = made.manifest.chunks[3].id
    made.chunks[bad] = made.chunks[bad][:-1] + b"?"
    with pytest.raises(IntegrityError, match=str(bad)):
        transcoded(made, "raw")
