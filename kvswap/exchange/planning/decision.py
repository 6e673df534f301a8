"""The inputs of `cost.decide`, and the decision: sizes, this machine's prefill curve, the best peer's link."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from kvswap.artifact.layout import needed, needed_files, work_units
from kvswap.artifact.manifest import Manifest
from kvswap.core.errors import PlanSaysPrefill
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.cost import CacheNeed, Link, Objective, Plan, PrefillCurve, Prices, Work, decide
from kvswap.cost.calibration import raw_by_codec
from kvswap.exchange.discovery.resolve import Resolved
from kvswap.exchange.model_port import ModelChoice, own_model
from kvswap.exchange.node import predictors
from kvswap.exchange.node.node import Node
from kvswap.exchange.planning.measuring import calibrate, measure_in_background
from kvswap.exchange.verification.outcomes import verified_already
from kvswap.trust import Statement
from kvswap.trust.intervals import expected, needs_intervals


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and what it was made for: sizes, work by unit, link and peers."""

    plan: Plan
    missing_bytes: int
    work: Work  # of the artifact's units
    link: Link | None
    peers: tuple[str, ...]  # to fetch from: none asks for more than the plan counts with

    @property
    def most_per_gb(self) -> float:
        """The highest price of a gigabyte, in US dollars, that the plan counts with; infinite without a link."""
        return self.link.per_gb if self.link else math.inf


async def best(
    node: Node, usable: Sequence[Resolved], objective: Objective, *, hybrid: bool = False, measure: bool = False
) -> tuple[Resolved, Planned]:
    """Return the usable artifact that costs least to have, with its plan: whether to fetch it.

    `hybrid`: whether the first part may be computed while the last arrives.  `measure`: measure prefill first
    if that was never done, which takes seconds; otherwise what was never measured is not held against a fetch,
    unless that costs money.
    """
    plans: list[tuple[Resolved, Planned]] = []
    for resolved in usable:
        manifest = resolved.statement.manifest
        share = await asyncio.to_thread(checking_share, node, resolved.statement)
        here = _Prefilling(resolved.choice, None, share)
        planned = await _plan(node, manifest, None, resolved.peers, objective, here, hybrid=hybrid, measure=measure)
        plans.append((resolved, planned))

    return min(plans, key=lambda pair: _rank(node, pair[1].plan, objective))


def _rank(node: Node, plan: Plan, objective: Objective) -> tuple[bool, tuple[float, float]]:
    """Return a sort key: the lower, the better the artifact is to have from elsewhere."""
    ways = [way for way in (plan.fetch, plan.hybrid) if way is not None]
    able = [way for way in ways if way.over(objective) is None]
    best = min((way.score(prices(node), objective) for way in able or ways), default=(math.inf, math.inf))
    return not able, best


async def plan_chunks(
    node: Node,
    manifest: Manifest,
    tokens: int | None,
    peers: tuple[str, ...],
    objective: Objective,
    *,
    hybrid: bool = False,
    curve: PrefillCurve | None = None,
) -> Planned:
    """Plan how to have the files that the first `tokens` tokens need (None: all), by which of them are not here.

    `curve`: what prefilling costs the caller, where that is not this node's own model process.
    """
    here = _Prefilling(await own_model(node.model), curve)
    return await _plan(node, manifest, tokens, peers, objective, here, hybrid=hybrid)


@dataclass(frozen=True, slots=True)
class _Prefilling:
    """The model that would prefill here, and its curve where it is known; None: see `Calibration.curve`.

    `checking`: the part of a prefill that is computed to check what was fetched.
    """

    choice: ModelChoice | None
    curve: PrefillCurve | None
    checking: float = 0.0


def checking_share(node: Node, statement: Statement) -> float:
    """Return the part of a prefill that checking an untrusted publisher's artifact computes, where V5 takes intervals.

    It is 1 where only the end is kept: then V5 computes everything.  0 where nothing is checked, or positions are.
    """
    if not needs_intervals(statement.manifest) or verified_already(node, statement):
        return 0.0
    return expected(statement.manifest, LIMITS.usual_samples).cost


