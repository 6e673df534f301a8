"""The parser of llama.cpp's states and slot files.  They carry no digest, and llama.cpp checks little of them itself.

    state   u32 magic, i32 sequence, memory
    file    u32 magic, u32 version, u32 count, count x i32 tokens, memory, [appendix]
    memory  one cache, or the full layers' and then the sliding layers'
    cache   u32 streams; for each of them u32 cells, and where there are any:
              cells x (i32 position, u32 1, i32 sequence), u32 transposed, u32 layers, version 4: 2 x u32 rotations,
              for each layer i32 type, u64 bytes of a row, cells x row                                         keys
              for each layer the same or, transposed,                                                          values
                i32 type, u32 bytes of a number, u32 channels, channels x cells x number
    appendix  u32 magic, u32 1, u32 count; for each i64 tokens, i32 first, i32 last, and each with a u64 size before it
              a state of the sliding cache alone, that of a draft model, that of speculative decoding

All little endian, without padding.  Every size is compared with the bytes that are there before it is used; nothing is
copied but positions, so a file costs what it is long.  What is left over, and what is not understood, is refused:
`Incompatible` names what that is, `MalformedState` says where it broke.
"""

from __future__ import annotations

import struct

import numpy as np

from kvswap.core.errors import Incompatible, MalformedState
from kvswap.core.limits import LIMITS
from kvswap.integrations.llamacpp.ggml import CACHE_TYPES, GgmlType, cache_type
from kvswap.integrations.llamacpp.state import (
    CHECKPOINTS_MAGIC,
    CHECKPOINTS_VERSION,
    FILE_MAGIC,
    PACKED,
    STATE_MAGIC,
    VERSIONS,
    Bytes,
    CellCache,
    CellTensor,
    Positions,
    SequenceState,
    SlidingCheckpoint,
    SlotFile,
)

MOST_STREAMS = 256
MOST_TOKENS = 1 << 24
MOST_CHECKPOINTS = 1_024
_MOST_ROTATION = 1 << 16
_CELL = 12
_EXTENDED_CELL = 20  # with the two further positions of M-RoPE


class _Cursor:
    """Bytes that are read from front to back."""

    def __init__(self, data: Bytes) -> None:
        self.data, self.at = data, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int, what: str) -> Bytes:
        if size > self.left:
            raise MalformedState(f"{what} should take {size} bytes at {self.at}, there are {self.left}")
        self.at += size
        return self.data[self.at - size : self.at]

    def numbers(self, form: str, what: str) -> tuple[int, ...]:
        size = struct.calcsize("<" + form)
        return struct.unpack("<" + form, self.take(size, what).tobytes())

    def number(self, form: str, what: str) -> int:
        return self.numbers(form, what)[0]

    def peek(self, form: str, offset: int = 0) -> tuple[int, ...] | None:
        """Look at numbers ahead; None if there are not so many bytes."""
        start, size = self.at + offset, struct.calcsize("<" + form)
        if start + size > len(self.data):
            return None
        return struct.unpack("<" + form, self.data[start : start + size].tobytes())


def parse_state(
    data: bytes | memoryview | Bytes, version: int | None = None, *, sliding_alone: bool = False
) -> SequenceState:
    """Parse a state; its tensors are views of `data`.

    A state does not say of which version it is: without `version` it is the one that fits to the last byte.
    `sliding_alone`: it is that of sliding layers without the full ones, as in a checkpoint.  Raises `MalformedState`,
    and `Incompatible` naming a kind of memory that is not read.
    """
    view, errors = _view(data), []
    for tried in (4, 3) if version is None else (version,):
        cursor = _Cursor(view)
        try:
            return _state(cursor, _known_version(tried), sliding_alone)
        except Incompatible as error:
            errors.append((cursor.at, error))
    raise max(errors, key=lambda at_error: at_error[0])[1]  # of the version that made sense for longest


