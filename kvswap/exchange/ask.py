"""The answer to a question from a document's cache: fetched, prefilled, or both at once, whichever is first."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from msgspec import structs

from kvswap.api import AskRequest
from kvswap.api.caches import AskResult
from kvswap.api.events import PlanEvent, TokenEvent, plan_event
from kvswap.api.plans import PlanFigures, PlanSummary, summary_of
from kvswap.core.errors import (
    Incompatible,
    IntegrityError,
    InvalidDocument,
    KvswapError,
    NotFound,
    P2pDown,
    PlanSaysPrefill,
    UsageError,
)
from kvswap.core.failures import is_local, record
from kvswap.core.ids import parse_reference
from kvswap.core.limits import LIMITS
from kvswap.cost import Plan
from kvswap.exchange.ask_host import AUTO, ask_host, hosted
from kvswap.exchange.fetch import fetch
from kvswap.exchange.model_port import ModelChoice
from kvswap.exchange.node.node import Node
from kvswap.exchange.plan import plan_reference
from kvswap.exchange.prefix import check_prefix_plan, find_prefix, plan_prefix
from kvswap.exchange.request import Progress, silent
from kvswap.exchange.transfer.choosing import choose
from kvswap.exchange.transfer.downloader import Transfer
from kvswap.exchange.transfer.hybrid import CacheOrigin, run_from
from kvswap.exchange.verification.claims import report_claims, report_unchecked
from kvswap.exchange.verification.outcomes import is_own, verified_already
from kvswap.exchange.verification.use import require_text, use
from kvswap.exchange.verify import ban_if_proven, forget_damaged
from kvswap.trust.accusation import of_error
from kvswap.trust.levels import Level
from kvswap.worker.conversation import FileEvent, JobEvent
from kvswap.worker.messages import AnswerJob, ComputedAnswer, FirstLayerCheck


async def answer(node: Node, request: AskRequest, progress: Progress = silent) -> AskResult:
    """Answer a question about a document.

    With the document's `text` a missing artifact, or one that is not worth fetching, means prefilling here; `prefill`
    asks for that without looking.  Seconds to first token count from here, the model being loaded already: look-up,
    transfer, verification, decoding and loading are in it.  Raises `InvalidDocument` or `UsageError` for a question
    that cannot be asked, and what `fetch` does.
    """
    _check(request)
    if request.host is not None:
        reply = await _from_host(node, request, progress)
        if reply is not None:
            return reply
    choice = await node.model.choose()
    await node.model.warm(choice)
    return await _Asking(node, choice, request, progress).answer()


def _check(request: AskRequest) -> None:
    if not request.question.strip():
        raise InvalidDocument("the question is empty")
    if request.continuation is not None and request.host is not None:
        raise UsageError("a host continues documents, and no conversation of its asker's")
    if max(len(text.encode()) for text in (request.question, request.continuation or "")) > LIMITS.question_bytes:
        raise InvalidDocument(f"the question is over {LIMITS.question_bytes} bytes")
    if not 1 <= request.max_tokens <= LIMITS.host_tokens:
        raise UsageError(f"between 1 and {LIMITS.host_tokens} tokens can be asked for")
    if request.prefill and request.text is None:
        raise UsageError("prefilling needs the text", hint="pass the document's path instead of its digest")
    if request.prefill and request.host is not None:
        raise UsageError("either prefill here or let a host answer")


class _Asking:
    """One question that is answered here, from an artifact or by prefilling."""

    def __init__(self, node: Node, choice: ModelChoice, request: AskRequest, progress: Progress) -> None:
        self._node, self._choice, self._request, self._progress = node, choice, request, progress
        self._reference, self._terms, self._text = parse_reference(request.ref), request.terms(), request.text
        self._began = time.perf_counter()
        self._first: float | None = None  # seconds to the first token

    async def answer(self) -> AskResult:
        source, plan = await self._origin()
        try:
            done, transfer = await self._run_job(source)
        except (IntegrityError, NotFound) as error:
            await self._forget_damaged(source, error)
            source, plan = await self._origin()
            done, transfer = await self._run_job(source)
        unchecked = await self._note_checks(source, done.first_layer) if source is not None else {}
        if transfer is None:
            self._node.learn_prefill(self._choice, done.samples)
        else:
            self._node.learn_hybrid(self._choice, done.samples)
        if source is not None:
            self._count(source, plan, done, transfer)
        return self._result(source, summary_of(plan), done, transfer, unchecked)

    async def _origin(self) -> tuple[CacheOrigin | None, Plan]:
        """Find what to answer from; None: prefill, as asked for, or with a text where this machine cannot look."""
        if self._request.prefill:
            return None, Plan("prefill", 0.0, 0.0, "asked for", None, None)
        try:
            return await self._look()
        except Exception as error:
            if self._text is None or not (is_local(error) or isinstance(error, P2pDown)):
                raise
            why = record(error, "looking up").message
            self._node.events.add("not_looked_up", reference=str(self._reference), reason=why)
            return None, Plan("prefill", 0.0, 0.0, why, None, None)

    async def _look(self) -> tuple[CacheOrigin | None, Plan]:
        """Find the artifact to answer from, or a document's prefix; None: prefill."""
        node, terms, text, progress = self._node, self._terms, self._text, self._progress
        try:
            resolved, planned = await choose(node, self._reference, terms, progress, hybrid=text is not None)
            require_text(resolved.statement, text)
            # An untrusted publisher's is verified whole before any of it is used.
            if not await asyncio.to_thread(verified_already, node, resolved.statement):
                artifact = resolved.statement.artifact
                await fetch(node, artifact, terms, progress, text=text)
                resolved, planned = await choose(node, artifact, terms, progress)
            return CacheOrigin(resolved.statement, None, planned, self._began), planned.plan
        except PlanSaysPrefill as error:
            figures = error.details.get("plan", {})
            if text is None or figures.get("action") == "none":  # prefilling is over a budget as well
                raise
            seconds, dollars = figures.get("seconds", 0.0), figures.get("dollars", 0.0)
            return None, Plan("prefill", seconds, dollars, error.message, None, None)
        except (NotFound, Incompatible) as error:  # what others offer is not for this reader: as good as nothing
            if text is None:
                raise
            nobody = error.message
        return await self._cached_prefix(text, nobody)

    async def _cached_prefix(self, text: str, nobody: str) -> tuple[CacheOrigin | None, Plan]:
        """Find an artifact that shares a prefix with the document, which nobody offers itself."""
        node, terms = self._node, self._terms
        tokens, found = await find_prefix(node, self._choice, text, terms)
        if found is None:
            return None, Plan("prefill", 0.0, 0.0, nobody, None, None)
        planned = await plan_prefix(node, found, terms, hybrid=True)
        plan = planned.plan
        await self._progress(plan_event(plan))
        try:
            check_prefix_plan(found, planned, terms)
        except PlanSaysPrefill as error:
            return None, Plan("prefill", 0.0, 0.0, f"{nobody}; {error.message}", None, None)
        await use(node, found.statement, terms)
        whole = found.tokens == tokens == found.statement.manifest.prefix.tokens
        if not whole:
            reason = f"the first {found.tokens} of {tokens} tokens are published ({plan.reason}); the rest is prefilled"
            plan = replace(plan, reason=reason)
        return CacheOrigin(found.statement, None if whole else found.tokens, planned, self._began), plan

    async def _run_job(self, source: CacheOrigin | None) -> tuple[ComputedAnswer, Transfer | None]:
        """Let the model process answer, from a source or by prefilling.

        The publisher of a source that is proved wrong on the way is banned.
        """
        node, request = self._node, self._request
        job = AnswerJob(
            question=request.question.strip(),
            continuation=request.continuation,
            steps=request.max_tokens,
            block_tokens=node.settings.block_tokens,
            ignore_eos=request.ignore_eos,
            text=request.text,
        )
        if source is None:
            return await node.model.run(self._choice, job, self._on_event), None
        check = request.text is not None and not await asyncio.to_thread(_checked, node, source)
        job = structs.replace(job, check=check)
        try:
            return await run_from(node, self._choice, source, self._terms, self._on_event, self._progress, job)
        except IntegrityError as error:
            if (failed := of_error(error)) is not None:
                await asyncio.to_thread(ban_if_proven, node, source.statement, failed)
            raise

    def _count(self, source: CacheOrigin, plan: Plan, done: ComputedAnswer, transfer: Transfer | None) -> None:
        """Count what the cache saved.  What was prefilled beside it counts on both sides."""
        ready = self._ready(done)
        prefill = source.planned.plan.prefill
        if prefill is not None and source.tokens is not None:  # the plan is about the shared prefix alone
            prefill = replace(prefill, seconds=prefill.seconds + done.prefill_us / 1e6)
        self._node.savings.add(
            tokens=done.tokens - done.computed,
            nbytes=transfer.received if transfer else 0,
            seconds=ready if ready is not None else plan.seconds,
            prefill=prefill if ready is not None else None,
            paid=plan.dollars if transfer else 0.0,
        )

    def _ready(self, done: ComputedAnswer) -> float | None:
        """Return the seconds until the cache was ready; None where no token was made."""
        return round(self._first - (done.first_us - done.ready_us) / 1e6, 4) if self._first is not None else None

    async def _on_event(self, event: JobEvent) -> None:
        if isinstance(event, FileEvent):
            return
        if self._first is None and isinstance(event, TokenEvent):
            self._first = time.perf_counter() - self._began
        await self._progress(event)

    async def _forget_damaged(self, source: CacheOrigin | None, error: KvswapError) -> None:
        """Unlist chunks that are damaged or gone here, so that the question is tried again; else raise the error.

        Others may have right ones, and a text needs none: once, as what has been said cannot be taken back, and a disk
        that damages all it is given ends no sooner.
        """
        proved = isinstance(error, IntegrityError) and of_error(error) is not None
        if source is None or self._first is not None or proved:
            raise error
        lost = await asyncio.to_thread(forget_damaged, self._node, source.statement)
        if not lost:
            raise error
        artifact = str(source.statement.artifact)
        self._node.events.add("damaged_here", artifact=artifact, chunks=lost, reason=error.message)

    async def _note_checks(self, source: CacheOrigin, seen: FirstLayerCheck | None) -> dict[str, str]:
        """Remember that layer 0 was compared with the tokens; return, and report, what could not be checked."""
        node, statement = self._node, source.statement
        await report_claims(node, statement, self._progress)
        if seen is not None and seen.verdict == "passed" and source.tokens is None:
            await asyncio.to_thread(node.trust.records.add_checks, str(statement.artifact), [int(Level.TOKENS)])
        elif seen is not None and seen.verdict == "skipped":
            await report_unchecked(node, statement, f"{Level.TOKENS.words}: {seen.why}", self._progress)
            return {"V3": seen.why}
        return {}

    def _result(
        self,
        source: CacheOrigin | None,
        plan: PlanSummary,
        done: ComputedAnswer,
        transfer: Transfer | None,
        unchecked: dict[str, str],
    ) -> AskResult:
        first = self._first
        return AskResult(
            text=done.text.strip(),
            token_ids=list(done.token_ids),
            plan=plan,
            ttft_seconds=round(first, 4) if first is not None else None,
            logits_digest=done.logits_digest,
            claim=done.claim,
            tokens=done.tokens,
            artifact=str(source.statement.artifact) if source else None,
            unchecked=unchecked,
            fetched_tokens=done.tokens - done.computed,
            computed_tokens=done.computed,
            wire_bytes=transfer.received if transfer else 0,
            peers=list(transfer.served_bytes) if transfer else [],
            ready_seconds=self._ready(done),
            load_seconds=done.load_us / 1e6,
            prefill_seconds=done.prefill_us / 1e6,
            seconds=round(time.perf_counter() - self._began, 4),
        )


