from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvswap.artifact.consistency import parse_manifest
from kvswap.artifact.specs import LayerSpec, TensorSpec
from kvswap.core import wire
from kvswap.core.errors import MalformedManifest
from tests.support import identity, make_artifact

MADE = make_artifact(now=1_700_000_000)
PLAIN: dict[str, Any] = wire.parse(MADE.manifest.encode())


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 16),
    st.sampled_from(["bfloat16", "float16", "float32"]),
    st.sampled_from(["raw", "planes"]),
)
def test_what_is_written_is_read(tokens: int, block: int, dtype: str, codec: str) -> None:
    manifest = make_artifact(tokens=tokens, block_tokens=block, dtype=dtype, codec=codec, now=1_700_000_000).manifest
    assert parse_manifest(manifest.encode()) == manifest


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a tree of maps and lists."""
    out = [at] if at else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        out += paths(inner, (*at, name))
    return out


def changed(path: tuple[Any, ...], new: Any) -> bytes:
    tree = wire.parse(wire.pack(PLAIN))
    place = tree
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = new
    return wire.pack(tree)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(paths(PLAIN)),
    st.none()
    | st.integers(-(2**60), 2**63)
    | st.binary(max_size=40)
    | st.text(max_size=10)
    | st.lists(st.integers(0, 2**40), max_size=2),
)
def test_any_field_replaced_gives_a_manifest_or_the_one_error(path: tuple[Any, ...], new: Any) -> None:
    try:
        parse_manifest(changed(path, new))
    except MalformedManifest:
        pass


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(MADE.manifest.encode()) - 1), st.integers(1, 255))
def test_any_byte_flipped_gives_a_manifest_or_the_one_error(position: int, flip: int) -> None:
    data = bytearray(MADE.manifest.encode())
    data[position] ^= flip
    try:
        parse_manifest(bytes(data))
    except MalformedManifest:
        pass


@pytest.mark.parametrize(
    ("path", "new", "field"),
    [
        (("version",), 3, "version"),
        (("prefix", "start"), 8, "prefix.start"),
        (("prefix", "tokens"), 10**9, "prefix.tokens"),
        (("prefix", "chain"), [], "prefix.chain"),
        (("layout", "dtype"), "int8", "layout.dtype"),
        (("layout", "axes"), "head,layer,kv,token,dim", "layout.axes"),
        (("layout", "layers", 0, "kind"), "linear", "layout.layers[0]"),
        (("layout", "layers", 0, "window"), 4, "layout.layers[0]"),
        (("layout", "layers", 0, "heads"), 2**40, "layout.layers[0]"),
        (("layout", "runs"), [[0], [0], [2]], "layout.runs"),
        (("layout", "runs"), [[0, 1, 2]], "layout.runs"),
        (("layout", "runs"), [[]], "layout.runs"),
        (("numerics", "claim"), "probably", "numerics.claim"),
        (("tensors",), [], "tensors"),
        (("chunks",), [], "chunks"),
        (("chunks", 0, "raw_length"), 2**50, "chunks[0]"),
        (("chunks", 0, "length"), 2**50, "chunks[0]"),
        (("chunks", 0, "block"), 1, "chunks[0]"),
        (("chunks", 0, "cid"), b"\0" * 36, "chunks[0]"),
        (("life", "expires"), 0, "life"),
        (("life", "expires"), 2**40, "life"),
        (("publisher",), "somebody", "publisher"),
        (("document", "length"), 1.5, None),
        (("extensions",), ["model"], "extensions"),
    ],
)
def test_inconsistent_fields_are_refused_by_name(path: tuple[Any, ...], new: Any, field: str | None) -> None:
    with pytest.raises(MalformedManifest) as caught:
        parse_manifest(changed(path, new))
    if field is not None:
        assert caught.value.details["field"] == field


def test_unknown_fields_are_refused_unless_declared() -> None:
    with pytest.raises(MalformedManifest) as caught:
        parse_manifest(wire.pack({**PLAIN, "price": 1}))
    assert caught.value.details["field"] == "price"
    declared = {**PLAIN, "note": "x", "extensions": ["note"]}
    assert parse_manifest(wire.pack(declared)).prefix == MADE.manifest.prefix


def test_manifests_are_immutable() -> None:
    with pytest.raises((AttributeError, dataclasses.FrozenInstanceError)):
        MADE.manifest.version = 2  # type: ignore[misc]


def test_the_json_form_names_ids_as_people_write_them() -> None:
    shown = MADE.manifest.to_json()
    assert shown["chunks"][0]["cid"].startswith("bafkr4i")
    assert shown["model"]["identity"] == MADE.manifest.model.digest.hex()
    msgspec.json.encode(shown)


def test_a_tensor_of_the_layouts_dtype_names_none() -> None:
    spec = LayerSpec("full", (TensorSpec("k", "token", (8,), ""), TensorSpec("v", "token", (8,), "")))
    with pytest.raises(MalformedManifest, match="unknown dtype"):
        make_artifact(tokens=16, specs=(spec,), model=identity())
