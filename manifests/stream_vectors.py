"""Vectors of the codec `predictive2`: chunks that every rounding of the format shows in, and damaged ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from kvswap.artifact.specs import KEY, VALUE, LayerGroup, LayerSpec
from kvswap.codec.predictive import Predictor, dump
from kvswap.codec.predictive.rans import FrequencyTables as FirstTables
from kvswap.core import wire
from kvswap.core.ids import Cid
from tests.predictors import synthetic
from tests.support import FULL, Ingested, make_artifact

Write = Callable[..., None]
Seal = Callable[[Any], bytes]

WIDE = LayerSpec.key_value("full", 1, 64, 40)


def stream_vectors(write: Write, sealed: Seal, now: int) -> None:
    """Write the vectors, valid and hostile."""

    def good(name: str, why: str, **options: Any) -> Ingested:
        made = make_artifact(now=now, block_tokens=64, codec="predictive2", **options)
        write("valid", f"predictive2-{name}", made.statement.envelope, 0, why, made.chunks)
        return made

    four = synthetic((4, 2, 8, 8), calm=True)
    for dtype in ("bfloat16", "float16", "float32"):
        good(dtype, f"{dtype} chunks coded against a predictor of version 2", tokens=64, dtype=dtype,
             specs=(FULL,) * 4, coded_by=four)  # fmt: skip
    one_head = synthetic((3, 1, 64, 40), before=1, pairs=16, bits=10, seed=1, calm=True)
    good("one-head", "one head, two steps a row, and the second of fewer lanes", tokens=61,
         specs=(WIDE,) * 3, coded_by=one_head)  # fmt: skip
    good("table", "the first layer is predicted from the token table", tokens=61, specs=(FULL, FULL),
         coded_by=synthetic((2, 2, 8, 8), table=9, bits=12, seed=2, calm=True))  # fmt: skip
    apart = [LayerGroup((0, 1), (KEY, VALUE)), LayerGroup((2, 3), (KEY, VALUE))]
    made = good("groups", "a chunk that is coded against the layers of another chunk", tokens=64, specs=(FULL,) * 4,
                coded_by=four, groups=apart)  # fmt: skip
    _damaged(write, sealed, made)
    _mismatched(write, sealed, now, made, four)


def _damaged(write: Write, sealed: Seal, made: Ingested) -> None:
    chunk = next(i for i, c in enumerate(made.manifest.chunks) if c.codec == "predictive2")
    body = made.chunks[made.manifest.chunks[chunk].id]

    def bad(name: str, why: str, at: int, data: bytes, cut: int | None = None) -> None:
        changed = (body[:at] + data + body[at + len(data) :])[:cut]
        tree = wire.parse(made.manifest.encode())
        tree["chunks"][chunk] |= {"cid": bytes(Cid.of(changed)), "length": len(changed)}
        write("hostile", f"predictive2-{name}", sealed(tree), 6, why, {**made.chunks, Cid.of(changed): changed})

    bad("version", "a stream of version 1", 0, b"\1")
    bad("format", "a format that is none", 1, b"\3")
    bad("slice", "streams of 16 tokens", 2, b"\4")
    bad("lanes", "64 lanes", 3, b"\6")
    bad("entries", "entries where there is no token table", 4, b"\x40\0")
    bad("reserved", "a number that is to be 0", 6, b"\1")
    bad("ends", "the first stream ends behind the chunk", 8, b"\xff\xff\xff\xff")
    bad("order", "the first stream ends where it begins", 8, b"\0\0\0\0")
    bad("state", "a state below 2^16", 8 + 4 * 4, b"\xff\xff\0\0")  # two slices of two heads
    bad("words", "one other word", len(body) - 2, bytes([body[-2] ^ 1]))
    bad("cut", "the last word is missing", 0, b"", -2)
    bad("longer", "two bytes more", len(body), b"\0\0")


def _mismatched(write: Write, sealed: Seal, now: int, made: Ingested, four: Predictor) -> None:
    def lie(name: str, why: str, predictor: bytes, exit_code: int, codec: str = "predictive2") -> None:
        tree = wire.parse(made.manifest.encode())
        tree["predictor"] = {"cid": bytes(Cid.of(predictor)), "length": len(predictor)}
        for chunk in tree["chunks"]:
            chunk["codec"] = codec if chunk["codec"] == "predictive2" else chunk["codec"]
        chunks = {**made.chunks, Cid.of(predictor): predictor}
        write("hostile", f"predictive2-{name}", sealed(tree), exit_code, why, chunks)

    stack = four.stacks[0]
    first = dump(Predictor((stack,), FirstTables.flat(96)))
    lie("predictor-1", "chunks of predictive2 and a predictor of version 1", first, 7)
    lie("predictor-2", "chunks of predictive and a predictor of version 2", dump(four), 7, "predictive")
    heavy = replace(stack.k[1], weights=np.full_like(stack.k[1].weights, 65))
    heavier = replace(stack, k=(stack.k[0], heavy, *stack.k[2:]))
    lie("weight", "two weights of 130 together", dump(Predictor((heavier,), four.tables)), 6)
    fields = wire.parse(dump(four))
    lie("bits", "frequencies that add up to another power of two", wire.pack(fields | {"bits": 10}), 6)
    tree = wire.parse(made.manifest.encode())
    tree["chunks"][0]["codec"] = "predictive"
    write("hostile", "predictive2-both", sealed(tree), 7, "chunks of predictive and of predictive2 in one manifest")
