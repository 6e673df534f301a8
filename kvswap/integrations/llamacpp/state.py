"""States of llama.cpp as typed values: the cache of one sequence of tokens, and slot files, which hold one.

A *state* is what `llama_state_seq_get_data` gives, a *slot file* what `llama_state_seq_save_file` and llama-server's
`POST /slots/N?action=save` write.  `reading` parses them, `writing` writes them, `building` cuts and makes them.

A model has one cache of all its layers or, where some of them slide, two: the full layers' first, then the sliding
ones'.  A cache has *cells*, each with the position of its token; a sliding cache is a ring, so that its cells need not
lie in order.  Keys come after RoPE, as they are used.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvswap.integrations.llamacpp.ggml import GgmlType

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int32]

STATE_MAGIC = 0xAF143CD8
FILE_MAGIC = 0x67677371
CHECKPOINTS_MAGIC = 0x504B4353
CHECKPOINTS_VERSION = 1
VERSIONS = (3, 4)
"""The versions of the format that are read and written; 4 adds the rotations of quantised caches."""

PACKED = -1
"""The first number of a slot file's tokens as llama-server packs them: -1, 1, count, ids, count of media."""


@dataclass(frozen=True, slots=True, eq=False)
class CellTensor:
    """The keys or the values of one layer, for all cells of its cache.

    `data` is [cells, bytes of a row] or, where `transposed`, [channels, cells x bytes of a number]; a row is
    [head, dim] of one token.
    """

    kind: GgmlType
    data: Bytes
    transposed: bool = False

    @property
    def cells(self) -> int:
        """The number of cells."""
        return len(self.data) if not self.transposed else self.data.shape[1] // self.kind.block_bytes

    @property
    def row_bytes(self) -> int:
        """The bytes of one token's row."""
        return self.data.shape[1] if not self.transposed else len(self.data) * self.kind.block_bytes

    def rows(self, cells: npt.NDArray[np.intp] | slice = slice(None)) -> Bytes:
        """Return these cells as [cell, bytes of a row], however they lie here."""
        if not self.transposed:
            return self.data[cells]
        size = self.kind.block_bytes
        each = self.data.reshape(len(self.data), -1, size)[:, cells]
        return np.ascontiguousarray(each.swapaxes(0, 1)).reshape(each.shape[1], -1)

    def select(self, cells: npt.NDArray[np.intp]) -> CellTensor:
        """Return a tensor of these cells alone, in this order."""
        if not self.transposed:
            return CellTensor(self.kind, self.data[cells])
        each = self.data.reshape(len(self.data), -1, self.kind.block_bytes)[:, cells]
        return CellTensor(self.kind, each.reshape(len(self.data), -1), True)

    @classmethod
    def of_rows(cls, kind: GgmlType, rows: Bytes, transposed: bool) -> CellTensor:
        """Make a tensor of rows [cell, bytes of a row]."""
        if not transposed:
            return cls(kind, np.ascontiguousarray(rows))
        each = rows.reshape(len(rows), -1, kind.block_bytes).swapaxes(0, 1)
        return cls(kind, np.ascontiguousarray(each).reshape(each.shape[0], -1), True)


@dataclass(frozen=True, slots=True, eq=False)
class CellCache:
    """One attention cache of a sequence: the cells that are in use, and the tensors of its layers.

    `streams` counts the separate caches that the server keeps (1 with a unified one, else one for each slot), `stream`
    is the one that holds the sequence.  `transposed`: values lie by channel, as without flash attention.  `rotations`
    are the sizes of the Hadamard matrices that quantised keys and values were multiplied with, 0 without; None in
    version 3, which does not say.
    """

    streams: int
    stream: int
    sequence: int
    positions: Positions
    transposed: bool
    rotations: tuple[int, int] | None
    keys: tuple[CellTensor, ...]
    values: tuple[CellTensor, ...]

    @property
    def first(self) -> int:
        """The lowest position of a cell; 0 without any."""
        return int(self.positions.min()) if len(self.positions) else 0

    @property
    def stop(self) -> int:
        """The position after the highest one; 0 without any."""
        return int(self.positions.max()) + 1 if len(self.positions) else 0

    def order(self) -> npt.NDArray[np.intp]:
        """Return the cells in the order of their positions."""
        return np.argsort(self.positions, kind="stable")


@dataclass(frozen=True, slots=True, eq=False)
class SequenceState:
    """The cache of one sequence: of all layers, or of the full and then of the sliding ones.

    `version` is that of the format that it was read of.
    """

    version: int
    caches: tuple[CellCache, ...]
    sequence: int = 0

    @property
    def tokens(self) -> int:
        """The tokens that the state stands for."""
        return max((cache.stop for cache in self.caches), default=0)

    @property
    def slides(self) -> bool:
        """True if some layers slide."""
        return len(self.caches) > 1


@dataclass(frozen=True, slots=True, eq=False)
class SlidingCheckpoint:
    """The sliding layers as they were after `tokens` tokens: llama-server can go back to there.

    `first` and `last` are the positions that llama-server notes beside it.
    """

    tokens: int
    first: int
    last: int
    state: SequenceState


@dataclass(frozen=True, slots=True, eq=False)
class SlotFile:
    """A saved sequence: its token ids and its state.

    `packed` says whether the ids are wrapped as llama-server does; `checkpoints` is None in a file without an appendix
    for them, which is another file than one with an empty appendix.
    """

    ids: tuple[int, ...]
    packed: bool
    state: SequenceState
    checkpoints: tuple[SlidingCheckpoint, ...] | None = field(default=None)
