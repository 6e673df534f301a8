"""The serving end of the bulk channel: `GET /v1/chunks/<cid>`, with Range, for the holder of a token.

| status | when |
|---|---|
| 200, 206 | the wire bytes, or the requested range of them |
| 401 | no token, or one that is expired, revoked, of another node, or forged |
| 404 | the chunk is not here, must not be served any more, or is not of the token's artifacts |
| 405, 400, 416 | another method, path or id, or a range that does not exist |
| 503 | the peer has too many transfers under way here, or is not served |

A chunk's file is checked against its id before its first byte goes out, so a damaged disk makes this node answer 404,
never send wrong bytes.  The chunk is then sent in pieces, so that a connection costs the memory of one piece and a
thread, however large the chunk.  Before each piece it is checked again whether the peer may have it; if not, the
connection is closed.  A connection that requests nothing, or takes less than a piece in half a minute, is closed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Collection
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import h11

from kvswap.core.errors import (
    IntegrityError,
    KvswapError,
    NotFound,
    P2pDown,
    PeerBusy,
    TokenRefused,
    UsageError,
)
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.core.upkeep import Backoff, Problems, forever
from kvswap.net.bulk.identity import BulkIdentity
from kvswap.net.bulk.tls import TlsSocket
from kvswap.net.bulk.tokens import Bearer, Tokens
from kvswap.net.dialling import group_of
from kvswap.net.messages import BulkRecord

_PATH = "/v1/chunks/"
_LOOK_SECONDS = 10.0  # accepting counts as working again after so long, even if nobody connected
_HANDSHAKE_SECONDS = 10.0
_HEAD_BYTES = 8 * 1024
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
_STATUS: list[tuple[type[KvswapError], int]] = [
    (TokenRefused, 401),
    (UsageError, 400),
    (NotFound, 404),
    (IntegrityError, 404),
    (PeerBusy, 503),
]


class OpenChunk(Protocol):
    """A checked chunk, read in pieces."""

    @property
    def length(self) -> int:
        """The length of the chunk in bytes."""

    def read_into(self, into: memoryview, at: int) -> int:
        """Fill `into` from the offset `at`, and return the number of bytes read."""


class Chunks(Protocol):
    """The source of the bytes that a bulk server sends, with its limits and its ledger."""

    def permit(self, peer: str, cid: Cid, artifacts: Collection[str] | None) -> None:
        """Check that a peer may have a chunk of one of these artifacts (None for any).

        Called from any thread, before each piece.  Raises `PeerBusy` or `NotFound` if the peer may not.
        """

    def open(self, peer: str, cid: Cid) -> AbstractContextManager[OpenChunk]:
        """Open a checked chunk for a peer.  Called from any thread.

        Raises `NotFound`, `IntegrityError` or `PeerBusy`.
        """

    @property
    def paced(self) -> bool:
        """True if uploads are rate-limited, so that each piece has to wait for its `turn`."""

    async def turn(self, peer: str, size: int) -> None:
        """Wait until `size` more bytes may be sent to `peer`; runs on the server's event loop."""

    def count(self, peer: str, size: int) -> None:
        """Count `size` bytes as sent to `peer`.  Called from any thread, before they leave."""


