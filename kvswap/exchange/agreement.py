"""V6: the fingerprints that other publishers signed of the same tokens, beside that of the tensors at hand.

Not a vote: whoever makes many keys would win it.  Where publishers that the user trusts have signed one, theirs
decide; among strangers one that differs is a dispute, which computing everything again (V7) settles.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from kvswap.artifact.manifest import Manifest, Numerics
from kvswap.artifact.sealing import FINGERPRINT, open_file
from kvswap.core.errors import IntegrityError, KvswapError
from kvswap.exchange.find import Offer, find
from kvswap.exchange.node import AGENT, Node
from kvswap.exchange.statement import read_current
from kvswap.net import PeerAddress, messages
from kvswap.trust import Statement
from kvswap.trust.accusation import Grounds, comparable, judge
from kvswap.trust.agreement import compare
from kvswap.trust.ladder import Level, Step
from kvswap.trust.noise import MARGIN, Noise

_OTHERS = 8  # publishers whose fingerprints are compared
_OFFERS = 32  # artifacts whose manifests are looked at for that
_SECONDS = 20.0  # to have them all


@dataclass(frozen=True, slots=True)
class Mark:
    """A fingerprint that another publisher signed of the same tokens."""

    statement: Statement
    data: bytes

    @property
    def publisher(self) -> str:
        """Return who signed it."""
        return self.statement.manifest.publisher


@dataclass(frozen=True, slots=True)
class Agreed:
    """What V6 found: the step, the marks that differ and count, and those of strangers with how far they are off."""

    step: Step
    against: tuple[Mark, ...] = ()
    strangers: tuple[tuple[Mark, float], ...] = ()


def agree(node: Node, statement: Statement, own: bytes, marks: Sequence[Mark], noise: Noise, began: float) -> Agreed:
    """Compare the fingerprint of the tensors at hand with those of others.

    `began`: when looking for them began, `time.perf_counter`.
    """

    def step(verdict: str, why: str = "") -> Step:
        return Step(Level.AGREEMENT, verdict, time.perf_counter() - began, why, figures)  # type: ignore[arg-type]

    figures: dict[str, object] = {}
    if not marks:
        return Agreed(step("skipped", "no other publisher of the same tokens was found"))
    policy = node.policy.policy
    scores = compare(own, {mark.publisher: mark.data for mark in marks}, noise.fingerprints).scores
    trusted = [mark for mark in marks if policy.trusts(mark.publisher)]
    strangers = tuple((m, scores[m.publisher]) for m in marks if m not in trusted and scores[m.publisher] > MARGIN)
    by_trust = bool(trusted) or policy.trusts(statement.manifest.publisher)
    deciding = trusted if by_trust else list(marks)
    against = tuple(mark for mark in deciding if scores[mark.publisher] > MARGIN)
    figures |= {
        "publishers": len(marks),
        "trusted": len(trusted),
        "agreeing": sum(score <= MARGIN for score in scores.values()),
        "worst": round(max(scores.values()), 2),
        "margin": MARGIN,
    }
    if against:
        figures["disputed_with"] = [str(mark.statement.artifact) for mark in against]
        whose = "publishers that are trusted" if by_trust else "other publishers"
        named = ", ".join(str(mark.statement.artifact) for mark in against)
        why = f"{len(against)} of {len(deciding)} {whose} made something else of the same tokens: {named}"
        return Agreed(step("failed", why), against, strangers)
    if not deciding and strangers:
        why = f"{len(strangers)} strangers made something else of the same tokens, which counts for nothing here"
        return Agreed(step("skipped", why), (), strangers)
    return Agreed(step("passed"), (), strangers)


def accused(statement: Statement, mark: bytes, computed: bytes, noise: Noise, ours: Numerics) -> Step | None:
    """Return the step that a signed fingerprint fails beside that of what this node computed; None if it does not.

    `ours`: what this node computes with.  What somebody else made is no measure: whoever knows the fingerprint's signs
    makes a cache that V7 lets pass and whose fingerprint is far from every honest one.
    """
    score = compare(computed, {"": mark}, noise.fingerprints).scores[""]
    if score <= MARGIN:
        return None
    manifest = statement.manifest
    why = f"its fingerprint is not that of its tokens: {score:.1f} times as far away as honest noise explains"
    grounds = Grounds(
        text="",  # both sign the digest of the very tokens that were computed
        weights="",  # and the model identity that they were computed with
        numerics=comparable(manifest.numerics, ours),
        rules="",
        source="",  # the file has the digest that is signed
        control="",  # this node's own cache has the fingerprint it is compared with
    )
    return judge(Step(Level.AGREEMENT, "failed", why=why, figures={"worst": round(score, 2)}), grounds)


# -- where they come from ------------------------------------------------------------------------------


def same_cache(one: Manifest, other: Manifest) -> bool:
    """Say whether two manifests are of a cache of the same tokens by the same model, which ought to be the same.

    What decides is compared, and nothing that a publisher may word as it likes: no label, no text, no cut into chunks.
    """
    return (
        one.model.digest == other.model.digest
        and one.prefix.tokens == other.prefix.tokens
        and one.prefix.token_digest == other.prefix.token_digest
        and one.layout.dtype == other.layout.dtype
        and one.layout.layers == other.layout.layers
        and one.exact
        and other.exact
    )


async def marks_of_others(node: Node, statement: Statement) -> list[Mark]:
    """Find fingerprints: one of each publisher, of whom nobody was caught, those of trusted ones first."""
    document = statement.reference  # of a sealed artifact: by the name in its group, and in no other
    if document is None or not statement.manifest.exact:
        return []
    candidates: dict[str, tuple[Statement, str | None]] = {}

    async def consider(envelope: bytes, peer: str | None) -> None:
        try:
            other = await read_current(node, envelope)
        except KvswapError:
            return
        theirs = other.manifest
        unknown = theirs.publisher not in (statement.manifest.publisher, *candidates)
        wanted = theirs.fingerprint is not None and same_cache(theirs, statement.manifest)
        if wanted and unknown and node.policy.policy.caught(theirs.publisher) is None:
            candidates[theirs.publisher] = (other, peer)

    for held in await asyncio.to_thread(_held, node, document):
        await consider(held, None)
    names, manifest = statement.names, statement.manifest
    model, dtype = names.model(manifest.model.digest, manifest.layout.dtype)
    query = messages.Find(AGENT, document=document, model=model, dtype=dtype)
    known = {manifest.publisher, *candidates}
    found = await find(node, query)
    holders = {offer.found.artifact: offer.peer for offer in found}
    offers = [offer for offer in found if offer.found.publisher not in known]
    deadline = asyncio.get_running_loop().time() + _SECONDS
    asked = [_manifest_of(node, offer, deadline) for offer in _in_turns(node, offers)[:_OFFERS]]
    for offer, envelope in await asyncio.gather(*asked):
        if envelope is not None:
            await consider(envelope, offer.peer)
    trusts = node.policy.policy.trusts
    chosen = sorted(candidates.values(), key=lambda c: not trusts(c[0].manifest.publisher))[:_OTHERS]
    # Of an artifact that is here its fingerprint need not be: nobody fetches it who does not compare.
    asked_for = ((other, peer or holders.get(str(other.artifact))) for other, peer in chosen)
    marks = await asyncio.gather(*(_mark(node, other, peer, deadline) for other, peer in asked_for))
    return [mark for mark in marks if mark is not None]


def _held(node: Node, document: str) -> list[bytes]:
    rows = node.store.artifacts(document)
    return [envelope for row in rows if (envelope := node.store.envelope(row.id)) is not None]


def _in_turns(node: Node, offers: Sequence[Offer]) -> list[Offer]:
    """One of each peer, then the next of each: nobody fills the list alone.  Said to be of trusted publishers first."""
    turns: dict[str, int] = {}
    ranked = []
    for offer in offers:
        turns[offer.peer] = turns.get(offer.peer, 0) + 1
        ranked.append((not node.policy.policy.trusts(offer.found.publisher), turns[offer.peer], offer))
    return [offer for _, _, offer in sorted(ranked, key=lambda r: r[:2])]


async def _manifest_of(node: Node, offer: Offer, deadline: float) -> tuple[Offer, bytes | None]:
    if offer.found.envelope is not None:
        return offer, offer.found.envelope
    try:
        async with asyncio.timeout_at(deadline):
            ask = messages.GetManifest(offer.found.artifact)
            return offer, await node.ask(PeerAddress(offer.peer), ask, bytes)
    except (KvswapError, TimeoutError):
        return offer, None


async def _mark(node: Node, other: Statement, peer: str | None, deadline: float) -> Mark | None:
    """A fingerprint, from the store or from the peer that offered its artifact."""
    file = other.manifest.fingerprint
    assert file is not None  # noqa: S101 - it was considered
    try:
        if await asyncio.to_thread(node.store.has_chunk, file.id):
            data = await asyncio.to_thread(node.store.get_chunk, file.id)
        elif peer is not None:
            async with asyncio.timeout_at(deadline):
                data = await node.ask(PeerAddress(peer), messages.GetChunk(str(file.id)), bytes)
        else:
            return None
    except (KvswapError, TimeoutError):
        return None
    try:
        return Mark(other, open_file(file, FINGERPRINT, data, other.seal))
    except IntegrityError:
        if peer is not None:
            node.lied(peer, "a fingerprint that is not what was signed")
        return None
