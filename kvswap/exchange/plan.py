"""Gathering what `cost.decide` needs: sizes, this machine's prefill curve, the best peer's link."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kvswap.artifact.layout import needed
from kvswap.artifact.manifest import Manifest
from kvswap.core.errors import NotFound, PlanSaysPrefill
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.cost import Link, Plan, PrefillCurve, Prices, decide
from kvswap.exchange.find import find
from kvswap.exchange.model_port import ModelChoice
from kvswap.exchange.node import Node
from kvswap.exchange.resolve import Resolved, own_model, resolve
from kvswap.net import messages


async def plan(node: Node, resolved: Resolved) -> Plan:
    """Fetch or prefill, for an artifact already judged usable.  Measures prefill once per model."""
    manifest = resolved.statement.manifest
    chunks = [manifest.chunks[i] for i in needed(manifest)]
    missing = set(await asyncio.to_thread(node.store.missing, [c.id for c in chunks]))
    missing_bytes = sum(c.length for c in chunks if c.id in missing)
    choice = await own_model(node)
    curve = None
    if choice is not None:
        known = node.calibration.curve(choice.calibration_key, manifest.prefix.block_tokens)
        curve = known if known or not missing_bytes else await calibrate(node, choice, manifest.prefix.block_tokens)
    raw_bytes = sum(c.raw_length for c in chunks)
    return _decide(node, manifest.prefix.tokens, raw_bytes, missing_bytes, curve, best_link(node, resolved.peers))


def _decide(
    node: Node, tokens: int, raw_bytes: int, missing_bytes: int, curve: PrefillCurve | None, link: Link | None
) -> Plan:
    """`cost.decide` with this node's measured load rate and its prices."""
    return decide(
        tokens=tokens,
        raw_bytes=raw_bytes,
        missing_bytes=missing_bytes,
        curve=curve,
        link=link,
        load_bytes_per_second=node.calibration.load_bytes_per_second,
        prices=prices(node),
    )


def not_worth_it(artifact: str, chosen: Plan) -> PlanSaysPrefill:
    """Exit 8, with the figures."""
    return PlanSaysPrefill(
        f"fetching {artifact} is not worth it: {chosen.reason}",
        hint="kvswap fetch --force fetches all the same",
        plan=chosen.to_json(),
    )


Judge = Callable[[float, int], Plan]


async def judge(node: Node, manifest: Manifest) -> Judge | None:
    """For a fetch under way: (bytes per second seen, bytes missing) -> the plan for the rest.

    None when this node cannot prefill or was never measured.
    """
    choice = await own_model(node)
    curve = node.calibration.curve(choice.calibration_key, manifest.prefix.block_tokens) if choice else None
    if curve is None:
        return None
    raw = sum(manifest.chunks[i].raw_length for i in needed(manifest))

    def rest(bytes_per_second: float, missing_bytes: int) -> Plan:
        return _decide(node, manifest.prefix.tokens, raw, missing_bytes, curve, Link(bytes_per_second, 0.0))

    return rest


def prices(node: Node) -> Prices:
    s = node.settings
    return Prices(per_gb=s.price_per_gb, per_second=s.price_per_second, value_per_second=s.value_per_second)


def best_link(node: Node, peers: tuple[str, ...]) -> Link | None:
    """The fastest of these peers; a lower bound on what several together reach."""
    links = [node.calibration.link(p, node.settings.assumed_link_bytes_per_second) for p in peers]
    return max(links, key=lambda link: link.bytes_per_second, default=None)


async def calibrate(node: Node, choice: ModelChoice, block_tokens: int) -> PrefillCurve | None:
    """Measure a few blocks on this machine and keep the result."""
    node.events.add("calibrating", model=choice.name)
    made = await node.model.run(choice, "calibrate", block_tokens=block_tokens)
    node.learn_prefill(choice, made["samples"])
    return node.calibration.curve(choice.calibration_key, block_tokens)


async def plan_reference(node: Node, reference: str | Cid, text: str | None = None) -> dict[str, Any]:
    """The plan for a reference, as JSON.  Transfers no chunk.

    With the document's `text`, a document that nobody offers is planned too: prefill, and which
    published artifact shares the longest beginning with it.
    """
    try:
        resolved = await resolve(node, reference)
    except NotFound:
        if text is None:
            raise
        return await _plan_unpublished(node, text)
    chosen = await plan(node, resolved)
    return {"artifact": str(resolved.statement.artifact), "from": list(resolved.peers), **chosen.to_json()}


async def _plan_unpublished(node: Node, text: str) -> dict[str, Any]:
    choice = await node.model.choose()
    block_tokens = node.settings.block_tokens
    made = await node.model.run(choice, "tokenize", text=text, block_tokens=block_tokens)
    curve = node.calibration.curve(choice.calibration_key, block_tokens) or await calibrate(node, choice, block_tokens)
    # Something is missing and there is no link to get it over: how large it would be does not matter.
    chosen = _decide(node, made["tokens"], raw_bytes=0, missing_bytes=1, curve=curve, link=None)
    shared = await longest_prefix(node, choice, made["chain"])
    prefix = None
    if shared is not None:
        artifact, blocks, peer = shared
        prefix = {"artifact": artifact, "tokens": min(blocks * block_tokens, made["tokens"]), "peer": peer}
    return {"artifact": None, "from": [], "shared_prefix": prefix, **chosen.to_json()}


async def longest_prefix(node: Node, choice: ModelChoice, chain: list[bytes]) -> tuple[str, int, str | None] | None:
    """(artifact, shared blocks, peer or None for our own store) of the longest match by chain digests."""
    chain = chain[: LIMITS.chain_digests]
    matches: list[tuple[int, str, str | None]] = [
        (blocks, row.id, None)
        for row, blocks in await asyncio.to_thread(node.store.longest_prefix, chain)
        if row.dtype == choice.dtype
    ]
    matches += [
        (offer.found.shared_blocks, offer.found.artifact, offer.peer)
        for offer in await find(node, messages.Find(chain=chain), seconds=LIMITS.lookup_seconds / 5)
        if offer.found.dtype == choice.dtype and offer.found.shared_blocks <= len(chain)
    ]
    if not matches:
        return None
    blocks, artifact, peer = max(matches, key=lambda match: (match[0], match[2] is None))
    return artifact, blocks, peer
