"""The steps of the codec in C, where the module was built, with the names and the bits of `plain`."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from kvswap.codec.predictive import plain, rans
from kvswap.codec.predictive.bits import all_read
from kvswap.codec.predictive.buckets import FORMATS, Format
from kvswap.codec.predictive.predictor import Rotations, Tensor
from kvswap.codec.predictive.rans import FrequencyTables
from kvswap.core.errors import IntegrityError

try:
    from kvswap.codec.predictive import _fast  # type: ignore[attr-defined]
except ImportError:  # no compiler was there when this was installed
    _fast = None

Array = npt.NDArray[Any]
AVAILABLE: bool = _fast is not None and sys.byteorder == "little"
_KIND = {form: kind for kind, form in enumerate(FORMATS.values())}
_NOTHING = np.empty(0, np.int32)
_BY = {"fours": 4, "twos": 2}.get(_fast.kernel(), 0) if AVAILABLE else 0
_SIXTEENS = True  # decode sixteen values at a time, where the processor can
_ROUND = 64  # channels are padded to a multiple of this, for the kernels


def sums(tensor: Tensor, inputs: list[Array]) -> Array:
    """Multiply features by weights as `plain.sums` does; the result may have more columns than there are channels."""
    if not _BY:
        return plain.sums(tensor, inputs)
    size, channels = tensor.weights.shape
    kind = np.int8 if _BY == 4 else np.int16
    groups, wide = -(-size // _BY), -(-channels // _ROUND) * _ROUND
    tokens = len(inputs[0])
    given = np.zeros((tokens, groups * _BY), kind)
    np.concatenate(inputs, axis=1, out=given[:, :size], casting="same_kind" if _BY == 4 else "safe")
    if "packed" not in tensor.prepared:
        weights = np.zeros((groups * _BY, wide), kind)
        weights[:size, :channels] = tensor.weights
        packed = np.ascontiguousarray(weights.reshape(groups, _BY, wide).transpose(0, 2, 1))
        correction = -128 * weights.astype(np.int32).sum(axis=0, dtype=np.int32)
        tensor.prepared["packed"] = packed, correction
    out = np.empty((tokens, wide), np.int32)
    _fast.sums(out, given, *tensor.prepared["packed"], tokens, groups, wide, _BY)
    return out


def expected(tensor: Tensor, sums: Array | None, rotations: Rotations, heads: int) -> Array:
    """Predict a tensor as `plain.expected` does."""
    tokens, channels = len(rotations.cos), len(tensor.mean)
    mu = np.empty((tokens, channels), np.int32)
    given = _NOTHING if sums is None else np.ascontiguousarray(sums)
    stride = channels if sums is None else sums.shape[1]
    sizes = (tokens, channels, heads, rotations.pairs, stride)
    _fast.expected(mu, given, tensor.scale, tensor.mean, rotations.cos, rotations.sin, *sizes)
    return mu


def features(
    tensor: Tensor, words: Array, mu: Array, rotations: Rotations, heads: int, form: Format
) -> tuple[Array, Array]:
    """Compute features and prediction errors as `plain.features` does."""
    tokens, channels = mu.shape
    out, scratch = np.empty(mu.shape, np.int8), np.empty(mu.shape, np.int32)
    wrong = np.empty(tokens, np.int64)
    fixed = (tensor.inverse, tensor.mean, tensor.factor, rotations.cos, rotations.sin)
    sizes = (tokens, channels, heads, rotations.pairs, _KIND[form], tensor.unit)
    _fast.known(out, wrong, scratch, words, mu, *fixed, *sizes)
    return out, wrong


class Encoder:
    """An encoder of the words of tensors, with the interface of `plain.Encoder`."""

    def __init__(self, tables: FrequencyTables, form: Format) -> None:
        self._tables = tables
        self._form = form
        self._contexts: list[Array] = []
        self._symbols: list[Array] = []
        self._runs, self._plain = _Sink(), _Sink()

    def put(self, words: Array, mu: Array, tensor: Tensor, token: Array) -> None:
        """Encode the words of one tensor, as `plain.Encoder.put` does."""
        tokens, channels = mu.shape
        contexts, symbols = np.empty(mu.size, np.uint8), np.empty(mu.size, np.uint8)
        runs = np.empty(2 * mu.size + 8, np.uint8)
        bits = np.empty(mu.size * self._form.bits // 8 + 8, np.uint8)
        given = (words, mu, tensor.log_sigma, token, self._tables.frequency)
        sizes = (tokens, channels, _KIND[self._form], tensor.unit)
        after = _fast.split(
            contexts, symbols, runs, bits, *given, *sizes, (0, *self._runs.left), (0, *self._plain.left)
        )
        self._runs.take(runs, *after[0])
        self._plain.take(bits, *after[1])
        self._contexts.append(contexts)
        self._symbols.append(symbols)

    def finish(self, entries: Array | None) -> bytes:
        """Return the wire bytes."""
        contexts, symbols = np.concatenate(self._contexts), np.concatenate(self._symbols)
        lengths = np.array([len(s) for s in self._symbols], np.uint64)
        states = np.full(rans.LANES, 1 << 16, np.uint32)
        words = np.empty(len(symbols) + rans.LANES, np.uint16)  # a symbol takes 12 bits at most
        at = _fast.encode(states, words, contexts, symbols, lengths, self._tables.start, self._tables.frequency)
        runs, bits = self._runs.finish(), self._plain.finish()
        return plain.wire_of(self._form, entries, states, words[at:], runs, bits)


class _Sink:
    """A collector of bits: whole bytes so far, and the bits that do not fill one."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.left = (0, 0)  # (number of bits, the bits)

    def take(self, data: Array, size: int, held: int, hold: int) -> None:
        self._pieces.append(data[:size].tobytes())
        self.left = (held, hold)

    def finish(self) -> bytes:
        held, hold = self.left
        return b"".join([*self._pieces, *([bytes([hold])] if held else [])])


