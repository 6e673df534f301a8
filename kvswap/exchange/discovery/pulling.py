"""Prefix indexes of connected peers, pulled as they get old, and what a look-up could find in all of them."""

from __future__ import annotations

import asyncio
import time

from kvswap.core.errors import KvswapError
from kvswap.core.limits import LIMITS
from kvswap.exchange.node.node import Node
from kvswap.net import PeerAddress, messages

REFRESH_SECONDS = 2.0
"""For which a look-up waits for prefix indexes, and a pull for its answer."""
_WATCH_SECONDS = 0.2
_PULLED_AT_ONCE = 64


async def refresh(node: Node, seconds: float) -> None:
    """Pull the prefix indexes of connected peers that are not fresh, all at once; slow ones go on after `seconds`."""
    if not node.p2p:
        return
    stale = [
        p
        for p in node.transport.connected()
        if node.network.prefix_indexes.stale(p) and not node.peers.backoff_seconds(p)
    ]
    stale.sort(key=lambda peer: not node.peers.delivered(peer))
    for peer in stale:
        pull_soon(node, peer)
    if node.network.pulling:
        await asyncio.wait(list(node.network.pulling.values()), timeout=seconds)


def pull_soon(node: Node, peer: str) -> None:
    """Pull the prefix index of a peer in the background, unless that is under way or too many are."""
    if peer not in node.network.pulling and len(node.network.pulling) < _PULLED_AT_ONCE:
        node.network.pulling[peer] = node.background.spawn(_pull(node, peer))


async def _pull(node: Node, peer: str) -> None:
    """Pull the prefix index of one peer, and keep it."""
    try:
        async with asyncio.timeout(REFRESH_SECONDS):
            ask = messages.GetPrefixIndex(node.network.prefix_indexes.version(peer))
            node.network.prefix_indexes.put(
                peer, await node.network.ask(PeerAddress(peer), ask, messages.PrefixIndexReply)
            )
    except (KvswapError, TimeoutError) as error:
        node.peers.blame(peer, error)
    finally:
        node.network.pulling.pop(peer, None)


async def cached_prefix_keys(node: Node, version: str, seconds: float) -> tuple[str, bytes | None]:
    """Return the version and keys of all prefixes that a look-up could find, as soon as the version is another.

    It is for callers that look up so often that most look-ups, which find nothing, are better answered without asking.
    `seconds` is how long it waits for another version than `version`.  The keys are None where there are too many, or
    some have other names than their own (`groups`), or there are origins, which tell no keys: then ask.
    """
    deadline = time.monotonic() + seconds
    while True:
        await refresh(node, min(REFRESH_SECONDS, max(0.0, deadline - time.monotonic())))
        asked = f"{len(node.trust.groups.all())}.{len(node.origins.names)}"
        present = f"{node.store.generation}.{node.network.prefix_indexes.generation}.{asked}"
        if present != version:
            break
        if time.monotonic() >= deadline:
            break
        await asyncio.sleep(_WATCH_SECONDS)
    if node.trust.groups.all() or node.settings.group or node.origins.names:
        return present, None
    own = await asyncio.to_thread(node.own_prefix_index.reply, 0)
    keys = (own.keys or b"") + node.network.prefix_indexes.packed()
    return present, keys if len(keys) <= LIMITS.prefix_keys_bytes else None
