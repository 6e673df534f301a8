"""Codec `planes`: exponents are separated from sign and mantissa (byte-plane split), and entropy-coded.

Why: of a KV value's bits only the exponent is compressible; mantissa and sign are noise.  Of every word the *top byte*
is taken below the sign, so that it holds the exponent (bfloat16, float32: all 8 bits; float16: 5 bits and the top 3 of
the mantissa).  The next byte is the following 7 bits with the sign at its bottom; float32 has two more, as they are.
The top bytes are transposed so that one channel's tokens lie together, and channels are sorted by their mean: zstd cuts
its input into 128 KiB blocks with one Huffman table each, so similar channels share a table (2.6 bits an exponent
against 2.95 unsorted).  The other bytes are stored as they are, or as one byte where they are constant (float32 that is
really bfloat16).  Nothing here depends on floating-point arithmetic, so bytes and round trip are the same on every
machine.

Wire layout (little endian):

    u8   version, 1
    u8   bytes a word, 2 or 4
    u8   flags: bit i set = low plane i is one constant byte
    u8   0
    u32  channels = sum of heads * dim over the parts
    u32  tokens
    u32  length of the zstd frame
    u16 or u32 * channels   the order: sorted position -> channel (u16 while channels <= 65536)
    zstd frame of channels * tokens bytes
    low planes, lowest byte first, each (1 or words) bytes; words in part, head, token, dim order
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from kvswap.codec.parts import Part
from kvswap.core.errors import IntegrityError

_HEADER = struct.Struct("<BBBBIII")
_VERSION = 1
# Huffman only, as far as zstd allows it: matches in exponents are chance and cost bits.
_PARAMETERS = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST,
    min_match=7,
    hash_log=6,
    chain_log=6,
    window_log=18,
    target_length=0,
    write_content_size=True,
)
_Bytes = npt.NDArray[np.uint8]
_local = threading.local()


def _compressor() -> zstandard.ZstdCompressor:
    # Contexts are not thread-safe, and making one costs more than coding a small chunk.
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(compression_params=_PARAMETERS)
    return _local.compressor  # type: ignore[no-any-return]


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    return _local.decompressor  # type: ignore[no-any-return]


def _scratch(name: str, size: int) -> _Bytes:
    """Return a work buffer of `size` bytes that the thread keeps.

    Fresh pages for every chunk would cost a third of the speed.
    """
    buffers = _local.__dict__.setdefault("buffers", {})
    if name not in buffers or buffers[name].size < size:
        buffers[name] = np.empty(size, np.uint8)
    view: _Bytes = buffers[name][:size]
    return view


def _piece(plane: _Bytes, at: int, part: Part) -> _Bytes:
    """Return a part's bytes of a low plane; a constant plane is left to be broadcast."""
    return plane if plane.size == 1 else plane[at : at + part.size].reshape(part.shape)


def _order_type(channels: int) -> Any:
    return np.dtype("<u2") if channels <= 1 << 16 else np.dtype("<u4")


