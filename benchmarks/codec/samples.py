"""Real keys and values, in blocks as they are stored: a block of tokens, all layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.common import BLOCK_TOKENS, DOCUMENT, ROOT

TOKENS = 2_048


@dataclass
class Block:
    """One block; `context` is for the predictive codec, `older` for the one of the predictor that it is compared with."""

    parts: list[np.ndarray]
    context: Any = None
    older: Any = None
    raw: bytes = field(init=False)
    scratch: list[np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self.scratch = [np.zeros_like(p) for p in self.parts]
        self.raw = b"".join(p.tobytes() for p in self.parts)


def documents(given: list[Path]) -> dict[str, str]:
    """Four kinds of text that the shipped predictor was not trained on, or the files given."""
    if given:
        return {path.name: path.read_text(errors="ignore") for path in given}
    code = "".join(p.read_text() for p in sorted((ROOT / "kvswap" / "exchange").glob("*.py")))
    return {
        "manual": DOCUMENT.read_text(),
        "prose": (ROOT / "docs" / "protocol.md").read_text(),
        "code": code,
        "data": (ROOT / "manifests" / "manifest.schema.json").read_text()
        + (ROOT / "manifests" / "vectors" / "index.json").read_text(),
    }


def blocks_of(loaded: Any, ids: list[int], predictor: Any, older: Any = None) -> Iterator[Block]:
    """Blocks of these tokens; the context is None where no stack fits all layers."""
    from kvswap.artifact.specs import KEY, VALUE, LayerGroup
    from kvswap.artifact.tensors import context_of
    from kvswap.model.cache import new_cache
    from tests.support import captured

    cache = new_cache(loaded.model.config, len(ids))
    held: dict[int, list[np.ndarray]] = {}
    members: dict[int, list[int]] = {}
    for block, group, parts, shape in captured(loaded, cache, ids, BLOCK_TOKENS):
        held.setdefault(block, []).extend(p.copy() for p in parts)
        members.setdefault(block, []).extend(shape.groups[group].layers)
    for block, parts in held.items():
        whole = msgspec.structs.replace(shape, groups=[LayerGroup(tuple(members[block]), (KEY, VALUE))])
        contexts = [context_of(p, whole, 0, block * BLOCK_TOKENS, {}) for p in (predictor, older)]
        yield Block(parts, *contexts)
