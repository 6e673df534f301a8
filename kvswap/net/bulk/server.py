"""The serving end: `GET /v1/chunks/<cid>`, with Range, for the bearer of a token.

| status | when |
|---|---|
| 200, 206 | the wire bytes, or the asked range of them |
| 401 | no token, or one that is expired, revoked, of another node, or forged |
| 404 | the chunk is not here |
| 405, 400, 416 | another method, path or id, or a range that does not exist |
| 503 | the peer has too much under way here |

A chunk is read whole and checked against its id before its first byte goes out, so a damaged disk
makes this node say 404, never lie.  A connection that asks for nothing, or takes less than a piece
in half a minute, is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from kvswap.core.errors import IntegrityError, KvswapError, NotFound, P2pDown, PeerBusy, TokenRefused, UsageError
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.net.bulk.identity import BulkIdentity
from kvswap.net.bulk.tokens import Tokens
from kvswap.net.messages import BulkRecord

_PATH = "/v1/chunks/"
_HANDSHAKE_SECONDS = 10.0
_SWEEP_SECONDS = 2.0


class Chunks(Protocol):
    """What serves the bytes: the exchange, with its limits and its ledger."""

    def chunk(self, peer: str, cid: Cid) -> AbstractAsyncContextManager[bytes]:
        """The checked bytes, in memory while the context lasts.  Raises `NotFound`, `PeerBusy`."""

    async def pace(self, peer: str, size: int) -> None:
        """Wait until `size` more bytes may go to `peer`, and count them."""


class _Connection(RequestHandler):
    """aiohttp's connection, counted by host."""

    __slots__ = ("_host", "_owner")

    def __init__(self, owner: BulkServer, manager: Any, **options: Any) -> None:
        super().__init__(manager, **options)
        self._owner = owner
        self._host: str | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._host = str((transport.get_extra_info("peername") or ("?",))[0])
        if not self._owner.admit(self._host):
            self._host = None
            transport.abort()

    def connection_lost(self, error: BaseException | None) -> None:
        if self._host is not None:
            self._owner.leave(self._host)
            self._host = None
        super().connection_lost(error)


class BulkServer:
    """HTTPS on the given addresses, one port."""

    def __init__(self, identity: BulkIdentity, tokens: Tokens, chunks: Chunks) -> None:
        self._identity = identity
        self._tokens = tokens
        self._chunks = chunks
        self._hosts: Counter[str] = Counter()
        self._asked: set[int] = set()  # connections that made a request, by identity
        self._listeners: list[asyncio.Server] = []
        self._manager: Any = None
        self._sweeper: asyncio.Task[None] | None = None
        self.port: int | None = None
        self.record: BulkRecord | None = None  # signed, once listening

    async def start(self, hosts: list[str], port: int) -> None:
        """Listen; port 0: any, the same on every address.  Raises `P2pDown`."""
        self._manager = web.Server(self._handle)
        loop = asyncio.get_running_loop()

        def connection() -> _Connection:
            return _Connection(
                self,
                self._manager,
                loop=loop,
                access_log=None,
                keepalive_timeout=LIMITS.bulk_idle_seconds,
                lingering_time=0,
                auto_decompress=False,
            )

        try:
            for host in hosts:
                listener = await loop.create_server(
                    connection,
                    host,
                    port,
                    ssl=self._identity.context,
                    ssl_handshake_timeout=_HANDSHAKE_SECONDS,
                    ssl_shutdown_timeout=1.0,
                )
                self._listeners.append(listener)
                port = listener.sockets[0].getsockname()[1]
        except OSError as error:
            await self.stop()
            raise P2pDown(
                f"cannot listen on {host} port {port}: {error.strerror}", cause="the port is taken"
            ) from error
        self.port, self.record = port, self._identity.record(port)
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Idempotent."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        if self._manager is not None:
            await self._manager.shutdown(1.0)
        self.port = self.record = None

    # -- connections -----------------------------------------------------------------------------

    def admit(self, host: str) -> bool:
        if self._hosts[host] >= LIMITS.bulk_connections_per_host or self._hosts.total() >= LIMITS.bulk_connections:
            return False
        self._hosts[host] += 1
        return True

    def leave(self, host: str) -> None:
        self._hosts[host] -= 1
        self._hosts += Counter()

    async def _sweep(self) -> None:
        """aiohttp waits for ever for a connection's first request: we do not."""
        since: dict[int, float] = {}
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now, live = time.monotonic(), {id(c): c for c in self._manager.connections}
            since = {number: since.get(number, now) for number in live}
            self._asked &= live.keys()
            for number, connection in live.items():
                silent = number not in self._asked and now - since[number] > LIMITS.bulk_idle_seconds
                if silent and connection.transport is not None:
                    connection.transport.abort()

    # -- requests --------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self._asked.add(id(request.protocol))
        try:
            peer = self._tokens.check(request.headers.get("Authorization", "").removeprefix("Bearer "))
            if request.method != "GET":
                return _problem(405, UsageError(f"{request.method} is not GET"))
            if not request.path.startswith(_PATH):
                raise UsageError("the path is not /v1/chunks/<cid>")
            return await self._chunk(request, peer, Cid.parse(request.path.removeprefix(_PATH)))
        except TokenRefused as error:
            return _problem(401, error)
        except UsageError as error:
            return _problem(400, error)
        except (NotFound, IntegrityError) as error:
            return _problem(404, NotFound(error.message))
        except PeerBusy as error:
            return _problem(503, error)

    async def _chunk(self, request: web.BaseRequest, peer: str, cid: Cid) -> web.StreamResponse:
        async with self._chunks.chunk(peer, cid) as data:
            try:
                wanted = request.http_range
                start, stop, _ = wanted.indices(len(data))
            except ValueError:
                start = stop = -1
            partial = "Range" in request.headers
            if partial and not 0 <= start < stop:
                return _problem(416, UsageError(f"no such range of {len(data)} bytes"))
            response = web.StreamResponse(status=206 if partial else 200)
            response.content_type = "application/octet-stream"
            response.content_length = stop - start
            if partial:
                response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            with contextlib.suppress(ConnectionError):  # the peer went away
                await response.prepare(request)
                await self._send(request, peer, response, memoryview(data)[start:stop])
            return response

    async def _send(self, request: web.BaseRequest, peer: str, response: web.StreamResponse, data: memoryview) -> None:
        for at in range(0, len(data), LIMITS.upload_piece_bytes):
            piece = data[at : at + LIMITS.upload_piece_bytes]
            await self._chunks.pace(peer, len(piece))
            try:
                async with asyncio.timeout(LIMITS.upload_piece_seconds):
                    await response.write(piece)
            except TimeoutError:
                if request.transport is not None:
                    request.transport.abort()
                return
        await response.write_eof()


def _problem(status: int, error: KvswapError) -> web.Response:
    body = json.dumps({"error": {"code": error.code, "message": error.message}})
    return web.Response(status=status, text=body, content_type="application/json")
