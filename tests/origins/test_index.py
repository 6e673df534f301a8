"""The index of an origin: found by GET alone, whoever writes at once, with conditional writes or without."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from kvswap.core.errors import OriginError
from kvswap.core.ids import Cid
from kvswap.origins import index as indices
from kvswap.origins.files import FileBackend
from kvswap.origins.index import OriginIndex
from kvswap.origins.port import Blob
from tests.origins.places import MemoryPlace
from tests.origins.test_pages import PUBLISHER, chain_of
from tests.support import key, run


def artifact(number: int) -> str:
    return str(Cid.of(b"%d" % number))


def document(number: int) -> bytes:
    return hashlib.sha256(b"document %d" % number).digest()


def test_documents_and_beginnings_are_found(tmp_path: Path) -> None:
    async def body() -> None:
        place = MemoryPlace()
        index = OriginIndex(place)
        assert await index.of_document(document(1)) == [] and await index.of_chain(chain_of([1])) == []
        await index.add(artifact(1), PUBLISHER, document(1), chain_of([1, 2, 3]))
        await index.add(artifact(2), PUBLISHER, document(2), chain_of([1, 2, 4, 5]))
        await index.add(artifact(3), PUBLISHER, None, [])
        assert [e.artifact for e in await index.of_document(document(2))] == [artifact(2)]
        place.asked.clear()
        found = await index.of_chain(chain_of([1, 2, 4, 9]))
        assert [(blocks, e.artifact) for blocks, e in found] == [(3, artifact(2)), (2, artifact(1))]
        assert len(place.asked) == 2  # the page and the layers, side by side
        await index.remove(artifact(2), document(2), chain_of([1, 2, 4, 5]))
        assert await index.of_document(document(2)) == []
        assert [e.artifact for _, e in await index.of_chain(chain_of([1, 2, 4, 9]))] == [artifact(1)]
        await index.remove(artifact(2), document(2), chain_of([1, 2, 4, 5]))

    run(body())


def test_all_that_is_added_at_once_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvswap.origins.pages.PAGE_BYTES", 2_000)  # splits, while others write

    async def body() -> None:
        writers = [OriginIndex(FileBackend(f"file://{tmp_path}")) for _ in range(4)]

        async def write(writer: OriginIndex, numbers: range) -> None:
            for number in numbers:
                await writer.add(artifact(number), PUBLISHER, document(number), chain_of([7, 7, number, number]))

        await asyncio.gather(*(write(w, range(n, 80, 4)) for n, w in enumerate(writers)))
        reader = OriginIndex(FileBackend(f"file://{tmp_path}"))
        for number in range(80):
            (entry,) = await reader.of_document(document(number))
            assert entry.artifact == artifact(number)
            blocks, best = (await reader.of_chain(chain_of([7, 7, number, number, 1])))[0]
            assert (blocks, best.artifact) == (4, artifact(number))
        assert (await reader.of_chain(chain_of([7, 7, 99])))[0][0] == 2
        for number in range(80):
            await reader.remove(artifact(number), document(number), chain_of([7, 7, number, number]))
        assert await reader.of_chain(chain_of([7, 7, 5, 5])) == []

    run(body())


def test_without_conditional_writes_each_writer_has_a_layer(tmp_path: Path) -> None:
    async def body() -> None:
        place = MemoryPlace()
        first, second = (OriginIndex(place, f"layer{n}") for n in (1, 2))
        for number in range(6):
            writer = (first, second)[number % 2]
            await writer.add(artifact(number), PUBLISHER, document(0), chain_of([1, number]))
        reader = OriginIndex(place)
        assert {e.artifact for e in await reader.of_document(document(0))} == {artifact(n) for n in range(6)}
        assert (await reader.of_chain(chain_of([1, 5])))[0] == (2, (await reader.of_chain(chain_of([1, 5])))[0][1])

    run(body())


def test_a_writer_that_is_never_the_faster_gives_up_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indices, "_TRIES", 3)

    async def body() -> None:
        place = MemoryPlace()
        other = OriginIndex(place)
        index, count, others = OriginIndex(place), 0, False
        await index.add(artifact(0), PUBLISHER, None, chain_of([1]))

        async def get(name: str, most: int) -> Blob:
            nonlocal count, others
            blob = await MemoryPlace.get(place, name, most)
            if name.endswith(".page") and not others:
                count, others = count + 1, True
                await other.add(artifact(1000 + count), str(key(2).peer_id), None, chain_of([1, count]))
                others = False
            return blob

        monkeypatch.setattr(place, "get", get)
        with pytest.raises(OriginError, match="changed 3 times"):
            await index.add(artifact(1), PUBLISHER, None, chain_of([1, 1000]))
        assert count == 3

    run(body())


@pytest.mark.parametrize("data", [b"", b"x", b"\x92\x01\x91\xa3../", b"\x92\x01\x90\x90"])
def test_layers_that_are_none_are_refused(tmp_path: Path, data: bytes) -> None:
    async def body() -> None:
        place = MemoryPlace()
        await place.put("index/layers", data)
        with pytest.raises(OriginError):
            await OriginIndex(place).of_document(document(1))

    run(body())


def test_one_more_push_writes_little_and_a_look_up_reads_little(tmp_path: Path) -> None:
    """1,200 artifacts of which 400 share their first 8 blocks: see docs/results for 50,000."""

    async def body() -> None:
        place = MemoryPlace()
        index = OriginIndex(place)

        def words(number: int) -> list[int]:
            return [0] * 8 + [number] * (number % 16) if number % 3 == 0 else [number] * (1 + number % 31)

        for start in range(0, 1_200, 50):
            await asyncio.gather(
                *(index.add(artifact(n), PUBLISHER, document(n), chain_of(words(n))) for n in range(start, start + 50))
            )
        most = 0
        for number in range(1_200, 1_230):
            place.written = 0
            await index.add(artifact(number), PUBLISHER, document(number), chain_of(words(number)))
            most = max(most, place.written)
        assert most < 64 * 1024
        for number in range(0, 1_200, 37):
            place.asked.clear()
            found = await index.of_chain(chain_of([*words(number), 5]))
            assert found[0][0] == len(words(number)) and sum(place.asked.values()) <= 4

    run(body())
