"""The golden index of an origin: a reader finds in it what `index.json` says, and its writer has not drifted."""

from __future__ import annotations

import json
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import pytest

from kvswap.origins.index import OriginIndex
from tests.origins.places import MemoryPlace
from tests.support import ROOT, run

VECTORS = ROOT / "manifests" / "vectors" / "origin"
FILES: dict[str, str] = json.loads((VECTORS / "files.json").read_text())
ROWS: list[dict[str, Any]] = json.loads((VECTORS / "index.json").read_text())


@pytest.mark.parametrize("row", ROWS)
def test_a_reader_finds_what_is_there(row: dict[str, Any]) -> None:
    async def body() -> None:
        place = MemoryPlace()
        place.held = {name: bytes.fromhex(data) for name, data in FILES.items()}
        index = OriginIndex(place)
        if "document" in row:
            found = await index.of_document(bytes.fromhex(row["document"]))
            assert sorted(entry.artifact for entry in found) == row["all_of"]
            return
        chain = await index.of_chain([bytes.fromhex(digest) for digest in row["chain"]])
        assert (chain[0][0] if chain else 0) == row["blocks"]
        assert {entry.artifact for blocks, entry in chain if blocks == row["blocks"]} <= set(row["any_of"])

    run(body())


def test_the_writer_has_not_drifted() -> None:
    spec = spec_from_file_location("origin_vectors", ROOT / "manifests" / "origin_vectors.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert run(module.made()) == FILES and module.queries() == ROWS
    assert any("-" in name.rpartition("/")[2] for name in FILES)  # a page is split
