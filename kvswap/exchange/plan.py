"""The preview of a fetch, without doing it: `kvswap plan`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from kvswap.api.plans import CurveFigures, LinkFigures, PlanBasis, PlanResult, PriceFigures, SharedPrefix, ways_of
from kvswap.api.status import codec_figures
from kvswap.artifact.checkpoints import state_bytes
from kvswap.core.defaults import ANSWER_TOKENS
from kvswap.core.errors import Incompatible, NotFound, Untrusted
from kvswap.core.ids import Cid
from kvswap.cost import CacheNeed, Plan, beside_host
from kvswap.exchange.ask_host import hosted
from kvswap.exchange.discovery.resolve import resolve
from kvswap.exchange.model_port import own_model
from kvswap.exchange.node.node import Node
from kvswap.exchange.planning.decision import best, best_link, decide_here, prices
from kvswap.exchange.planning.measuring import calibrate
from kvswap.exchange.prefix import find_prefix, plan_prefix
from kvswap.exchange.request import STRICT, Terms


@dataclass(frozen=True, slots=True)
class _Subject:
    """What a plan is about: the artifact that would be used, if any, and the figures of the calculation."""

    basis: PlanBasis
    artifact: str | None = None
    peers: list[str] = field(default_factory=list)
    codec: str | None = None
    lossless: bool | None = None
    state_bytes: int = 0
    raw_bytes: int = 0
    shared_prefix: SharedPrefix | None = None


async def plan_reference(
    node: Node,
    reference: str | Cid,
    text: str | None = None,
    terms: Terms = STRICT,
    *,
    host: str | None = None,
    question: str = "",
    max_tokens: int = ANSWER_TOKENS,
    measure: bool = True,
) -> PlanResult:
    """Plan how to have what a reference names.  Transfers no chunk.

    With the document's `text`, a document that nobody offers is planned too: which published artifact
    shares the longest prefix with it, whether that is worth fetching, and prefill of the rest.
    `host`: also what asking that host, or with `auto` the best of those known, would cost for so many `max_tokens`.
    `measure`: measure prefill first if that was never done, which takes seconds.
    """
    hosts = await hosted(node, host, reference, question, max_tokens, terms.objective) if host is not None else []
    try:
        chosen, about = await _own_plan(node, reference, text, terms, measure)
    except (NotFound, Incompatible, Untrusted) as error:
        if not hosts:
            raise
        chosen, about = await _without_cache(node, text, terms, error.message)
    if hosts:
        chosen = beside_host(chosen, hosts[0].option, prices(node), terms.objective)
    return PlanResult(
        **ways_of(chosen),
        artifact=about.artifact,
        peers=about.peers,
        codec=about.codec,
        lossless=about.lossless,
        state_bytes=about.state_bytes,
        raw_bytes=about.raw_bytes,
        shared_prefix=about.shared_prefix,
        basis=about.basis,
        hosts=[host.way() for host in hosts],
    )


async def _own_plan(
    node: Node, reference: str | Cid, text: str | None, terms: Terms, measure: bool
) -> tuple[Plan, _Subject]:
    """Return the plan without hosts, and what it is about."""
    try:
        usable = await resolve(node, reference, terms)
    except NotFound:
        if text is None:
            raise
        return await _plan_unpublished(node, text, terms)
    resolved, planned = await best(node, usable, terms.objective, hybrid=text is not None, measure=measure)
    manifest = resolved.statement.manifest
    return planned.plan, _Subject(
        await basis(node, manifest.prefix.block_tokens, resolved.peers),
        artifact=str(resolved.statement.artifact),
        peers=list(resolved.peers),
        codec=manifest.codecs[0],
        lossless=manifest.lossless,
        state_bytes=state_bytes(manifest.layout.layers, manifest.layout.dtype),
        raw_bytes=manifest.raw_bytes,
    )


async def _without_cache(node: Node, text: str | None, terms: Terms, why: str) -> tuple[Plan, _Subject]:
    """Plan a prefill, where that is possible, as nothing published is usable."""
    if text is not None and await own_model(node.model) is not None:
        return await _plan_unpublished(node, text, terms)
    return Plan("none", 0.0, 0.0, why, None, None), _Subject(await basis(node, node.settings.block_tokens, ()))


async def basis(node: Node, block_tokens: int, peers: tuple[str, ...]) -> PlanBasis:
    """Return the figures that a plan was calculated with: this machine's prefill, links, codecs, and prices."""
    choice = await own_model(node.model)
    curve = node.calibration.curve(choice.calibration_key, block_tokens) if choice else None
    return PlanBasis(
        prefill=CurveFigures(**asdict(curve)) if curve else None,
        under_way=node.calibration.under_way(choice.calibration_key) if choice else 1.0,
        links={peer: LinkFigures(**asdict(link)) for peer in peers if (link := best_link(node, (peer,)))},
        codecs=codec_figures(node.calibration.codecs()),
        prices=PriceFigures(**asdict(prices(node))),
    )


async def _plan_unpublished(node: Node, text: str, terms: Terms) -> tuple[Plan, _Subject]:
    choice = await node.model.choose()
    block_tokens = node.settings.block_tokens
    tokens, cached_prefix = await find_prefix(node, choice, text, terms)
    curve = node.calibration.curve(choice.calibration_key, block_tokens) or await calibrate(node, choice, block_tokens)
    # Something is missing and there is no link to get it over: how large it would be does not matter.
    whole = decide_here(node, CacheNeed(tokens, missing_bytes=1), curve, None, terms.objective)
    shared = None
    if cached_prefix is not None:
        planned = await plan_prefix(node, cached_prefix, terms, hybrid=True)
        part = planned.plan
        shared = SharedPrefix(
            artifact=str(cached_prefix.statement.artifact),
            tokens=cached_prefix.tokens,
            of=tokens,
            missing_bytes=planned.missing_bytes,
            peers=list(cached_prefix.peers),
            action=part.action,
            reason=part.reason,
        )
    return whole, _Subject(await basis(node, block_tokens, ()), shared_prefix=shared)
