"""Check msgpack bytes in one pass before anything is built of them.

Sixteen megabytes of empty maps become more than a gigabyte of objects, so a message is counted first: its items
against a cap that goes by its kind, its depth, and that it is well-formed: no key twice, text that is UTF-8, no
extension types (timestamps are one), nothing missing and nothing behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

DEEPEST = 256
_LARGEST = 1 << 31

# By first byte: the number of bytes of a fixed value, or the width of the length that follows.
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8} | {b: 1 << (b & 3) for b in range(0xCC, 0xD4)}
_BINARY = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_TEXT = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAY = {0xDC: 2, 0xDD: 4}
_MAP = {0xDE: 2, 0xDF: 4}
_EXTENSION = frozenset((0xC7, 0xC8, 0xC9, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8))

_EARLY = "it ends too early"
_MANY = "more items than such a message may have"


def plain(data: Any, items: int, depth: int) -> int:
    """Count the items of one msgpack value: the value itself, what it holds, and the keys of its maps.

    Raises `ValueError` for more than `items`, for containers nested deeper than `depth`, and for bytes that are not
    exactly one well-formed value.  This is the form without C.
    """
    view = bytes(data)
    if len(view) >= _LARGEST:
        raise ValueError("it is too large")
    if items < 0 or not 0 <= depth <= DEEPEST:
        raise ValueError("such caps are not held")
    size, at, counted = len(view), 0, 0
    levels: list[tuple[int, set[tuple[bool, bytes]] | None]] = []  # values still to come, and the keys of a map
    left, keys = 1, None
    while True:
        if not left:
            if not levels:
                break
            left, keys = levels.pop()
            continue
        is_key = keys is not None and not left & 1
        left -= 1
        if at >= size:
            raise ValueError(_EARLY)
        counted += 1
        if counted > items:
            raise ValueError(_MANY)
        first = view[at]
        kind, at, length = _read(view, first, at + 1)
        if kind in ("array", "map"):
            if is_key:
                raise ValueError("a key that is no text")
            entries = 2 * length if kind == "map" else length
            if entries > items - counted:
                raise ValueError(_MANY)
            if entries > size - at:
                raise ValueError(_EARLY)
            if len(levels) >= depth:
                raise ValueError("it is too deep")
            levels.append((left, keys))
            left, keys = entries, set() if kind == "map" else None
            continue
        if length > size - at:
            raise ValueError(_EARLY)
        if is_key:
            _note(keys, kind, view[at : at + length])
        if kind == "text":
            try:
                view[at : at + length].decode()
            except UnicodeDecodeError:
                raise ValueError("text that is not UTF-8") from None
        at += length
    if at != size:
        raise ValueError("something follows it")
    return counted


def plain_starts(data: Any, every: int) -> list[int]:
    """Find the byte offsets at which every `every`-th element of an array begins, and where the last one ends.

    For bytes that `scan` has passed; raises `ValueError` for what is not an array.  This is the form without C.
    """
    view = bytes(data)
    kind, at, elements = _read(view, view[0], 1) if view else ("nothing", 0, 0)
    if kind != "array":
        raise ValueError("it is no array")
    starts = []
    for element in range(elements):
        if element % every == 0:
            starts.append(at)
        left = 1
        while left:
            kind, at, length = _read(view, view[at], at + 1)
            left -= 1
            if kind in ("array", "map"):
                left += 2 * length if kind == "map" else length
            else:
                at += length
    return [*starts, at]


def _note(keys: set[tuple[bool, bytes]] | None, kind: str, key: bytes) -> None:
    if kind not in ("text", "binary"):
        raise ValueError("a key that is no text")
    if keys is None:
        return
    if (kind == "text", key) in keys:
        raise ValueError("a key appears twice")
    keys.add((kind == "text", key))


def _read(view: bytes, first: int, at: int) -> tuple[str, int, int]:
    """Return the kind of a value, the offset of what follows its head, and its bytes or entries."""
    if first < 0x80 or first >= 0xE0:
        return "fixed", at, 0
    if first < 0xA0:
        return ("map" if first < 0x90 else "array"), at, first & 15
    if first < 0xC0:
        return "text", at, first & 31
    if first in _FIXED:
        return "fixed", at, _FIXED[first]
    for kind, widths in (("binary", _BINARY), ("text", _TEXT), ("array", _ARRAY), ("map", _MAP)):
        if first in widths:
            width = widths[first]
            if len(view) - at < width:
                raise ValueError(_EARLY)
            return kind, at + width, int.from_bytes(view[at : at + width], "big")
    raise ValueError("extension types are not used" if first in _EXTENSION else "a byte that stands for nothing")


fast: Callable[[Any, int, int], int] | None
fast_starts: Callable[[Any, int], list[int]] | None
try:
    from kvswap.core import _scan  # type: ignore[attr-defined]

    fast, fast_starts = _scan.scan, _scan.starts
except ImportError:  # no compiler was there when this was installed
    fast = fast_starts = None

scan: Callable[[Any, int, int], int] = fast or plain
starts: Callable[[Any, int], list[int]] = fast_starts or plain_starts