async def _from_host(node: Node, request: AskRequest, progress: Progress) -> AskResult | None:
    """Let a host answer; None where the plan says that answering here is better.

    One that was named is asked in any case.  Raises `PlanSaysPrefill` where that would exceed a budget.
    """
    host, reference, terms = str(request.host), parse_reference(request.ref), request.terms()
    question, max_tokens, plan = request.question.strip(), request.max_tokens, None
    if host == AUTO:
        planned = await plan_reference(
            node, reference, request.text, terms, host=host, question=question, max_tokens=max_tokens, measure=False
        )
        plan = summary_of(planned)
        await progress(PlanEvent(**{name: getattr(planned, name) for name in PlanFigures.__struct_fields__}))
        if planned.action != "host":
            return None
        host = planned.hosts[0].peer
    (chosen,) = await hosted(node, host, reference, question, max_tokens, terms.objective)
    if why := chosen.option.over(terms.objective):
        raise PlanSaysPrefill(f"asking the host {host} takes {why}", plan={"action": "none", "reason": why})
    option = chosen.option
    plan = plan or PlanSummary(action="host", seconds=option.seconds, dollars=option.dollars, reason="asked for")
    return await ask_host(node, chosen, request, plan, progress)


def _checked(node: Node, source: CacheOrigin) -> bool:
    """Return True if layer 0 need not be compared with the tokens: that was done, or the artifact is our own, or lossy.

    It was compared with those of the artifact's own document: of a prefix of another one that says nothing.
    """
    statement = source.statement
    if not statement.manifest.lossless or is_own(node, statement):
        return True
    return source.tokens is None and int(Level.TOKENS) in node.trust.records.checks(str(statement.artifact))
