"""An origin as a whole: what is there is not written again, and writers that cannot share an index do not."""

from __future__ import annotations

from kvswap.core.ids import Cid
from kvswap.core.origin_settings import OriginSettings
from kvswap.origins.origin import Origin, conditional, status_name
from kvswap.origins.port import NEW
from tests.origins.places import MemoryPlace
from tests.origins.test_index import artifact, document
from tests.origins.test_pages import PUBLISHER, chain_of
from tests.support import run


class Careless(MemoryPlace):
    """A store that takes no notice of conditions."""

    async def put(self, name: str, data: bytes, tag: str | None = None) -> None:
        await super().put(name, data)


def origin(place: MemoryPlace) -> Origin:
    return Origin(OriginSettings("file:///nowhere"), place)


def test_without_conditional_writes_nodes_write_apart_and_are_read_together() -> None:
    async def body() -> None:
        for place, layers in ((MemoryPlace(), 1), (Careless(), 2)):
            assert await conditional(place) is (layers == 1) and not place.held
            for number, writer in enumerate(("node a", "node b")):
                index = await origin(place).index_to_write(writer)
                await index.add(artifact(number), PUBLISHER, document(0), chain_of([1, number]))
            reader = origin(place)
            assert {e.artifact for e in await reader.index.of_document(document(0))} == {artifact(0), artifact(1)}
            assert len({name.split("/")[1] for name in place.held if name.endswith(".page")}) == layers
            await reader.put_manifest(Cid.parse(artifact(0)), b"an envelope")
            await reader.remove(artifact(0), "node a", document(0), chain_of([1, 0]))
            assert {e.artifact for e in await reader.index.of_document(document(0))} == {artifact(1)}
            assert f"manifests/{artifact(0)}" not in place.held

    run(body())


def test_a_large_file_comes_in_parts_and_is_written_once() -> None:
    async def body() -> None:
        place = MemoryPlace()
        one = origin(place)
        data = bytes(range(256)) * (20 << 12)
        cid = Cid.of(data)
        assert await one.put_file(cid, data) and not await one.put_file(cid, data)
        into = bytearray(len(data))
        await one.file(cid, memoryview(into), lambda n: None)
        assert into == data and place.asked[f"chunks/{str(cid)[-2:]}/{cid}"] == 3
        await one.put_file(Cid.of(b"small"), b"small")
        small = bytearray(5)
        await one.file(Cid.of(b"small"), memoryview(small), lambda n: None)
        assert small == b"small"
        await one.close()

    run(body())


def test_envelopes_that_came_with_a_look_up_are_read_once() -> None:
    async def body() -> None:
        place = MemoryPlace()
        one = origin(place)
        name = Cid.of(b"x")
        assert await one.download_envelope(str(name)) is None
        await one.put_manifest(name, b"envelope")
        place.asked.clear()
        assert await one.download_envelope(str(name)) == await one.envelope(str(name)) == b"envelope"
        assert place.asked[f"manifests/{name}"] == 1
        assert (await one.status_record(PUBLISHER)).tag == NEW
        await one.put_status_record(PUBLISHER, b"record", NEW)
        assert (await one.status_record(PUBLISHER)).data == b"record" and status_name(PUBLISHER).islower()

    run(body())