def _state(cursor: _Cursor, version: int, sliding_alone: bool) -> SequenceState:
    if cursor.number("I", "the magic") != STATE_MAGIC:
        raise MalformedState("it does not begin as a state of llama.cpp")
    sequence = cursor.number("i", "the sequence's number")
    state = SequenceState(version, _memory(cursor, version), sequence)
    _end(cursor)
    if not sliding_alone:
        _require_whole(state.caches)
    return state


def parse_slot_file(data: bytes | memoryview | Bytes) -> SlotFile:
    """Parse a slot file; its tensors are views of `data`.

    Raises `MalformedState`, and `Incompatible` naming a version or a kind of memory that is not read.
    """
    cursor = _Cursor(_view(data))
    if cursor.number("I", "the magic") != FILE_MAGIC:
        raise MalformedState("it does not begin as a slot file of llama.cpp")
    version = _known_version(cursor.number("I", "the version"))
    ids, packed = _ids(cursor)
    state = SequenceState(version, _memory(cursor, version))
    _require_whole(state.caches)
    checkpoints = _checkpoints(cursor, version, state) if cursor.left else None
    _end(cursor)
    if len(ids) != state.tokens:
        raise MalformedState(f"it has {len(ids)} token ids, and the cache of {state.tokens} tokens")
    return SlotFile(ids, packed, state, checkpoints)


def _view(data: bytes | memoryview | Bytes) -> Bytes:
    if isinstance(data, np.ndarray):
        return data
    return np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)


def _known_version(version: int) -> int:
    if version not in VERSIONS:
        raise Incompatible(
            f"slot files of version {version} are not read, only {' and '.join(map(str, VERSIONS))}",
            cause="llama-server is newer than what kvswap was tried with",
            hint="docs/llamacpp.md has the releases that it was tried with",
            field="version",
        )
    return version


def _end(cursor: _Cursor) -> None:
    if cursor.left:
        raise MalformedState(f"{cursor.left} bytes are left over at {cursor.at}")


def _ids(cursor: _Cursor) -> tuple[tuple[int, ...], bool]:
    count = cursor.number("I", "the count of tokens")
    if count > MOST_TOKENS:
        raise MalformedState(f"{count} tokens are over the cap of {MOST_TOKENS}")
    words = cursor.take(4 * count, "the tokens").view("<i4")
    packed = count > 0 and int(words[0]) == PACKED
    if packed:
        if count < 4 or int(words[1]) != 1:
            raise _refused("tokens packed in another form", "packing", "llama-server is newer than what was tried")
        if int(words[2]) > count - 4 or int(words[-1]) or int(words[2]) != count - 4:
            raise _refused("a sequence with images or sound", "media", "the prompt has media beside text")
        words = words[3:-1]
    if len(words) and int(words.min()) < 0:
        raise _refused("a sequence with images or sound", "media", "a token id is negative")
    return tuple(words.tolist()), packed


def _memory(cursor: _Cursor, version: int) -> tuple[CellCache, ...]:
    if _is_recurrent(cursor):
        raise _refused("the state of a recurrent model", "recurrent")
    caches = [_cache(cursor, version)]
    ahead = cursor.peek("I")
    if ahead is not None and ahead[0] != CHECKPOINTS_MAGIC:
        if _is_recurrent(cursor):
            raise _refused("the state of a hybrid model, attention beside a recurrent part", "hybrid")
        caches.append(_cache(cursor, version))
    return tuple(caches)


def _require_whole(caches: tuple[CellCache, ...]) -> None:
    """Raise `MalformedState` unless the caches belong together and hold a sequence from its beginning."""
    first, last = caches[0], caches[-1]
    if first.first or first.stop != len(first.positions):
        raise MalformedState("the cells of the full layers do not hold all positions from 0 on")
    if first.stop != last.stop:
        raise MalformedState(f"the full layers end at {first.stop}, the sliding ones at {last.stop}")
    if (first.streams, first.stream, first.sequence) != (last.streams, last.stream, last.sequence):
        raise MalformedState("full and sliding layers are of different streams or sequences")