async def _plan(
    node: Node,
    manifest: Manifest,
    tokens: int | None,
    peers: tuple[str, ...],
    objective: Objective,
    here: _Prefilling,
    *,
    hybrid: bool = False,
    measure: bool = False,
) -> Planned:
    await asyncio.to_thread(predictors.supply, node, manifest)
    sizes = await asyncio.to_thread(_sizes, node, manifest, tokens)
    missing, missing_bytes = sizes.missing, sizes.missing_bytes
    choice, curve = here.choice, here.curve
    block_tokens = manifest.prefix.block_tokens
    if curve is None and choice is not None:
        curve = node.calibration.curve(choice.calibration_key, block_tokens)
    asks = {peer: node.peers.price(peer) for peer in peers}  # US dollars a gigabyte
    paid = prices(node).per_gb > 0 or any(price > 0 for price in asks.values())
    if choice is not None and curve is None and missing_bytes and (measure or paid):
        curve = await calibrate(node, choice, block_tokens)
    by_layer_group = choice is None or choice.device == "cpu"
    pace = node.calibration.under_way(choice.calibration_key) if choice else 1.0
    expected_curve = curve or PrefillCurve.guess(manifest.model.parameters, block_tokens)
    work = await asyncio.to_thread(
        work_of, node, manifest, tokens, missing, expected_curve, pace, by_layer_group=by_layer_group
    )
    count = manifest.prefix.tokens if tokens is None else tokens
    load_seconds = node.calibration.load_seconds(sizes.raw)
    if here.checking:  # whole, before any of it is used
        load_seconds += here.checking * expected_curve.seconds(count)
        hybrid = False
        curve = curve or (expected_curve if choice is not None else None)
    need = CacheNeed(count, missing_bytes, load_seconds, work if hybrid else None)

    def planned(link: Link | None, peers: tuple[str, ...]) -> Planned:
        plan = decide_here(node, need, curve, link, objective, able=choice is not None)
        if here.checking:
            plan = replace(plan, reason=f"{plan.reason}; {_checking_words(here.checking)}")
        return Planned(plan, missing_bytes, work, link, peers)

    # The cheapest peers alone, or dearer ones with them: all are counted at what the dearest asks.
    groups = [tuple(p for p in peers if asks[p] <= level) for level in sorted(set(asks.values()))]
    links = [(_link(node, {p: asks[p] for p in group}), group) for group in groups] or [(None, peers)]
    every = await asyncio.to_thread(lambda: [planned(link, group) for link, group in links])
    return min(every, key=lambda p: _rank(node, p.plan, objective))


