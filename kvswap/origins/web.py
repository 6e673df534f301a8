"""Origins that are web servers: any static host or CDN, read by GET alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp

from kvswap.core.errors import IntegrityError, NetworkTimeout, NotFound, OriginError, OriginRefused, PeerBusy
from kvswap.core.limits import LIMITS
from kvswap.net.web import WebClient
from kvswap.origins.port import Blob, Listed, OnBytes, checked_name

_MISSING = frozenset({403, 404, 410})  # a bucket that nobody may list answers 403 for what is not there
_BUSY = frozenset({429, 503})


class WebBackend:
    """A web server, as a place of files."""

    writes = False

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = WebClient()

    async def check(self) -> None:
        """Do nothing: a server that answered is there, and nothing says what it has."""

    async def get(self, name: str, most: int) -> Blob:
        """Read a file, as `Backend.get`."""
        async with self._response(name, {}, LIMITS.origin_seconds) as response:
            if response.status != 200:
                raise self._failure(name, response.status)
            data = bytearray()
            async for piece in response.content.iter_any():
                data += piece
                if len(data) > most:
                    raise OriginError(f"{self.url} sends more than {most} bytes for {name}", cause="no such file")
            return Blob(bytes(data), response.headers.get("ETag", ""))

    async def read_into(self, name: str, into: memoryview, on_bytes: OnBytes, start: int | None = None) -> None:
        """Read a file or a part of it, as `Backend.read_into`."""
        size = len(into)
        wanted, headers = 200, {}
        if start is not None:
            wanted, headers = 206, {"Range": f"bytes={start}-{start + size - 1}"}
        async with self._response(name, headers, LIMITS.origin_upload_seconds) as response:
            if response.status != wanted:
                raise self._failure(name, response.status)
            length = response.headers.get("Content-Length")
            if length is not None and length != str(size):
                raise IntegrityError(f"{self.url} offers {length[:20]} bytes for {name} of {size}")
            have = 0
            async for piece in response.content.iter_any():
                if have + len(piece) > size:
                    raise IntegrityError(f"{self.url} sends more than the {size} bytes of {name}")
                into[have : have + len(piece)] = piece
                have += len(piece)
                on_bytes(len(piece))
            if have < size:
                raise OriginError(f"{self.url}: {name} ended after {have} of {size} bytes")

    @asynccontextmanager
    async def _response(
        self, name: str, headers: Mapping[str, str], seconds: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with self._client.get(f"{self.url}/{checked_name(name)}", headers, seconds) as response:
                yield response
        except TimeoutError as error:
            raise NetworkTimeout(f"{self.url} stopped answering for {name}") from error
        except aiohttp.ClientSSLError as error:
            raise OriginError(
                f"{self.url}: no TLS connection: {type(error).__name__}", cause="its certificate is not valid here"
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise OriginError(
                f"{self.url} was not reached for {name}: {type(error).__name__}",
                cause="it is down, or its name is wrong",
            ) from error

    def _failure(self, name: str, status: int) -> NotFound | OriginError | PeerBusy:
        if status in _MISSING:
            return NotFound(f"{self.url} does not have {name} (status {status})")
        if status in _BUSY:
            return PeerBusy(f"{self.url} is busy (status {status})")
        if status == 401:
            return OriginRefused(f"{self.url} wants credentials", cause="it is not public")
        return OriginError(f"{self.url} answered {status} for {name}", cause="it is no static host, or it fails")

    async def put(self, name: str, data: bytes, tag: str | None = None) -> None:
        """Raise `OriginRefused`: a web server is read only."""
        raise self._read_only()

    async def same(self, name: str, data: bytes) -> bool:
        """Raise `OriginRefused`, as nothing is written either."""
        raise self._read_only()

    async def delete(self, name: str) -> None:
        """Raise `OriginRefused`: a web server is read only."""
        raise self._read_only()

    async def files(self, prefix: str) -> AsyncIterator[Listed]:
        """Raise `OriginRefused`: a web server lists nothing that is of use."""
        raise self._read_only()
        yield  # what makes this an iterator

    def _read_only(self) -> OriginRefused:
        return OriginRefused(
            f"{self.url} is a web server, and read only",
            cause="nothing is written over http",
            hint="kvswap push REF to the directory or bucket behind it",
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()