class BulkServer:
    """An HTTPS server on one port of the given addresses, with a thread for each connection."""

    def __init__(
        self, identity: BulkIdentity, tokens: Tokens, chunks: Chunks, problems: Problems | None = None
    ) -> None:
        self.identity = identity
        self.tokens = tokens
        self.chunks = chunks
        self._problems = problems if problems is not None else Problems()
        self.port: int | None = None
        self.record: BulkRecord | None = None  # signed, once listening
        self._listeners: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._lock = threading.Lock()
        self._hosts: Counter[str] = Counter()
        self._connections: set[_ServerConnection] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    async def start(self, hosts: list[str], port: int) -> None:
        """Listen on the same port of every address; port 0 picks a free one.

        Raises `P2pDown` if that is impossible.
        """
        self._loop = asyncio.get_running_loop()
        try:
            for host in hosts:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                listener = socket.create_server((host, port), family=family, backlog=128)
                listener.setblocking(False)
                self._listeners.append(listener)
                port = listener.getsockname()[1]
        except OSError as error:
            await self.stop()
            raise P2pDown(
                f"cannot listen on {host} port {port}: {error.strerror}", cause="the port is taken"
            ) from error
        self.port, self.record = port, self.identity.record(port)
        self._accepting = [
            asyncio.create_task(
                forever(
                    "accepting https",
                    partial(self._accept, listener),
                    self._problems,
                    pause=0.0,
                    backoff=Backoff(0.1, 2.0),
                )
            )
            for listener in self._listeners
        ]

    async def stop(self) -> None:
        """Stop listening and abort all connections.  Idempotent."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        self.port = self.record = None
        with self._lock:
            open_now = list(self._connections)
        for connection in open_now:
            connection.abort()
        for connection in open_now:
            await asyncio.to_thread(connection.join, 1.0)

    async def _accept(self, listener: socket.socket) -> None:
        """Accept one connection, or none for ten seconds.

        Raises the system's error if it has no resources for more.
        """
        with contextlib.suppress(TimeoutError, ConnectionError):  # ConnectionError: it went away while it waited
            async with asyncio.timeout(_LOOK_SECONDS):
                sock, address = await asyncio.get_running_loop().sock_accept(listener)
            self._begin(sock, group_of(str(address[0])))

    def _begin(self, sock: socket.socket, host: str) -> None:
        try:
            connection = _ServerConnection(self, sock, host)
        except BaseException:
            sock.close()
            raise
        if not self._admit(connection):
            sock.close()
            return
        try:
            connection.start()
        except BaseException:  # no more threads: this one is refused, and the place is free again
            self.leave(connection)
            sock.close()
            raise

    def _admit(self, connection: _ServerConnection) -> bool:
        with self._lock:
            host = connection.host
            if len(self._connections) >= LIMITS.bulk_connections:
                return False
            if self._hosts[host] >= LIMITS.bulk_connections_per_host:
                return False
            self._hosts[host] += 1
            self._connections.add(connection)
            return True

    def leave(self, connection: _ServerConnection) -> None:
        """Count a connection as ended."""
        with self._lock:
            self._connections.discard(connection)
            self._hosts[connection.host] -= 1
            self._hosts += Counter()

    def hang_up(self, peer: str) -> None:
        """Abort the connections on which a token of this peer was shown."""
        with self._lock:
            theirs = [connection for connection in self._connections if connection.peer == peer]
        for connection in theirs:
            connection.abort()

    def wait_for_turn(self, peer: str, size: int) -> None:
        """Wait in a connection's thread until `size` more bytes may go to `peer`.

        Raises `ConnectionError` if the server is stopping.
        """
        assert self._loop is not None  # noqa: S101 - there are no connections before `start`
        work = asyncio.run_coroutine_threadsafe(self.chunks.turn(peer, size), self._loop)
        while self.port is not None:
            with contextlib.suppress(concurrent.futures.TimeoutError):
                return work.result(1.0)
        work.cancel()
        raise ConnectionError("stopping")


class _ServerConnection(threading.Thread):
    """One connection, on which requests and answers alternate.

    It is a thread because asyncio's TLS copies every byte through two more buffers, for half as much CPU again.  h11
    parses the requests.
    """

    def __init__(self, server: BulkServer, sock: socket.socket, host: str) -> None:
        super().__init__(name="kvswap-serve", daemon=True)
        self.host = host
        self.peer: str | None = None  # whose token was shown last
        self._server = server
        self._sock = TlsSocket(sock, server.identity.context, server=True)
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES)
        self._piece: memoryview | None = None

    def abort(self) -> None:
        self._sock.abort()

    def run(self) -> None:
        try:
            self._sock.handshake(_HANDSHAKE_SECONDS)
            self._serve()
        except OSError:  # the peer went away, was too slow, or speaks no TLS; `ssl.SSLError` is one as well
            pass
        finally:
            self._sock.close()
            self._server.leave(self)

    def _serve(self) -> None:
        while True:
            try:
                request = self._request()
            except h11.RemoteProtocolError as error:
                if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    self._problem(error.error_status_hint, UsageError("not a request of HTTP/1.1"))
                return
            if request is None:
                return
            self._answer(request)
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    def _request(self) -> h11.Request | None:
        """Receive the next request whole, within the idle time; None if the peer has ended."""
        request, deadline = None, time.monotonic() + LIMITS.bulk_idle_seconds
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(self._sock.recv(_HEAD_BYTES, deadline - time.monotonic()))
            elif isinstance(event, h11.Request):
                request = event
                if any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
                       for name, value in event.headers):  # fmt: skip
                    raise h11.RemoteProtocolError("a request with a body", error_status_hint=413)
            elif isinstance(event, h11.EndOfMessage):
                return request
            elif isinstance(event, h11.Data):
                raise h11.RemoteProtocolError("a request with a body", error_status_hint=413)
            else:
                return None

    def _answer(self, request: h11.Request) -> None:
        headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
        try:
            bearer = self._server.tokens.bearer(headers.get("authorization", "").removeprefix("Bearer "))
            self.peer = bearer.peer
            path = request.target.decode("latin-1")
            if request.method != b"GET":
                self._problem(405, UsageError(f"{request.method.decode('latin-1')} is not GET"))
                return
            if not path.startswith(_PATH):
                raise UsageError("the path is not /v1/chunks/<cid>")
            cid = Cid.parse(path.removeprefix(_PATH))
            self._server.chunks.permit(bearer.peer, cid, bearer.artifacts)
            with self._server.chunks.open(bearer.peer, cid) as chunk:
                self._chunk(bearer, cid, chunk, headers.get("range"))
        except KvswapError as error:
            status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
            self._problem(status, NotFound(error.message) if status == 404 else error)

    def _chunk(self, bearer: Bearer, cid: Cid, chunk: OpenChunk, wanted: str | None) -> None:
        start, stop = 0, chunk.length
        headers = [("Content-Type", "application/octet-stream")]
        if wanted is not None:
            found = byte_range(wanted, chunk.length)
            if found is None:
                self._problem(416, UsageError(f"no such range of {chunk.length} bytes"))
                return
            start, stop = found
            headers.append(("Content-Range", f"bytes {start}-{stop - 1}/{chunk.length}"))
        headers.append(("Content-Length", str(stop - start)))
        self._head(200 if wanted is None else 206, headers)
        self._body(bearer, cid, chunk, start, stop)
        self._http.send(h11.EndOfMessage())

    def _body(self, bearer: Bearer, cid: Cid, chunk: OpenChunk, start: int, stop: int) -> None:
        chunks = self._server.chunks
        if self._piece is None:
            self._piece = memoryview(bytearray(LIMITS.upload_piece_bytes))
        while start < stop:
            size = chunk.read_into(self._piece[: stop - start], start)
            if not size:
                raise ConnectionError("the file ended early")  # somebody cut it since it was checked
            if chunks.paced:
                self._server.wait_for_turn(bearer.peer, size)
            try:
                chunks.permit(bearer.peer, cid, bearer.artifacts)
            except KvswapError as error:
                raise ConnectionError(error.message) from error  # its length is promised: there is no other way to end
            data: Any = self._piece[:size]  # h11 hands on what it is given
            chunks.count(bearer.peer, size)  # before it leaves: no peer has more than was counted
            for part in self._http.send_with_data_passthrough(h11.Data(data=data)) or ():
                self._send(part)
            start += size

    def _send(self, data: Any) -> None:
        self._sock.sendall(data, LIMITS.upload_piece_seconds)

    def _head(self, status: int, headers: list[tuple[str, str]]) -> None:
        self._send(self._http.send(h11.Response(status_code=status, headers=headers)) or b"")

    def _problem(self, status: int, error: KvswapError) -> None:
        body = json.dumps({"error": {"code": error.code, "message": error.message}}).encode()
        self._head(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        self._send(self._http.send(h11.Data(data=body)) or b"")
        self._http.send(h11.EndOfMessage())


def byte_range(text: str, length: int) -> tuple[int, int] | None:
    """Parse a Range header (RFC 9110, 14.2) of one range into start and end; None if there is no such range."""
    match = _RANGE.fullmatch(text)
    first, last = match.groups() if match else ("", "")
    if first:
        start, stop = int(first), min(int(last) + 1, length) if last else length
    elif last:
        start, stop = max(0, length - int(last)), length
    else:
        return None
    return (start, stop) if start < stop else None
