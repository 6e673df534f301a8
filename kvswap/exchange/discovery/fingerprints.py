"""V6: the fingerprints that other publishers signed of the same tokens, beside that of the tensors at hand.

It is not a vote: whoever makes many keys would win it.  Where publishers that the user trusts have signed one, theirs
decide; among untrusted ones, one that differs is a dispute, which computing everything again (V7) settles.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from msgspec import structs

from kvswap.artifact.layout import fingerprint_rows, in_fingerprint
from kvswap.artifact.manifest import Manifest, Numerics
from kvswap.artifact.sealing import FINGERPRINT, open_file
from kvswap.core.errors import IntegrityError, KvswapError
from kvswap.exchange.discovery.candidates import EnvelopeFetcher, round_robin
from kvswap.exchange.discovery.lookup import PeerOffer, find
from kvswap.exchange.node.node import AGENT, Node
from kvswap.exchange.verification.received import read_current
from kvswap.model.reach import recorded
from kvswap.net import PeerAddress, messages
from kvswap.net.client import chunk_cap
from kvswap.trust import Statement
from kvswap.trust.accusation import Grounds, comparable, judge
from kvswap.trust.agreement import compare
from kvswap.trust.figures import CheckFigures, micro
from kvswap.trust.levels import Level, LevelResult
from kvswap.trust.noise import MARGIN, Noise

_OTHERS = 8  # publishers whose fingerprints are compared
_OFFERS = 32  # artifacts whose manifests are looked at for that
_HOLDERS = 4  # peers that are asked for one of them, in turn
_SECONDS = 20.0  # to have them all


@dataclass(frozen=True, slots=True)
class SignedFingerprint:
    """A fingerprint that another publisher signed of the same tokens."""

    statement: Statement
    data: bytes

    @property
    def publisher(self) -> str:
        """The PeerId of the publisher that signed it."""
        return self.statement.manifest.publisher


@dataclass(frozen=True, slots=True)
class Agreed:
    """The result of V6: the step, the fingerprints that differ and count, and those of untrusted ones that differ."""

    result: LevelResult
    against: tuple[SignedFingerprint, ...] = ()
    untrusted: tuple[SignedFingerprint, ...] = ()


def agree(
    node: Node, statement: Statement, own: bytes, fingerprints: Sequence[SignedFingerprint], noise: Noise, began: float
) -> Agreed:
    """Compare the fingerprint of the tensors at hand with those of other publishers (level V6).

    `began`: when looking for them began, `time.perf_counter`.
    """

    def result(verdict: str, why: str = "") -> LevelResult:
        return LevelResult(Level.AGREEMENT, verdict, time.perf_counter() - began, why, figures)  # type: ignore[arg-type]

    figures = CheckFigures()
    if not fingerprints:
        return Agreed(result("skipped", "no other publisher of the same tokens was found"))
    if not in_fingerprint(statement.manifest):
        return Agreed(result("skipped", "all layers slide, and a fingerprint has nothing of windows that moved on"))
    policy = node.trust.policy.policy
    rows = fingerprint_rows(statement.manifest.layout.layers)
    scores = compare(
        own, {fingerprint.publisher: fingerprint.data for fingerprint in fingerprints}, noise.fingerprints, rows
    ).scores
    trusted = [fingerprint for fingerprint in fingerprints if policy.trusts(fingerprint.publisher)]
    untrusted = tuple(m for m in fingerprints if m not in trusted and scores[m.publisher] > MARGIN)
    by_trust = bool(trusted) or policy.trusts(statement.manifest.publisher)
    deciding = trusted if by_trust else list(fingerprints)
    against = tuple(fingerprint for fingerprint in deciding if scores[fingerprint.publisher] > MARGIN)
    figures = CheckFigures(
        publishers=len(fingerprints),
        trusted=len(trusted),
        agreeing=sum(score <= MARGIN for score in scores.values()),
        worst=micro(round(max(scores.values()), 2)),
        margin=micro(MARGIN),
    )
    if against:
        others = tuple(str(fingerprint.statement.artifact) for fingerprint in against)
        figures = structs.replace(figures, disputed_with=others)
        whose = "publishers that are trusted" if by_trust else "other publishers"
        named = ", ".join(others)
        why = f"{len(against)} of {len(deciding)} {whose} made something else of the same tokens: {named}"
        return Agreed(result("failed", why), against, untrusted)
    if not deciding and untrusted:
        why = (
            f"{len(untrusted)} untrusted publishers made something else of these tokens, which counts for nothing here"
        )
        return Agreed(result("skipped", why), (), untrusted)
    return Agreed(result("passed"), (), untrusted)


def accused(
    statement: Statement, fingerprint: bytes, computed: bytes, noise: Noise, ours: Numerics
) -> LevelResult | None:
    """Return the step that a signed fingerprint fails beside that of what this node computed; None if it does not.

    `ours`: the environment that this node computes in.  What somebody else made is no measure: whoever knows the
    fingerprint's signs makes a cache that V7 lets pass and whose fingerprint is far from every honest one.
    """
    manifest = statement.manifest
    score = compare(computed, {"": fingerprint}, noise.fingerprints, fingerprint_rows(manifest.layout.layers)).scores[
        ""
    ]
    if score <= MARGIN:
        return None
    why = f"its fingerprint is not that of its tokens: {score:.1f} times as far away as honest noise explains"
    grounds = Grounds(
        text="",  # both sign the digest of the very tokens that were computed
        weights="",  # and the model identity that they were computed with
        numerics=comparable(manifest.numerics, ours),
        rules="",
        source="",  # the file has the digest that is signed
        control="",  # this node's own cache has the fingerprint it is compared with
    )
    return judge(
        LevelResult(Level.AGREEMENT, "failed", why=why, figures=CheckFigures(worst=micro(round(score, 2)))), grounds
    )


# -- where they come from ------------------------------------------------------------------------------


def same_cache(one: Manifest, other: Manifest) -> bool:
    """Return True if two manifests are of a cache of the same tokens by the same model, which ought to be the same.

    What decides is compared, and nothing that a publisher may word as it likes: no label, no text, no cut into chunks.
    """
    return (
        one.model.digest == other.model.digest
        and one.prefix.tokens == other.prefix.tokens
        and one.prefix.token_digest == other.prefix.token_digest
        and one.layout.dtype == other.layout.dtype
        and one.layout.layers == other.layout.layers
        and recorded(one.layout.rope) == recorded(other.layout.rope)  # of another RoPE table, other keys
        and one.lossless
        and other.lossless
    )


@dataclass(frozen=True, slots=True)
class _OtherArtifact:
    """The statement of another publisher on the same tokens, without lists of chunks, and the peers that have it."""

    statement: Statement
    peers: tuple[str, ...]

    @classmethod
    def of(cls, statement: Statement, peers: Sequence[str]) -> _OtherArtifact:
        slim = structs.replace(statement.manifest, chunks=[], tensors=[])
        return cls(replace(statement, manifest=slim, envelope=b""), tuple(peers))


async def fingerprints_of_others(node: Node, statement: Statement) -> list[SignedFingerprint]:
    """Find fingerprints of other publishers: one of each that is not banned, those of trusted ones first.

    Untrusted ones are drawn by lot, whoever was first: of every fingerprint one before two of any.
    """
    document = statement.reference  # of a sealed artifact: by the name in its group, and in no other
    if document is None or not statement.manifest.lossless:
        return []
    candidates: dict[str, _OtherArtifact] = {}

    async def consider(envelope: bytes, peers: Sequence[str]) -> None:
        try:
            other = await read_current(node, envelope)
        except KvswapError:
            return
        theirs = other.manifest
        unknown = theirs.publisher not in (statement.manifest.publisher, *candidates)
        wanted = theirs.fingerprint is not None and same_cache(theirs, statement.manifest)
        if wanted and unknown and node.trust.policy.policy.ban_of(theirs.publisher) is None:
            candidates[theirs.publisher] = _OtherArtifact.of(other, peers)

    for row in await asyncio.to_thread(node.store.artifacts, document):
        if (held := await asyncio.to_thread(node.store.envelope, row.id)) is not None:
            await consider(held, ())
    identifiers, manifest = statement.identifiers, statement.manifest
    model, dtype = identifiers.model(manifest.model.digest, manifest.layout.dtype)
    found = await find(node, messages.Find(AGENT, document=document, model=model, dtype=dtype))
    known = {manifest.publisher, *candidates}
    offers = [offer for offer in found if offer.found.publisher not in known]
    deadline = time.monotonic() + _SECONDS
    asking = EnvelopeFetcher(node, round_robin(_mixed(node, offers), _rank, node.peers.delivered)[:_OFFERS], deadline)
    async for candidate, envelope in asking:
        if not isinstance(envelope, KvswapError):
            first = [candidate.inline_from] if candidate.inline_from in candidate.peers else []
            await consider(envelope, [*first, *(peer for peer in candidate.peers if peer not in first)])
    holders: dict[str, list[str]] = {}
    for (
        offer
    ) in found:  # of an artifact that is here its fingerprint need not be: nobody fetches it who does not compare
        holders.setdefault(offer.found.artifact, []).append(offer.peer)
    trusts = node.trust.policy.policy.trusts
    trusted = [one for publisher, one in candidates.items() if trusts(publisher)]
    untrusted = [one for publisher, one in candidates.items() if not trusts(publisher)]
    asked = (
        _fetch_fingerprint(
            node, one.statement, one.peers or tuple(holders.get(str(one.statement.artifact), ())), deadline
        )
        for one in (*trusted, *_drawn(untrusted))[:_OTHERS]
    )
    return [fingerprint for fingerprint in await asyncio.gather(*asked) if fingerprint is not None]


def _mixed(node: Node, offers: Sequence[PeerOffer]) -> list[PeerOffer]:
    """Shuffle the peers; of one peer, what it says is of trusted publishers comes first."""
    peers = list(dict.fromkeys(offer.peer for offer in offers))
    place = {peer: n for n, peer in enumerate(random.SystemRandom().sample(peers, len(peers)))}
    trusts = node.trust.policy.policy.trusts
    return sorted(offers, key=lambda offer: (place[offer.peer], not trusts(offer.found.publisher)))


def _rank(offer: PeerOffer) -> tuple[int, ...]:
    """Rank an offer by nothing that it says of its publisher: that is a mere word."""
    return (offer.found.envelope is None,)


def _drawn(untrusted: Sequence[_OtherArtifact]) -> list[_OtherArtifact]:
    """Shuffle the publishers, but of each fingerprint one before two of any, however many keys sign it."""
    shuffled = random.SystemRandom().sample(untrusted, len(untrusted))
    turns: Counter[bytes] = Counter()
    order = []
    for one in shuffled:
        file = one.statement.manifest.fingerprint
        assert file is not None  # noqa: S101 - it was considered
        turns[file.cid] += 1
        order.append(turns[file.cid])
    return [one for _, one in sorted(zip(order, shuffled, strict=True), key=lambda pair: pair[0])]


async def _fetch_fingerprint(
    node: Node, other: Statement, peers: Sequence[str], deadline: float
) -> SignedFingerprint | None:
    """Read a fingerprint from the store, or from one of the peers that offer its artifact."""
    file = other.manifest.fingerprint
    assert file is not None  # noqa: S101 - it was considered
    try:
        if await asyncio.to_thread(node.store.has_chunk, file.id):
            return SignedFingerprint(
                other, open_file(file, FINGERPRINT, await asyncio.to_thread(node.store.get_chunk, file.id), other.seal)
            )
    except KvswapError:
        return None
    ask = messages.GetChunk(str(file.id))
    for peer in peers[:_HOLDERS]:
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                data = await node.network.ask(PeerAddress(peer), ask, bytes, chunk_cap(file.length))
        except (KvswapError, TimeoutError):
            continue
        try:
            return SignedFingerprint(other, open_file(file, FINGERPRINT, data, other.seal))
        except IntegrityError:
            node.peers.sent_invalid_data(peer, "a fingerprint that is not what was signed")
    return None
