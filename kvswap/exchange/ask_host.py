"""Reads at hosts that this node was invited by: what they offer, what asking them would cost, and asking.

A host gets to know the question, and its answer is its word: nothing of it can be checked here but what it charges.
So a host is asked only where the caller says so.
"""

from __future__ import annotations

import asyncio
import base64
import time
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from kvswap.api import AskRequest
from kvswap.api.caches import AskResult, HostAnswer
from kvswap.api.events import TokenEvent
from kvswap.api.plans import HostWay, PlanSummary, TariffFigures
from kvswap.core.errors import KvswapError, NotFound, PeerError, UsageError
from kvswap.core.ids import Cid, PeerId, parse_reference
from kvswap.core.limits import LIMITS
from kvswap.cost import Objective, Option
from kvswap.exchange.model_port import own_model
from kvswap.exchange.node.node import Node
from kvswap.exchange.planning.decision import prices
from kvswap.exchange.request import Progress
from kvswap.trust.hosting import PICO, SignedOffer, SignedReceipt, check_price, read_receipt

AUTO = "auto"
_UNKNOWN_SECONDS = 5.0  # to the first token of a host that has not said, and was never asked
_QUESTION_TOKENS = 64  # beside its text: what a chat template adds


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta
    token_ids: list[Annotated[int, Meta(ge=0, lt=2**31)]] | None = None


class _StreamChunk(msgspec.Struct):
    """The part that is read of a chunk of an OpenAI-compatible stream."""

    choices: list[_Choice] | None = None
    usage: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Hosted:
    """A host that has a document, and what asking it costs; `tokens` are those of the document."""

    peer: str
    offer: SignedOffer
    tokens: int
    option: Option

    def way(self) -> HostWay:
        """Return the host and its price, in seconds to the first token and US dollars."""
        offer = self.offer.offer
        return HostWay(
            peer=self.peer,
            model=offer.label,
            tokens=self.tokens,
            seconds=round(self.option.seconds, 4),
            dollars=self.option.dollars,
            tariff=TariffFigures(**offer.tariff.to_json()),
        )


def document_of(node: Node, reference: str | Cid) -> str:
    """Return the digest that hosts know a document by, `sha256:<hex>`.  Blocks.

    Raises `UsageError` for an artifact that is not in the store or has no document.
    """
    if not isinstance(reference, Cid):
        return reference
    row = next(iter(node.store.lookup(reference)), None)
    if row is None or row.document is None:
        raise UsageError(f"hosts do not know {reference}", hint="name the document: its file, or sha256:<hex>")
    return str(row.document)


async def hosted(
    node: Node, host: str, reference: str | Cid, question: str, max_tokens: int, objective: Objective
) -> list[Hosted]:
    """List the hosts that have a document, the best first: one by its PeerId, or with `auto` all of the node's model.

    Raises the error of one that was named; with `auto` those that fail are left out.
    """
    document = await asyncio.to_thread(document_of, node, reference)
    if host != AUTO:
        PeerId.parse(host)
        return [await _hosted(node, host, document, question, max_tokens)]
    asked = [_hosted(node, i.peer, document, question, max_tokens) for i in node.hosts.all()]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    choice = await own_model(node.model)
    found = []
    for answer in answers:
        if isinstance(answer, KvswapError):
            if not isinstance(answer, NotFound):
                node.events.add("host_failed", reason=answer.message)
        elif isinstance(answer, BaseException):
            raise answer
        elif choice is None or answer.offer.offer.model == choice.identity.digest:
            found.append(answer)
    return sorted(found, key=lambda h: h.option.score(prices(node), objective))


async def _hosted(node: Node, peer: str, document: str, question: str, max_tokens: int) -> Hosted:
    connection = node.hosts.connection(peer)
    offer, shown = await asyncio.gather(node.hosts.offer(peer), connection.document(document))
    try:
        tokens, first = int(shown["tokens"]), float(shown.get("first_seconds") or 0.0)
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise PeerError(f"the host {peer} says nothing of {document}") from error
    if not 0 < tokens <= LIMITS.manifest_blocks * LIMITS.block_tokens:
        raise PeerError(f"the host {peer} says that {document} has {tokens} tokens")
    counted = first if 0 < first < LIMITS.host_seconds else _UNKNOWN_SECONDS
    following = _QUESTION_TOKENS + len(question.encode()) // 3  # usual; at most one a byte
    charged = offer.offer.tariff.picodollars(tokens, following, max_tokens) / PICO
    return Hosted(peer, offer, tokens, Option(node.calibration.host_seconds(peer) or counted, charged))


