"""Answering a question from a document's cache: fetched when that is worth it, prefilled otherwise."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from kvswap.artifact.layout import needed
from kvswap.core.errors import (
    Incompatible,
    IntegrityError,
    InvalidDocument,
    NotFound,
    PeerError,
    PlanSaysPrefill,
    UsageError,
)
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.cost import Plan
from kvswap.exchange.fetch import fetch
from kvswap.exchange.model_port import ModelChoice
from kvswap.exchange.node import Node
from kvswap.exchange.plan import raw_by_codec
from kvswap.exchange.prefix import beginning_of, fetch_beginning
from kvswap.exchange.request import STRICT, Progress, Terms, silent
from kvswap.trust import Statement


async def answer(
    node: Node,
    reference: str | Cid,
    question: str,
    *,
    steps: int,
    text: str | None = None,
    prefill: bool = False,
    terms: Terms = STRICT,
    ignore_eos: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """The JSON contract of `kvswap ask`.

    `text` is the document, when the caller has it: then a missing artifact, or one that is not worth
    fetching, means prefilling here.  `prefill` asks for that without looking.
    Seconds to first token count from here, the model being loaded already: look-up, transfer,
    verification, decoding and loading are in it.
    """
    if not question.strip():
        raise InvalidDocument("the question is empty")
    if len(question.encode()) > LIMITS.question_bytes:
        raise InvalidDocument(f"the question is over {LIMITS.question_bytes} bytes")
    if not 1 <= steps <= 4096:
        raise UsageError("between 1 and 4096 tokens can be asked for")
    if prefill and text is None:
        raise UsageError("prefilling needs the text", hint="pass the document's path instead of its digest")
    choice = await node.model.choose()
    await node.model.warm(choice)
    began = time.perf_counter()
    first: list[float] = []

    async def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "token" and not first:
            first.append(time.perf_counter() - began)
        await progress(event)

    got = _Obtained(None, Plan("prefill", 0.0, 0.0, "asked for", None, None))
    if not prefill:
        got = await _obtain(node, choice, reference, text, terms, progress)
    statement, plan = got.statement, got.plan
    arguments: dict[str, Any] = {
        "question": question.strip(),
        "steps": steps,
        "block_tokens": node.settings.block_tokens,
        "ignore_eos": ignore_eos,
    }
    if statement is None:
        arguments["text"] = text
        made = await node.model.run(choice, "answer", on_event, **arguments)
        node.learn_prefill(choice, made["samples"])
    else:
        arguments |= {"envelope": statement.envelope, "chunks": str(node.store.chunks_directory)}
        if got.tokens is not None:  # only a beginning is from there: the rest of the text is prefilled
            arguments |= {"text": text, "tokens": got.tokens}
        with node.store.lease([f.id for f in statement.manifest.files]):
            made = await node.model.run(choice, "answer", on_event, **arguments)
        chunks = [statement.manifest.chunks[i] for i in needed(statement.manifest, got.tokens)]
        node.calibration.add_load(raw_by_codec(chunks), made["load_us"] / 1e6)
    return {
        "text": made["text"].strip(),
        "token_ids": made["token_ids"],
        "plan": {"action": plan.action, "seconds": plan.seconds, "dollars": plan.dollars, "reason": plan.reason},
        "ttft_seconds": round(first[0], 4) if first else None,
        "logits_digest": made["logits_digest"],
        "tokens": made["tokens"],
        "artifact": str(statement.artifact) if statement else None,
        "fetched_tokens": (got.tokens or statement.manifest.prefix.tokens) if statement else 0,
        "load_seconds": made["load_us"] / 1e6,
        "prefill_seconds": made["prefill_us"] / 1e6,
        "seconds": round(time.perf_counter() - began, 4),
    }


@dataclass(frozen=True, slots=True)
class _Obtained:
    """What is used: an artifact, or its first `tokens` tokens; None: nothing, prefill."""

    statement: Statement | None
    plan: Plan
    tokens: int | None = None


async def _obtain(
    node: Node,
    choice: ModelChoice,
    reference: str | Cid,
    text: str | None,
    terms: Terms,
    progress: Progress,
) -> _Obtained:
    try:
        fetched = await fetch(node, reference, terms, progress)
        return _Obtained(fetched.statement, fetched.plan)
    except PlanSaysPrefill as error:
        figures = error.details.get("plan", {})
        if text is None or figures.get("action") == "none":  # prefilling is over a budget as well
            raise
        seconds, dollars = figures.get("seconds", 0.0), figures.get("dollars", 0.0)
        return _Obtained(None, Plan("prefill", seconds, dollars, error.message, None, None))
    except (NotFound, Incompatible) as error:  # what others offer is not for this reader: as good as nothing
        if text is None:
            raise
        nobody = error.message
    return await _beginning(node, choice, text, nobody, terms, progress)


async def _beginning(
    node: Node, choice: ModelChoice, text: str, nobody: str, terms: Terms, progress: Progress
) -> _Obtained:
    """Nobody offers the document: what it has in common with one that somebody does offer."""
    tokens, found = await beginning_of(node, choice, text, terms)
    if found is None:
        return _Obtained(None, Plan("prefill", 0.0, 0.0, nobody, None, None))
    try:
        plan = await fetch_beginning(node, found, terms, progress)
    except (PlanSaysPrefill, PeerError, NotFound, IntegrityError) as error:
        return _Obtained(None, Plan("prefill", 0.0, 0.0, f"{nobody}; {error.message}", None, None))
    if found.tokens == tokens == found.statement.manifest.prefix.tokens:
        return _Obtained(found.statement, plan)
    reason = f"the first {found.tokens} of {tokens} tokens are published ({plan.reason}); the rest is prefilled"
    return _Obtained(found.statement, replace(plan, reason=reason), found.tokens)
