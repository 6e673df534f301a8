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
        with contextlib.suppress(OSError):
            # Waiting is done here, and only where there is something to wait for: a socket with a time-out of its own
            # asks the system before each call, and once more for each change of the time-out.
            sock.setblocking(False)
        self._sock = sock
        self._deadline: float | None = None  # of the waits from now on, monotonic
        self._seconds: float | None = None  # or for each of them
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=server)

    def handshake(self, seconds: float) -> None:
        """Raises `OSError`, of which `ssl.SSLError` and `TimeoutError` are kinds."""
        self._until(time.monotonic() + seconds)
        while True:
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
        self._seconds, self._deadline = seconds, None

    def sendall(self, data: bytes | memoryview, seconds: float | None = None) -> None:
        """All of it, within `seconds` where they are given.  Raises `TimeoutError`."""
        view = memoryview(data)
        if seconds is not None:
            self._until(time.monotonic() + seconds)
        while view:
            view = view[self._tls.write(view[:_SENT]) :]
            self._push()

    def recv(self, most: int, seconds: float) -> bytes:
        """What comes within `seconds`, at most so many bytes; empty at the end.  Raises `TimeoutError`."""
        self._until(time.monotonic() + seconds)
        while True:
            try:
                return self._tls.read(most)
            except ssl.SSLWantReadError:
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
        """For the waits from now on, all together: however little comes, nothing moves the deadline."""
        self._deadline, self._seconds = deadline, None

    def _left(self) -> float | None:
        """Seconds that the next wait may take; None: any.  Raises `TimeoutError` when there are none left."""
        left = self._seconds if self._deadline is None else self._deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError("the time is over")
        return left

    def _wait(self, event: int) -> None:
        """Until the system says that there is something to read, or room to write.  Raises `TimeoutError`."""
        left = self._left()
        poll = select.poll()
        poll.register(self._sock, event)
        if not poll.poll(left * 1000 if left is not None else None):
            raise TimeoutError("the time is over")

    def _pull(self) -> None:
        scratch: bytearray | None = getattr(_scratch, "memory", None)
        if scratch is None:
            scratch = _scratch.memory = bytearray(_PIECE)
        self._left()
        while True:
            try:
                size = self._sock.recv_into(scratch)
                break
            except BlockingIOError:
                self._wait(select.POLLIN)
        if size:
            self._in.write(memoryview(scratch)[:size])
        else:
            self._in.write_eof()

    def _push(self) -> None:
        if not self._out.pending:
            return
        left = memoryview(self._out.read())
        while left:
            self._left()
            try:
                left = left[self._sock.send(left) :]
            except BlockingIOError:
                self._wait(select.POLLOUT)

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
