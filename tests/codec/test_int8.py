"""The inexact codecs: what they promise, and that nobody takes them for more."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvswap import codec
from kvswap.artifact.manifest import LOSSY_CODECS
from kvswap.codec.parts import widened
from kvswap.core.errors import IntegrityError

NAMES = ("int8", "int8-channel")
DTYPES = ("bfloat16", "float16", "float32")


def parts_of(seed: int, dtype: str, spread: float = 1.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    out = []
    for heads, dim in ((2, 8), (2, 6)):
        values = (rng.normal(size=(heads, 33, dim)) * spread * rng.uniform(0.1, 9, (heads, 1, dim))).astype(np.float32)
        if dtype == "float16":
            out.append(values.astype(np.float16).view(np.uint16))
        else:
            words = values.view(np.uint32)
            out.append((words >> 16).astype(np.uint16) if dtype == "bfloat16" else words)
    return out


def floats(part: np.ndarray, dtype: str) -> np.ndarray:
    return (part if dtype == "float32" else widened(part, dtype)).view(np.float32)


def decoded(wire: bytes, parts: list[np.ndarray], dtype: str, name: str) -> list[np.ndarray]:
    out = [np.zeros((p.shape[0], p.shape[1] + 2, p.shape[2]), p.dtype)[:, 1:-1] for p in parts]
    codec.decode(name, wire, out, dtype)
    return out


def test_the_format_and_the_registry_agree_on_what_is_inexact() -> None:
    assert {name for name in codec.names() if not codec.get(name).lossless} == LOSSY_CODECS == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 30), spread=st.sampled_from([1e-3, 1.0, 50.0]))
def test_every_value_comes_back_within_half_a_step(name: str, dtype: str, seed: int, spread: float) -> None:
    parts = parts_of(seed, dtype, spread)
    used, wire = codec.encode(parts, dtype, name)
    assert used == name
    assert len(wire) < 0.6 * codec.raw_length(parts)
    for part, back in zip(parts, decoded(wire, parts, dtype, name), strict=True):
        given_, got = floats(part, dtype), floats(np.ascontiguousarray(back), dtype)
        largest = np.abs(given_).max(axis=1 if name == "int8-channel" else None, keepdims=True)
        assert (np.abs(given_ - got) <= 0.51 * largest / 127 + np.abs(got) * 2.0**-8).all()


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zeros_and_what_is_no_number_is_kept_raw(name: str) -> None:
    zeros = [np.zeros((1, 50, 4), np.uint16)]
    used, wire = codec.encode(zeros, "bfloat16", name)
    assert used == name and not decoded(wire, zeros, "bfloat16", name)[0].any()
    for word in (0x7F80, 0xFF80, 0x7FC1):
        parts = parts_of(0, "bfloat16")
        parts[1][0, 3, 2] = word
        used, wire = codec.encode(parts, "bfloat16", name)
        assert used == "raw"
        assert all((a == b).all() for a, b in zip(decoded(wire, parts, "bfloat16", "raw"), parts, strict=True))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_hostile_bytes_are_an_error_or_other_values(name: str, data: st.DataObject) -> None:
    parts = parts_of(1, "bfloat16")
    wire = bytearray(codec.encode(parts, "bfloat16", name)[1])
    if data.draw(st.booleans()):
        wire = wire[: data.draw(st.integers(0, len(wire) - 1))]
    for _ in range(data.draw(st.integers(0, 3)) if wire else 0):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded(bytes(wire), parts, "bfloat16", name)
    except IntegrityError:
        pass


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    parts = parts_of(1, "bfloat16")
    wire = bytearray(codec.encode(parts, "bfloat16", "int8")[1])
    wire[4:8] = np.float32(scale).tobytes()
    with pytest.raises(IntegrityError, match="scale"):
        decoded(bytes(wire), parts, "bfloat16", "int8")