class Decoder:
    """A decoder of the words of tensors, with the interface of `plain.Decoder`."""

    def __init__(self, stream: plain.EncodedStream, tables: FrequencyTables, form: Format) -> None:
        if (stream.states < 1 << 16).any():
            raise IntegrityError("a predictive chunk's coder starts in no state of its own")
        self._state = stream.states.astype(np.uint32)
        self._words = stream.words
        self._padded = np.empty(0, np.uint16)
        self._runs, self._plain = (np.frombuffer(bytes(b) + bytes(8), np.uint8) for b in (stream.runs, stream.plain))
        self._at = (0, 0, 0)
        self._tables = tables
        self._form = form

    def get(self, mu: Array, tensor: Tensor, token: Array) -> Array:
        """Decode the words of one tensor, as `plain.Decoder.get` does."""
        tokens, channels = mu.shape
        out = np.empty(mu.shape, np.uint16 if self._form.bits == 16 else np.uint32)
        tables = self._tables
        padding = channels + 16  # the module may read this far past the end
        if len(self._padded) != len(self._words) + padding:
            self._padded = np.concatenate([self._words, np.zeros(padding, np.uint16)])
        streams = (out, self._state, self._padded, self._runs, self._plain)
        given = (mu, tensor.log_sigma, token, tables.symbol, tables.start, tables.frequency, tables.slots)
        sizes = (tokens, channels, *self._at, _KIND[self._form], tensor.unit, _SIXTEENS)
        try:
            self._at = _fast.decode(*streams, *given, *sizes)
        except ValueError as error:
            raise IntegrityError(f"a predictive chunk is damaged: {error}") from None
        return out

    def finish(self) -> None:
        """Raise `IntegrityError` unless everything was read and the coder ended in its first state."""
        words, runs, bits = self._at
        whole = words == len(self._words) and (self._state == 1 << 16).all()
        if not (whole and all_read(self._runs, runs) and all_read(self._plain, bits)):
            raise IntegrityError("a predictive chunk's coder does not end where it began")
