"""`python -m tests.swarm.liar KIND …`: a real daemon that misbehaves as a server of chunks, over HTTPS and libp2p."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from kvswap.cli.main import main
from kvswap.core.errors import NotFound
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.exchange.serving import uploads
from kvswap.net.bulk import BulkIdentity, Tokens
from kvswap.net.bulk import server as bulk_server
from kvswap.trust import Key

Uploads = uploads.Uploads
honest_take, honest_pace = Uploads.take, Uploads.pace
honest_issue, honest_record = Tokens.issue, BulkIdentity.record


async def flip(self: Any, peer: str, cid: Cid) -> tuple[bytes, int]:
    """One bit of each chunk."""
    data, size = await honest_take(self, peer, cid)
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :], size


async def truncate(self: Any, peer: str, cid: Cid) -> tuple[bytes, int]:
    """Half of each chunk, said to be the whole."""
    data, size = await honest_take(self, peer, cid)
    return data[: len(data) // 2], size


async def swap(self: Any, peer: str, cid: Cid) -> tuple[bytes, int]:
    """Another chunk, cut or filled to the right length."""
    data, size = await honest_take(self, peer, cid)
    others = [c for c in self._store._files.all() if c != cid]
    other = self._store._files.read(others[0])
    return (other * (1 + len(data) // len(other)))[: len(data)], size


async def claim(self: Any, peer: str, cid: Cid) -> tuple[bytes, int]:
    """Says to have everything, gives nothing."""
    raise NotFound(f"chunk {cid} is not in the store")


async def silent(self: Any, peer: str, cid: Cid) -> tuple[bytes, int]:
    """Takes the request and never answers."""
    await asyncio.sleep(3600)
    raise AssertionError


async def trickle(self: Any, peer: str, size: int) -> None:
    """1 KB/s."""
    await asyncio.sleep(size / 1000)


async def breaking(self: Any, request: Any, peer: str, response: Any, data: memoryview) -> None:
    """Ends the connection in the middle of each body."""
    await response.write(data[: len(data) // 2])
    request.transport.close()


def install(kind: str) -> None:
    if kind in ("flip", "truncate", "swap", "claim", "silent"):
        Uploads.take = globals()[kind]
    elif kind == "trickle":
        object.__setattr__(LIMITS, "upload_piece_bytes", 1000)
        Uploads.pace = trickle
    elif kind == "breaking":
        bulk_server.BulkServer._send = breaking
    elif kind == "certificate":  # serves with another key than it signs the record with
        create = BulkIdentity.create
        wrong = BulkIdentity.create(Key.generate()).context
        BulkIdentity.create = classmethod(lambda cls, key: _with_context(create(key), wrong))
    elif kind == "expired":  # its tokens are over when they arrive
        Tokens.issue = lambda self, peer, seconds=0.0: honest_issue(self, peer, 0.0)
    elif kind == "forgetful":  # refuses every token after a second: another clock, or a restart
        Tokens.issue = lambda self, peer, seconds=0.0: honest_issue(self, peer, 1.0)
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
