"""The frames between node and model process, on a socket of their own.

A frame is a big-endian u32 length and that many bytes of msgpack: a struct of `messages` or `conversation`.  The node
sends `{"job": name, ...}`, `{"tell": ...}` for the job that is running (`NoticeFrame`), or `{"cancel": true}`
(`Cancellation`); the process answers with any number of `{"event": ...}` frames and one `{"result": ...}` or
`{"error": ...}` (`JobEnd`).  A `Heartbeat` is sent every few seconds while a job runs, whatever it does; a `LogFrame`
is a record for the node's log (`logs`).
"""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

import msgspec

from kvswap.core import wire
from kvswap.core.errors import MalformedMessage
from kvswap.core.limits import LIMITS

HEADER = struct.Struct(">I")


def frame(message: msgspec.Struct | dict[str, Any]) -> bytes:
    """Encode a message, or its plain form, as one frame: length and body."""
    body = wire.pack(wire.plain(message))
    return HEADER.pack(len(body)) + body


def check_length(header: bytes) -> int:
    """Return the length of the body that follows a header.  Raises `MalformedMessage` if it is over the cap."""
    (length,) = HEADER.unpack(header)
    if length > LIMITS.chunk_frame_bytes:
        raise MalformedMessage(f"a frame of {length} bytes is over the cap")
    return int(length)


def read(stream: BinaryIO) -> dict[str, Any] | None:
    """Read the next frame, or return None at the end of the stream.  Blocks.  Raises `MalformedMessage`."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    length = check_length(header)
    body = stream.read(length)
    if len(body) < length:
        return None
    value = wire.parse(body, MalformedMessage, items=LIMITS.pipe_items)
    if not isinstance(value, dict):
        raise MalformedMessage("a frame is not a map")
    return value
