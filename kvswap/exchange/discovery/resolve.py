"""The step from a reference to the artifacts that may be used: found, well-formed, signed, trusted, compatible.

A document may be offered in several codecs, each an artifact of its own: which is best to fetch is the
plan's to say.  What is here already comes before anything elsewhere.  All of it happens before a byte
of a chunk is requested; what is wrong with the candidates that were refused becomes the error when none is left.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from msgspec import structs

from kvswap.artifact.layout import check_compatible
from kvswap.core.errors import Incompatible, IntegrityError, KvswapError, NotFound, PeerError, Untrusted
from kvswap.core.failures import is_own
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.exchange.discovery.candidates import Candidate, EnvelopeFetcher, round_robin
from kvswap.exchange.discovery.lookup import PeerOffer, ask_these
from kvswap.exchange.model_port import ModelChoice, Wanted, own_model
from kvswap.exchange.node.node import AGENT, Node
from kvswap.exchange.request import STRICT, Terms
from kvswap.exchange.verification.audits import refuse_if_failed
from kvswap.exchange.verification.claims import refuse_uncheckable
from kvswap.exchange.verification.outcomes import refuse_withheld, verified_already
from kvswap.exchange.verification.received import read_current
from kvswap.exchange.verification.status_records import require_current
from kvswap.net import messages
from kvswap.trust import Identifiers, Statement, require_trust
from kvswap.trust.groups import PUBLIC

_USABLE = 3  # artifacts of one document that are looked at
_MORE_SECONDS = 1.0  # for which more of them are waited for, once there is one


@dataclass(frozen=True, slots=True)
class Resolved:
    """A usable artifact, the peers that say they have it (none when it is complete here), and the node's model."""

    statement: Statement
    peers: tuple[str, ...]
    local: bool
    choice: ModelChoice | None = None  # the model that it was judged for; None: its files are not here


async def resolve(node: Node, reference: str | Cid, terms: Terms = STRICT) -> list[Resolved]:
    """Find the artifacts that may be used for a reference, one at least, within `LIMITS.resolve_seconds`.

    Raises `NotFound`, `Untrusted`, `Incompatible` or `IntegrityError`, whichever says most.
    """
    deadline = time.monotonic() + LIMITS.resolve_seconds
    if isinstance(reference, Cid):
        await asyncio.to_thread(node.trust.records.ask, str(reference))
    choice = await own_model(node.model)
    wanted = Wanted.of(choice) if choice is not None else None
    usable: list[Resolved] = []
    errors: list[KvswapError] = []
    answered: set[str] = set()
    for envelope in await asyncio.to_thread(_complete_here, node, reference, terms.group):
        try:
            usable.append(Resolved(await judge_envelope(node, envelope, wanted, terms), (), True, choice))
        except KvswapError as error:
            errors.append(error)
    if usable:
        return usable
    # An id is the same under all names; a document is asked for openly only when no group has it.
    every = [PUBLIC] if isinstance(reference, Cid) else node.identifiers(terms.group)
    for together in (
        [identifiers for identifiers in every if identifiers is not PUBLIC],
        [identifiers for identifiers in every if identifiers is PUBLIC],
    ):
        if not together:
            continue
        queries = [_query(reference, identifiers, wanted, bulk=node.settings.bulk) for identifiers in together]
        asked = (ask_these(node, query, LIMITS.lookup_seconds, None) for query in queries)
        found = await asyncio.gather(*asked)
        answered.update(*(peers for _, peers in found))
        candidates = _merged([_round_robin(node, offers, q) for q, (offers, _) in zip(queries, found, strict=True)])
        usable = await _usable(node, reference, candidates, wanted, terms, errors, deadline)
        usable = [replace(resolved, choice=choice) for resolved in usable]
        if usable:
            return usable
    raise _most_telling(node, reference, errors, answered)


def _query(reference: str | Cid, identifiers: Identifiers, wanted: Wanted | None, *, bulk: bool) -> messages.Find:
    by_id = isinstance(reference, Cid)
    model, dtype = identifiers.model(wanted.model, wanted.dtype) if wanted is not None else (None, None)
    return messages.Find(
        AGENT,
        document=None if by_id else identifiers.document(str(reference)),
        artifact=str(reference) if by_id else None,
        model=model,
        dtype=dtype,
        bulk=bulk,
    )


def _round_robin(node: Node, offers: list[PeerOffer], query: messages.Find) -> list[Candidate]:
    """Order artifacts by how promising they are.

    What is said to be of a trusted publisher comes first, then what came with its envelope, then what is said to be
    of this model and dtype.
    """
    policy = node.trust.policy.policy

    def rank(offer: PeerOffer) -> tuple[int, ...]:
        found = offer.found
        fits = query.model is None or (found.model == query.model and found.dtype == query.dtype)
        return (not policy.trusts(found.publisher), found.envelope is None, not fits)

    return round_robin(offers, rank, node.peers.delivered)


