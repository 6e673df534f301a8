"""Gathering what `cost.decide` needs: sizes, this machine's prefill curve, the best peer's link."""

from __future__ import annotations

import asyncio

from kvswap.artifact.layout import needed
from kvswap.cost import Link, Plan, PrefillCurve, Prices, decide
from kvswap.exchange.model_port import ModelChoice
from kvswap.exchange.node import Node
from kvswap.exchange.resolve import Resolved, own_model


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
    return decide(
        tokens=manifest.prefix.tokens,
        raw_bytes=sum(c.raw_length for c in chunks),
        wire_bytes=sum(c.length for c in chunks),
        missing_bytes=missing_bytes,
        curve=curve,
        link=best_link(node, resolved.peers),
        load_bytes_per_second=node.calibration.load_bytes_per_second,
        prices=prices(node),
    )


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
    node.calibration.add_prefill(choice.calibration_key, [(at, n, us / 1e6) for at, n, us in made["samples"]])
    return node.calibration.curve(choice.calibration_key, block_tokens)
