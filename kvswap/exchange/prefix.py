"""The shared beginning of two documents: found in catalogues, fetched block by block, used for both.

A chain digest stands for all tokens up to its block's end, so a document's cache can begin with the
blocks of any artifact whose signed chain agrees with ours that far; the rest is prefilled on the same
schedule, which gives the same bits as prefilling everything.  How far they agree is decided here, by
comparing our own chain with the signed one - never by what a catalogue or a peer says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from kvswap.artifact.chain import token_digest
from kvswap.artifact.layout import needed_files
from kvswap.core.errors import KvswapError, PlanSaysPrefill
from kvswap.core.limits import LIMITS
from kvswap.cost import Plan
from kvswap.exchange.find import find
from kvswap.exchange.model_port import ModelChoice
from kvswap.exchange.node import AGENT, Node
from kvswap.exchange.plan import Planned, plan_chunks
from kvswap.exchange.request import STRICT, Progress, Terms, silent
from kvswap.exchange.resolve import Wanted, judge_envelope, manifest_from
from kvswap.exchange.transfer.bring import bring
from kvswap.net import PeerAddress, messages
from kvswap.trust import Statement

_CATALOGUE_SECONDS = 2.0
_WATCH_SECONDS = 0.2
_CANDIDATES = 4


@dataclass(frozen=True, slots=True)
class Beginning:
    """An artifact whose first `tokens` tokens are those of the document, and who has it."""

    statement: Statement
    tokens: int
    peers: tuple[str, ...]

    @property
    def chunks(self) -> list[int]:
        """Indices of the chunks to resume after those tokens."""
        return needed_files(self.statement.manifest, self.tokens)


async def longest_beginning(
    node: Node,
    wanted: Wanted,
    chain: Sequence[bytes],
    block_tokens: int,
    terms: Terms = STRICT,
    ids: Sequence[int] | None = None,
) -> Beginning | None:
    """The longest usable beginning in our store and at all peers; None without one.

    With the `ids` themselves a document that ends within a block is used to its end.
    """
    chain = list(chain[: LIMITS.chain_digests])
    if not chain:
        return None
    candidates: dict[str, tuple[int, list[str]]] = {}
    inline: dict[str, bytes] = {}
    called = [(names, names.chain(chain)) for names in node.names(terms.group)]
    for _, told in called:
        for row, blocks in await asyncio.to_thread(node.store.longest_prefix, told):
            candidates[row.id] = (blocks, [])
    here = frozenset(candidates)  # no peer's word stands before our own copy
    if not terms.local:
        await _refresh_catalogues(node, terms.lookup_seconds or _CATALOGUE_SECONDS)
    for names, told in called if not terms.local else ():
        most, peers = node.catalogues.best(told)
        if most < max((blocks for blocks, _ in candidates.values()), default=1):
            continue
        model, dtype = names.model(wanted.model, wanted.dtype)
        query = messages.Find(AGENT, chain=[told[most - 1]], model=model, dtype=dtype, bulk=node.settings.bulk)
        for offer in await find(node, query, seconds=LIMITS.lookup_seconds / 5, only=peers):
            _, known = candidates.setdefault(offer.found.artifact, (most, []))
            known.append(offer.peer)
            if offer.found.envelope is not None and offer.found.artifact not in here:
                inline.setdefault(offer.found.artifact, offer.found.envelope)
    # The longest first; of equals, what is here before what is elsewhere.
    ranked = sorted(candidates.items(), key=lambda item: (-item[1][0], bool(item[1][1])))
    for artifact, (_, holders) in ranked[:_CANDIDATES]:
        try:
            envelope = inline.get(artifact) or await manifest_from(node, artifact, holders)
            statement = judge_envelope(node, envelope, wanted, terms)
        except KvswapError as error:
            node.events.add("beginning_refused", artifact=artifact, reason=error.message)
            continue
        prefix = statement.manifest.prefix
        alike = next((i for i, (a, b) in enumerate(zip(prefix.chain, chain, strict=False)) if a != b), None)
        blocks = alike if alike is not None else min(len(prefix.chain), len(chain))
        if blocks and prefix.block_tokens == block_tokens and str(statement.artifact) == artifact:
            tokens = min(blocks * block_tokens, prefix.tokens)
            if ids is not None and tokens < prefix.tokens <= len(ids):
                whole = token_digest(ids[: prefix.tokens]) == prefix.token_digest
                tokens = prefix.tokens if whole else tokens
            return Beginning(statement, tokens, tuple(holders))
    return None


async def known_beginnings(node: Node, version: str, seconds: float) -> tuple[str, bytes | None]:
    """Keys of all beginnings that a look-up could find, and their version; at once, unless that is `version` still.

    For who looks up so often that most look-ups, which find nothing, are better answered without asking.  None: there
    are too many, or some have other names than their own (`groups`): ask.
    """
    deadline = time.monotonic() + seconds
    while True:
        await _refresh_catalogues(node, min(_CATALOGUE_SECONDS, max(0.0, deadline - time.monotonic())))
        present = f"{node.store.generation}.{node.catalogues.generation}.{len(node.groups.all())}"
        if present != version:
            break
        if time.monotonic() >= deadline:
            break
        await asyncio.sleep(_WATCH_SECONDS)
    if node.groups.all() or node.settings.group:
        return present, None
    own = await asyncio.to_thread(node.catalogue.reply, 0)
    keys = (own.keys or b"") + node.catalogues.packed()
    return present, keys if len(keys) <= LIMITS.known_bytes else None


async def beginning_of(
    node: Node, choice: ModelChoice, text: str, terms: Terms = STRICT
) -> tuple[int, Beginning | None]:
    """How many tokens a text has for this model, and the longest usable beginning of it."""
    block_tokens = node.settings.block_tokens
    made = await node.model.run(choice, "tokenize", text=text, block_tokens=block_tokens)
    found = await longest_beginning(node, Wanted.of(choice), made["chain"], block_tokens, terms)
    return made["tokens"], found


async def plan_beginning(node: Node, beginning: Beginning, terms: Terms = STRICT, *, hybrid: bool = False) -> Planned:
    """Fetch or prefill these first tokens."""
    manifest = beginning.statement.manifest
    tokens, peers = beginning.tokens, beginning.peers
    return await plan_chunks(node, manifest, tokens, peers, terms.objective, hybrid=hybrid, curve=terms.curve)


async def fetch_beginning(node: Node, beginning: Beginning, terms: Terms = STRICT, progress: Progress = silent) -> Plan:
    """Make the chunks of a beginning local.  Raises `PlanSaysPrefill` when prefilling them is better."""
    statement = beginning.statement
    artifact = str(statement.artifact)
    planned = await plan_beginning(node, beginning, terms)
    chosen = planned.plan
    await progress({"event": "plan", **chosen.to_json()})
    check_beginning(beginning, planned, terms)
    if planned.missing_bytes:
        transfer = await bring(
            node, statement, beginning.chunks, planned.peers, progress, most_per_gb=planned.most_per_gb
        )
        node.events.add(
            "fetched_beginning",
            artifact=artifact,
            tokens=beginning.tokens,
            bytes=transfer.received,
            peers=list(transfer.served_bytes),
        )
    await asyncio.to_thread(node.store.touch, artifact)
    return chosen


def check_beginning(beginning: Beginning, planned: Planned, terms: Terms) -> None:
    """Raise `PlanSaysPrefill` when these first tokens are not worth having."""
    chosen = planned.plan
    forced = terms.force and (beginning.peers or not planned.missing_bytes)
    if chosen.action not in ("fetch", "hybrid") and not forced:
        raise PlanSaysPrefill(
            f"using the first {beginning.tokens} tokens of {beginning.statement.artifact} is not worth it: "
            f"{chosen.reason}",
            plan=chosen.to_json(),
        )


async def _refresh_catalogues(node: Node, seconds: float) -> None:
    """Pull those of connected peers that are not fresh, all at once; who waits no longer leaves them on their way."""
    if node.transport is None or not node.p2p:
        return
    stale = [p for p in node.transport.connected() if node.catalogues.stale(p) and not node.resting(p)]
    for peer in stale[: LIMITS.find_results]:
        if peer not in node.pulling:
            node.pulling[peer] = node.spawn(_pull(node, peer))
    if node.pulling:
        await asyncio.wait(list(node.pulling.values()), timeout=seconds)


async def _pull(node: Node, peer: str) -> None:
    """One of them."""
    try:
        async with asyncio.timeout(_CATALOGUE_SECONDS):
            ask = messages.GetCatalogue(node.catalogues.version(peer))
            node.catalogues.put(peer, await node.ask(PeerAddress(peer), ask, messages.CatalogueReply))
    except (KvswapError, TimeoutError) as error:
        node.failed(peer, str(error) or "no catalogue in time")
    finally:
        node.pulling.pop(peer, None)
