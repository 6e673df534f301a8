"""The pass over msgpack bytes before anything is built: what it counts, what it refuses, and that both forms agree."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvswap.core import scan, wire

FORMS = [scan.plain] + ([scan.fast] if scan.fast is not None else [])
STARTS = [scan.plain_starts] + ([scan.fast_starts] if scan.fast_starts is not None else [])
Form = Callable[[Any, int, int], int]
MANY = settings(max_examples=200, deadline=None)


def _values(most: int) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats(allow_nan=False)
        | st.text(max_size=40)
        | st.binary(max_size=300),
        lambda inner: (
            st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=6) | st.binary(max_size=3), inner)
        ),
        max_leaves=most,
    )


VALUES = _values(40)
ELEMENTS = _values(5)  # of an array of many


def _no_duplicates(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key appears twice")
    return dict(pairs)


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError("an extension type")


def library(data: bytes) -> Any:
    """The verdict of msgpack itself, which builds the values."""
    return msgpack.unpackb(
        data,
        raw=False,
        strict_map_key=True,
        object_pairs_hook=_no_duplicates,
        ext_hook=_no_extension,
        timestamp=0,
    )


def agrees(data: bytes) -> None:
    """Both forms say of these bytes what the library says."""
    try:
        library(data)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError):
        accepted = False
    else:
        accepted = True
    for form in FORMS:
        try:
            form(data, 1 << 20, scan.DEEPEST)
        except ValueError:
            assert not accepted, data
        else:
            assert accepted, data


def count(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(count(k) + count(v) for k, v in value.items())
    return 1 + sum(map(count, value)) if isinstance(value, list) else 1


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


@MANY
@given(value=VALUES)
def test_items_are_counted_and_the_caps_are_exact(value: Any) -> None:
    data = msgpack.packb(value)
    items, levels = count(value), depth(value)
    for form in FORMS:
        assert form(data, items, levels) == items
        with pytest.raises(ValueError, match="items"):
            form(data, items - 1, levels)
        if levels:
            with pytest.raises(ValueError, match="deep"):
                form(data, items, levels - 1)


@MANY
@given(data=st.data())
def test_it_refuses_what_the_library_refuses_and_nothing_else(data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        agrees(data.draw(st.binary(max_size=80)))
        return
    made = bytearray(msgpack.packb(data.draw(VALUES)))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(made)))
        made[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    agrees(bytes(made))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("code", [0xC7, 0xC8, 0xC9, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8])
def test_no_extension_type_is_read_timestamps_least_of_all(form: Form, code: int) -> None:
    body = {0xC7: b"\x0c", 0xC8: b"\0\x0c", 0xC9: b"\0\0\0\x0c"}.get(code, b"")
    with pytest.raises(ValueError, match="extension"):
        form(bytes([0x91, code]) + body + b"\xff" + bytes(16), 100, 10)
    with pytest.raises(ValueError, match="extension"):
        form(msgpack.packb({"x": [msgpack.Timestamp(1, 5)]}), 100, 10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [2, 15, 16, 17, 300, 70_000])
def test_a_key_that_appears_twice_is_found_wherever_it_is(form: Form, size: int) -> None:
    head = b"\xdf" + struct.pack(">I", size)
    keys = [msgpack.packb(f"key {i}") for i in range(size)]
    assert form(head + b"".join(k + b"\x90" for k in keys), 3 * size, 2) == 2 * size + 1
    for first, again in ((0, size - 1), (size // 2, size - 1), (0, 1)):
        if first == again:
            continue
        twice = list(keys)
        twice[again] = keys[first]
        with pytest.raises(ValueError, match="twice"):
            form(head + b"".join(k + b"\x90" for k in twice), 3 * size, 2)
    # The same key in two maps is none.
    assert form(msgpack.packb([{"a": {"a": 1}}, {"a": 2}]), 20, 4) == 9


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("code,width", [(0xDC, 2), (0xDD, 4), (0xDE, 2), (0xDF, 4), (0xDB, 4), (0xC6, 4), (0xDA, 2)])
def test_what_is_announced_and_does_not_come_is_refused_at_once(form: Form, code: int, width: int) -> None:
    with pytest.raises(ValueError):
        form(bytes([code]) + b"\xff" * width + b"abc", 1 << 62, 10)


@pytest.mark.parametrize("form", FORMS)
def test_depth_is_held_however_deep_it_goes(form: Form) -> None:
    for deep in (1, 16, 255, 256, 257, 100_000):
        for opening, closing in ((b"\x91", b"\x01"), (b"\x81\xa1k", b"\x01")):
            data = opening * deep + closing
            with pytest.raises(ValueError, match="deep"):
                form(data, 1 << 30, min(deep - 1, 256))


@MANY
@given(value=st.lists(ELEMENTS, max_size=20), every=st.integers(1, 7))
def test_an_array_is_cut_where_its_elements_begin(value: Any, every: int) -> None:
    data = msgpack.packb(value)
    wanted, at = [], 1 if len(value) < 16 else 3
    for number, element in enumerate(value):
        if number % every == 0:
            wanted.append(at)
        at += len(msgpack.packb(element))
    assert [x for part in wire.pieces(data, every, 100) for x in msgpack.unpackb(part)] == value
    for form in STARTS:
        assert form(data, every) == [*wanted, len(data)]
        for other in (b"\x80", b"\x01", b"\xa0"):
            with pytest.raises(ValueError, match="no array"):
                form(other, every)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "key", [b"\x90", b"\x80", b"\x91\x01", b"\x81\xa1a\x01", b"\xdc\x00\x00", b"\x01", b"\xc0", b"\xc3"]
)
def test_a_key_is_text_or_bytes(form: Form, key: bytes) -> None:
    """Also where a map stands within another, and whatever stands before it."""
    for data in (b"\x81" + key + b"\x01", b"\x82\xa1b\x01" + key + b"\x01", b"\x91\x81\xa1b\x81" + key + b"\x01"):
        with pytest.raises(ValueError, match="a key that is no text"):
            form(data, 100, 10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("items", "depth"), [(-1, 1), (10, -1), (10, scan.DEEPEST + 1)])
def test_caps_that_cannot_be_held_are_refused(form: Form, items: int, depth: int) -> None:
    with pytest.raises((ValueError, OverflowError)):
        form(b"\xc0", items, depth)


def test_only_arrays_are_cut() -> None:
    for data in (b"", b"\x80", b"\xa1a", b"\x01"):
        for form in STARTS:
            with pytest.raises(ValueError):
                form(data, 2)