class Planes:
    """The default lossless codec: about 1.5x on bfloat16 KV at memory-like speed."""

    id = "planes"
    lossless = True

    def encode(self, parts: Sequence[Part], dtype: str, context: object = None) -> bytes:
        """Return the wire bytes of the parts."""
        width = parts[0].itemsize
        bits = 8 * width
        tokens = parts[0].shape[1]
        channels = sum(p.shape[0] * p.shape[2] for p in parts)
        words = channels * tokens
        top = _scratch("top", words).reshape(channels, tokens)
        low = _scratch("low", (width - 1) * words).reshape(width - 1, words)
        row = at = 0
        for part in parts:  # part by part: the temporaries stay in the core's own cache
            heads, _, dim = part.shape
            high = (part >> (bits - 9)).astype(np.uint8)
            top[row : row + heads * dim].reshape(heads, dim, tokens)[...] = high.transpose(0, 2, 1)
            for plane in range(width - 2):
                low[plane, at : at + part.size] = (part >> (8 * plane)).astype(np.uint8).reshape(-1)
            signed = part << 1 if width == 2 else (part >> (bits - 16)) << 1
            signed |= part >> (bits - 1)
            low[width - 2, at : at + part.size] = signed.astype(np.uint8).reshape(-1)
            row += heads * dim
            at += part.size
        order = np.argsort(top.sum(axis=1, dtype=np.uint32), kind="stable")
        sorted_top = _scratch("sorted", words).reshape(channels, tokens)
        frame = _compressor().compress(np.take(top, order, axis=0, out=sorted_top, mode="clip").data)
        flags = 0
        planes: list[bytes | memoryview] = []
        for plane in range(width - 1):
            if words and (low[plane] == low[plane, 0]).all():
                flags |= 1 << plane
                planes.append(low[plane, :1].tobytes())
            else:
                planes.append(low[plane].data)
        header = _HEADER.pack(_VERSION, width, flags, 0, channels, tokens, len(frame))
        return b"".join([header, order.astype(_order_type(channels)).tobytes(), frame, *planes])

    def decode(self, wire: bytes | memoryview, parts: Sequence[Part], dtype: str, context: object = None) -> None:
        """Fill the parts from the wire bytes.  Raises `IntegrityError` for bytes that do not fit them."""
        width = parts[0].itemsize
        bits = 8 * width
        tokens = parts[0].shape[1]
        channels = sum(p.shape[0] * p.shape[2] for p in parts)
        order, top, low = self._parse(memoryview(wire), width, channels, tokens)
        place = np.empty(channels, np.intp)
        place[order] = np.arange(channels)
        row = at = 0
        for part in parts:
            heads, _, dim = part.shape
            rows = np.take(top, place[row : row + heads * dim], axis=0).reshape(heads, dim, tokens)
            # value = sign | exponent | mantissa, the reverse of `encode`
            value = rows.transpose(0, 2, 1).astype(part.dtype, order="C")
            value <<= bits - 9
            for plane in range(width - 2):
                value |= _piece(low[plane], at, part).astype(part.dtype) << (8 * plane)
            signed = _piece(low[width - 2], at, part)
            value |= np.left_shift(signed >> 1, bits - 16, dtype=part.dtype)
            sign = np.left_shift(signed & 1, bits - 1, dtype=part.dtype)
            np.bitwise_or(value, sign, out=part)
            row += heads * dim
            at += part.size

    @staticmethod
    def _parse(
        wire: memoryview, width: int, channels: int, tokens: int
    ) -> tuple[npt.NDArray[Any], _Bytes, list[_Bytes]]:
        """Split the wire bytes into channel order, top bytes [channels, tokens] and low planes.

        Every length is checked against what the manifest signed.
        """
        words = channels * tokens
        if len(wire) < _HEADER.size:
            raise IntegrityError("planes chunk is shorter than its header")
        version, got_width, flags, zero, got_channels, got_tokens, frame_length = _HEADER.unpack_from(wire)
        if version != _VERSION or zero or flags >> (width - 1):
            raise IntegrityError("planes chunk has an unknown version or flag")
        if (got_width, got_channels, got_tokens) != (width, channels, tokens):
            raise IntegrityError("planes chunk declares another shape than the manifest")
        kind = _order_type(channels)
        start = _HEADER.size + channels * kind.itemsize
        sizes = [1 if flags >> plane & 1 else words for plane in range(width - 1)]
        if len(wire) != start + frame_length + sum(sizes):
            raise IntegrityError("planes chunk has a wrong length")
        order = np.frombuffer(wire, kind, channels, _HEADER.size)
        if channels and (np.bincount(order, minlength=channels) != 1).any():
            raise IntegrityError("planes chunk's channel order is not a permutation")
        frame = wire[start : start + frame_length]
        # zstandard ignores max_output_size when the frame declares its size: check it ourselves.
        try:
            declared = zstandard.get_frame_parameters(frame).content_size
            if declared != words:
                raise IntegrityError(f"planes chunk's frame declares {declared} bytes, not {words}")
            plain = _decompressor().decompress(frame, max_output_size=max(words, 1), allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise IntegrityError(f"planes chunk's frame does not decode: {error}") from error
        if len(plain) != words:
            raise IntegrityError("planes chunk's frame decodes to another length")
        low: list[_Bytes] = []
        at = start + frame_length
        for size in sizes:
            low.append(np.frombuffer(wire, np.uint8, size, at))
            at += size
        return order, np.frombuffer(plain, np.uint8).reshape(channels, tokens), low
