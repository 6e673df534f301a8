"""The index of an origin: a registry without a server, answered by GET alone.

Two families of pages (`origins.pages`): `documents`, in which a chain is a document's digest, and `chains`, by the
chain digests of token ids.  The first page of a chain has a name that follows from its first digest, so nothing is
asked before it.  Writers change a page only in place of the version that they read, and begin anew where somebody else
was faster; where a place cannot do that, each writer has pages of its own, a layer, and readers look in all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from kvswap.core import wire
from kvswap.core.errors import NotFound, OriginError
from kvswap.core.limits import LIMITS
from kvswap.origins.pages import KEY_BYTES, IndexEntry, IndexPage, child, keys_of
from kvswap.origins.port import NEW, Backend, Blob, Changed

SHARED = "shared"
"""The layer that all writers of a place share where it has conditional writes."""

_LAYERS = "index/layers"
_MOST_LAYERS = 64
_TRIES = 64  # to change a page that others change too
_AT_ONCE = 8


class _LayersForm(msgspec.Struct, frozen=True, array_like=True):
    version: int
    names: Annotated[list[Annotated[str, Meta(max_length=80, pattern="^[a-z0-9]+$")]], Meta(max_length=_MOST_LAYERS)]


class OriginIndex:
    """The index of one origin."""

    def __init__(self, backend: Backend, layer: str = SHARED) -> None:
        """`layer`: the one that is written; another than `SHARED` where the place has no conditional writes."""
        self._backend = backend
        self._layer = layer
        self._writing = asyncio.Semaphore(_AT_ONCE)

    # -- reading -----------------------------------------------------------------------------------

    async def of_document(self, digest: bytes) -> list[IndexEntry]:
        """Return the artifacts of a document, given by its 32-byte digest."""
        return [entry for _, entry in await self._longest("documents", keys_of([digest]))]

    async def of_chain(self, chain: Sequence[bytes]) -> list[tuple[int, IndexEntry]]:
        """Return the artifacts that begin as a chain does, with the number of shared blocks, the longest first."""
        return await self._longest("chains", keys_of(chain)) if chain else []

    async def _longest(self, family: str, keys: bytes) -> list[tuple[int, IndexEntry]]:
        shared, others = await asyncio.gather(self._in_layer(SHARED, family, keys), self._other_layers())
        found = [shared, *await asyncio.gather(*(self._in_layer(name, family, keys) for name in others))]
        best: dict[str, tuple[int, IndexEntry]] = {}
        for blocks, entry in (pair for layer in found for pair in layer):
            if blocks > best.get(entry.artifact, (0, entry))[0]:
                best[entry.artifact] = (blocks, entry)
        return sorted(best.values(), key=lambda pair: -pair[0])

    async def _other_layers(self) -> list[str]:
        return [name for name in (await self._layers())[0] if name != SHARED]

    async def _layers(self) -> tuple[list[str], str]:
        try:
            blob = await self._backend.get(_LAYERS, LIMITS.origin_page_bytes)
        except NotFound:
            return [], NEW
        form = wire.unpack(blob.data, _LayersForm, OriginError)
        return list(form.names), blob.tag

    async def _in_layer(self, layer: str, family: str, keys: bytes) -> list[tuple[int, IndexEntry]]:
        return await self._below(_first(layer, family, keys), keys, 0)

    async def _below(self, path: str, keys: bytes, level: int) -> list[tuple[int, IndexEntry]]:
        page = (await self._page(path))[0]
        depth = len(keys) // KEY_BYTES
        below = [self._below(f"{path}/{child(k, keys, level)}", keys, level + 1) for k in page.splits if k <= depth]
        deeper = await asyncio.gather(*below) if level < 8 else []
        return [*page.longest(keys), *(pair for found in deeper for pair in found)]

    async def _page(self, path: str) -> tuple[IndexPage, str]:
        """Read a page and its tag; an empty one where there is none."""
        try:
            blob: Blob = await self._backend.get(f"{path}.page", LIMITS.origin_page_bytes)
        except NotFound:
            return IndexPage(), NEW
        return IndexPage.read(blob.data, path), blob.tag

    # -- writing -----------------------------------------------------------------------------------

    async def add(self, artifact: str, publisher: str, document: bytes | None, chain: Sequence[bytes]) -> None:
        """List an artifact under its document's digest and its chain; the layer is listed first."""
        await self._list_layer()
        for family, keys in _places(document, chain):
            await self._put(_first(self._layer, family, keys), IndexEntry(artifact, publisher, keys), 0, whole=True)

    async def remove(self, artifact: str, document: bytes | None, chain: Sequence[bytes]) -> None:
        """Take an artifact out of the written layer."""
        for family, keys in _places(document, chain):
            await self._take(_first(self._layer, family, keys), IndexEntry(artifact, "", keys), 0)

    async def _list_layer(self) -> None:
        for _ in range(_TRIES):
            names, tag = await self._layers()
            if self._layer in names:
                return
            if len(names) >= _MOST_LAYERS:
                raise OriginError(f"the origin has {_MOST_LAYERS} layers", cause="so many nodes have written there")
            form = wire.pack(wire.plain(_LayersForm(1, sorted([*names, self._layer]))))
            with contextlib.suppress(Changed):
                await self._write(_LAYERS, form, tag)
        raise _contended(_LAYERS)

    async def _put(self, path: str, entry: IndexEntry, level: int, *, whole: bool) -> None:
        for _ in range(_TRIES):
            page, tag = await self._page(path)
            below, mine = page.parts(entry)
            for depth, part in below:  # first: a page that says where to look says so of what is there
                place = f"{path}/{child(depth, part.keys, level)}"
                await self._put(place, part, level + 1, whole=whole and part is entry)
            changed = mine is not None and page.add(mine, whole=whole and mine is entry)
            moved = page.split(level)
            if not changed and not moved:
                return
            await asyncio.gather(*(self._merge(f"{path}/{name}", rows, level + 1) for name, rows in moved.items()))
            with contextlib.suppress(Changed):
                await self._write(f"{path}.page", page.pack(), tag)
                return
        raise _contended(path)

    async def _merge(self, path: str, entries: Iterable[IndexEntry], level: int) -> None:
        """Add many entries to one page."""
        entries = list(entries)
        for _ in range(_TRIES):
            page, tag = await self._page(path)
            if page.splits:
                for entry in entries:
                    await self._put(path, entry, level, whole=True)
                return
            if not [entry for entry in entries if page.add(entry, whole=True)]:
                return
            with contextlib.suppress(Changed):
                await self._write(f"{path}.page", page.pack(), tag)
                return
        raise _contended(path)

    async def _take(self, path: str, entry: IndexEntry, level: int) -> None:
        for _ in range(_TRIES):
            page, tag = await self._page(path)
            below, _ = page.parts(entry)
            for depth, part in below:
                await self._take(f"{path}/{child(depth, part.keys, level)}", part, level + 1)
            if not page.remove(entry.artifact):
                return
            with contextlib.suppress(Changed):
                await self._write(f"{path}.page", page.pack(), tag)
                return
        raise _contended(path)

    async def _write(self, name: str, data: bytes, tag: str) -> None:
        if len(data) > LIMITS.origin_page_bytes:
            raise OriginError(f"{name} would have over {LIMITS.origin_page_bytes} bytes", cause="too many are alike")
        async with self._writing:
            await self._backend.put(name, data, tag if self._layer == SHARED else None)


def _first(layer: str, family: str, keys: bytes) -> str:
    """Return where the first page of a chain is: one of 4,096."""
    return f"index/{layer}/{family}/{keys[:2].hex()[:3]}"


def _places(document: bytes | None, chain: Sequence[bytes]) -> list[tuple[str, bytes]]:
    places = [("chains", keys_of(chain[: LIMITS.chain_digests]))] if chain else []
    return [("documents", keys_of([document])), *places] if document is not None else places


def _contended(path: str) -> OriginError:
    return OriginError(f"{path} changed {_TRIES} times while it was to be written", cause="many nodes write at once")
