"""The reading end of the bulk channel: fetch one chunk straight into the caller's buffer.

It uses blocking sockets in threads, not asyncio: TLS records are decrypted into the buffer itself, without the copies
and callbacks of a stream reader, and outside the interpreter lock (measured in `docs/adr/0009-bulk-plane.md`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from blake3 import blake3

from kvswap.core.errors import (
    IntegrityError,
    KvswapError,
    NetworkTimeout,
    NotFound,
    PeerBusy,
    PeerError,
    TokenRefused,
)
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.core.tasks import until_done
from kvswap.net.bulk.tls import TlsSocket

_THREADS = 48
_REPORT_BYTES = 1024 * 1024
_REPORT_SECONDS = 0.1
_HASH_BYTES = 128 * 1024
_KEPT = 64  # idle connections
_LOOK_SECONDS = 1.0  # between checks whether idle connections have ended
_PRECONNECTIONS = 2  # connections opened ahead to a peer: as many chunks as are requested from it at first
_REFUSALS: dict[int, type[KvswapError]] = {401: TokenRefused, 404: NotFound, 503: PeerBusy}
OnBytes = Callable[[int], None]


class BulkUnreachable(PeerError):
    """The error for an HTTPS port that is not reached, or shows another certificate than the signed one: use libp2p."""

    code = "bulk_unreachable"


@dataclass(frozen=True, slots=True)
class BulkTarget:
    """The address of a peer's bulk channel, the certificate to accept, and the bearer token to show."""

    peer: str
    host: str  # an IP address
    port: int
    certificate: bytes  # SHA-256 of its DER form
    token: str

    @property
    def endpoint(self) -> tuple[str, int, bytes]:
        """The address, port and certificate, by which connections are reused."""
        return self.host, self.port, self.certificate


