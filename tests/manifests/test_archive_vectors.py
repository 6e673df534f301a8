"""Every golden vector of archives is judged rightly, by importing it at its time; and its writer has not drifted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvswap.core.errors import KvswapError
from kvswap.core.ids import Cid
from kvswap.exchange.export_archive import archive_pieces, prepare_export
from kvswap.exchange.import_archive import import_archive
from kvswap.exchange.verification import received
from kvswap.trust import Group
from tests.exchange.test_fetch import world
from tests.support import ROOT, run

VECTORS = ROOT / "manifests" / "vectors" / "archives"
INDEX: list[dict[str, Any]] = json.loads((VECTORS / "index.json").read_text())


def test_all_are_listed_and_as_they_were_released() -> None:
    assert {e["file"] for e in INDEX} == {p.name for p in VECTORS.glob("*.tar")}
    assert {e["exit"] for e in INDEX} == {0, 4, 6, 7} and len(INDEX) >= 30
    for entry in INDEX:
        assert hashlib.sha256((VECTORS / entry["file"]).read_bytes()).hexdigest() == entry["sha256"], entry["file"]


@pytest.mark.parametrize("entry", INDEX, ids=[e["file"] for e in INDEX])
def test_each_is_judged_rightly(entry: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(received, "time", SimpleNamespace(time=lambda: entry["at"]))
    data = (VECTORS / entry["file"]).read_bytes()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 4096):
            yield data[start : start + 4096]

    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node(p2p=False)
            if "group" in entry:
                node.trust.groups.add(Group.from_text((VECTORS / entry["group"]).read_text()))
            code = 0
            try:
                imported = await import_archive(node, pieces())
                assert imported.artifact == entry["artifact"]
            except KvswapError as error:
                code = error.exit_code
            assert code == entry["exit"], entry["why"]
            assert node.store.count() == (code == 0)
            if entry["file"] in ("plain.tar", "sealed.tar", "needed.tar"):  # as export writes them
                export = await prepare_export(node, Cid.parse(entry["artifact"]))
                assert b"".join([piece async for piece in archive_pieces(node, export)]) == data

    run(body())
