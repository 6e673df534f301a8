from __future__ import annotations

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvswap.core import wire
from kvswap.core.errors import MalformedManifest, MalformedMessage

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(PLAIN)
def test_plain_values_round_trip(value: object) -> None:
    assert wire.parse(wire.pack(value)) == value


@given(st.binary(max_size=300))
def test_any_bytes_parse_or_raise_one_error(data: bytes) -> None:
    try:
        wire.parse(data)
    except MalformedManifest:
        pass


class Blob(msgspec.Struct, frozen=True):
    data: bytes


def test_text_is_never_taken_for_bytes() -> None:
    assert wire.unpack(wire.pack({"data": b"abcd"}), Blob) == Blob(b"abcd")
    with pytest.raises(MalformedManifest):
        wire.unpack(wire.pack({"data": "YWJjZA=="}), Blob)


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    x: int
    y: int


def test_typed_decoding_is_strict() -> None:
    assert wire.unpack(wire.pack({"x": 1, "y": 2}), Point) == Point(1, 2)
    for bad in (
        {"x": 1},
        {"x": 1, "y": 2, "z": 3},
        {"x": 1.0, "y": 2},
        {"x": "1", "y": 2},
        {"x": True, "y": 2},
        [1, 2],
    ):
        with pytest.raises(MalformedMessage):
            wire.unpack(msgpack.packb(bad), Point, MalformedMessage)


@pytest.mark.parametrize(
    "data",
    [
        b"\x82\xa1x\x01\xa1x\x02",  # the same key twice
        b"\x91" * 5000 + b"\x01",  # deep nesting
        b"\xdd\xff\xff\xff\xff",  # an array of four thousand million
        b"\xdf\xff\xff\xff\xff\xa1x",  # a map as large
        b"\xc6\xff\xff\xff\xffabc",  # 4 GiB of bytes announced
        b"\xc7\x04\x01abcd",  # an extension type
        b"\x81\x01\x02",  # a key that is no text
        b"\x01\x02",  # two values
        b"",
        b"\xc1",
        b"\xa1\xff",  # text that is not UTF-8
    ],
)
def test_hostile_msgpack_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedManifest):
        wire.parse(data)