def _context() -> ssl.SSLContext:
    """Make a TLS context that encrypts only: the certificate's digest is compared after the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class _ClientConnection:
    """A keep-alive connection for one thread at a time; `abort` may be called from any thread."""

    def __init__(self, target: BulkTarget, context: ssl.SSLContext) -> None:
        self.endpoint = target.endpoint
        self.peer = target.peer
        self._target = target
        self._context = context
        host = f"[{target.host}]" if ipaddress.ip_address(target.host).version == 6 else target.host
        self._http = http.client.HTTPConnection(host, target.port)
        self._tls: TlsSocket | None = None
        self._aborted = False
        self.fresh = True
        self.used_at = 0.0

    def connect(self) -> None:
        """Connect, and check the certificate.  Raises `BulkUnreachable`."""
        seconds = LIMITS.bulk_connect_seconds
        try:
            sock = socket.create_connection((self._target.host, self._target.port), seconds)
            self._tls = self._http.sock = TlsSocket(sock, self._context)
            self._tls.handshake(seconds)
        except OSError as error:
            self.close()
            raise BulkUnreachable(f"{self._target.peer}: no HTTPS connection: {error}") from error
        shown = hashlib.sha256(self._tls.certificate).digest()
        if shown != self._target.certificate:
            self.close()
            raise BulkUnreachable(
                f"{self._target.peer}: its HTTPS port shows another certificate than it signed for",
                cause="another program has the port, or somebody is in between",
            )
        self.used_at = time.monotonic()

    def get(self, token: str, cid: Cid, into: memoryview, on_progress: OnBytes) -> bytes:
        """Fetch one chunk into `into` and return its BLAKE3 digest.  After an error the connection must be closed."""
        peer, sock = self._target.peer, self._tls
        if self._aborted or sock is None:
            raise PeerError("given up")
        sock.settimeout(LIMITS.first_byte_seconds)
        self._http.request("GET", f"/v1/chunks/{cid}", headers={"Authorization": f"Bearer {token}"})
        response = self._http.getresponse()
        if response.status != 200:
            kind = _REFUSALS.get(response.status, PeerError)
            raise kind(f"{peer} answered {response.status} for chunk {cid}")
        length = response.headers.get("Content-Length")
        if response.chunked or length != str(len(into)):
            raise IntegrityError(f"{peer} offers {str(length)[:20]} bytes for chunk {cid} of {len(into)}")
        sock.settimeout(LIMITS.stall_seconds)
        have = reported = hashed = 0
        hasher = blake3()
        reported_at = time.monotonic()
        receive: Callable[[memoryview], int] = (
            response.fp.readinto1
        )  # first what came along with the headers, then from the socket itself
        while have < len(into):
            size = receive(into[have:])
            receive = sock.recv_into
            if not size:
                raise PeerError(f"{peer}: chunk {cid} ended after {have} of {len(into)} bytes")
            have += size
            if have - hashed >= _HASH_BYTES:  # while they are in the cache of this core
                hasher.update(into[hashed:have])
                hashed = have
            now = time.monotonic()
            if have - reported >= _REPORT_BYTES or now - reported_at > _REPORT_SECONDS:
                on_progress(have - reported)
                reported, reported_at = have, now
        if have > reported:
            on_progress(have - reported)
        response.close()
        if response.will_close:
            self.close()
        self.fresh, self.used_at = False, time.monotonic()
        hasher.update(into[hashed:])
        return hasher.digest()

    @property
    def connected(self) -> bool:
        return self._tls is not None

    @property
    def usable(self) -> bool:
        fresh = time.monotonic() - self.used_at < LIMITS.bulk_idle_seconds / 2
        return self._tls is not None and fresh and not self._tls.ended

    def close(self) -> None:
        self._http.close()
        if self._tls is not None:
            self._tls.close()
            self._tls = None

    def abort(self) -> None:
        """Abort what another thread is doing on this connection."""
        self._aborted = True
        if (tls := self._tls) is not None:
            tls.abort()


class BulkClient:
    """The pool of one node's connections to the bulk channels of other nodes, kept open between chunks."""

    def __init__(self) -> None:
        self._context = _context()
        self._threads = ThreadPoolExecutor(_THREADS, "kvswap-bulk")
        self._idle: list[_ClientConnection] = []
        self._preconnecting: Counter[tuple[str, int, bytes]] = Counter()
        self._look_at = 0.0  # when the idle connections are checked next
        self._lock = threading.Lock()

    async def close(self) -> None:
        """Close the idle connections and stop the threads; chunks that are under way are not waited for."""
        with self._lock:
            for connection in self._idle:
                connection.close()
            self._idle.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def get(self, target: BulkTarget, cid: Cid, into: memoryview, on_bytes: OnBytes = lambda n: None) -> Cid:
        """Fetch a chunk into `into`, whose length is the chunk's, and return the Cid of what arrived.

        The Cid is not compared with `cid` here.  `on_bytes` is called on the event loop with each number of bytes that
        arrived.  When this returns or raises, nothing writes to `into` any more.

        Raises `BulkUnreachable`, `TokenRefused`, `NotFound` or `PeerBusy`; `IntegrityError` if the peer offers another
        length; `NetworkTimeout` if nothing arrives; `PeerError` if the connection breaks.
        """
        loop = asyncio.get_running_loop()

        def on_progress(size: int) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closing
                loop.call_soon_threadsafe(on_bytes, size)

        held: list[_ClientConnection] = []
        work = self._threads.submit(self._get, target, cid, into, on_progress, held)
        ended = asyncio.wrap_future(work)
        ended.add_done_callback(_seen)
        try:
            return Cid(await asyncio.shield(ended))
        except asyncio.CancelledError:
            # The thread writes to the caller's memory: do not return before it has ended, or was never started.
            def abort() -> None:
                for connection in list(held):
                    connection.abort()

            if not work.cancel():
                abort()
                await until_done([ended], abort, 0.05)  # it may be about to take a connection: repeat until it ended
            raise

    def forget(self, peer: str) -> None:
        """Close the idle connections to a peer."""
        with self._lock:
            for connection in [c for c in self._idle if c.peer == peer]:
                self._idle.remove(connection)
                connection.close()

    def preconnect(self, target: BulkTarget) -> None:
        """Open connections ahead to a peer that will be asked for chunks in a moment; failures are ignored."""
        with self._lock:
            ready = sum(c.endpoint == target.endpoint and c.usable for c in self._idle)
            ready += self._preconnecting[target.endpoint]
            wanted = max(0, _PRECONNECTIONS - ready)
            self._preconnecting[target.endpoint] += wanted
        for _ in range(wanted):
            self._threads.submit(self._open, target)

    def _open(self, target: BulkTarget) -> None:
        connection = _ClientConnection(target, self._context)
        try:
            connection.connect()
            connection.fresh = False  # by the time it is used the other side may have closed it
            self._give(connection)
        except KvswapError:
            pass
        finally:
            with self._lock:
                self._preconnecting[target.endpoint] -= 1
                self._preconnecting += Counter()

    def _get(
        self, target: BulkTarget, cid: Cid, into: memoryview, on_progress: OnBytes, held: list[_ClientConnection]
    ) -> bytes:
        while True:
            connection = self._take(target)
            held.append(connection)
            try:
                if not connection.connected:
                    connection.connect()
                digest = connection.get(target.token, cid, into, on_progress)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
                connection.close()
                held.remove(connection)
                if connection.fresh:
                    raise PeerError(f"{target.peer} closed the connection before chunk {cid}") from error
                continue  # it was idle too long for the other side: retry on another connection
            except TimeoutError as error:
                connection.close()
                raise NetworkTimeout(f"{target.peer} stopped sending chunk {cid}") from error
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                raise PeerError(f"{target.peer}: chunk {cid} broke off: {type(error).__name__}") from error
            except KvswapError:
                connection.close()
                raise
            self._give(connection)
            return digest

    def _take(self, target: BulkTarget) -> _ClientConnection:
        with self._lock:
            for connection in reversed(self._idle):
                if connection.endpoint == target.endpoint:
                    self._idle.remove(connection)
                    if connection.usable:
                        return connection
                    connection.close()
        return _ClientConnection(target, self._context)

    def _give(self, connection: _ClientConnection) -> None:
        """Return a connection to the pool; close those that have ended, and the oldest beyond the pool's size.

        All of them are checked at most once a second: asking the system about each takes longer than reading a piece.
        """
        with self._lock:
            if connection.connected:
                self._idle.append(connection)
            if time.monotonic() >= self._look_at:
                self._look_at = time.monotonic() + _LOOK_SECONDS
                idle, self._idle = self._idle, []
                for kept in idle:
                    if kept.usable:
                        self._idle.append(kept)
                    else:
                        kept.close()
            while len(self._idle) > _KEPT:
                self._idle.pop(0).close()


def _seen(future: asyncio.Future[bytes]) -> None:
    """Retrieve the future's exception, which nobody awaits if the caller was cancelled."""
    if not future.cancelled():
        future.exception()