async def ask_host(node: Node, chosen: Hosted, request: AskRequest, plan: PlanSummary, progress: Progress) -> AskResult:
    """Let a host answer a question.  Raises `PeerError` for one that does not."""
    reference, question, peer = parse_reference(request.ref), request.question.strip(), chosen.peer
    document = await asyncio.to_thread(document_of, node, reference)
    body = {
        "document": document,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": request.max_tokens,
        "temperature": 0,
        "ignore_eos": request.ignore_eos,
    }
    said = await _said(node, peer, body, progress)
    asked = chosen.tokens + _QUESTION_TOKENS + len(question.encode())
    generated = min(request.max_tokens, len(said.ids) or request.max_tokens)
    signed, problem = await _checked(node, chosen, document, said.usage, asked, generated)
    node.events.add("asked_host", peer=peer, document=document, dollars=_dollars(signed), problem=problem)
    return AskResult(
        text="".join(said.texts).strip(),
        token_ids=said.ids,
        plan=plan,
        ttft_seconds=round(said.first, 4) if said.first is not None else None,
        logits_digest=None,
        claim="the host's word",
        tokens=chosen.tokens,
        artifact=None,
        unchecked={},
        fetched_tokens=0,
        computed_tokens=0,
        wire_bytes=0,
        peers=[],
        ready_seconds=None,
        load_seconds=0.0,
        prefill_seconds=0.0,
        seconds=round(said.seconds, 4),
        host=_host_answer(chosen, signed, problem),
    )


def _host_answer(chosen: Hosted, signed: SignedReceipt | None, problem: str | None) -> HostAnswer:
    receipt = signed.read if signed is not None else None
    return HostAnswer(
        peer=chosen.peer,
        model=chosen.offer.offer.label,
        cached_tokens=receipt.read if receipt else None,
        prefilled_tokens=receipt.prefilled if receipt else None,
        made_tokens=receipt.made if receipt else None,
        dollars=_dollars(signed),
        receipt=base64.b64encode(signed.envelope).decode() if signed else None,
        problem=problem,
    )


@dataclass(slots=True)
class _Said:
    """What a host has said until now; `first`: seconds to its first token."""

    texts: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    first: float | None = None
    seconds: float = 0.0


async def _said(node: Node, peer: str, body: dict[str, Any], progress: Progress) -> _Said:
    """Ask a host, and take what it says."""
    began, said = time.perf_counter(), _Said()
    async for chunk in node.hosts.connection(peer).ask(body):
        text, generated, counted = _piece(peer, chunk)
        said.usage = counted or said.usage
        if text is not None:
            if said.first is None and (text or generated):
                said.first = time.perf_counter() - began
                node.calibration.add_host(peer, said.first)
            said.texts.append(text)
            said.ids += generated
            await progress(TokenEvent(text=text))
    said.seconds = time.perf_counter() - began
    return said


def _piece(peer: str, chunk: dict[str, Any]) -> tuple[str | None, list[int], dict[str, Any]]:
    """Return the text (None: there is no choice), token ids and usage of one chunk.

    Raises `PeerError` for another shape.
    """
    try:
        piece = msgspec.convert(chunk, _StreamChunk)
    except (msgspec.ValidationError, RecursionError, UnicodeEncodeError) as error:  # the last: half of a surrogate pair
        raise PeerError(f"the host {peer} answered in another format", cause=str(error)[:200]) from error
    if not piece.choices:
        return None, [], piece.usage or {}
    choice = piece.choices[0]
    text = choice.delta.content or ""
    text = text.encode("utf-8", "replace").decode()  # JSON may hold halves of surrogate pairs, which nothing can show
    return text, choice.token_ids or [], piece.usage or {}


def _dollars(signed: SignedReceipt | None) -> float | None:
    return signed.read.picodollars / PICO if signed is not None else None


async def _checked(
    node: Node, chosen: Hosted, document: str, usage: dict[str, Any], asked: int, generated: int
) -> tuple[SignedReceipt | None, str | None]:
    """Return the receipt that the host signed, and what is wrong with it; None and the reason where there is none.

    It must be for `asked` and `generated` tokens at most.
    """
    try:
        signed = read_receipt(base64.b64decode(str(usage["kvswap"]["receipt"]), validate=True))
    except (LookupError, TypeError, ValueError, KvswapError):  # ValueError: of base64
        return None, "the host gave no record of the read"
    receipt, offer = signed.read, chosen.offer
    try:
        if receipt.offer != offer.digest:  # it was renewed between asking and answering
            renewed = await node.hosts.offer(chosen.peer, fresh=True)
            if renewed.offer.tariff != offer.offer.tariff:
                return signed, "the host's prices are not those that were planned with"
            offer = renewed
        check_price(receipt, offer)
    except KvswapError as error:
        return signed, error.message
    if receipt.host != chosen.peer or (receipt.document or b"").hex() != document.removeprefix("sha256:"):
        return signed, "the record is of another request"
    if receipt.made > generated or receipt.read + receipt.prefilled > asked:
        charged = f"{receipt.read + receipt.prefilled} and {receipt.made} tokens"
        return signed, f"the record charges {charged}, not {asked} and {generated}"
    return signed, None
