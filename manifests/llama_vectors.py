"""Vectors of what llama.cpp computed: the probe of an engine, quantised tensors, and what is wrong with such."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvswap.artifact.manifest import EngineProbe
from kvswap.artifact.specs import LayerSpec
from kvswap.core import wire
from tests.support import FULL, make_artifact

Write = Callable[..., None]
Seal = Callable[[Any], bytes]

QUANTISED = LayerSpec.key_value("full", 2, 34, 68)
PROBE = EngineProbe("llama.cpp", "b11549", bytes(range(32)), bytes(range(64)) * 4)


def llama_vectors(write: Write, sealed: Seal, now: int) -> None:
    """Write the vectors, valid and hostile."""
    plain = make_artifact(now=now, specs=(FULL, FULL), dtype="float16", extensions=["engine"], engine=PROBE)
    write(
        "valid", "engine-probe", plain.statement.envelope, 0, "with the probe of the engine that made it", plain.chunks
    )
    quantised = make_artifact(now=now, specs=(QUANTISED, QUANTISED), dtype="q8_0")
    write("valid", "q8_0", quantised.statement.envelope, 0, "blocks of q8_0, as they are", quantised.chunks)

    def lie(name: str, why: str, made: Any, change: Callable[[Any], Any]) -> None:
        tree = wire.parse(made.manifest.encode())
        change(tree)
        write("hostile", name, sealed(tree), 7, why)

    def put(*path: Any, value: Any) -> Callable[[Any], None]:
        def change(tree: Any) -> None:
            for step in path[:-1]:
                tree = tree[step]
            tree[path[-1]] = value

        return change

    lie("engine-undeclared", "an engine that `extensions` does not name", plain, put("extensions", value=[]))
    lie("engine-absent", "`extensions` names an engine that is not there", plain, lambda tree: tree.pop("engine"))
    lie("engine-null", "an engine that is null", plain, put("engine", value=None))
    lie("engine-long", "a sketch over the cap", plain, put("engine", "sketch", value=bytes(64 * 1024 + 2)))
    lie("engine-digest", "a digest of 31 bytes", plain, put("engine", "digest", value=bytes(31)))
    lie("q8_0-planes", "quantised bytes in another codec", quantised, put("chunks", 0, "codec", value="planes"))
