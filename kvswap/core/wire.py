"""Strict msgpack: one way in, one way out.

What comes in is checked before it is built.  `scan` goes over the bytes once: it counts items and depth against caps
that go by the kind of message, and refuses duplicate keys and extension types.  `msgspec` then decodes straight into
the type, and refuses unknown keys, missing keys, floats where integers belong, and anything else of another type at the
first byte of it.  The caller caps the size before calling.  Errors are of the type `error_type` and name the field.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, TypeVar, cast

import msgpack
import msgspec
from msgspec import Meta

from kvswap.core.errors import KvswapError, MalformedManifest
from kvswap.core.limits import LIMITS
from kvswap.core.scan import scan, starts

T = TypeVar("T")

_FIELDS = Annotated[dict[str, msgspec.Raw], Meta(max_length=LIMITS.message_fields)]


def _tuple(value: Any) -> list[Any]:
    """Return what the encoder does not know itself: a tuple as a list.  Raises `TypeError` for anything else."""
    if type(value) is tuple:
        return list(value)
    raise TypeError(f"cannot encode a {type(value).__name__}")


def pack(value: Any) -> bytes:
    """Encode plain values (map, list, str, bytes, int, bool, None) as msgpack."""
    packed: bytes = msgpack.packb(value, use_bin_type=True, strict_types=True, default=_tuple)
    return packed


def pack_fields(values: dict[str, Any], each: int) -> bytes:
    """Encode a map of structs, lists of them and plain values as `pack` would encode its plain form.

    Lists are encoded `each` elements at a time, so that another thread never waits for all of a long one.
    """
    packer = msgpack.Packer(use_bin_type=True, strict_types=True, default=_tuple)
    parts = [packer.pack_map_header(len(values))]
    for name, value in values.items():
        parts.append(packer.pack(name))
        if isinstance(value, list):
            parts.append(packer.pack_array_header(len(value)))
            for start in range(0, len(value), each):
                parts += map(packer.pack, plain(value[start : start + each]))
        else:
            parts.append(packer.pack(plain(value)))
    return b"".join(parts)


def check(
    data: Any,
    error_type: type[KvswapError] = MalformedManifest,
    *,
    items: int = LIMITS.message_items,
    depth: int = LIMITS.message_depth,
) -> None:
    """Raise `error_type` unless `data` is one well-formed value of at most `items` items.  Builds nothing."""
    try:
        scan(data, items, depth)
    except ValueError as error:
        raise error_type(f"not well-formed msgpack: {error}", cause="truncated or not a kvswap file") from error


def parse(data: bytes, error_type: type[KvswapError] = MalformedManifest, *, items: int = LIMITS.message_items) -> Any:
    """Build plain values from msgpack bytes of at most `items` items.  Raises `error_type`."""
    check(data, error_type, items=items)
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise error_type(f"not well-formed msgpack: {reason[:120]}", cause="truncated or not a kvswap file") from error


def convert(value: Any, kind: type[T], error_type: type[KvswapError] = MalformedManifest) -> T:
    """Convert plain values to a struct of the type `kind`.  Raises `error_type` naming the field."""
    _decoder(cast(Any, kind))
    try:
        # bytes are native here: otherwise msgspec would take base64 text for them
        return msgspec.convert(value, kind, strict=True, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise _invalid(error, kind, error_type) from error


def unpack(
    data: bytes,
    kind: type[T],
    error_type: type[KvswapError] = MalformedManifest,
    *,
    items: int = LIMITS.message_items,
) -> T:
    """Decode bytes of at most `items` items straight into the type `kind`.  Raises `error_type` naming the field."""
    check(data, error_type, items=items)
    return decode(data, kind, error_type)


def decode(data: Any, kind: type[T], error_type: type[KvswapError] = MalformedManifest, at: str = "") -> T:
    """Decode bytes that `check` has passed into the type `kind`; `at` names their field.  Raises `error_type`."""
    try:
        decoded: T = _decoder(cast(Any, kind)).decode(data)
        return decoded
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(error, kind, error_type, at) from error


def fields(
    data: bytes, error_type: type[KvswapError] = MalformedManifest, *, items: int = LIMITS.message_items
) -> dict[str, msgspec.Raw]:
    """Split a map into its fields, each still as bytes.  Raises `error_type`."""
    check(data, error_type, items=items)
    return decode(data, _FIELDS, error_type)


def pieces(
    data: Any, each: int, most: int, error_type: type[KvswapError] = MalformedManifest, at: str = ""
) -> Iterator[bytes]:
    """Cut an array that `check` has passed into arrays of `each` elements; `at` names its field.

    Raises `error_type` for what is not an array, or one of more than about `most` elements.
    """
    try:
        found = starts(data, each)
    except ValueError as error:
        raise error_type(f"not a valid {at or 'array'}: {error}", field=at) from error
    if len(found) - 2 > most // each:
        raise error_type(f"{at} has more than {most} elements", field=at)
    view = memoryview(data)
    for start, stop in pairwise(found):
        count = each if stop != found[-1] else _elements(view) - each * (len(found) - 2)
        yield b"\xdd" + count.to_bytes(4, "big") + view[start:stop]


def _elements(array: memoryview) -> int:
    """Return the number of elements of an array, by its head."""
    width = {0xDC: 2, 0xDD: 4}.get(array[0], 0)
    return int.from_bytes(array[1 : 1 + width], "big") if width else array[0] & 15


_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}  # by type; bounded by the number of types in the code
_building = threading.Lock()


def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    """Return the decoder of a type, which one thread builds, and with it what msgspec keeps of the type's fields.

    msgspec 0.22 shows other threads what it keeps before it is whole: they crash the process.
    """
    found = _decoders.get(kind)
    if found is None:
        with _building:
            found = _decoders.get(kind)
            if found is None:
                found = _decoders[kind] = msgspec.msgpack.Decoder(kind, strict=True)
    return found


def _invalid(error: Exception, kind: Any, error_type: type[KvswapError], at: str = "") -> KvswapError:
    field = (at + str(error).partition("at `$")[2].rstrip("`")).lstrip(".") or "unknown"
    name = getattr(kind, "__name__", "message").lower()
    return error_type(f"not a valid {name}: {error}", field=field)


def plain(value: Any) -> Any:
    """Return the plain values of a struct, ready for `pack`."""
    return msgspec.to_builtins(value, builtin_types=(bytes,))


def jsonable(value: Any) -> Any:
    """Convert plain values to JSON's, for people and scripts: bytes become hex."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {k: jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    return value
