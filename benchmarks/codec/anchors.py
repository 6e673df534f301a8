"""Codecs to compare with, ours among them: a name, and bytes <-> arrays.  What is not installed is left out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Anchor:
    """`encode` a block into something with a size; `decode` it; `lossless`: whether every bit has to come back."""

    name: str
    encode: Callable[[Any], Any]
    decode: Callable[[Any, Any], Any]
    lossless: bool = True


def plain(name: str, encode: Callable[[bytes], Any], decode: Callable[[Any], Any]) -> Anchor:
    """One that sees bytes."""
    return Anchor(name, lambda block: encode(block.raw), lambda wire, block: decode(wire))


def others(dtype: str) -> list[Anchor]:
    """memcpy, and what the field uses."""
    width = 4 if dtype == "float32" else 2
    word = np.uint32 if width == 4 else np.uint16
    found = [plain("memcpy", lambda b: bytearray(b), lambda w: bytes(w))]

    def add(make: Callable[[], list[Anchor]]) -> None:
        try:
            found.extend(make())
        except ImportError as error:
            print(f"left out: {error}", file=sys.stderr)

    def lz4() -> list[Anchor]:
        from lz4 import block

        return [plain("lz4", block.compress, block.decompress)]

    def zstd() -> list[Anchor]:
        import zstandard

        return [
            plain(
                f"zstd {level}",
                lambda b, level=level: zstandard.ZstdCompressor(level=level).compress(b),
                lambda w: zstandard.ZstdDecompressor().decompress(w),
            )
            for level in (1, 3)
        ]

    def blosc() -> list[Anchor]:
        import blosc2

        filters = {"shuffle": blosc2.Filter.SHUFFLE, "bitshuffle": blosc2.Filter.BITSHUFFLE}
        return [
            plain(
                f"blosc2 zstd, {name}",
                lambda b, f=f: blosc2.compress(b, typesize=width, clevel=5, filter=f, codec=blosc2.Codec.ZSTD),
                blosc2.decompress,
            )
            for name, f in filters.items()
        ]

    def zipnn() -> list[Anchor]:
        from zipnn import ZipNN

        def codec() -> Any:
            return ZipNN(input_format="byte", bytearray_dtype=dtype)

        return [plain("zipnn", lambda b: codec().compress(bytearray(b)), lambda w: codec().decompress(w))]

    def lmz() -> list[Anchor]:
        import lmz.codec as lmz

        kind = lmz.KIND_BF16 if dtype == "bfloat16" else 0

        def encode(raw: bytes) -> Any:
            payload, codec, flags, crc = lmz.encode_chunk(raw, width, kind=kind)
            parts = payload if isinstance(payload, list) else [payload]
            return _Sized(b"".join(bytes(p) for p in parts), (codec, width, flags, len(raw), crc))

        return [plain("lmzip", encode, lambda w: lmz.decode_chunk(w.data, *w.more))]

    def openzl() -> list[Anchor]:
        import openzl.ext as zl

        nodes = {"bfloat16": "BFloat16Deconstruct", "float16": "Float16Deconstruct", "float32": "Float32Deconstruct"}

        def encode(raw: bytes) -> bytes:
            compressor = zl.Compressor()
            compressor.set_parameter(zl.CParam.FormatVersion, zl.MAX_FORMAT_VERSION)
            node = getattr(zl.nodes, nodes[dtype])()
            graph = node(compressor, sign_frac=zl.graphs.Store(), exponent=zl.graphs.Entropy())
            compressor.select_starting_graph(graph)
            context = zl.CCtx()
            context.ref_compressor(compressor)
            made: bytes = context.compress([zl.Input(zl.Type.Numeric, np.frombuffer(raw, word))])
            return made

        def decode(wire: bytes) -> bytes:
            return np.array(zl.DCtx().decompress(wire)[0].content.as_nparray()).tobytes()

        return [plain("openzl", encode, decode)]

    def pcodec() -> list[Anchor]:
        from pcodec import ChunkConfig, standalone

        return [
            plain(
                "pcodec",
                lambda b: standalone.simple_compress(np.frombuffer(b, word), ChunkConfig()),
                lambda w: standalone.simple_decompress(w).tobytes(),
            )
        ]

    for make in (lz4, zstd, blosc, zipnn, lmz, openzl, pcodec):
        add(make)
    return found


@dataclass
class _Sized:
    data: bytes
    more: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.data)


def ours(dtype: str) -> list[Anchor]:
    """Every registered codec; of those with a predictor the ones that blocks have a context for."""
    from kvswap import codec as codecs
    from kvswap.codec.base import PREDICTED

    def make(name: str) -> Anchor:
        def context(block: Any) -> Any:
            both = (block.context, block.older)
            return next((c for c in both if c is not None and c.predictor.codec == name), None)

        def encode(block: Any) -> Any:
            if name in PREDICTED and context(block) is None:  # nothing for it here
                return codecs.encode(block.parts, dtype, "planes")
            return codecs.encode(block.parts, dtype, name, context(block))

        def decode(wire: tuple[str, bytes], block: Any) -> Any:
            codecs.decode(wire[0], wire[1], block.scratch, dtype, context(block))  # as the loader does: in place
            return block.scratch

        return Anchor(
            name,
            encode,
            decode,
            codecs.get(name).lossless,
        )

    return [make(name) for name in codecs.names()]


def joined(decoded: Any) -> bytes:
    """The bytes of what `decode` gave."""
    return b"".join(p.tobytes() for p in decoded) if isinstance(decoded, list) else bytes(decoded)


def size(wire: Any) -> int:
    """Bytes of what `encode` made."""
    return len(wire[1]) if isinstance(wire, tuple) else len(wire)
