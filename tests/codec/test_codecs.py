from __future__ import annotations

import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from kvswap import codec
from kvswap.codec import planes
from kvswap.core.errors import Incompatible, IntegrityError

WORDS = {"bfloat16": np.uint16, "float16": np.uint16, "float32": np.uint32}
EXACT = [name for name in codec.names() if codec.get(name).lossless]
LOSSY_CODECS = [name for name in codec.names() if not codec.get(name).lossless]
EVERY = [(name, dtype) for name in EXACT for dtype in WORDS]


def round_trip(parts: list[np.ndarray], dtype: str, name: str) -> None:
    used, wire = codec.encode(parts, dtype, name)
    assert len(wire) <= codec.raw_length(parts)
    # decode into strided views, as the loader does
    out = [np.full((p.shape[0], p.shape[1] + 3, p.shape[2]), 7, p.dtype)[:, 1:-2] for p in parts]
    codec.decode(used, wire, out, dtype)
    for a, b in zip(parts, out, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize(("name", "dtype"), EVERY)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_codec_returns_every_bit(name: str, dtype: str, data: st.DataObject) -> None:
    tokens = data.draw(st.integers(1, 40))
    parts = []
    for _ in range(data.draw(st.integers(1, 4))):
        shape = (data.draw(st.integers(1, 3)), tokens, data.draw(st.integers(1, 9)))
        raw = data.draw(
            st.binary(
                min_size=int(np.prod(shape)) * WORDS[dtype]().itemsize,
                max_size=int(np.prod(shape)) * WORDS[dtype]().itemsize,
            )
        )
        parts.append(np.frombuffer(raw, WORDS[dtype]).reshape(shape).copy())
    round_trip(parts, dtype, name)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_all_sixteen_bit_patterns(name: str, dtype: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)  # NaN payloads, -0, denormals, infinities
    round_trip([every.reshape(2, 512, 64)], dtype, name)
    round_trip([every[::-1].reshape(1, 1, 1 << 16).copy()], dtype, name)


@pytest.mark.parametrize("name", EXACT)
def test_special_float32_patterns(name: str) -> None:
    special = np.array(
        [0, 0x80000000, 1, 0x807FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0x7FC00000, 0xFFFFFFFF, 0x3F800000],
        np.uint32,
    )
    round_trip([np.tile(special, 32).reshape(1, 32, 10).copy()], "float32", name)


def test_float32_that_is_really_bfloat16_costs_as_little() -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(2, 256, 64)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint32) << 16
    _, wire = codec.encode([values], "float32", "planes")
    assert values.nbytes / len(wire) > 2.5
    round_trip([values], "float32", "planes")


def test_noise_is_stored_raw() -> None:
    noise = np.frombuffer(np.random.default_rng(1).bytes(2 * 64 * 64), np.uint16).reshape(1, 64, 64)
    used, wire = codec.encode([noise], "bfloat16", "planes")
    assert used == "raw"
    assert wire == noise.tobytes()


def sample() -> tuple[list[np.ndarray], bytes]:
    rng = np.random.default_rng(2)
    part = (rng.normal(size=(2, 64, 16)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    used, wire = codec.encode([part], "bfloat16", "planes")
    assert used == "planes"
    return [np.empty_like(part)], wire


def test_a_wire_that_was_cut_or_lengthened_is_refused() -> None:
    out, wire = sample()
    for bad in (b"", wire[:10], wire[:-1], wire + b"\0", wire[: len(wire) // 2]):
        with pytest.raises(IntegrityError):
            codec.decode("planes", bad, out, "bfloat16")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_flipped_byte_gives_an_error_or_other_values_never_a_crash(data: st.DataObject) -> None:
    out, wire = sample()
    position = data.draw(st.integers(0, len(wire) - 1))
    changed = bytearray(wire)
    changed[position] ^= data.draw(st.integers(1, 255))
    try:
        codec.decode("planes", bytes(changed), out, "bfloat16")
    except IntegrityError:
        pass


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    out, _ = sample()
    with pytest.raises(IntegrityError):
        codec.decode("planes", data, out, "bfloat16")


def _with_frame(frame: bytes) -> bytes:
    """The sample's wire with another zstd frame."""
    _, wire = sample()
    version, width, flags, zero, channels, tokens, length = planes._HEADER.unpack_from(wire)
    start = planes._HEADER.size + 2 * channels
    header = struct.pack("<BBBBIII", version, width, flags, zero, channels, tokens, len(frame))
    return header + wire[planes._HEADER.size : start] + frame + wire[start + length :]


def test_a_zstd_bomb_is_refused_before_it_opens() -> None:
    # The library ignores max_output_size when the frame declares its size; 1 GiB of zeros in 32 KiB.
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 28))
    assert len(bomb) < 1 << 16
    out, _ = sample()
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(IntegrityError, match="declares"):
        codec.decode("planes", _with_frame(bomb), out, "bfloat16")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 22


def test_a_frame_without_a_declared_size_is_refused() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    out, _ = sample()
    with pytest.raises(IntegrityError):
        codec.decode("planes", _with_frame(compressor.compress(bytes(2048))), out, "bfloat16")


def test_an_order_that_is_no_permutation_is_refused() -> None:
    out, wire = sample()
    changed = bytearray(wire)
    changed[planes._HEADER.size : planes._HEADER.size + 2] = changed[planes._HEADER.size + 2 : planes._HEADER.size + 4]
    with pytest.raises(IntegrityError, match="permutation"):
        codec.decode("planes", bytes(changed), out, "bfloat16")
    changed[planes._HEADER.size : planes._HEADER.size + 2] = b"\xff\xff"
    with pytest.raises(IntegrityError):
        codec.decode("planes", bytes(changed), out, "bfloat16")


def test_unknown_codecs_and_dtypes_are_named() -> None:
    part = np.zeros((1, 1, 1), np.uint16)
    with pytest.raises(Incompatible) as caught:
        codec.decode("pickle", b"", [part], "bfloat16")
    assert caught.value.details["field"] == "codec"
    with pytest.raises(Incompatible) as caught:
        codec.encode([part], "int8", "raw")
    assert caught.value.details["field"] == "dtype"


def test_wire_bytes_are_the_same_in_every_thread() -> None:
    from concurrent.futures import ThreadPoolExecutor

    rng = np.random.default_rng(3)
    part = (rng.normal(size=(2, 64, 64)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    with ThreadPoolExecutor(4) as pool:
        wires = list(pool.map(lambda _: codec.encode([part], "bfloat16", "planes")[1], range(16)))
    assert len(set(wires)) == 1
