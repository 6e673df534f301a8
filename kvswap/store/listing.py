"""The values that the store returns: rows of artifacts, listings, reports."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from kvswap.core.ids import Cid


class ArtifactRow(msgspec.Struct, frozen=True, gc=False):
    """The row of an artifact in the index, known without parsing its manifest; times are Unix seconds.

    A struct of msgspec, and not a dataclass: a list of 20,000 is made in a tenth of the time.
    """

    id: str
    document: str | None
    model: bytes
    label: str
    dtype: str
    tokens: int
    raw_bytes: int
    wire_bytes: int
    publisher: str
    expires: int
    added: float
    used: float
    pinned: bool
    complete: bool

    def to_json(self) -> dict[str, Any]:
        """Return the row as the API shows it, with the model's digest in hex."""
        out = msgspec.structs.asdict(self)
        out["artifact"] = out.pop("id")
        out["model"] = self.model.hex()
        return out


COLUMNS = ", ".join(ArtifactRow.__struct_fields__)


def row_of(row: sqlite3.Row) -> ArtifactRow:
    """Return a row of the table `artifacts`, whose columns are `COLUMNS`, as an `ArtifactRow`."""
    values = list(row)
    values[-2], values[-1] = values[-2] != 0, values[-1] != 0  # pinned, complete
    return ArtifactRow(*values)


@dataclass(frozen=True, slots=True)
class Listing:
    """The entry of an artifact that the index is given.

    `needed` are the files that a reader of the whole document needs; `others` belong to it as well and are kept if
    here, but nothing waits for them: windows of sliding layers that the document's end has left behind.  `chain` has
    the digest of each prefix, by blocks.
    """

    row: ArtifactRow
    envelope: bytes
    needed: Collection[Cid]
    others: Collection[Cid]
    chain: Sequence[bytes]


Reader = Callable[[bytes], Listing | None]
"""Reads an envelope that was found on disk; None for one that is not to be listed.  Raises `KvswapError`."""


@dataclass(frozen=True, slots=True)
class StoreReport:
    """The outcome of `verify`: how many files were checked, adopted into the index, set aside, or missing."""

    checked: int
    adopted: int
    quarantined: int
    missing: int
    incomplete_artifacts: int

    @property
    def clean(self) -> bool:
        """True if no file was wrong or missing."""
        return not (self.quarantined or self.missing)
