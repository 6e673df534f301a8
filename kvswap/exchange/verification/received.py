"""Statements that peers pass on: checked before anything is concluded from them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from kvswap.core.errors import KvswapError, MalformedManifest
from kvswap.core.failures import is_local, record
from kvswap.core.limits import LIMITS
from kvswap.exchange.node.node import Node
from kvswap.trust import Statement, verify_envelope
from kvswap.trust.envelopes import is_signed

T = TypeVar("T")


def verified_statements(
    node: Node, peer: str, kind: str, envelopes: Iterable[bytes], most: int, read: Callable[[bytes], T]
) -> Iterator[T]:
    """Iterate over the statements of one kind that came with a peer's answer, `most` at most, each checked by `read`.

    A forged one ends them, and counts as invalid data from that peer.  One that is what its signer signed, and that we
    do not understand, is left out: it may be of a later version, and whoever passes it on vouches for the signature
    alone.
    """
    for data in islice(envelopes, most):
        try:
            signed = read(data)
        except KvswapError as error:
            if not (isinstance(error, MalformedManifest) and is_signed(data, kind)):
                node.peers.sent_invalid_data(peer, f"{kind}: {error.message}")
                return
            node.events.add("not_understood", peer=peer, statement=kind, reason=error.message)
            continue
        yield signed


@contextlib.contextmanager
def kept_for_later(node: Node) -> Iterator[None]:
    """Go on where this machine cannot keep what a peer sent; `status` shows it until `write_pending` could."""
    try:
        yield
    except Exception as error:
        if not is_local(error):
            raise
        node.problems.note("heard", record(error, "keeping what a peer told"))


async def read_current(node: Node, envelope: bytes) -> Statement:
    """Check the envelope, signature, payload and life of a statement, and return it.  Raises as `verify_envelope` does.

    A large one is read in a thread, which gives way between its chunks: the loop waits for no manifest.
    """
    arguments = (envelope, int(time.time()), node.trust.groups.keys)
    if len(envelope) <= LIMITS.inline_envelope_bytes:
        return verify_envelope(*arguments)
    return await asyncio.to_thread(verify_envelope, *arguments)
