"""The codec in numpy: complete on any machine, and what the C form is tested against."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvswap.codec.predictive.plain import quarter_log
from kvswap.codec.predictive.predictor import EXACT_PRODUCTS, FEATURE
from kvswap.codec.predictive2.frames import BucketFrame, SplitParts, split, values
from kvswap.codec.predictive2.lanes import LanesReader, LanesWriter
from kvswap.codec.predictive2.plan import BY_SUMS, BY_TABLE, LANES, SLICE_LOG, ChunkPlan, Constants, PlannedTensor
from kvswap.core.errors import IntegrityError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Place = tuple[slice, slice, slice]

HEADER = struct.Struct("<BBBBHH")
VERSION = 2
_LANES_LOG = 5
SLICE_LOGS = (5, 8)  # the fewest and the most
_WRONG_CAP = np.float32(128)
_TOKEN_CAP = 24


class _Walk:
    """The tensors of a plan, predicted one after another from the words of those before."""

    def __init__(self, plan: ChunkPlan, entries: Array | None) -> None:
        self._plan, self._entries = plan, entries
        self._features: list[Array] = []  # int8 [tokens, channels]
        self._errors: list[Ints] = []  # [tokens], quarter octaves
        self._mu: Floats = np.empty(0, np.float32)

    def predict(self, number: int) -> BucketFrame:
        """Return where the buckets of a tensor lie, [tokens, heads, dim]."""
        plan, step = self._plan, self._plan.steps[number]
        shape = (plan.tokens, plan.heads, step.words.shape[2])
        constants = Constants.of(step.tensor)
        mu = np.broadcast_to(constants.mean, (plan.tokens, len(constants.mean)))
        if step.mode != BY_SUMS and step.mode != BY_TABLE:
            sums = None
        else:
            sums = self._sums(step) if step.mode == BY_SUMS else self._rows(number)
            mu = sums.astype(np.float32) * constants.scale + constants.mean
        self._mu = self._rotated(step, mu.reshape(shape), 1)
        sigma = step.tensor.log_sigma.astype(np.int32).reshape(1, *shape[1:]) + self._factor(number)[:, None, None]
        return BucketFrame.of(plan.form, self._mu, sigma.astype(np.int32))

    def _sums(self, step: PlannedTensor) -> Array:
        """Multiply features by weights, exactly: pieces below 2^24 in float32, added as int32."""
        given = np.concatenate([self._features[i] for i in step.inputs], axis=1).astype(np.float32)
        weights = step.tensor.weights.astype(np.float32)
        out = np.zeros((len(given), weights.shape[1]), np.int32)
        for at in range(0, len(weights), EXACT_PRODUCTS):
            out += (given[:, at : at + EXACT_PRODUCTS] @ weights[at : at + EXACT_PRODUCTS]).astype(np.int32)
        return out

    def _rows(self, number: int) -> Array:
        assert self._entries is not None  # noqa: S101 - a plan with a table has them
        width = len(self._plan.stack.k[0].mean)
        columns = self._plan.stack.memory[:, width:] if number else self._plan.stack.memory[:, :width]
        hit = self._entries > 0
        out = np.zeros((len(hit), columns.shape[1]), np.int32)
        out[hit] = columns[self._entries[hit].astype(np.int64) - 1]
        return out

    def _rotated(self, step: PlannedTensor, x: Floats, way: int) -> Floats:
        """Rotate [tokens, heads, dim] by the positions (`way` 1), or back (-1); each operation is rounded."""
        pairs = self._plan.cosine.shape[1] if step.rotated else 0
        if not pairs:
            return np.ascontiguousarray(x)
        c, s = self._plan.cosine[:, None, :], self._plan.sine[:, None, :]
        a, b = x[..., :pairs], x[..., pairs : 2 * pairs]
        ac, bs, bc, by = a * c, b * s, b * c, a * s
        turned = [ac - bs, bc + by] if way > 0 else [ac + bs, bc - by]
        return np.concatenate([*turned, x[..., 2 * pairs :]], axis=2)

    def _factor(self, number: int) -> npt.NDArray[np.int32]:
        step, tokens = self._plan.steps[number], self._plan.tokens
        if step.mode == BY_TABLE:
            assert self._entries is not None  # noqa: S101
            return np.where(self._entries > 0, 0, self._plan.stack.missing[number]).astype(np.int32)
        if step.sources is None:
            return np.zeros(tokens, np.int32)
        token = step.tensor.token.astype(np.int64)
        total = np.full(tokens, token[-1])
        for (weight, usual), source in zip(token[:-1].reshape(-1, 2), step.sources, strict=True):
            total += weight * (self._errors[source] - usual)
        out: npt.NDArray[np.int32] = np.clip(total + 8 >> 4, -_TOKEN_CAP, _TOKEN_CAP).astype(np.int32)
        return out

    def know(self, number: int, words: Array) -> None:
        """Take in the words of a tensor, [tokens, heads, dim]: what it says of the next ones."""
        step = self._plan.steps[number]
        constants = Constants.of(step.tensor)
        x = values(words, self._plan.form)
        error = np.zeros(len(x), np.int64)
        if not step.given:
            off = np.abs(x - self._mu).reshape(len(x), -1) * constants.inverse
            each = np.rint(np.minimum(off, _WRONG_CAP)).astype(np.int64)
            error = quarter_log(each.sum(axis=1) * 16 // each.shape[1] + 1)
        straight = self._rotated(step, x, -1).reshape(len(x), -1)
        scaled = (straight - constants.mean) * constants.feature
        limit = np.float32(FEATURE)
        self._features.append(np.rint(np.clip(scaled, -limit, limit)).astype(np.int8))
        self._errors.append(error)


def _token_first(part: Array) -> Array:
    return np.ascontiguousarray(part.transpose(1, 0, 2))


def _places(plan: ChunkPlan, dim: int, slice_log: int) -> list[Place]:
    """List the steps of a tensor in the order of the streams, as places in [tokens, heads, dim]."""
    size = 1 << slice_log
    rows = [slice(row, None, size) for row in range(min(size, plan.tokens))]
    every = slice(None)
    return [(row, every, slice(at, min(at + LANES, dim))) for row in rows for at in range(0, dim, LANES)]


def _taking(here: Place) -> Callable[[Array], Array]:
    """Return what picks the values of one step, as [streams, lanes]."""

    def take(array: Array) -> Array:
        taken = array[here]
        return taken.reshape(-1, taken.shape[2])

    return take


def split_all(plan: ChunkPlan, entries: Array | None) -> Iterator[tuple[SplitParts, Array]]:
    """Split the values of each tensor of a chunk; yields them and their contexts, [tokens, heads, dim]."""
    walk = _Walk(plan, entries)
    for number, step in enumerate(plan.steps):
        words = _token_first(step.words)
        with np.errstate(all="ignore"):
            if not step.given:
                frame = walk.predict(number)
                yield split(words, frame, plan.tables.frequency), frame.context
            walk.know(number, words)


def encode(plan: ChunkPlan, entries: Array | None) -> bytes:
    """Encode a chunk.  `entries` are those of its tokens in the token table, if the plan has one."""
    coded = list(split_all(plan, entries))
    writer = LanesWriter(plan.slices * plan.heads, plan.tables, plan.form.bits)
    for value, context in reversed(coded):
        for here in reversed(_places(plan, context.shape[2], SLICE_LOG)):
            take = _taking(here)
            writer.step(value.map(take), take(context))
    states, tails = writer.finish()
    named = np.empty(0, np.uint16) if entries is None else entries
    ends = np.cumsum([2 * LANES + len(tail) for tail in tails])
    header = HEADER.pack(VERSION, plan.kind, SLICE_LOG, _LANES_LOG, len(named), 0)
    streams: list[Array] = []
    for state, several in zip(list(states), tails, strict=True):
        streams += [state.astype("<u4"), several.astype("<u2")]
    return b"".join(
        [header, named.astype("<u2").tobytes(), ends.astype("<u4").tobytes(), *(p.tobytes() for p in streams)]
    )


@dataclass(frozen=True, slots=True)
class EncodedStreams:
    """The parts of a chunk's wire bytes; `begins` and `ends` count words of `words`, states left out."""

    kind: int
    slice_log: int
    entries: Array
    states: Array  # [streams, 32]
    words: Array
    begins: Ints
    ends: Ints