def _is_recurrent(cursor: _Cursor) -> bool:
    """Look whether the memory of a recurrent model follows: cells of no sequence, a zero, layers, a tensor."""
    cells = cursor.peek("I")
    if cells is None or not 1 <= cells[0] <= MOST_STREAMS:
        return False
    for cell in range(cells[0]):
        found = cursor.peek("iI", 4 + 8 * cell)
        if found is None or found[0] < 0 or found[1]:
            return False
    header = cursor.peek("III", 4 + 8 * cells[0])
    return header is not None and header[0] == 0 and 1 <= header[1] <= LIMITS.manifest_layers


def _cache(cursor: _Cursor, version: int) -> CellCache:
    streams = cursor.number("I", "the count of streams")
    if not 1 <= streams <= MOST_STREAMS:
        raise MalformedState(f"{streams} streams at {cursor.at - 4}")
    found: CellCache | None = None
    for stream in range(streams):
        cells = cursor.number("I", "the count of cells")
        if not cells:
            continue
        if found is not None:
            raise MalformedState("one sequence has cells in two streams")
        found = _stream(cursor, version, streams, stream, cells)
    empty: Positions = np.empty(0, np.int32)
    return found or CellCache(streams, 0, 0, empty, False, (0, 0) if version > 3 else None, (), ())


def _stream(cursor: _Cursor, version: int, streams: int, stream: int, cells: int) -> CellCache:
    if cells > MOST_TOKENS:
        raise MalformedState(f"{cells} cells are over the cap of {MOST_TOKENS}")
    positions, sequence = _cells(cursor, cells)
    transposed, layers = cursor.numbers("II", "the header of the tensors")
    if transposed > 1 or not 1 <= layers <= LIMITS.manifest_layers:
        raise MalformedState(f"the header of the tensors at {cursor.at - 8} has {transposed} and {layers} layers")
    rotations: tuple[int, int] | None = None
    if version > 3:
        by_key, by_value = cursor.numbers("II", "the rotations")
        for size in (by_key, by_value):
            if size > _MOST_ROTATION or size & (size - 1):
                raise MalformedState(f"a rotation by a matrix of {size}")
        rotations = by_key, by_value
    keys = _rows(cursor, layers, cells, "keys")
    if not cursor.left:
        raise _refused("keys without values, as of latent attention (MLA)", "latent")
    values = _channels(cursor, layers, cells) if transposed else _rows(cursor, layers, cells, "values")
    return CellCache(streams, stream, sequence, positions, bool(transposed), rotations, keys, values)


def _cells(cursor: _Cursor, cells: int) -> tuple[Positions, int]:
    start = cursor.at
    words = cursor.take(_CELL * cells, "the cells").view("<i4").reshape(cells, 3)
    if (words[:, 1] != 1).any():
        cursor.at = start
        if cells > 1 and _extended(cursor, cells):
            raise _refused("positions of several axes (M-RoPE), as of models that see", "M-RoPE")
        raise MalformedState("a cell is of no sequence, or of several")
    positions: Positions = words[:, 0].astype(np.int32)
    sequence = int(words[0, 2])
    low, high = int(positions.min()), int(positions.max())
    if low < 0 or high >= MOST_TOKENS or high - low + 1 != cells or len(np.unique(positions)) < cells:
        raise MalformedState(f"the positions of {cells} cells are not one after the other")
    if sequence < 0 or sequence >= MOST_STREAMS or (words[:, 2] != sequence).any():
        raise MalformedState("the cells are of several sequences")
    return positions, sequence


def _extended(cursor: _Cursor, cells: int) -> bool:
    size = _EXTENDED_CELL * cells
    if size > cursor.left:
        return False
    words = cursor.data[cursor.at : cursor.at + size].view("<i4").reshape(cells, 5)
    return bool((words[:, 1] == 1).all())


