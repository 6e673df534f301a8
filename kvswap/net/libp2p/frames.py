"""Frames on a libp2p stream: u32 length, big endian, then that many bytes.  Runs in the trio thread.

Every write is a Yamux message inside a Noise message, and every read returns window in another, all of them in Python:
so a small frame is one write, and is read in one.
"""

from __future__ import annotations

import math
from typing import Any

import trio

from kvswap.core.errors import NetworkTimeout, PeerError
from kvswap.core.limits import LIMITS
from kvswap.net.transport import StreamClosed

_READ = 1 << 20
_AHEAD = 64 * 1024  # at most so much is read beyond the frame that is waited for
_JOINED = 64 * 1024  # a larger frame is not copied behind its length


class Frames:
    """The frames of one libp2p stream, which one task may send and another receive."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._ahead = b""

    async def send(self, frame: bytes) -> None:
        """Write a frame behind its length."""
        length = len(frame).to_bytes(4, "big")
        if len(frame) <= _JOINED:
            await self._stream.write(length + frame)
        else:
            await self._stream.write(length)
            await self._stream.write(frame)

    async def receive(self, limit: int) -> bytes:
        """Read the next whole frame.

        Raises `StreamClosed` if the stream ended between frames; `NetworkTimeout` if a frame stalls; `PeerError` if it
        is longer than `limit` or the stream breaks.
        """
        length = int.from_bytes(await self._exactly(4, between=True), "big")
        if length > limit:
            raise PeerError(f"a frame of {length} bytes where {limit} are allowed")
        return await self._exactly(length)

    async def exchange(self, frame: bytes, limit: int) -> bytes:
        """Send a frame, then receive the next one."""
        await self.send(frame)
        return await self.receive(limit)

    async def close(self) -> None:
        """End this side of the stream."""
        await self._stream.close()

    async def reset(self) -> None:
        """Abort the stream in both directions."""
        await self._stream.reset()

    async def _exactly(self, length: int, between: bool = False) -> bytes:
        """Read `length` bytes.

        With `between`, at the start of a frame, the stream may end and the caller limits the wait; elsewhere silence
        raises `NetworkTimeout`.
        """
        pieces: list[bytes] = []
        have = 0
        while have < length:
            wanted = length - have
            piece, self._ahead = self._ahead, b""
            if not piece:
                piece = await self._read(min(max(wanted, _AHEAD), _READ), have, length, between)
            if len(piece) > wanted:
                piece, self._ahead = piece[:wanted], piece[wanted:]
            pieces.append(piece)
            have += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _read(self, most: int, have: int, length: int, between: bool) -> bytes:
        try:
            with trio.fail_after(math.inf if between else LIMITS.stall_seconds):
                piece: bytes = await self._stream.read(most)
        except (trio.Cancelled, NetworkTimeout):
            raise
        except trio.TooSlowError:
            raise NetworkTimeout(f"nothing came for {LIMITS.stall_seconds:g} s, {have} of {length} bytes in") from None
        except Exception as error:
            ended = "EOF" in type(error).__name__ or "Closed" in type(error).__name__
            if between and not have and ended:
                raise StreamClosed("the peer ended the stream") from error
            raise PeerError(f"the stream broke after {have} of {length} bytes ({type(error).__name__})") from error
        if not piece:
            if between and not have:
                raise StreamClosed("the peer ended the stream")
            raise PeerError(f"the stream ended after {have} of {length} bytes")
        return piece
