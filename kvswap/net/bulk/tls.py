"""TLS for reading much: ciphertext comes from the kernel in large pieces.

`ssl.SSLSocket` asks the kernel twice for every record of 16 KiB and is woken as often.  Here 256 KiB
come at a time and the records are opened from memory: 0.40 CPU-seconds where it took 0.56, for
520 MB (`docs/adr/0009-bulk-plane.md`).
"""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import threading
import time
from typing import Any

_PIECE = 256 * 1024
_scratch = threading.local()


class TlsSocket:
    """The reading end of one connection, as `http.client` wants a socket.  One thread at a time, but for `abort`."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out)

    def handshake(self, seconds: float) -> None:
        """Raises `OSError`, of which `ssl.SSLError` and `TimeoutError` are kinds."""
        deadline = time.monotonic() + seconds
        while True:
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
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

    def settimeout(self, seconds: float) -> None:
        """For every wait from now on."""
        self._sock.settimeout(seconds)

    def sendall(self, data: bytes) -> None:
        self._tls.write(data)
        self._push()

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
