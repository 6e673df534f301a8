"""A bounded table with the interface of the dicts that it replaces in py-libp2p."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from kvswap.core.bounded import Table


class Mapped(MutableMapping[Any, Any]):
    """A mapping like a dict (with `default`, like a defaultdict) that holds no more than its bounded table does.

    A value that does not fit is not kept: a caller that put it does not find it again.
    """

    def __init__(self, table: Table[Any, Any], default: Callable[[], Any] | None = None) -> None:
        self.table = table
        self._default = default

    def __getitem__(self, key: Any) -> Any:
        if key in self.table:
            return self.table.get(key)
        if self._default is None:
            raise KeyError(key)
        made = self._default()
        self.table.put(key, made, str(key))
        return made

    def __setitem__(self, key: Any, value: Any) -> None:
        self.table.put(key, value, str(key))

    def __delitem__(self, key: Any) -> None:
        if key not in self.table:
            raise KeyError(key)
        self.table.pop(key)

    def __contains__(self, key: object) -> bool:
        return key in self.table

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of a key, or `default` without storing it, as a dict does."""
        return self.table.get(key) if key in self.table else default

    def __iter__(self) -> Iterator[Any]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)


def small(name: str, entries: int, default: Callable[[], Any] | None = None) -> Mapped:
    """Make a mapping for values that are small whatever remote peers send."""
    return Mapped(Table(name, entries=entries, size=lambda key, value: 512), default)
