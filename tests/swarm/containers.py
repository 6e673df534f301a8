"""How much every container holds that is reachable from an object: by path, elements of one path together."""

from __future__ import annotations

import types
from collections import deque
from typing import Any

from kvswap.core.bounded import Table
from kvswap.core.rows import Rows
from kvswap.net.libp2p.connection_limits import ConnectionSlots

_SKIPPED = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.CodeType, types.FrameType)
_ROOMS = ("kvswap", "libp2p", "tests")  # whose objects are looked into
_DEPTH = 14


def sizes(root: Any) -> tuple[dict[str, int], dict[str, Table[Any, Any]]]:
    """(Entries by path, bounded tables by path)."""
    found: dict[str, int] = {}
    tables: dict[str, Table[Any, Any]] = {}
    seen: set[int] = set()
    todo: deque[tuple[str, Any, int]] = deque([("", root, 0)])
    while todo:
        path, item, depth = todo.popleft()
        if id(item) in seen or depth > _DEPTH or isinstance(item, _SKIPPED):
            continue
        seen.add(id(item))
        if isinstance(item, Table):
            tables[f"{path}: {item.name}"] = item
            continue
        if isinstance(item, (Rows, ConnectionSlots)):  # their books are about what their table holds
            assert item.filling().entries <= item.filling().most_entries
            if isinstance(item, Rows):
                assert len(item.names()) <= len(item)
                tables[f"{path}: {item.table.name}"] = item.table
            continue
        if isinstance(item, (dict, list, set, frozenset, deque, bytearray)):
            if not (isinstance(item, deque) and item.maxlen is not None):
                found[path] = found.get(path, 0) + len(item)
            if isinstance(item, dict):
                todo.extend((f"{path}[]", value, depth + 1) for value in list(item.values()))
                todo.extend((f"{path}{{}}", key, depth + 1) for key in list(item))
            elif not isinstance(item, bytearray):
                todo.extend((f"{path}[]", value, depth + 1) for value in list(item))
        elif isinstance(item, tuple):
            todo.extend((f"{path}[]", value, depth + 1) for value in item)
        elif isinstance(item, types.MethodType):
            todo.append((path, item.__self__, depth))
        elif type(item).__module__.split(".")[0] in _ROOMS:
            held = dict(getattr(item, "__dict__", {}))
            for kind in type(item).__mro__:
                for name in getattr(kind, "__slots__", ()):
                    if hasattr(item, name):
                        held[name] = getattr(item, name)
            todo.extend((f"{path}.{name}", value, depth + 1) for name, value in held.items())
    return found, tables