def parse(wire: memoryview, tokens: int, heads: int) -> EncodedStreams:
    """Split wire bytes into their parts.  Raises `IntegrityError` unless every length agrees."""
    if len(wire) < HEADER.size:
        raise IntegrityError("a predictive2 chunk is shorter than its header")
    version, kind, slice_log, lanes_log, entries, nothing = HEADER.unpack_from(wire)
    known = version == VERSION and kind <= 2 and lanes_log == _LANES_LOG and not nothing
    if not known or not SLICE_LOGS[0] <= slice_log <= SLICE_LOGS[1]:
        raise IntegrityError("a predictive2 chunk has an unknown version, format or shape of streams")
    streams = -(-tokens >> slice_log) * heads
    start = HEADER.size + 2 * entries + 4 * streams
    if len(wire) < start or (len(wire) - start) % 2:
        raise IntegrityError("a predictive2 chunk has a wrong length")
    named = np.frombuffer(wire, "<u2", entries, HEADER.size)
    ends = np.frombuffer(wire, "<u4", streams, HEADER.size + 2 * entries).astype(np.int64)
    words = np.frombuffer(wire, "<u2", -1, start)
    begins = np.concatenate([[0], ends[:-1]])
    if (ends - begins < 2 * LANES).any() or ends[-1] != len(words):
        raise IntegrityError("a predictive2 chunk has a wrong length")
    at = begins[:, None] + np.arange(2 * LANES)
    states = np.ascontiguousarray(words[at]).view("<u4")
    return EncodedStreams(kind, slice_log, named, states, words, begins + 2 * LANES, ends)


def decode(plan: ChunkPlan, wire: memoryview) -> None:
    """Decode a chunk into the words of its plan.  Raises `IntegrityError`."""
    found = parse(wire, plan.tokens, plan.heads)
    if found.kind != plan.kind:
        raise IntegrityError("a predictive2 chunk is of another format")
    if len(found.entries) != (plan.tokens if plan.has_table else 0):
        raise IntegrityError("a predictive2 chunk does not say which of its tokens the token table holds")
    if len(found.entries) and int(found.entries.max()) > len(plan.stack.memory):
        raise IntegrityError("a predictive2 chunk names an entry that the token table does not have")
    walk = _Walk(plan, found.entries if plan.has_table else None)
    reader = LanesReader(found.states, found.words, found.begins, found.ends, plan.tables)
    with np.errstate(all="ignore"):
        for number, step in enumerate(plan.steps):
            if step.given:
                walk.know(number, _token_first(step.words))
                continue
            frame = walk.predict(number)
            decoded: Array = np.empty(frame.base.shape, step.words.dtype)
            for here in _places(plan, decoded.shape[2], found.slice_log):
                decoded[here] = reader.step(frame.map(_taking(here))).reshape(decoded[here].shape)
            step.words[...] = decoded.transpose(1, 0, 2)
            walk.know(number, decoded)
    reader.finish()
