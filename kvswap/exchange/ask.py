"""The answer to a question from a document's cache: fetched, prefilled, or both at once, whichever is first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

from kvswap.core.errors import (
    Incompatible,
    IntegrityError,
    InvalidDocument,
    NotFound,
    P2pDown,
    PlanSaysPrefill,
    UsageError,
)
from kvswap.core.failures import is_local, record
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.cost import Plan
from kvswap.exchange.ask_host import AUTO, ask_host, hosted
from kvswap.exchange.fetch import fetch
from kvswap.exchange.model_port import ModelChoice, OnEvent
from kvswap.exchange.node.node import Node
from kvswap.exchange.plan import plan_reference
from kvswap.exchange.prefix import check_prefix_plan, find_prefix, plan_prefix
from kvswap.exchange.request import STRICT, Progress, Terms, silent
from kvswap.exchange.transfer.choosing import choose
from kvswap.exchange.transfer.downloader import Transfer
from kvswap.exchange.transfer.hybrid import CacheOrigin, run_from
from kvswap.exchange.verification.claims import report_claims, report_unchecked
from kvswap.exchange.verification.outcomes import is_own, verified_already
from kvswap.exchange.verification.use import require_text, use
from kvswap.exchange.verify import ban_if_proven, forget_damaged
from kvswap.trust.accusation import of_error
from kvswap.trust.levels import Level

_PLAN = ("action", "seconds", "dollars", "reason")


async def answer(
    node: Node,
    reference: str | Cid,
    question: str,
    *,
    max_tokens: int,
    text: str | None = None,
    prefill: bool = False,
    terms: Terms = STRICT,
    ignore_eos: bool = False,
    host: str | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Answer a question about a document, and return the JSON contract of `kvswap ask`.

    `host`: let that host answer, or with `auto` the best of those known, where the plan says so.
    `text` is the document, when the caller has it: then a missing artifact, or one that is not worth
    fetching, means prefilling here.  `prefill` asks for that without looking.
    Seconds to first token count from here, the model being loaded already: look-up, transfer,
    verification, decoding and loading are in it.
    """
    if not question.strip():
        raise InvalidDocument("the question is empty")
    if len(question.encode()) > LIMITS.question_bytes:
        raise InvalidDocument(f"the question is over {LIMITS.question_bytes} bytes")
    if not 1 <= max_tokens <= LIMITS.host_tokens:
        raise UsageError(f"between 1 and {LIMITS.host_tokens} tokens can be asked for")
    if prefill and text is None:
        raise UsageError("prefilling needs the text", hint="pass the document's path instead of its digest")
    if host is not None and prefill:
        raise UsageError("either prefill here or let a host answer")
    if host is not None:
        reply = await _from_host(node, host, reference, question.strip(), max_tokens, text, terms, ignore_eos, progress)
        if reply is not None:
            return reply
    choice = await node.model.choose()
    await node.model.warm(choice)
    began = time.perf_counter()
    first: list[float] = []

    async def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "token" and not first:
            first.append(time.perf_counter() - began)
        await progress(event)

    def look() -> Awaitable[tuple[CacheOrigin | None, Plan]]:
        return _find_origin(node, choice, reference, text, terms, progress, began)

    source, plan = None, Plan("prefill", 0.0, 0.0, "asked for", None, None)
    if not prefill:
        source, plan = await _or_prefill(node, reference, text, look())
    arguments: dict[str, Any] = {
        "question": question.strip(),
        "steps": max_tokens,
        "block_tokens": node.settings.block_tokens,
        "ignore_eos": ignore_eos,
        "text": text,
    }
    unchecked: dict[str, str] = {}
    try:
        done, transfer = await _run_job(node, choice, source, terms, on_event, progress, arguments)
    except (IntegrityError, NotFound) as error:
        # Of chunks that are damaged or gone here others may have right ones, and a text needs none: once, as what has
        # been said cannot be taken back, and a disk that damages all it is given ends no sooner.
        if source is None or first or (isinstance(error, IntegrityError) and of_error(error) is not None):
            raise
        lost = await asyncio.to_thread(forget_damaged, node, source.statement)
        if not lost:
            raise
        node.events.add("damaged_here", artifact=str(source.statement.artifact), chunks=lost, reason=error.message)
        source, plan = await _or_prefill(node, reference, text, look())
        done, transfer = await _run_job(node, choice, source, terms, on_event, progress, arguments)
    if source is not None:
        await report_claims(node, source.statement, progress)
        seen = done["first_layer"]
        if seen is not None and seen["verdict"] == "passed" and source.tokens is None:
            await asyncio.to_thread(node.trust.records.add_checks, str(source.statement.artifact), [int(Level.TOKENS)])
        elif seen is not None and seen["verdict"] == "skipped":
            unchecked = {"V3": seen["why"]}
            await report_unchecked(node, source.statement, f"{Level.TOKENS.words}: {seen['why']}", progress)
    if transfer is None:
        node.learn_prefill(choice, done["samples"])
    else:
        node.learn_hybrid(choice, done["samples"])
    statement = source.statement if source else None
    return {
        "text": done["text"].strip(),
        "token_ids": done["token_ids"],
        "plan": {"action": plan.action, "seconds": plan.seconds, "dollars": plan.dollars, "reason": plan.reason},
        "ttft_seconds": round(first[0], 4) if first else None,
        "logits_digest": done["logits_digest"],
        "claim": done["claim"],
        "tokens": done["tokens"],
        "artifact": str(statement.artifact) if statement else None,
        "unchecked": unchecked,
        "fetched_tokens": done["tokens"] - done["computed"],
        "computed_tokens": done["computed"],
        "wire_bytes": transfer.received if transfer else 0,
        "from": list(transfer.served_bytes) if transfer else [],
        "ready_seconds": round(first[0] - (done["first_us"] - done["ready_us"]) / 1e6, 4) if first else None,
        "load_seconds": done["load_us"] / 1e6,
        "prefill_seconds": done["prefill_us"] / 1e6,
        "seconds": round(time.perf_counter() - began, 4),
    }


