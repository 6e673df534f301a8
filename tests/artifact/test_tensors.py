from __future__ import annotations

import numpy as np
import pytest

from kvswap.artifact import assembly, layout, tensors
from kvswap.artifact.specs import KEY, VALUE, LayerGroup, LayerSpec
from kvswap.core.errors import IntegrityError, MalformedManifest
from tests.support import FULL, SLIDING, Ingested, make_artifact

WIDE = LayerSpec.key_value("sliding", 1, 4, 4, 19)  # wider than a block of 8


def check(made: Ingested, tokens: int | None, headroom: int) -> None:
    loaded = assembly.load(made.manifest, made.chunks.__getitem__, tokens=tokens, headroom=headroom)
    stop = tokens or made.manifest.prefix.tokens
    for spec, held, (k, v) in zip(made.manifest.layout.layers, loaded, made.layers, strict=True):
        first, last = layout.held_span(spec, stop)
        assert (held.first, held.tokens) == (first, last - first)
        assert held.k.shape[1] == last - first + (headroom if spec.window is None else 0)
        assert np.array_equal(tensors.as_part(held.k)[:, : held.tokens], k[:, first:last])
        assert np.array_equal(tensors.as_part(held.v)[:, : held.tokens], v[:, first:last])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("codec", ["raw", "planes"])
@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 40, 61])
def test_a_loaded_cache_is_the_published_one(dtype: str, codec: str, tokens: int) -> None:
    made = make_artifact(tokens=tokens, block_tokens=8, specs=(FULL, SLIDING, FULL, WIDE), dtype=dtype, codec=codec)
    check(made, None, 0)
    check(made, None, 5)
    tensors.verify_tensors(made.manifest, assembly.load(made.manifest, made.chunks.__getitem__, headroom=3))
    for stop in range(8, tokens, 8):
        check(made, stop, 2)


def deep(dtype: str = "bfloat16", **options: object) -> Ingested:
    """Predictive chunks of two runs, the second coded against the first, and a sliding layer between them."""
    specs = (FULL, FULL, SLIDING, FULL, FULL, FULL)
    with pytest.MonkeyPatch.context() as patch:
        groups = [LayerGroup(layers, (KEY, VALUE)) for layers in ((0, 1), (2,), (3, 4, 5))]
        patch.setattr(layout, "plan_groups", lambda *_: groups)
        return make_artifact(tokens=700, block_tokens=256, specs=specs, dtype=dtype, codec="predictive", **options)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_predictive_chunks_are_decoded_one_against_the_other(dtype: str) -> None:
    made = deep(dtype)
    assert {c.codec for c in made.manifest.chunks if c.run != 1} == {"predictive"}
    assert "predictive" not in {c.codec for c in made.manifest.chunks if c.run == 1}  # sliding layers are not predicted
    for stop in (None, 256, 512):
        check(made, stop, 3)


def test_a_predictor_that_is_not_the_signed_one_is_an_integrity_error() -> None:
    made = deep()
    assert made.manifest.predictor is not None
    cid = made.manifest.predictor.id
    good = made.chunks[cid]
    for bad in (good[:-1] + b"\xff", b"", made.chunks[made.manifest.chunks[0].id]):
        with pytest.raises(IntegrityError):
            assembly.load(made.manifest, {**made.chunks, cid: bad}.__getitem__)
    assembly.load(made.manifest, made.chunks.__getitem__)
    with pytest.raises(MalformedManifest):
        deep(predictor=None)


def test_every_kind_of_damage_is_an_integrity_error() -> None:
    made = make_artifact(tokens=30, block_tokens=8)
    victim = made.manifest.chunks[2].id
    for damage in (
        lambda b: b[:-1],
        lambda b: b + b"\0",
        lambda b: bytes([b[0] ^ 1]) + b[1:],
        lambda b: b"",
        lambda _: made.chunks[made.manifest.chunks[3].id],  # another chunk's bytes
    ):
        broken = {**made.chunks, victim: damage(made.chunks[victim])}
        with pytest.raises(IntegrityError):
            assembly.load(made.manifest, broken.__getitem__)


def test_a_raw_digest_that_does_not_hold_is_an_integrity_error() -> None:
    made = make_artifact(tokens=10, block_tokens=8)
    chunks = list(made.manifest.chunks)
    first = chunks[0]
    chunks[0] = type(first)(**{n: getattr(first, n) for n in first.__struct_fields__} | {"raw": b"\7" * 32})
    lying = make_artifact(tokens=10, block_tokens=8, chunks=chunks)
    with pytest.raises(IntegrityError, match="other bytes"):
        assembly.load(lying.manifest, made.chunks.__getitem__)


def test_tensor_digests_are_checked() -> None:
    made = make_artifact(tokens=10)
    loaded = assembly.load(made.manifest, made.chunks.__getitem__)
    loaded[1].v[0, 3, 2] += 1
    with pytest.raises(IntegrityError, match="layer 1"):
        tensors.verify_tensors(made.manifest, loaded)


def test_cache_bytes_counts_what_is_held() -> None:
    made = make_artifact(tokens=40, specs=(FULL, SLIDING))
    assert tensors.cache_bytes(made.manifest.layout, 40) == (2 * 16 * 40 + 2 * 12 * 5) * 2
