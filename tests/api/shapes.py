"""The shape of JSON: names of keys and kinds of values, without the values."""

from __future__ import annotations

import re
from typing import Any

_ID = re.compile(r"12D3\w+|bafk\w+|sha256:\w+")  # keys that are data, not names
Shape = dict[str, Any]


def shape_of(value: Any) -> Shape:
    """Describe a value: its kinds, what its lists hold, and the keys of its objects.

    >>> shape_of({"a": [1, None]})
    {'kinds': ['dict'], 'keys': {'a': {'kinds': ['list'], 'items': {'kinds': ['NoneType', 'int']}}}}
    """
    shape: Shape = {"kinds": [type(value).__name__]}
    if isinstance(value, list):
        for one in value:
            shape["items"] = either(shape.get("items"), shape_of(one))
    elif isinstance(value, dict):
        keys: dict[str, Shape] = {}
        for name, one in value.items():
            name = "*" if _ID.fullmatch(name) else name
            keys[name] = either(keys.get(name), shape_of(one))
        shape["keys"] = keys
    return shape


def either(left: Shape | None, right: Shape | None) -> Shape:
    """Describe what has one of two shapes; keys that only one has are called `NAME?`."""
    if left is None or right is None:
        return left or right or {"kinds": []}
    merged: Shape = {"kinds": sorted({*left["kinds"], *right["kinds"]})}
    if "items" in left or "items" in right:
        merged["items"] = either(left.get("items"), right.get("items"))
    if "keys" in left and "keys" in right:
        keys: dict[str, Shape] = {}
        plain = [{name.rstrip("?"): (name, one) for name, one in side["keys"].items()} for side in (left, right)]
        for name in plain[0] | plain[1]:
            (a, one), (b, other) = (side.get(name, (name + "?", None)) for side in plain)
            always = name == "*" or not (a.endswith("?") or b.endswith("?"))
            keys[name if always else name + "?"] = either(one, other)
        merged["keys"] = keys
    elif "keys" in left or "keys" in right:
        merged["keys"] = left.get("keys", right.get("keys"))
    return merged


def differences(seen: Shape, recorded: Shape, where: str = "") -> list[str]:
    """List where a shape is not one that was recorded: another kind, a key that is missing, or one that is new."""
    found = [f"{where}: {kind}, not {recorded['kinds']}" for kind in seen["kinds"] if kind not in recorded["kinds"]]
    if "items" in seen and "items" in recorded:
        found += differences(seen["items"], recorded["items"], f"{where}[]")
    if "keys" in seen and "keys" in recorded:
        names = {name.rstrip("?"): (name, one) for name, one in recorded["keys"].items()}
        for name, one in seen["keys"].items():
            plain = name.rstrip("?")
            if plain not in names:
                found.append(f"{where}.{plain}: is new")
            else:
                found += differences(one, names[plain][1], f"{where}.{plain}")
        always = {name for name in recorded["keys"] if name != "*" and not name.endswith("?")}
        found += [f"{where}.{name}: is missing" for name in sorted(always - seen["keys"].keys())]
    return found