def _rows(cursor: _Cursor, layers: int, cells: int, what: str) -> tuple[CellTensor, ...]:
    out: list[CellTensor] = []
    for layer in range(layers):
        number, row = cursor.numbers("iQ", f"the header of layer {layer}'s {what}")
        kind = _type(number, out)
        if not row or row % kind.block_bytes:
            raise MalformedState(f"rows of {row} bytes of {kind.name} in layer {layer}'s {what}")
        out.append(CellTensor(kind, cursor.take(cells * row, f"layer {layer}'s {what}").reshape(cells, row)))
    return tuple(out)


def _channels(cursor: _Cursor, layers: int, cells: int) -> tuple[CellTensor, ...]:
    out: list[CellTensor] = []
    for layer in range(layers):
        number, size, channels = cursor.numbers("iII", f"the header of layer {layer}'s values")
        kind = _type(number, out)
        if kind.quantised or size != kind.block_bytes or not channels:
            raise MalformedState(f"{channels} channels of {size} bytes of {kind.name} in layer {layer}'s values")
        data = cursor.take(channels * cells * size, f"layer {layer}'s values").reshape(channels, cells * size)
        out.append(CellTensor(kind, data, True))
    return tuple(out)


def _type(number: int, before: list[CellTensor]) -> GgmlType:
    kind = cache_type(number) if 0 <= number < 256 else None
    if kind is None:
        raise MalformedState(f"ggml type {number}, known are {sorted(CACHE_TYPES)}")
    if before and before[0].kind is not kind:
        raise MalformedState(f"layers of {before[0].kind.name} and of {kind.name} in one cache")
    return kind


def _checkpoints(cursor: _Cursor, version: int, whole: SequenceState) -> tuple[SlidingCheckpoint, ...]:
    magic, form, count = cursor.numbers("III", "the appendix")
    if magic != CHECKPOINTS_MAGIC:
        raise MalformedState(f"something else than checkpoints follows at {cursor.at - 12}")
    if form != CHECKPOINTS_VERSION:
        raise _refused(f"checkpoints of version {form}", "checkpoints", "llama-server is newer than what was tried")
    if count > MOST_CHECKPOINTS:
        raise MalformedState(f"{count} checkpoints are over the cap of {MOST_CHECKPOINTS}")
    found = []
    for _ in range(count):
        tokens, first, last, size = cursor.numbers("qiiQ", "a checkpoint")
        state = parse_state(cursor.take(size, "a checkpoint's state"), version, sliding_alone=True)
        for what in ("a draft model", "speculative decoding"):
            if cursor.take(cursor.number("Q", what), what).size:
                raise _refused(
                    f"a checkpoint with the state of {what}", "speculative", f"llama-server runs with {what}"
                )
        found.append(_checkpoint(tokens, first, last, state, whole))
    return tuple(found)


def _checkpoint(tokens: int, first: int, last: int, state: SequenceState, whole: SequenceState) -> SlidingCheckpoint:
    cache = state.caches[0]
    if len(state.caches) > 1 or not 0 <= tokens <= whole.tokens:
        raise MalformedState(f"a checkpoint after {tokens} of {whole.tokens} tokens")
    if cache.stop != tokens or last != cache.stop - 1 or not 0 <= first <= cache.first:
        raise MalformedState(f"a checkpoint after {tokens} tokens holds positions {cache.first} to {cache.stop - 1}")
    return SlidingCheckpoint(tokens, first, last, state)


def _refused(what: str, field: str, cause: str = "the model keeps other things than keys and values") -> Incompatible:
    return Incompatible(
        f"llama.cpp saved {what}, which kvswap does not read",
        cause=cause,
        hint="docs/llamacpp.md has the models that can be shared",
        field=field,
    )
