"""The longest published prefixes at origins: each answers from its index, where a peer's prefix index is held here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kvswap.core.limits import LIMITS
from kvswap.exchange.discovery.candidates import Candidate, round_robin
from kvswap.exchange.discovery.lookup import PeerOffer, find
from kvswap.exchange.model_port import Wanted
from kvswap.exchange.node.node import AGENT, Node
from kvswap.net import messages
from kvswap.trust import Identifiers


async def prefixes_at_origins(
    node: Node, wanted: Wanted, called: Sequence[tuple[Identifiers, Sequence[bytes]]], seconds: float | None = None
) -> list[Candidate]:
    """Ask all origins for the artifacts that begin with a chain, under each of its names; the longest come first."""
    origins = node.origins.names
    if not origins:
        return []
    queries = []
    for identifiers, digests in called:
        model, dtype = identifiers.model(wanted.model, wanted.dtype)
        queries.append(messages.Find(AGENT, chain=list(digests), model=model, dtype=dtype))
    within = min(seconds or LIMITS.lookup_seconds, LIMITS.lookup_seconds)
    answers = await asyncio.gather(*(find(node, query, within, origins) for query in queries))
    trusts = node.trust.policy.policy.trusts

    def rank(offer: PeerOffer) -> tuple[int, ...]:
        return (-offer.found.shared_blocks, not trusts(offer.found.publisher), offer.found.envelope is None)

    return round_robin([offer for offers in answers for offer in offers], rank, node.peers.delivered)