async def _run_job(
    node: Node,
    choice: ModelChoice,
    source: CacheOrigin | None,
    terms: Terms,
    on_event: OnEvent,
    progress: Progress,
    arguments: dict[str, Any],
) -> tuple[dict[str, Any], Transfer | None]:
    """Let the model process answer, from a source or by prefilling.

    The publisher of a source that is proved wrong on the way is banned.
    """
    if source is None:
        return await node.model.run(choice, "answer", on_event, **arguments), None
    check = arguments["text"] is not None and not await asyncio.to_thread(_checked, node, source)
    try:
        return await run_from(node, choice, source, terms, on_event, progress, arguments | {"check": check})
    except IntegrityError as error:
        if (failed := of_error(error)) is not None:
            await asyncio.to_thread(ban_if_proven, node, source.statement, failed)
        raise


async def _from_host(
    node: Node,
    host: str,
    reference: str | Cid,
    question: str,
    max_tokens: int,
    text: str | None,
    terms: Terms,
    ignore_eos: bool,
    progress: Progress,
) -> dict[str, Any] | None:
    """Let a host answer; None where the plan says that answering here is better.

    One that was named is asked in any case.  Raises `PlanSaysPrefill` where that would exceed a budget.
    """
    if host == AUTO:
        planned = await plan_reference(
            node, reference, text, terms, host=host, question=question, max_tokens=max_tokens, measure=False
        )
        await progress({"event": "plan", **{name: planned[name] for name in _PLAN}})
        if planned["action"] != "host":
            return None
        host, plan = planned["hosts"][0]["peer"], {name: planned[name] for name in _PLAN}
    else:
        plan = {}
    (chosen,) = await hosted(node, host, reference, question, max_tokens, terms.objective)
    if why := chosen.option.over(terms.objective):
        raise PlanSaysPrefill(f"asking the host {host} takes {why}", plan={"action": "none", "reason": why})
    option = chosen.option
    plan = plan or {"action": "host", "seconds": option.seconds, "dollars": option.dollars, "reason": "asked for"}
    return await ask_host(
        node, chosen, reference, question, max_tokens=max_tokens, ignore_eos=ignore_eos, plan=plan, progress=progress
    )


def _checked(node: Node, source: CacheOrigin) -> bool:
    """Return True if layer 0 need not be compared with the tokens: that was done, or the artifact is our own, or lossy.

    It was compared with those of the artifact's own document: of a prefix of another one that says nothing.
    """
    statement = source.statement
    if not statement.manifest.lossless or is_own(node, statement):
        return True
    return source.tokens is None and int(Level.TOKENS) in node.trust.records.checks(str(statement.artifact))


async def _or_prefill(
    node: Node, reference: str | Cid, text: str | None, looking: Awaitable[tuple[CacheOrigin | None, Plan]]
) -> tuple[CacheOrigin | None, Plan]:
    """Return what `looking` found; with a text prefill where this machine itself cannot look."""
    try:
        return await looking
    except Exception as error:
        if text is None or not (is_local(error) or isinstance(error, P2pDown)):
            raise
        why = record(error, "looking up").message
        node.events.add("not_looked_up", reference=str(reference), reason=why)
        return None, Plan("prefill", 0.0, 0.0, why, None, None)


async def _find_origin(
    node: Node,
    choice: ModelChoice,
    reference: str | Cid,
    text: str | None,
    terms: Terms,
    progress: Progress,
    began: float,
) -> tuple[CacheOrigin | None, Plan]:
    """Return the artifact to answer from, or a document's prefix; None: prefill."""
    try:
        resolved, planned = await choose(node, reference, terms, progress, hybrid=text is not None)
        require_text(resolved.statement, text)
        # An untrusted publisher's is verified whole before any of it is used.
        if not await asyncio.to_thread(verified_already, node, resolved.statement):
            artifact = resolved.statement.artifact
            await fetch(node, artifact, terms, progress, text=text)
            resolved, planned = await choose(node, artifact, terms, progress)
        return CacheOrigin(resolved.statement, None, planned, began), planned.plan
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
    return await _cached_prefix(node, choice, text, nobody, terms, progress, began)


async def _cached_prefix(
    node: Node, choice: ModelChoice, text: str, nobody: str, terms: Terms, progress: Progress, began: float
) -> tuple[CacheOrigin | None, Plan]:
    """Find an artifact that shares a prefix with the document, which nobody offers itself."""
    tokens, found = await find_prefix(node, choice, text, terms)
    if found is None:
        return None, Plan("prefill", 0.0, 0.0, nobody, None, None)
    planned = await plan_prefix(node, found, terms, hybrid=True)
    plan = planned.plan
    await progress({"event": "plan", **plan.to_json()})
    try:
        check_prefix_plan(found, planned, terms)
    except PlanSaysPrefill as error:
        return None, Plan("prefill", 0.0, 0.0, f"{nobody}; {error.message}", None, None)
    await use(node, found.statement, terms)
    whole = found.tokens == tokens == found.statement.manifest.prefix.tokens
    if not whole:
        reason = f"the first {found.tokens} of {tokens} tokens are published ({plan.reason}); the rest is prefilled"
        plan = replace(plan, reason=reason)
    return CacheOrigin(found.statement, None if whole else found.tokens, planned, began), plan
