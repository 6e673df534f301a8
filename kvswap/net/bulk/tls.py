"""TLS for much: ciphertext comes from the kernel, and goes to it, in large pieces.

`ssl.SSLSocket` asks the kernel twice for every record of 16 KiB, is woken as often, and hands over every record by
itself.  Here 256 KiB come at a time and the records are opened from memory: 0.40 CPU-seconds where it took 0.56,
for 520 MB; and eight records leave together, which spares both ends a fifth (`docs/adr/0009-bulk-plane.md`).
"""

from __future__ import annotations

import contextlib
import io
import select
import socket
import ssl
import threading
import time
from typing import Any

_PIECE = 256 * 1024
_SENT = 128 * 1024  # sealed and handed over at a time
_HUNG_UP = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)
_scratch = threading.local()


class TlsSocket:
    """One end of a connection, as `http.client` wants a socket.  One thread at a time, but for `abort`."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server: bool = False) -> None:
        with contextlib.suppress(OSError):  # it was closed meanwhile, which the next call says
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=server)

    def handshake(self, seconds: float) -> None:
        """Raises `OSError`, of which `ssl.SSLError` and `TimeoutError` are kinds."""
        deadline = time.monotonic() + seconds
        while True:
            self._until(deadline)
            try:
                self._tls.do_handshake()
                return
            except ssl.SSLWantReadError:
                self._push()
                self._pull()
            finally:
                self._push()

    @property
    def certificate(self) -> bytes:
        """What the other side showed, in DER form."""
        return self._tls.getpeercert(binary_form=True) or b""

    @property
    def ended(self) -> bool:
        """Whether the other side has hung up; where the system cannot tell, False."""
        poll = select.poll()
        try:
            poll.register(self._sock, _HUNG_UP)
            return bool(poll.poll(0))
        except (OSError, ValueError):  # closed on this side
            return True

    def settimeout(self, seconds: float) -> None:
        """For every wait from now on."""
        self._sock.settimeout(seconds)

    def sendall(self, data: bytes | memoryview, seconds: float | None = None) -> None:
        """All of it, within `seconds` where they are given.  Raises `TimeoutError`."""
        view, began = memoryview(data), time.monotonic()
        while view:
            if seconds is not None:
                self._until(began + seconds)
            view = view[self._tls.write(view[:_SENT]) :]
            self._push()

    def recv(self, most: int, seconds: float) -> bytes:
        """What comes within `seconds`, at most so many bytes; empty at the end.  Raises `TimeoutError`."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self._tls.read(most)
            except ssl.SSLWantReadError:
                self._until(deadline)
                self._push()
                self._pull()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""

    def recv_into(self, into: memoryview) -> int:
        """Wait for something, then take all that is here and fits; 0 at the end."""
        have = 0
        while have < len(into):
            try:
                size = self._tls.read(len(into) - have, into[have:])
            except ssl.SSLWantReadError:
                if have:
                    return have
                self._push()  # the answer to a key update
                self._pull()
                continue
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return have
            if not size:
                return have
            have += int(size)
        return have

    def makefile(self, mode: str) -> io.BufferedReader:
        """For the head of an answer."""
        return io.BufferedReader(_Raw(self))

    def _until(self, deadline: float) -> None:
        """For the next wait.  However little comes before it, nothing moves the deadline.  Raises `TimeoutError`."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time is over")
        self._sock.settimeout(left)

    def _pull(self) -> None:
        scratch: bytearray | None = getattr(_scratch, "memory", None)
        if scratch is None:
            scratch = _scratch.memory = bytearray(_PIECE)
        size = self._sock.recv_into(scratch)
        if size:
            self._in.write(memoryview(scratch)[:size])
        else:
            self._in.write_eof()

    def _push(self) -> None:
        if self._out.pending:
            self._sock.sendall(self._out.read())

    def close(self) -> None:
        self._sock.close()

    def abort(self) -> None:
        """End whatever another thread is doing with it."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)


class _Raw(io.RawIOBase):
    """Closing it leaves the connection open: the next answer comes on it as well."""

    def __init__(self, tls: TlsSocket) -> None:
        self._tls = tls

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        return self._tls.recv_into(memoryview(into))
