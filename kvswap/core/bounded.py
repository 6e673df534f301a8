"""Tables that peers fill with what they say, bounded in entries and in bytes.

A peer that fills a table with mere words must not push out what is worth keeping.  So every entry has a *sender*:
whoever is answerable for it, usually the peer that said it.  A sender has a share, and beyond it pushes out only what
it told itself.  When the table is full, the sender that fills most of it gives way - the new entry's, if nobody fills
more - and of its entries the least recently used one.  What is *kept* - held with `keep`, or named so by the table's
own rule - gives way to nothing that is new and not kept itself.  `core.rows` makes rows of this.

>>> heard = Table[str, bytes]("heard", entries=3, per_sender=2)
>>> for name in "abc":
...     _ = heard.put(name, b"", "loud")
>>> _ = heard.put("d", b"", "quiet")
>>> _ = heard.put("e", b"", "another")
>>> list(heard)
['c', 'd', 'e']
"""

from __future__ import annotations

import dataclasses
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import msgspec

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
_LOOKS = 32  # kept entries that are looked at again, at most, to find room for a new one
_ENTRY_BYTES = 256  # about what the tables' own book-keeping takes for an entry


@dataclass(frozen=True, slots=True)
class Filling:
    """The fill level of a table.  Bytes are an estimate of memory; `refused` and `evicted` count since the start."""

    name: str
    entries: int
    most_entries: int
    bytes: int
    most_bytes: int
    refused: int = 0
    evicted: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the row of `kvswap status --json`."""
        return dataclasses.asdict(self)


class Bounded(Protocol):
    """A table that reports its fill level."""

    def filling(self) -> Filling:
        """Return the fill level of the table; callable from any thread, without waiting."""


class Tables:
    """The bounded tables of one node, for `status`."""

    def __init__(self) -> None:
        self._tables: list[Bounded] = []
        self._others: list[Callable[[], list[Filling]]] = []

    def add(self, *tables: Bounded) -> None:
        """Add tables to the list."""
        self._tables += tables

    def add_all(self, fillings: Callable[[], list[Filling]]) -> None:
        """Add the tables of a component that reports their fill levels itself, through `fillings`."""
        self._others.append(fillings)

    def fillings(self) -> list[Filling]:
        """Return the fill level of every table, sorted by name."""
        every = [table.filling() for table in self._tables]
        every += [filling for others in self._others for filling in others()]
        return sorted(every, key=lambda filling: filling.name)


def approximate_bytes(value: object) -> int:
    """Estimate the memory of a value in bytes, with all that its containers and structs hold."""
    total, todo = 0, [value]
    while todo:
        item = todo.pop()
        total += sys.getsizeof(item, 64)
        if isinstance(item, dict):
            todo += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set, frozenset)):
            todo += item
        elif isinstance(item, msgspec.Struct):
            todo += [getattr(item, name) for name in item.__struct_fields__]
        elif dataclasses.is_dataclass(item) and not isinstance(item, type):
            todo += [getattr(item, field.name) for field in dataclasses.fields(item)]
    return total


class _TableEntry(Generic[V]):
    __slots__ = ("value", "sender", "size", "held", "kept")

    def __init__(self, value: V, sender: str, size: int, held: bool) -> None:
        self.value = value
        self.sender = sender
        self.size = size
        self.held = held  # by `keep`, until `release`
        self.kept = False  # if so, not counted in its sender's share


class Table(Generic[K, V]):
    """A mapping bounded in entries and bytes, with a share for each sender.  For one thread, except `filling`."""

    def __init__(
        self,
        name: str,
        *,
        entries: int,
        nbytes: int | None = None,
        per_sender: int | None = None,
        bytes_per_sender: int | None = None,
        keep: Callable[[K, V], bool] | None = None,
        size: Callable[[K, V], int] | None = None,
        removed: Callable[[K, V], None] | None = None,
    ) -> None:
        """Make an empty table.

        `entries` and `nbytes` bound the whole (`nbytes` None: 4 KiB for each entry), `per_sender` and
        `bytes_per_sender` what one sender fills (None: all of it).  `keep(key, value)` says what must not give way to
        what is new.  `size(key, value)` estimates bytes; `approximate_bytes` without it.  `removed` is called with what
        gave way.
        """
        self.name = name
        self.most_entries = entries
        self.most_bytes = nbytes if nbytes is not None else entries * 4096
        self._per_sender = per_sender or entries
        self._bytes_per_sender = bytes_per_sender or self.most_bytes
        self._rule = keep
        self._size = size
        self._removed = removed
        self._entries: OrderedDict[K, _TableEntry[V]] = OrderedDict()  # the least recently used first
        self._kept: OrderedDict[K, None] = OrderedDict()
        self._by_sender: dict[str, OrderedDict[K, None]] = {}  # entries that may give way, by sender
        self._sent_bytes: dict[str, int] = {}
        self._ranks: dict[int, OrderedDict[str, None]] = {}  # senders by the number of their entries that may give way
        self._most = 0
        self._bytes = 0
        self._refused = 0
        self._evicted = 0

    # -- as a mapping ------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[K]:
        return iter(list(self._entries))

    def items(self) -> list[tuple[K, V]]:
        """Return the keys and values, the least recently used first."""
        return [(key, entry.value) for key, entry in self._entries.items()]

    def values(self) -> list[V]:
        """Return the values, the least recently used first."""
        return [entry.value for entry in self._entries.values()]

    def get(self, key: K) -> V | None:
        """Return the value of a key and count that as a use; None where the key is absent."""
        if (entry := self._entries.get(key)) is None:
            return None
        self._used(key, entry)
        return entry.value

    def peek(self, key: K) -> V | None:
        """Return the value of a key without counting that as a use; None where the key is absent."""
        entry = self._entries.get(key)
        return entry.value if entry is not None else None

    def sender(self, key: K) -> str | None:
        """Return the sender of an entry; None where the key is absent."""
        entry = self._entries.get(key)
        return entry.sender if entry is not None else None

    def count_of(self, sender: str) -> int:
        """Count a sender's entries, except those that are kept."""
        return len(self._by_sender.get(sender, ()))

    # -- in and out --------------------------------------------------------------------------------

    def put(self, key: K, value: V, sender: str = "", *, held: bool = False) -> bool:
        """Add or replace an entry; return False where there is no room for it, and nothing changed but what gave way.

        With `held` it is kept until `release`.  A key that was held stays so.
        """
        size = (
            self._size(key, value) if self._size is not None else approximate_bytes(key) + approximate_bytes(value)
        ) + _ENTRY_BYTES
        known = self._entries.get(key)
        entry = _TableEntry(value, sender, size, held or (known is not None and known.held))
        entry.kept = entry.held or (self._rule is not None and self._rule(key, value))
        if size > self.most_bytes or (not entry.kept and size > self._bytes_per_sender):
            return self.refuse()
        if known is not None:
            self._out(key, known)
        if not entry.kept:
            self._keep_share(sender, size)
        while len(self._entries) >= self.most_entries or self._bytes + size > self.most_bytes:
            victim = self._victim(entry)
            if victim is None:
                if known is not None and self._removed is not None:
                    self._removed(key, known.value)
                return self.refuse()
            self.evict(victim)
        self._in(key, entry)
        return True

    def pop(self, key: K) -> V | None:
        """Remove an entry and return its value; None where the key is absent."""
        if (entry := self._entries.get(key)) is None:
            return None
        self._out(key, entry)
        return entry.value

    def clear(self) -> None:
        """Remove every entry, held ones included."""
        for key, entry in list(self._entries.items()):
            self._out(key, entry)

    def keep(self, key: K) -> None:
        """Hold an entry until `release`: nothing that is new and not kept pushes it out."""
        if (entry := self._entries.get(key)) is not None:
            entry.held = True
            self._set_kept(key, entry, True)

    def release(self, key: K) -> None:
        """End a `keep`; the table's own rule still holds."""
        if (entry := self._entries.get(key)) is not None:
            entry.held = False
            self._set_kept(key, entry, self._keeps(key, entry))

    def kept(self, key: K) -> bool:
        """Return True if the entry of this key is held, or kept by the table's rule.  Raises `KeyError`."""
        return self._keeps(key, self._entries[key])

    def refuse(self) -> bool:
        """Count an entry that the owner of the table did not let in; always return False."""
        self._refused += 1
        return False

    def evict(self, key: K) -> None:
        """Remove the entry of this key as one that gives way.  Raises `KeyError`."""
        entry = self._entries[key]
        self._out(key, entry)
        self._evicted += 1
        if self._removed is not None:
            self._removed(key, entry.value)

    def filling(self) -> Filling:
        """Return the fill level of the table; callable from any thread, without waiting."""
        counted = (len(self._entries), self.most_entries, self._bytes, self.most_bytes)
        return Filling(self.name, *counted, self._refused, self._evicted)

    # -- who gives way -----------------------------------------------------------------------------

    def _keeps(self, key: K, entry: _TableEntry[V]) -> bool:
        return entry.held or (self._rule is not None and self._rule(key, entry.value))

    def _keep_share(self, sender: str, size: int) -> None:
        """Make room within a sender's own share."""
        while sender in self._by_sender and (
            len(self._by_sender[sender]) >= self._per_sender or self._sent_bytes[sender] + size > self._bytes_per_sender
        ):
            key = next(iter(self._by_sender[sender]))
            entry = self._entries[key]
            if self._keeps(key, entry):
                self._set_kept(key, entry, True)
            else:
                self.evict(key)

    def _victim(self, new: _TableEntry[V]) -> K | None:
        """Find the key that gives way to one more; each entry that turns out to be kept is passed over once."""
        for key in list(islice(self._kept, 2)):  # some are kept no longer
            self._look_again(key)
        while self._most:
            most = self._ranks[self._most]
            sender = new.sender if new.sender in most else next(iter(most))
            key = next(iter(self._by_sender[sender]))
            entry = self._entries[key]
            if not self._keeps(key, entry):
                return key
            self._set_kept(key, entry, True)
        for key in list(islice(self._kept, _LOOKS)):
            if not self._look_again(key):
                return key
        if not new.kept:
            return None
        looked = list(islice(self._kept, _LOOKS))
        return next((key for key in looked if not self._entries[key].held), looked[0] if looked else None)

    def _look_again(self, key: K) -> bool:
        """Return True if an entry is still to be kept; it moves to the end of the kept ones then."""
        entry = self._entries[key]
        if self._keeps(key, entry):
            self._kept.move_to_end(key)
            return True
        self._set_kept(key, entry, False)
        return False

    # -- book-keeping ------------------------------------------------------------------------------

    def _in(self, key: K, entry: _TableEntry[V]) -> None:
        self._entries[key] = entry
        self._bytes += entry.size
        self._enlist(key, entry)

    def _out(self, key: K, entry: _TableEntry[V]) -> None:
        del self._entries[key]
        self._bytes -= entry.size
        self._delist(key, entry)

    def _set_kept(self, key: K, entry: _TableEntry[V], kept: bool) -> None:
        if kept != entry.kept:
            self._delist(key, entry)
            entry.kept = kept
            self._enlist(key, entry)

    def _used(self, key: K, entry: _TableEntry[V]) -> None:
        self._entries.move_to_end(key)
        if not entry.kept:
            keys = self._by_sender[entry.sender]
            keys.move_to_end(key)
            self._ranks[len(keys)].move_to_end(entry.sender)

    def _enlist(self, key: K, entry: _TableEntry[V]) -> None:
        if entry.kept:
            self._kept[key] = None
            return
        keys = self._by_sender.setdefault(entry.sender, OrderedDict())
        self._rank(entry.sender, len(keys), len(keys) + 1)
        keys[key] = None
        self._sent_bytes[entry.sender] = self._sent_bytes.get(entry.sender, 0) + entry.size

    def _delist(self, key: K, entry: _TableEntry[V]) -> None:
        if entry.kept:
            del self._kept[key]
            return
        keys = self._by_sender[entry.sender]
        self._rank(entry.sender, len(keys), len(keys) - 1)
        del keys[key]
        self._sent_bytes[entry.sender] -= entry.size
        if not keys:
            del self._by_sender[entry.sender], self._sent_bytes[entry.sender]

    def _rank(self, sender: str, before: int, after: int) -> None:
        if before:
            del self._ranks[before][sender]
            if not self._ranks[before]:
                del self._ranks[before]
        if after:
            self._ranks.setdefault(after, OrderedDict())[sender] = None
        self._most = max(self._most, after)
        while self._most and self._most not in self._ranks:
            self._most -= 1