def _checking_words(share: float) -> str:
    if share == 1.0:
        return (
            "its publisher is not trusted, and checking it is prefilling it, as it keeps nothing to check from "
            "before its end"
        )
    return f"its publisher is not trusted, and checking it computes {share:.0%} of a prefill"


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What a reader needs of an artifact: raw bytes by codec, the files that are not here, and their bytes."""

    raw: dict[str, int]
    missing: set[Cid]
    missing_bytes: int


def _sizes(node: Node, manifest: Manifest, tokens: int | None) -> _Sizes:
    files = [(file, file.id) for file in (manifest.files[i] for i in needed_files(manifest, tokens))]
    missing = set(node.store.missing([cid for _, cid in files]))
    lacking = sum(file.length for file, cid in files if cid in missing)
    return _Sizes(raw_by_codec(file for file, _ in files), missing, lacking)


def work_of(
    node: Node,
    manifest: Manifest,
    tokens: int | None,
    missing: Collection[Cid],
    curve: PrefillCurve,
    pace: float,
    *,
    by_layer_group: bool,
) -> Work:
    """Estimate what each unit costs to compute here, to fetch and to load; a predictor comes with the last unit.

    `pace`: how much longer computing takes while the rest arrives.
    """
    blocks, layers = manifest.blocks, len(manifest.layout.layers)
    compute, wire, load = [], [], []
    for unit in work_units(manifest, tokens, by_layer_group=by_layer_group):
        start, stop = blocks.span(unit.block)
        compute.append(pace * curve.seconds(stop, start) * len(unit.layers) / layers)
        chunks = [manifest.chunks[i] for i in unit.chunks]
        wire.append(sum(c.length for c in chunks if c.id in missing))
        load.append(node.calibration.load_seconds(raw_by_codec(chunks)))
    if manifest.predictor is not None and manifest.predictor.id in missing:
        wire[-1] += manifest.predictor.length
    # Chunks of a predictive block are decoded one after the other, whatever the number of processors.
    alone = (os.cpu_count() or 1) if manifest.predictor is not None else 1
    count = blocks.until(blocks.tokens if tokens is None else tokens)
    return Work(compute, wire, load, alone * sum(load) / count)


def decide_here(
    node: Node,
    need: CacheNeed,
    curve: PrefillCurve | None,
    link: Link | None,
    objective: Objective,
    *,
    able: bool = True,
) -> Plan:
    """Decide with this node's prices (see `cost.decide`).

    `able`: this node has a model to prefill with, whether it was measured or not.
    """
    return decide(need, curve=curve, link=link, prices=prices(node), objective=objective, able=able)


def not_worth_it(artifact: str, chosen: Plan) -> PlanSaysPrefill:
    """Make the error of a fetch that is not worth it (exit code 8), with the plan's figures.

    Prefilling is better, or a budget would be exceeded.
    """
    return PlanSaysPrefill(
        f"fetching {artifact} is not worth it: {chosen.reason}",
        hint="kvswap fetch --force fetches all the same",
        plan=chosen.to_json(),
    )


Judge = Callable[[float, int], Plan]


async def judge(node: Node, manifest: Manifest, objective: Objective) -> Judge | None:
    """Make the function that plans the rest of a fetch under way: (bytes per second seen, bytes missing) -> plan.

    None when this node cannot prefill.  If prefill was never measured, it is now, beside the fetch.
    """
    choice = await own_model(node.model)
    if choice is None:
        return None
    block_tokens = manifest.prefix.block_tokens
    raw = await asyncio.to_thread(lambda: raw_by_codec(manifest.chunks[i] for i in needed(manifest)))

    def rest(bytes_per_second: float, missing_bytes: int) -> Plan:
        link = Link(bytes_per_second, 0.0)
        curve = node.calibration.curve(choice.calibration_key, block_tokens)
        if curve is None:
            measure_in_background(node, choice, block_tokens)
        need = CacheNeed(manifest.prefix.tokens, missing_bytes, node.calibration.load_seconds(raw))
        return decide_here(node, need, curve, link, objective)

    return rest


def prices(node: Node) -> Prices:
    """Return the prices of this node's settings, in US dollars."""
    s = node.settings
    return Prices(s.price_per_gb, s.price_per_second, s.value_per_second, s.price_per_million_tokens)


def best_link(node: Node, peers: tuple[str, ...]) -> Link | None:
    """Return the link of the fastest of these peers, at the price of the dearest; None without peers.

    It is a lower bound on what several together reach.
    """
    return _link(node, {peer: node.peers.price(peer) for peer in peers})


def _link(node: Node, asks: Mapping[str, float]) -> Link | None:
    """Return the link of the fastest peer, at the price of the dearest; `asks`: their prices of a gigabyte."""
    links = [node.calibration.link(p, node.settings.assumed_link_bytes_per_second) for p in asks]
    fastest = max(links, key=lambda link: link.bytes_per_second, default=None)
    return replace(fastest, per_gb=max(asks.values())) if fastest else None
