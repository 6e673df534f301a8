"""Bounded tables of rows: what several senders say about each of many things (`core.bounded` has the rules)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from kvswap.core.bounded import Filling, Table

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class RowBounds:
    """The bounds of a table of rows: of the whole, of a row, of a sender's part of each.  None is as in `Table`."""

    entries: int  # values in all rows together
    per_row: int
    per_sender_in_row: int | None = None  # None: a whole row
    nbytes: int | None = None
    per_sender: int | None = None
    bytes_per_sender: int | None = None


class Rows(Generic[V]):
    """A bounded table of rows; each row maps columns to values and is bounded itself, as is a sender's part of it.

    `put`, `get`, `pop`, `keep` and `release` take a row's name and a column.
    """

    def __init__(
        self,
        name: str,
        bounds: RowBounds,
        *,
        keep: Callable[[tuple[Any, str], V], bool] | None = None,
        size: Callable[[tuple[Any, str], V], int] | None = None,
    ) -> None:
        """Make an empty table within `bounds`; `keep` and `size` are as in `Table`."""
        self._per_row = bounds.per_row
        self._per_sender_in_row = bounds.per_sender_in_row or bounds.per_row
        self._rows: dict[Any, OrderedDict[str, None]] = {}
        self.table: Table[tuple[Any, str], V] = Table(
            name,
            entries=bounds.entries,
            nbytes=bounds.nbytes,
            per_sender=bounds.per_sender,
            bytes_per_sender=bounds.bytes_per_sender,
            keep=keep,
            size=size,
            removed=self._removed,
        )

    def __len__(self) -> int:
        return len(self.table)

    def __contains__(self, row: object) -> bool:
        return row in self._rows

    def names(self) -> list[Any]:
        """Return the names of the rows."""
        return list(self._rows)

    def row(self, row: Any) -> dict[str, V]:
        """Return the columns and values of a row, the oldest first."""
        values = ((column, self.table.peek((row, column))) for column in self._rows.get(row, ()))
        return {column: value for column, value in values if value is not None}

    def get(self, row: Any, column: str) -> V | None:
        """Return a value and count that as a use; None where it is absent."""
        return self.table.get((row, column))

    def put(self, row: Any, column: str, value: V, sender: str = "", *, held: bool = False) -> bool:
        """Add or replace a value; return False where there is no room for it.

        With `held` it is kept until `release`.
        """
        columns = self._rows.get(row, OrderedDict())
        if column not in columns and not self._free_capacity(row, columns, sender, held):
            return self.table.refuse()
        added = self.table.put((row, column), value, sender, held=held)
        if added:
            columns = self._rows.setdefault(row, OrderedDict())
            columns[column] = None
            columns.move_to_end(column)
        return added

    def pop(self, row: Any, column: str) -> V | None:
        """Remove a value and return it; None where it is absent."""
        value = self.table.pop((row, column))
        if value is not None:
            self._removed((row, column), value)
        return value

    def keep(self, row: Any, column: str) -> None:
        """Hold a value until `release`: nothing that is new and not kept pushes it out."""
        self.table.keep((row, column))

    def release(self, row: Any, column: str) -> None:
        """End a `keep`; the table's own rule still holds."""
        self.table.release((row, column))

    def filling(self) -> Filling:
        """Return the fill level of the table; callable from any thread, without waiting."""
        return self.table.filling()

    def _free_capacity(self, row: Any, columns: OrderedDict[str, None], sender: str, held: bool) -> bool:
        """Evict one value of a full row: the sender's own beyond its share, else one of whoever has most of it."""
        by_sender: dict[str, list[str]] = {}
        for column in columns:
            if not self.table.kept((row, column)):
                by_sender.setdefault(self.table.sender((row, column)) or "", []).append(column)
        if len(by_sender.get(sender, ())) >= self._per_sender_in_row:
            self.table.evict((row, by_sender[sender][0]))
        elif len(columns) >= self._per_row:
            if by_sender:
                most = max(by_sender, key=lambda name: (len(by_sender[name]), name == sender))
                self.table.evict((row, by_sender[most][0]))
            elif held:
                self.table.evict((row, next(iter(columns))))
            else:
                return False
        return True

    def _removed(self, key: tuple[Any, str], value: V) -> None:
        row, column = key
        columns = self._rows.get(row)
        if columns is not None:
            columns.pop(column, None)
            if not columns:
                del self._rows[row]
