"""The shared prefix of two documents: found in prefix indexes, fetched block by block, used for both.

A chain digest stands for all tokens up to its block's end, so a document's cache can begin with the
blocks of any artifact whose signed chain agrees with ours that far; the rest is prefilled on the same
schedule, which gives the same bits as prefilling everything.  How far they agree is decided here, by
comparing our own chain with the signed one - never by what a prefix index or a peer says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from msgspec import structs

from kvswap.api.events import plan_event
from kvswap.artifact.chain import chain_digests, token_digest, unpack_ids
from kvswap.artifact.layout import needed_files, resumable, uses_inner
from kvswap.artifact.manifest import Manifest
from kvswap.core.errors import KvswapError, PlanSaysPrefill
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.cost import Plan
from kvswap.exchange.discovery.at_origins import prefixes_at_origins
from kvswap.exchange.discovery.candidates import Candidate, EnvelopeFetcher, round_robin
from kvswap.exchange.discovery.lookup import PeerOffer, ask_these, holders
from kvswap.exchange.discovery.pulling import REFRESH_SECONDS, pull_soon, refresh
from kvswap.exchange.discovery.resolve import judge_envelope
from kvswap.exchange.model_port import ModelChoice, Wanted
from kvswap.exchange.node.node import AGENT, Node
from kvswap.exchange.planning.decision import Planned, plan_chunks
from kvswap.exchange.request import STRICT, Progress, Terms, lookup_of, silent
from kvswap.exchange.transfer.download import download
from kvswap.exchange.verification.use import use
from kvswap.net import messages
from kvswap.trust import Identifiers, Statement
from kvswap.worker.messages import TokenizeJob

_AT_ONCE = 3  # claims of different length that are asked after at once,
_ROUNDS = 4  # and how often, when none of them holds
_ROUND_SECONDS = 2.0
_OF_ONE_LENGTH = 16  # peers that are asked after the same claim
_AGAIN_SECONDS = 0.5  # for which a prefix index is waited for that may have changed
_MORE_SECONDS = 0.5  # for which longer ones are waited for, once there is one


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """An artifact whose first `tokens` tokens are a prefix of the document, and the peers that have it."""

    statement: Statement
    tokens: int
    peers: tuple[str, ...]

    @property
    def chunks(self) -> list[int]:
        """The indices of the files that a reader needs to resume after those tokens."""
        return needed_files(self.statement.manifest, self.tokens)

    @property
    def files(self) -> list[Cid]:
        """The ids of these files."""
        return self.statement.manifest.ids_of(self.chunks)

    async def listed_files(self) -> list[Cid]:
        """Return `files`, listed in a thread: there may be a hundred thousand."""
        return await asyncio.to_thread(lambda: self.files)


@dataclass(frozen=True, slots=True)
class _Availability:
    """The peers whose prefix indexes have so many blocks of a document, under the names they know it by."""

    blocks: int
    peers: tuple[str, ...]
    identifiers: Identifiers
    digests: Sequence[bytes]


async def longest_cached_prefix(
    node: Node,
    wanted: Wanted,
    chain: Sequence[bytes],
    block_tokens: int,
    terms: Terms = STRICT,
    ids: Sequence[int] | None = None,
    *,
    within: bool = True,
) -> CachedPrefix | None:
    """Find the longest usable prefix of a document in this node's store, at peers and origins; None without one.

    `chain`: the document's chain digests.  With the token `ids` as well, an artifact with checkpoints is used up to one
    within a block; with `within` any artifact that ends within a block is used to its end, after which blocks are
    others than those of the document alone.
    """
    chain = list(chain[: LIMITS.chain_digests])
    if not chain:
        return None
    # A part is not verified by itself: of untrusted publishers what was verified whole.
    terms = structs.replace(lookup_of(terms), allow_untrusted=False)
    called = [(identifiers, identifiers.chain(chain)) for identifiers in node.identifiers(terms.group)]
    here: dict[str, Candidate] = {}
    for _, digests in called:
        for row, _ in await asyncio.to_thread(node.store.longest_prefix, digests):
            here[row.id] = Candidate(row.id)
    availabilities: list[_Availability] = []
    elsewhere: list[Candidate] = []
    if not terms.local:
        _, elsewhere = await asyncio.gather(
            refresh(node, terms.lookup_seconds or REFRESH_SECONDS),
            prefixes_at_origins(node, wanted, called, terms.lookup_seconds),
        )
        availabilities = _claimed(node, called)
    search = _PrefixSearch(node, wanted, chain, block_tokens, terms, ids, within)
    await search.look(list(here.values()), search.deadline)
    await search.look([c for c in elsewhere if c.artifact not in here], search.deadline)
    rest: list[_Availability] = []  # last, so that nobody has a second turn before others had one
    for start in range(0, min(len(availabilities), _AT_ONCE * _ROUNDS), _AT_ONCE):
        now = [
            availability
            for availability in availabilities[start : start + _AT_ONCE]
            if availability.blocks >= max(1, search.blocks)
        ]
        if not now or time.monotonic() > search.deadline:
            break
        more = start + _AT_ONCE < len(availabilities)
        until = min(search.deadline, time.monotonic() + _ROUND_SECONDS) if more else search.deadline
        rest += await search.ask(now, until)
    rest = sorted(
        (availability for availability in rest if availability.blocks > search.blocks),
        key=lambda availability: -availability.blocks,
    )
    if rest and time.monotonic() < search.deadline:
        await search.ask(rest[:_AT_ONCE], search.deadline)
    best = search.best
    if best is None or best.peers or terms.local:
        return best
    # What is here is complete for a reader of its end; before it, windows and states may still be elsewhere alone.
    return replace(best, peers=await holders(node, best.statement.artifact, await best.listed_files()))


def _claimed(node: Node, called: Sequence[tuple[Identifiers, Sequence[bytes]]]) -> list[_Availability]:
    """List what the prefix indexes of peers have of a document under each of its names, the longest first."""
    found = [
        _Availability(blocks, tuple(peers[:_OF_ONE_LENGTH]), identifiers, digests)
        for identifiers, digests in called
        for blocks, peers in node.network.prefix_indexes.ranked(digests)
    ]
    return sorted(found, key=lambda availability: -availability.blocks)


class _PrefixSearch:
    """One look-up of a prefix: the longest so far, and who claimed more than there was."""

    def __init__(
        self,
        node: Node,
        wanted: Wanted,
        chain: Sequence[bytes],
        block_tokens: int,
        terms: Terms,
        ids: Sequence[int] | None,
        within: bool,
    ) -> None:
        self._node = node
        self._wanted = wanted
        self._chain = chain
        self._block_tokens = block_tokens
        self._terms = terms
        self._ids, self._within = ids, within
        self.deadline = time.monotonic() + LIMITS.request_seconds
        self.best: CachedPrefix | None = None
        self._looked: set[str] = set()

    @property
    def blocks(self) -> int:
        """The number of blocks of the longest so far."""
        return -(-self.best.tokens // self._block_tokens) if self.best is not None else 0

    async def ask(self, availabilities: Sequence[_Availability], deadline: float) -> list[_Availability]:
        """Ask the peers that claim the longest, all at once; those that lack what they claim are ignored for a while.

        Returns the present claims of those whose artifacts have gone meanwhile.
        """
        node = self._node
        connected = set(node.transport.connected())
        seconds = LIMITS.lookup_seconds / 5
        asked = await asyncio.gather(*(ask_these(node, self._query(c), seconds, c.peers) for c in availabilities))
        offers: list[PeerOffer] = []
        lacking: list[tuple[str, _Availability]] = []
        available: dict[
            str, dict[str, int]
        ] = {}  # artifact -> peer -> blocks, which are that peer's word and no other's
        for availability, (found, answered) in zip(availabilities, asked, strict=True):
            offers += found
            for offer in found:
                claimed_blocks = available.setdefault(offer.found.artifact, {})
                claimed_blocks[offer.peer] = max(availability.blocks, claimed_blocks.get(offer.peer, 0))
            lacking += [(peer, availability) for peer in answered - {offer.peer for offer in found}]
            for peer in set(availability.peers) - answered - connected:
                node.network.prefix_indexes.table.pop(peer)  # gone
        began = time.monotonic()
        for peer, _ in lacking:
            pull_soon(node, peer)
        policy = node.trust.policy.policy

        def rank(offer: PeerOffer) -> tuple[int, ...]:
            found = offer.found
            claimed_blocks = available[found.artifact][offer.peer]
            return (-claimed_blocks, not policy.trusts(found.publisher), found.envelope is None)

        candidates = round_robin(offers, rank, node.peers.delivered)
        for candidate in candidates:
            candidate.available = available[candidate.artifact]
        await self.look([c for c in candidates if c.artifact not in self._looked], deadline)
        return await self._still_available(lacking, began)

    async def _still_available(self, lacking: Sequence[tuple[str, _Availability]], began: float) -> list[_Availability]:
        """Return the present claims of peers that offered nothing; who still claims the same is ignored for a while."""
        prefix_indexes, pulling = self._node.network.prefix_indexes, self._node.network.pulling
        if pulls := [pulling[peer] for peer, _ in lacking if peer in pulling]:
            await asyncio.wait(pulls, timeout=_AGAIN_SECONDS)
        left = []
        for peer, availability in lacking:
            blocks = prefix_indexes.shared_since(peer, availability.digests, began)
            if blocks is None:
                prefix_indexes.expire(peer)
            elif blocks >= availability.blocks:
                self._ignore_index(peer, "its prefix index has what it has not")
            elif not prefix_indexes.took_back(peer):
                self._ignore_index(peer, "its prefix index is another each time it is asked")
            elif blocks:
                left.append(_Availability(blocks, (peer,), availability.identifiers, availability.digests))
        return left

    def _query(self, availability: _Availability) -> messages.Find:
        model, dtype = availability.identifiers.model(self._wanted.model, self._wanted.dtype)
        bulk = self._node.settings.bulk
        return messages.Find(
            AGENT, chain=[availability.digests[availability.blocks - 1]], model=model, dtype=dtype, bulk=bulk
        )

    async def look(self, candidates: Sequence[Candidate], deadline: float) -> None:
        """Judge what is offered, as it comes; of equals the first stays: what is here before what is elsewhere."""
        asking = EnvelopeFetcher(self._node, candidates, deadline)
        async for candidate, envelope in asking:
            self._looked.add(candidate.artifact)
            try:
                if isinstance(envelope, KvswapError):
                    raise envelope
                statement = await judge_envelope(self._node, envelope, self._wanted, self._terms)
            except KvswapError as error:
                self._node.events.add("beginning_refused", artifact=candidate.artifact, reason=error.message)
                continue
            tokens, blocks = await asyncio.to_thread(self._shared, statement)
            for peer, claimed_blocks in candidate.available.items():
                # Elsewhere in the signed chain it is the publisher that is wrong: the peer has what it said.
                if blocks < claimed_blocks and self._chain[claimed_blocks - 1] not in statement.manifest.prefix.chain:
                    self._ignore_index(peer, f"{candidate.artifact} shares {blocks} blocks, not {claimed_blocks}")
            if tokens and (self.best is None or tokens > self.best.tokens):
                self.best = CachedPrefix(statement, tokens, tuple(candidate.peers))
            if self.best is not None:
                asking.within(_MORE_SECONDS)
        for peer in asking.failed:
            self._ignore_index(peer, "it gives nothing of what it offers")

    def _shared(self, statement: Statement) -> tuple[int, int]:
        """Count the (tokens, blocks) that a signed chain shares with ours, only so many tokens as can be resumed after.

        Never by what a prefix index or a peer says.
        """
        manifest, prefix = statement.manifest, statement.manifest.prefix
        pairs = enumerate(zip(prefix.chain, self._chain, strict=False))
        alike = next((i for i, (a, b) in pairs if a != b), None)
        blocks = alike if alike is not None else min(len(prefix.chain), len(self._chain))
        if prefix.block_tokens != self._block_tokens:
            return 0, 0
        tokens = min(blocks * self._block_tokens, prefix.tokens)
        if self._ids is not None and tokens < prefix.tokens and (self._within or manifest.layout.checkpoints):
            tokens = max(tokens, self._beyond(manifest))
        tokens = resumable(manifest, tokens)
        trusted = self._node.trust.policy.policy.trusts(manifest.publisher)
        return 0 if uses_inner(manifest, tokens) and not trusted else tokens, blocks

    def _beyond(self, manifest: Manifest) -> int:
        """Count the tokens that an artifact shares with our ids, whose blocks do not all end where ours do."""
        prefix, blocks = manifest.prefix, manifest.blocks
        ids = (self._ids or [])[: prefix.tokens]
        if token_digest(ids) == prefix.token_digest:
            return prefix.tokens
        if not blocks.cuts:
            return 0
        own = chain_digests(manifest.model.digest, ids, prefix.block_tokens, blocks.cuts)
        alike = next((i for i, (a, b) in enumerate(zip(prefix.chain, own, strict=False)) if a != b), len(own))
        return blocks.span(alike - 1)[1] if alike else 0

    def _ignore_index(self, peer: str, why: str) -> None:
        self._node.network.prefix_indexes.drop(peer)
        self._node.events.add("claimed_in_vain", peer=peer, reason=why)


async def find_prefix(
    node: Node, choice: ModelChoice, text: str, terms: Terms = STRICT
) -> tuple[int, CachedPrefix | None]:
    """Count the tokens of a text for this model, and find the longest usable prefix of it (None without one)."""
    block_tokens = node.settings.block_tokens
    made = await node.model.run(choice, TokenizeJob(text=text, block_tokens=block_tokens))
    ids = unpack_ids(made.ids)
    found = await longest_cached_prefix(node, Wanted.of(choice), made.chain, block_tokens, terms, ids, within=False)
    return made.tokens, found


async def plan_prefix(
    node: Node, cached_prefix: CachedPrefix, terms: Terms = STRICT, *, hybrid: bool = False
) -> Planned:
    """Plan whether to fetch or to prefill these first tokens."""
    manifest = cached_prefix.statement.manifest
    tokens, peers = cached_prefix.tokens, cached_prefix.peers
    curve = lookup_of(terms).curve
    return await plan_chunks(node, manifest, tokens, peers, terms.objective, hybrid=hybrid, curve=curve)


async def fetch_prefix(
    node: Node, cached_prefix: CachedPrefix, terms: Terms = STRICT, progress: Progress = silent
) -> Plan:
    """Make the chunks of a prefix local.  Raises `PlanSaysPrefill` when prefilling them is better."""
    began = time.perf_counter()
    statement = cached_prefix.statement
    artifact = str(statement.artifact)
    planned = await plan_prefix(node, cached_prefix, terms)
    chosen = planned.plan
    await progress(plan_event(chosen))
    check_prefix_plan(cached_prefix, planned, terms)
    await use(node, statement, terms)
    received = 0
    if planned.missing_bytes:
        chunks = await asyncio.to_thread(lambda: cached_prefix.chunks)
        transfer = await download(node, statement, chunks, planned.peers, progress, most_per_gb=planned.most_per_gb)
        received = transfer.received
        node.events.add(
            "fetched_beginning",
            artifact=artifact,
            tokens=cached_prefix.tokens,
            bytes=transfer.received,
            peers=list(transfer.served_bytes),
        )
    await asyncio.to_thread(node.store.touch, artifact)
    node.savings.add(
        tokens=cached_prefix.tokens,
        nbytes=received,
        seconds=time.perf_counter() - began,
        prefill=chosen.prefill,
        paid=chosen.fetch.dollars if received and chosen.fetch else 0.0,
    )
    return chosen


def check_prefix_plan(cached_prefix: CachedPrefix, planned: Planned, terms: Terms) -> None:
    """Raise `PlanSaysPrefill` when these first tokens are not worth having."""
    chosen = planned.plan
    forced = terms.force and (cached_prefix.peers or not planned.missing_bytes)
    if chosen.action not in ("fetch", "hybrid") and not forced:
        raise PlanSaysPrefill(
            f"using the first {cached_prefix.tokens} tokens of {cached_prefix.statement.artifact} is not worth it: "
            f"{chosen.reason}",
            plan=chosen.to_json(),
        )