def _merged(lists: Sequence[list[Candidate]]) -> list[Candidate]:
    """Merge the lists of candidates that were found under several names, the first of each first."""
    longest = max(map(len, lists), default=0)
    every = [candidates[i] for i in range(longest) for candidates in lists if i < len(candidates)]
    return list({candidate.artifact: candidate for candidate in reversed(every)}.values())[::-1]


async def _usable(
    node: Node,
    reference: str | Cid,
    candidates: list[Candidate],
    wanted: Wanted | None,
    terms: Terms,
    errors: list[KvswapError],
    deadline: float,
) -> list[Resolved]:
    """Return the candidates that may be used; what is wrong with the rest is added to `errors`."""
    usable: list[Resolved] = []
    asking = EnvelopeFetcher(node, candidates, deadline)
    async for candidate, envelope in asking:
        try:
            if isinstance(envelope, KvswapError):
                raise envelope
            statement = await judge_envelope(node, envelope, wanted, terms)
            if not _answers(statement, reference):
                asking.wrong(candidate)
                why = f"artifact {candidate.artifact} is not of {reference}"
                raise IntegrityError(why, cause="a lying peer")
        except KvswapError as error:
            if is_own(error):
                raise  # a full disk here is not "nobody has it"
            errors.append(error)
            continue
        usable.append(Resolved(statement, tuple(candidate.peers), False))
        if len(usable) == _USABLE:
            break
        terms = structs.replace(terms, trust_on_first_use=False)  # one new publisher at a time
        asking.within(_MORE_SECONDS)
    return usable


def _complete_here(node: Node, reference: str | Cid, group: str | None) -> list[bytes]:
    """Return the envelopes of complete artifacts in this node's own store, newest first."""
    rows = node.lookup(reference, group)
    return [envelope for r in rows if r.complete and (envelope := node.store.envelope(r.id)) is not None]


async def judge_envelope(node: Node, envelope: bytes, wanted: Wanted | None, terms: Terms = STRICT) -> Statement:
    """Check the signature, life, model and dtype, exactness and trust of an artifact.

    Raises what is wrong with it: `Untrusted`, `Incompatible`, `IntegrityError` or `MalformedManifest`.
    """
    statement = await read_current(node, envelope)
    return await asyncio.to_thread(_judge, node, statement, wanted, terms)


def _judge(node: Node, statement: Statement, wanted: Wanted | None, terms: Terms) -> Statement:
    """Judge what is right in itself by what this node knows and wants.  Blocks; raises what is wrong with it."""
    if wanted is not None:
        check_compatible(statement.manifest, wanted.model, wanted.dtype)
    if terms.allow_untrusted and not terms.trust_on_first_use and not verified_already(node, statement):
        refuse_uncheckable(statement)
    if statement.manifest.divergence is not None and not terms.allow_lossy:
        divergence = statement.manifest.divergence
        raise Incompatible(
            f"artifact {statement.artifact} is of a lossy codec ({', '.join(statement.manifest.codecs)}): "
            f"{divergence.equal} of {divergence.steps} tokens were the model's own when it was published",
            cause="its publisher chose size over exactness",
            hint="kvswap fetch --allow-lossy takes it all the same",
            field="codec",
        )
    refuse_withheld(node, statement)
    first = terms.trust_on_first_use and statement.manifest.publisher not in node.trust.policy.policy.removed
    unlisted = terms.allow_untrusted or first or verified_already(node, statement)
    require_trust(statement, node.trust.policy.policy, allow_untrusted=unlisted)
    require_current(node, statement)
    refuse_if_failed(node, statement)
    return statement


def _answers(statement: Statement, reference: str | Cid) -> bool:
    """Return True if an artifact is what was looked for: by its CID, or by its signed word of the document."""
    if isinstance(reference, Cid):
        return statement.artifact == reference
    document = statement.manifest.document
    return document is not None and document.reference == reference


def _most_telling(node: Node, reference: str | Cid, errors: list[KvswapError], answered: set[str]) -> KvswapError:
    for kind in (Untrusted, Incompatible, IntegrityError, PeerError):
        for error in errors:
            if isinstance(error, kind):
                return error
    connected = set(node.network.near())
    silent = len(connected - answered)
    who = f"{len(connected)} connected peers" + (" and origins" if node.origins.names else "")
    cause = f"none of {who}, and no provider record, has it" if connected else "no peer is connected"
    if silent:
        verb = "was" if silent == 1 else "were"
        cause = f"{silent} of {who} {verb} not asked or did not answer, and no other has it"
    return NotFound(f"nobody offers {reference}", cause=cause, hint="kvswap peers", peers=len(connected))
