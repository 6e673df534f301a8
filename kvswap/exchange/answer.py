"""Answering a question from a document's cache: fetched when that is worth it, prefilled otherwise."""

from __future__ import annotations

import time
from typing import Any

from kvswap.core.errors import InvalidDocument, NotFound, PlanSaysPrefill, UsageError
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.cost import Plan
from kvswap.exchange.fetch import fetch
from kvswap.exchange.node import Node
from kvswap.exchange.publish import Progress, silent
from kvswap.trust import Statement


async def answer(
    node: Node,
    reference: str | Cid,
    question: str,
    *,
    steps: int,
    text: str | None = None,
    prefill: bool = False,
    force: bool = False,
    trust_on_first_use: bool = False,
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

    statement: Statement | None = None
    if prefill:
        plan = Plan("prefill", 0.0, 0.0, "asked for", None, None)
    else:
        statement, plan = await _obtain(node, reference, text is not None, force, trust_on_first_use, progress)
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
        with node.store.lease([c.id for c in statement.manifest.chunks]):
            made = await node.model.run(choice, "answer", on_event, **arguments)
        node.calibration.add_load(statement.manifest.raw_bytes, made["load_us"] / 1e6)
    return {
        "text": made["text"].strip(),
        "token_ids": made["token_ids"],
        "plan": {"action": plan.action, "seconds": plan.seconds, "dollars": plan.dollars, "reason": plan.reason},
        "ttft_seconds": round(first[0], 4) if first else None,
        "logits_digest": made["logits_digest"],
        "tokens": made["tokens"],
        "artifact": str(statement.artifact) if statement else None,
        "load_seconds": made["load_us"] / 1e6,
        "prefill_seconds": made["prefill_us"] / 1e6,
        "seconds": round(time.perf_counter() - began, 4),
    }


async def _obtain(
    node: Node, reference: str | Cid, can_prefill: bool, force: bool, tofu: bool, progress: Progress
) -> tuple[Statement | None, Plan]:
    try:
        fetched = await fetch(node, reference, force=force, trust_on_first_use=tofu, progress=progress)
    except PlanSaysPrefill as error:
        if not can_prefill:
            raise
        figures = error.details.get("plan", {})
        return None, Plan(
            "prefill", figures.get("seconds", 0.0), figures.get("dollars", 0.0), error.message, None, None
        )
    except NotFound as error:
        if not can_prefill:
            raise
        return None, Plan("prefill", 0.0, 0.0, error.message, None, None)
    return fetched.statement, fetched.plan
