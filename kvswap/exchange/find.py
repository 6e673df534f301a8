"""Finding: who has an artifact, or artifacts of a document, here and at peers.  Nothing of it is fetched or kept."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

from kvswap.api import FindRequest, Terms
from kvswap.api.find import FindResult, FoundArtifact, FoundPrefix, Holder
from kvswap.artifact.manifest import Manifest
from kvswap.core.errors import KvswapError, NotFound, UsageError
from kvswap.core.ids import Cid, PeerId
from kvswap.core.limits import LIMITS
from kvswap.exchange.discovery.candidates import Candidate, EnvelopeFetcher, round_robin
from kvswap.exchange.discovery.lookup import PeerOffer, ask_these
from kvswap.exchange.discovery.resolve import judge_envelope
from kvswap.exchange.model_port import Wanted, own_model
from kvswap.exchange.node.node import AGENT, Node
from kvswap.exchange.prefix import find_prefix
from kvswap.net import messages
from kvswap.store import ArtifactRow
from kvswap.trust import Group, Identifiers, Statement
from kvswap.trust.groups import PUBLIC

_MANIFEST_SECONDS = 10.0  # for the manifests of all that is offered
_IDENTITY_DIGITS = 8  # of a model's identity, at least


async def find(node: Node, reference: str | Cid, asked: FindRequest) -> FindResult:
    """Find the artifacts of a reference and who has them, those first that would be used here.

    With the document's `text`, and where nobody offers the document, the longest published prefix of it is looked for,
    which needs a model.  Raises `NotFound` where there is nothing, or nothing of the model and publisher asked for.
    """
    publisher = str(PeerId.parse(asked.publisher)) if asked.publisher else None
    if asked.model is not None and not asked.model.strip():
        raise UsageError("the model to look for has no name")
    search = _HolderSearch(node, reference, asked.group)
    await search.run()
    found = [artifact for artifact in search.found() if _fits(artifact, asked.model, publisher)]
    prefix = None
    if asked.text is not None and not search.rows and not search.offers:
        prefix = await _prefix(node, asked)
    left_out = search.count - len(found)
    if not found and prefix is None:
        raise _nothing(node, reference, search, left_out)
    found.sort(key=_order)
    return FindResult(
        reference=str(reference), artifacts=found, prefix=prefix, left_out=left_out, peers=len(search.answered)
    )


def _order(artifact: FoundArtifact) -> tuple[object, ...]:
    whole = sum(holder.whole for holder in artifact.holders)
    usable = artifact.signed and artifact.problem is None
    return (not usable, not artifact.trusted, artifact.here != "complete", -whole, artifact.wire_bytes)


def _fits(artifact: FoundArtifact, model: str | None, publisher: str | None) -> bool:
    """Return True if an artifact is of the model and the publisher that were asked for."""
    if publisher is not None and artifact.publisher != publisher:
        return False
    if model is None:
        return True
    label = model.rstrip("/").rpartition("/")[2] if model.startswith("/") else model
    digits = label.lower()
    return artifact.label == label or (len(digits) >= _IDENTITY_DIGITS and artifact.model.startswith(digits))


def _nothing(node: Node, reference: str | Cid, search: _HolderSearch, left_out: int) -> NotFound:
    if left_out:
        return NotFound(
            f"{left_out} artifact(s) of {reference} were found, and none is of the model and publisher asked for",
            cause="somebody else published it, or for another model",
            hint=f"kvswap find {reference}",
        )
    connected = len(node.network.near())
    who = f"{connected} connected peers" + (" and origins" if node.origins.names else "")
    cause = f"none of {who}, and no provider record, has it" if connected else "no peer is connected"
    return NotFound(f"nobody has {reference}", cause=cause, hint="kvswap peers", peers=len(search.answered))


class _HolderSearch:
    """One search: what is here, what is offered, and the statements of both."""

    def __init__(self, node: Node, reference: str | Cid, group: str | None) -> None:
        self._node = node
        self._reference = reference
        self._group = group
        self.rows: dict[str, ArtifactRow] = {}
        self.offers: dict[str, list[PeerOffer]] = defaultdict(list)
        self.answered: set[str] = set()
        self._candidates: list[Candidate] = []
        self._judged: dict[str, tuple[Statement, str | None]] = {}
        self._refused: dict[str, str] = {}  # offered, and what came is not it

    @property
    def count(self) -> int:
        """The number of artifacts that were found, whatever they are of."""
        return len(self.rows.keys() | self.offers.keys())

    async def run(self) -> None:
        """Ask the store and the peers, and read the manifests of what they have."""
        rows = await asyncio.to_thread(self._node.lookup, self._reference, self._group)
        self.rows = {row.id: row for row in rows}
        # An id is the same under all names; a document is asked for openly only when no group has it.
        every = [PUBLIC] if isinstance(self._reference, Cid) else self._node.identifiers(self._group)
        for together in ([n for n in every if n is not PUBLIC], [n for n in every if n is PUBLIC]):
            if together and not self.offers:
                await self._ask(together)
        offered = {candidate.artifact for candidate in self._candidates}
        candidates = [Candidate(name) for name in self.rows if name not in offered] + self._candidates
        await self._read(candidates)

    async def _ask(self, names: Sequence[Identifiers]) -> None:
        queries = [self._query(one) for one in names]
        replies = await asyncio.gather(*(ask_these(self._node, q, LIMITS.lookup_seconds, None) for q in queries))
        offers = [offer for found, _ in replies for offer in found]
        self.answered.update(*(answered for _, answered in replies))
        for offer in offers:
            self.offers[offer.found.artifact].append(offer)
        trusts = self._node.trust.policy.policy.trusts
        self._candidates = round_robin(
            offers, lambda o: (not trusts(o.found.publisher), o.found.envelope is None), self._node.peers.delivered
        )

    def _query(self, names: Identifiers) -> messages.Find:
        if isinstance(self._reference, Cid):
            return messages.Find(AGENT, artifact=str(self._reference))
        return messages.Find(AGENT, document=names.document(self._reference))

    async def _read(self, candidates: Sequence[Candidate]) -> None:
        choice = await own_model(self._node.model)
        wanted = Wanted.of(choice) if choice is not None else None
        asking = EnvelopeFetcher(self._node, candidates, time.monotonic() + _MANIFEST_SECONDS)
        async for candidate, envelope in asking:
            if isinstance(envelope, KvswapError):
                self._refused[candidate.artifact] = envelope.message
                continue
            try:
                statement = await asyncio.to_thread(self._node.read, envelope)
            except KvswapError as error:
                self._refused[candidate.artifact] = error.message
                continue
            if not self._answers(statement):
                asking.wrong(candidate)
                self.offers.pop(candidate.artifact, None)  # a lying peer
                continue
            self._judged[candidate.artifact] = (statement, await self._problem(envelope, wanted))

    async def _problem(self, envelope: bytes, wanted: Wanted | None) -> str | None:
        try:
            await judge_envelope(self._node, envelope, wanted, Terms(allow_lossy=True))
        except KvswapError as error:
            return error.message
        return None

    def _answers(self, statement: Statement) -> bool:
        if isinstance(self._reference, Cid):
            return statement.artifact == self._reference
        document = statement.manifest.document
        return document is not None and document.reference == self._reference

    def found(self) -> Iterable[FoundArtifact]:
        """Yield every artifact that was found."""
        for name in self.rows.keys() | self.offers.keys():
            row = self.rows.get(name)
            here = None if row is None else "complete" if row.complete else "partial"
            holders = self._holders(name)
            if name in self._judged:
                yield self._of_statement(*self._judged[name], holders, here)
            elif self.offers.get(name):
                yield self._of_offer(name, holders, here)

    def _holders(self, name: str) -> list[Holder]:
        whole: dict[str, bool] = {}
        for offer in self.offers.get(name, ()):
            whole[offer.peer] = whole.get(offer.peer, False) or offer.found.complete
        rates = {peer: self._node.calibration.peer(peer).get("rate") for peer in whole}
        made = [
            Holder(peer=p, whole=w, bytes_per_second=rates[p], asks_per_gb=self._node.peers.price(p))
            for p, w in whole.items()
        ]
        return sorted(made, key=lambda holder: (not holder.whole, -(holder.bytes_per_second or 0.0)))

    def _of_statement(
        self, statement: Statement, problem: str | None, holders: list[Holder], here: str | None
    ) -> FoundArtifact:
        manifest: Manifest = statement.manifest
        return FoundArtifact(
            artifact=str(statement.artifact),
            signed=True,
            here=here,
            holders=holders,
            publisher=manifest.publisher,
            trusted=self._node.trust.policy.policy.trusts(manifest.publisher),
            problem=problem,
            document=manifest.document.reference if manifest.document else None,
            label=manifest.model.label,
            model=manifest.model.digest.hex(),
            dtype=manifest.layout.dtype,
            tokens=manifest.prefix.tokens,
            wire_bytes=manifest.wire_bytes,
            raw_bytes=manifest.raw_bytes,
            codec=manifest.codecs[0],
            lossless=manifest.lossless,
            group=statement.identifiers.name if isinstance(statement.identifiers, Group) else None,
            issued=manifest.life.issued,
            expires=manifest.life.expires,
        )

    def _of_offer(self, name: str, holders: list[Holder], here: str | None) -> FoundArtifact:
        described = self.offers[name][0].found
        reference = self._reference
        return FoundArtifact(
            artifact=name,
            signed=False,
            here=here,
            holders=holders,
            publisher=described.publisher,
            trusted=self._node.trust.policy.policy.trusts(described.publisher),
            problem=self._refused.get(name, "nobody gave its manifest in time"),
            document=None if isinstance(reference, Cid) else reference,
            label=None,
            model=described.model.hex(),
            dtype=described.dtype,
            tokens=described.tokens,
            wire_bytes=described.wire_bytes,
            raw_bytes=None,
            codec=None,
            lossless=None,
            group=None,
            issued=None,
            expires=None,
        )


async def _prefix(node: Node, asked: FindRequest) -> FoundPrefix | None:
    """Find the longest published prefix of a text; None without one, or without a model to read the text with."""
    if (choice := await own_model(node.model)) is None:
        return None
    tokens, found = await find_prefix(node, choice, asked.text or "", Terms(group=asked.group))
    if found is None:
        return None
    manifest = found.statement.manifest
    publisher = str(PeerId.parse(asked.publisher)) if asked.publisher else manifest.publisher
    if manifest.publisher != publisher:
        return None
    lacking = await asyncio.to_thread(lambda: node.store.missing(found.files))
    return FoundPrefix(
        artifact=str(found.statement.artifact),
        tokens=found.tokens,
        of=tokens,
        publisher=manifest.publisher,
        here=not lacking,
        peers=list(found.peers),
    )
