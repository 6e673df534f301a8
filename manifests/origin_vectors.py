"""Writes `vectors/origin`: `files.json`, an index with a split page, and `index.json`, what a reader finds in it.

Run from the repository's root:  python manifests/origin_vectors.py
What is in it is seeded, so a run reproduces the committed files; a vector that was released is never changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kvswap.core.ids import Cid  # noqa: E402
from kvswap.origins.index import OriginIndex  # noqa: E402
from tests.origins.places import MemoryPlace  # noqa: E402
from tests.support import key  # noqa: E402

OUT = ROOT / "manifests" / "vectors" / "origin"
COUNT = 330
PUBLISHERS = [str(key(number).peer_id) for number in (1, 2)]


def chain_of(words: list[str]) -> list[bytes]:
    """Digests of made-up blocks, each of all before it."""
    out, last = [], b""
    for word in words:
        last = hashlib.sha256(last + word.encode()).digest()
        out.append(last)
    return out


def words_of(number: int) -> list[str]:
    """The blocks of an artifact: all but every eleventh begin alike for 6 blocks."""
    own = [f"{number} {block}" for block in range(1 + number % 9)]
    return own if number % 11 == 0 else [f"alike {block}" for block in range(6)] + own


def artifact(number: int) -> str:
    return str(Cid.of(f"artifact {number}".encode()))


def document(number: int) -> bytes:
    return hashlib.sha256(f"document {number % 20}".encode()).digest()


def queries() -> list[dict[str, Any]]:
    """What a reader asks for, by digests in hex, and what it must find: blocks, and artifacts that share so many."""
    every = {artifact(number): chain_of(words_of(number)) for number in range(COUNT)}
    asked = [words_of(7), words_of(22), [*words_of(8), "more"], [*words_of(9)[:8], "another"], ["alike 0", "x"], ["x"]]
    asked += [[f"alike {block}" for block in range(6)], words_of(10)[:3]]
    out: list[dict[str, Any]] = []
    for words in asked:
        chain = chain_of(words)
        shared = {
            name: next(
                (i for i, (a, b) in enumerate(zip(own, chain, strict=False)) if a != b), min(len(own), len(chain))
            )
            for name, own in every.items()
        }
        most = max(shared.values())
        names = sorted(name for name, blocks in shared.items() if blocks == most and most)
        out.append({"chain": [digest.hex() for digest in chain], "blocks": most, "any_of": names})
    for number in (0, 5, 19):
        names = sorted(artifact(n) for n in range(COUNT) if document(n) == document(number))
        out.append({"document": document(number).hex(), "all_of": names})
    out.append({"document": document(0)[::-1].hex(), "all_of": []})
    return out


async def made() -> dict[str, str]:
    """The files of the index by name, their bytes in hex."""
    place = MemoryPlace()
    index = OriginIndex(place)
    for number in range(COUNT):
        chain = chain_of(words_of(number))
        await index.add(artifact(number), PUBLISHERS[number % 2], document(number), chain)
    return {name: data.hex() for name, data in sorted(place.held.items())}


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "files.json").write_text(json.dumps(asyncio.run(made()), indent=0) + "\n")
    (OUT / "index.json").write_text(json.dumps(queries(), indent=0) + "\n")
