"""Gathering what `cost.decide` needs: sizes, this machine's prefill curve, the best peer's link."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from kvswap.artifact.layout import needed, needed_files
from kvswap.artifact.manifest import ChunkRef, Manifest, PredictorRef
from kvswap.core.errors import PlanSaysPrefill
from kvswap.cost import Link, Objective, Plan, PrefillCurve, Prices, decide
from kvswap.exchange import predictors
from kvswap.exchange.model_port import ModelChoice
from kvswap.exchange.node import Node
from kvswap.exchange.resolve import Resolved, own_model


async def best(node: Node, usable: Sequence[Resolved], objective: Objective) -> tuple[Resolved, Plan]:
    """Of artifacts judged usable the one that costs least to have, and whether to fetch it.  Measures prefill once."""
    plans: list[tuple[Resolved, Plan]] = []
    for resolved in usable:
        manifest = resolved.statement.manifest
        tokens = manifest.prefix.tokens
        plan, _ = await plan_chunks(node, manifest, needed_files(manifest), resolved.peers, tokens, objective)
        plans.append((resolved, plan))

    def rank(pair: tuple[Resolved, Plan]) -> tuple[bool, tuple[float, float]]:
        fetch = pair[1].fetch
        if fetch is None:
            return True, (math.inf, math.inf)
        return fetch.over(objective) is not None, fetch.score(prices(node), objective)

    return min(plans, key=rank)


def raw_by_codec(files: Iterable[ChunkRef | PredictorRef]) -> dict[str, int]:
    """Raw bytes that each codec has to decode."""
    raw: dict[str, int] = {}
    for file in files:
        if isinstance(file, ChunkRef):
            raw[file.codec] = raw.get(file.codec, 0) + file.raw_length
    return raw


async def plan_chunks(
    node: Node,
    manifest: Manifest,
    indices: Sequence[int],
    peers: tuple[str, ...],
    tokens: int,
    objective: Objective,
) -> tuple[Plan, int]:
    """The plan for the files that `tokens` tokens need, and how many of their bytes are not here."""
    await asyncio.to_thread(predictors.supply, node, manifest)
    files = [manifest.files[i] for i in indices]
    missing = set(await asyncio.to_thread(node.store.missing, [f.id for f in files]))
    missing_bytes = sum(f.length for f in files if f.id in missing)
    choice = await own_model(node)
    curve = None
    if choice is not None:
        known = node.calibration.curve(choice.calibration_key, manifest.prefix.block_tokens)
        curve = known if known or not missing_bytes else await calibrate(node, choice, manifest.prefix.block_tokens)
    link = best_link(node, peers)
    return decide_here(node, tokens, raw_by_codec(files), missing_bytes, curve, link, objective), missing_bytes


def decide_here(
    node: Node,
    tokens: int,
    raw: Mapping[str, int],
    missing_bytes: int,
    curve: PrefillCurve | None,
    link: Link | None,
    objective: Objective,
) -> Plan:
    """`cost.decide` with this node's measured load rates and its prices; `raw`: bytes by codec."""
    return decide(
        tokens=tokens,
        missing_bytes=missing_bytes,
        curve=curve,
        link=link,
        load_seconds=node.calibration.load_seconds(raw),
        prices=prices(node),
        objective=objective,
    )


def not_worth_it(artifact: str, chosen: Plan) -> PlanSaysPrefill:
    """Exit 8, with the figures: prefilling is better, or a budget is broken."""
    return PlanSaysPrefill(
        f"fetching {artifact} is not worth it: {chosen.reason}",
        hint="kvswap fetch --force fetches all the same",
        plan=chosen.to_json(),
    )


Judge = Callable[[float, int], Plan]


async def judge(node: Node, manifest: Manifest, objective: Objective) -> Judge | None:
    """For a fetch under way: (bytes per second seen, bytes missing) -> the plan for the rest.

    None when this node cannot prefill or was never measured.
    """
    choice = await own_model(node)
    curve = node.calibration.curve(choice.calibration_key, manifest.prefix.block_tokens) if choice else None
    if curve is None:
        return None
    raw = raw_by_codec(manifest.chunks[i] for i in needed(manifest))

    def rest(bytes_per_second: float, missing_bytes: int) -> Plan:
        link = Link(bytes_per_second, 0.0)
        return decide_here(node, manifest.prefix.tokens, raw, missing_bytes, curve, link, objective)

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
    known = predictors.path(node, choice)
    predictor = str(known) if known is not None else None
    made = await node.model.run(choice, "calibrate", block_tokens=block_tokens, predictor=predictor)
    for codec, (raw, encode, load) in made["codecs"].items():
        node.calibration.add_encode(codec, raw, None, encode / 1e6)
        node.calibration.add_load({codec: raw}, load / 1e6)
    node.learn_prefill(choice, made["samples"])
    return node.calibration.curve(choice.calibration_key, block_tokens)
