"""What each place of files must do, whichever it is: used by the tests of directories, web servers and buckets."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from kvswap.core.errors import IntegrityError, NotFound, OriginError, UsageError
from kvswap.origins.port import NEW, Backend, Blob, Changed, Listed, OnBytes, checked_name


async def check_reading(place: Backend, large: int = 3 << 20) -> None:
    """Read what `check_writing` left: `a/one` of 10 bytes, `a/large` of zeros with a mark."""
    assert (await place.get("a/one", 10)).data == b"0123456789"
    with pytest.raises(OriginError, match="more than|over"):
        await place.get("a/one", 9)
    with pytest.raises(NotFound):
        await place.get("a/none", 10)
    for name in ("../x", "/etc/passwd", "a//b", ".hidden", "a/../../b", "", "a/b\n", "x" * 201, "a/%2e%2e/b"):
        with pytest.raises(UsageError):
            await place.get(name, 10)
    seen: list[int] = []
    whole = bytearray(large)
    await place.read_into("a/large", memoryview(whole), seen.append)
    assert sum(seen) == large and whole[7] == 7 and not any(whole[8:])
    part = bytearray(4)
    await place.read_into("a/one", memoryview(part), seen.append, 3)
    assert part == b"3456"
    for size in (9, 11):
        with pytest.raises((IntegrityError, OriginError)):
            await place.read_into("a/one", memoryview(bytearray(size)), seen.append)
    with pytest.raises(NotFound):
        await place.read_into("a/none", memoryview(part), seen.append)


async def check_writing(place: Backend, large: int = 3 << 20) -> None:
    """Write, compare, list, replace and remove."""
    await place.put("a/one", b"first")
    await place.put("a/one", b"0123456789")
    await place.put("a/large", bytes(7) + b"\x07" + bytes(large - 8))
    assert await place.same("a/one", b"0123456789")
    for other in (b"0123456780", b"012345678", b""):
        assert not await place.same("a/one", other)
    assert not await place.same("a/none", b"")
    await place.put("b/two", b"")
    assert [row async for row in place.files("a/")] == [Listed("a/large", large), Listed("a/one", 10)]
    assert {row.name async for row in place.files("")} == {"a/large", "a/one", "b/two"}
    assert [row async for row in place.files("c/")] == []
    await place.delete("b/two")
    await place.delete("b/two")
    with pytest.raises(UsageError):
        await place.put("../b", b"")
    await check_conditions(place)


async def check_conditions(place: Backend) -> None:
    """Let four writers add ten each to one file: nothing is lost."""
    with pytest.raises(Changed):
        await place.put("a/one", b"x", NEW)
    await place.put("count", b"0", NEW)
    first = (await place.get("count", 100)).tag
    await place.put("count", b"0 ", first)
    with pytest.raises(Changed):
        await place.put("count", b"1", first)

    async def write() -> None:
        done = 0
        while done < 10:
            blob = await place.get("count", 100)
            try:
                await place.put("count", b"%d" % (int(blob.data) + 1), blob.tag)
                done += 1
            except Changed:
                await asyncio.sleep(0)

    await asyncio.gather(*(write() for _ in range(4)))
    assert (await place.get("count", 100)).data == b"40"
    await place.delete("count")


class MemoryPlace:
    """A place in memory that counts what is asked of it: for the sizes that a disk would take too long for."""

    writes = True

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.written = 0

    async def check(self) -> None:
        pass

    async def get(self, name: str, most: int) -> Blob:
        self.asked[checked_name(name)] += 1
        if name not in self.held:
            raise NotFound(f"there is no {name}")
        await asyncio.sleep(0)
        return Blob(self.held[name], hashlib.sha256(self.held[name]).hexdigest())

    async def put(self, name: str, data: bytes, tag: str | None = None) -> None:
        if tag is not None and tag != (hashlib.sha256(self.held[name]).hexdigest() if name in self.held else NEW):
            raise Changed(f"{name} is another")
        self.written += len(data)
        self.held[checked_name(name)] = data

    async def delete(self, name: str) -> None:
        self.held.pop(name, None)

    async def same(self, name: str, data: bytes) -> bool:
        return self.held.get(name) == data

    async def read_into(self, name: str, into: memoryview, on_bytes: OnBytes, start: int | None = None) -> None:
        data = (await self.get(name, 1 << 30)).data
        into[:] = data[start or 0 :][: len(into)]
        on_bytes(len(into))

    async def files(self, prefix: str) -> AsyncIterator[Listed]:
        for name in sorted(self.held):
            if name.startswith(prefix):
                yield Listed(name, len(self.held[name]))

    async def close(self) -> None:
        pass
