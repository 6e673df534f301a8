"""`python -m tests.swarm.invalid_sender KIND …`: a real daemon that misbehaves as a server of chunks, over HTTPS and libp2p."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h11

from kvswap.cli.main import main
from kvswap.core.errors import NotFound
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.exchange.serving import uploads
from kvswap.net.bulk import BulkIdentity, Tokens
from kvswap.net.bulk import server as bulk_server
from kvswap.trust import Key
from tests.support import HeldChunk

Uploads = uploads.Uploads
honest_take, honest_open = Uploads.take, Uploads.open
honest_issue, honest_record = Tokens.issue, BulkIdentity.record


def flip(uploads: Any, cid: Cid, data: bytes) -> bytes:
    """One bit of each chunk."""
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]


def truncate(uploads: Any, cid: Cid, data: bytes) -> bytes:
    """Half of each chunk, said to be the whole."""
    return data[: len(data) // 2]


def swap(uploads: Any, cid: Cid, data: bytes) -> bytes:
    """Another chunk, cut or filled to the right length."""
    other = uploads._store.get_chunk(next(c for c in uploads._store._files.all() if c != cid))
    return (other * (1 + len(data) // len(other)))[: len(data)]


def claim(uploads: Any, cid: Cid, data: bytes) -> bytes:
    """Says to have everything, gives nothing."""
    raise NotFound(f"chunk {cid} is not in the store")


def forging(forge: Any) -> None:
    """Let `forge` make the bytes of both planes."""

    async def take(self: Any, peer: str, cid: Cid) -> tuple[bytes, int]:
        data, size = await honest_take(self, peer, cid)
        return forge(self, cid, data), size

    @contextmanager
    def open_forged(self: Any, peer: str, cid: Cid) -> Iterator[HeldChunk]:
        with honest_open(self, peer, cid) as chunk:
            yield HeldChunk(forge(self, cid, chunk.read()))

    Uploads.take, Uploads.open = take, open_forged


async def silent(self: Any, peer: str, cid: Cid) -> tuple[bytes, int]:
    """Takes the request and never answers."""
    await asyncio.sleep(3600)
    raise AssertionError


@contextmanager
def silent_open(self: Any, peer: str, cid: Cid) -> Iterator[HeldChunk]:
    time.sleep(3600)
    yield HeldChunk(b"")


async def trickle(self: Any, peer: str, size: int) -> None:
    """1 KB/s."""
    await asyncio.sleep(size / 1000)


def breaking(self: Any, peer: str, chunk: Any, start: int, stop: int) -> None:
    """Ends the connection in the middle of each body."""
    half = chunk.read()[: (stop - start) // 2]
    for part in self._http.send_with_data_passthrough(h11.Data(data=half)):
        self._send(part)
    raise ConnectionError("broken off")


def install(kind: str) -> None:
    if kind in ("flip", "truncate", "swap", "claim"):
        forging(globals()[kind])
    elif kind == "silent":
        Uploads.take, Uploads.open = silent, silent_open
    elif kind == "trickle":
        object.__setattr__(LIMITS, "upload_piece_bytes", 1000)
        Uploads.paced, Uploads.turn = property(lambda self: True, lambda self, value: None), trickle
    elif kind == "breaking":
        bulk_server._ServerConnection._body = breaking
    elif kind == "certificate":  # serves with another key than it signs the record with
        create = BulkIdentity.create
        wrong = BulkIdentity.create(Key.generate()).context
        BulkIdentity.create = classmethod(lambda cls, key: _with_context(create(key), wrong))
    elif kind == "expired":  # its tokens are over when they arrive
        Tokens.issue = lambda self, peer, seconds=0.0, **which: honest_issue(self, peer, 0.0, **which)
    elif kind == "forgetful":  # refuses every token after a second: another clock, or a restart
        Tokens.issue = lambda self, peer, seconds=0.0, **which: honest_issue(self, peer, 1.0, **which)
    elif kind == "patient":  # a reader that gives nobody up for being slow
        for name in ("first_byte_seconds", "stall_seconds", "slow_seconds"):
            object.__setattr__(LIMITS, name, 3600.0)
    elif kind == "future":  # a clock two days ahead
        real = time.time
        time.time = lambda: real() + 2 * 86_400
    elif kind == "past":
        real = time.time
        time.time = lambda: real() - 2 * 86_400
    else:
        assert kind == "honest", kind


def _with_context(identity: BulkIdentity, context: Any) -> BulkIdentity:
    return BulkIdentity(identity.key, identity.certificate, context)


if __name__ == "__main__":
    install(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
