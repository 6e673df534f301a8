"""Strict msgpack: one way in, one way out.

Decoding happens in two steps.  `msgpack` parses with duplicate keys refused; `msgspec` then converts
to a typed struct and refuses unknown keys, missing keys, floats where integers belong, and anything
else of another type.  The caller caps the size before calling.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgpack
import msgspec

from kvswap.core.errors import KvswapError, MalformedManifest

T = TypeVar("T")


def pack(value: Any) -> bytes:
    """Encode plain values: map, list, str, bytes, int, bool, None."""
    packed: bytes = msgpack.packb(value, use_bin_type=True, strict_types=True)
    return packed


def _no_duplicates(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key appears twice")
    return out


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError("msgpack extension types are not used")


def parse(data: bytes, error_type: type[KvswapError] = MalformedManifest) -> Any:
    """Plain values from msgpack bytes.  Raises `error_type`."""
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_no_duplicates,
            ext_hook=_no_extension,
        )
    except (ValueError, msgpack.exceptions.UnpackException, UnicodeDecodeError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise error_type(f"not well-formed msgpack: {reason[:120]}", cause="truncated or not a kvswap file") from error


def convert(value: Any, kind: type[T], error_type: type[KvswapError] = MalformedManifest) -> T:
    """Typed struct from plain values.  Raises `error_type` naming the field."""
    try:
        # bytes are native here: otherwise msgspec would take base64 text for them
        return msgspec.convert(value, kind, strict=True, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        field = str(error).rpartition("at `$")[2].rstrip("`").lstrip(".") or "unknown"
        name = getattr(kind, "__name__", "message").lower()
        raise error_type(f"not a valid {name}: {error}", field=field) from error


def unpack(data: bytes, kind: type[T], error_type: type[KvswapError] = MalformedManifest) -> T:
    """`parse`, then `convert`."""
    return convert(parse(data, error_type), kind, error_type)


def plain(value: Any) -> Any:
    """Plain values of a struct, ready for `pack`."""
    return msgspec.to_builtins(value, builtin_types=(bytes,))


def jsonable(value: Any) -> Any:
    """For people and scripts: bytes become hex."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {k: jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    return value
