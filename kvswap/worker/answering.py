"""Answering in the model process: from an artifact's cache, after prefilling a text, or from both."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from kvswap.api.events import PrefillEvent, TokenEvent
from kvswap.artifact import layout
from kvswap.core.errors import InvalidDocument
from kvswap.trust import Statement
from kvswap.worker.chunks import chunk_source
from kvswap.worker.hybrid import Filled, fill
from kvswap.worker.inbox import JobContext
from kvswap.worker.messages import AnswerJob, ComputedAnswer, FirstLayerCheck
from kvswap.worker.publishing import micro


def answer(context: JobContext, job: AnswerJob) -> ComputedAnswer:
    """Continue greedily with a question; see `Answer`.

    With `job.check`, the first layer of what was loaded is compared with the text's tokens (V3) once the answer is
    there; raises `IntegrityError` for a proof that it differs.
    """
    from kvswap.model.prefill import Hooks, greedy, stop_ids
    from kvswap.model.question import question_text
    from kvswap.worker.first_layer import require

    loaded, pipe = context.loaded, context.pipe
    began = time.perf_counter()
    asked = job.continuation if job.continuation is not None else question_text(loaded.tokenizer, job.question)
    following = loaded.tokenize_continuation(asked)
    if not following:
        raise InvalidDocument("the question is empty")
    ready = _ready(context, job, len(following) + job.steps)
    before = time.perf_counter() - began
    made = greedy(
        loaded,
        ready.cache,
        ready.tokens,
        following,
        job.steps,
        stop_ids=frozenset() if job.ignore_eos else stop_ids(loaded),
        hooks=Hooks(
            lambda token: pipe.send(TokenEvent(id=token, text=loaded.tokenizer.decode([token]))),
            cancelled=pipe.cancelled,
        ),
    )
    look = ready.first_layer.check() if ready.first_layer is not None else None  # only now: the answer does not wait
    if look is not None:
        require(look)
    return ComputedAnswer(
        text=loaded.tokenizer.decode(made.ids, skip_special_tokens=True),
        token_ids=made.ids,
        logits_digest=made.logits_digest,
        tokens=ready.tokens,
        computed=ready.computed,
        claim=ready.claim,
        load_us=int(ready.how.load_seconds * 1e6),
        prefill_us=int((ready.how.compute_seconds + ready.prefill_seconds) * 1e6),
        ready_us=int(before * 1e6),
        first_us=int((before + made.first_seconds) * 1e6),
        total_us=int((before + made.seconds) * 1e6),
        samples=micro(ready.how.samples),
        first_layer=FirstLayerCheck(verdict=look.verdict, why=look.why) if look is not None else None,
    )


@dataclass(slots=True)
class _Ready:
    """The cache of a whole document, and how it came to be."""

    cache: Any
    tokens: int
    computed: int
    how: Filled = field(default_factory=Filled)
    prefill_seconds: float = 0.0  # beside those of filling
    claim: str = "bitwise"
    first_layer: Any = None  # the check that is due, if any


def _ready(context: JobContext, job: AnswerJob, headroom: int) -> _Ready:
    """Make the cache of the document, with memory for `headroom` more tokens."""
    from kvswap.model.cache import new_cache
    from kvswap.model.prefill import check_length, check_reach
    from kvswap.trust import one_key, read_statement

    loaded = context.loaded
    ids = loaded.tokenize(job.text) if job.text is not None else None
    if ids is not None and job.envelope is None:
        check_reach(loaded, len(ids), headroom, job.block_tokens)
    if job.envelope is None:
        ids = ids or []
        check_length(loaded, len(ids) + headroom)
        ready = _Ready(new_cache(loaded.model.config, len(ids) + headroom), len(ids), len(ids))
        _prefill(context, job, ids, 0, ready)
        return ready
    statement = read_statement(job.envelope, one_key(job.key))
    filled = fill(context, statement, job, headroom, ids)
    whole = job.tokens is None or ids is None  # the artifact is the whole document, or as much as fits the model
    total = filled.tokens if whole or ids is None else len(ids)
    check_length(loaded, total + headroom)
    ready = _Ready(filled.cache, total, filled.how.computed + total - filled.tokens, filled.how, claim=filled.claim)
    if job.check and job.text is not None:  # before the cache is used: further tokens move sliding windows
        ready.first_layer = _first_layer(context, statement, job, filled.cache)
    if not whole and ids is not None:
        _prefill(context, job, ids, filled.tokens, ready)
    return ready


def _prefill(context: JobContext, job: AnswerJob, ids: list[int], start: int, ready: _Ready) -> None:
    """Compute what the cache does not hold yet, from token `start` on."""
    from kvswap.model.prefill import canonical_prefill

    if start >= len(ids):
        return
    began = time.perf_counter()
    blocks = layout.block_count(len(ids), job.block_tokens)
    for block in canonical_prefill(context.loaded, ready.cache, ids, job.block_tokens, start):
        ready.how.samples.append([block.start, block.stop - block.start, block.seconds])
        context.pipe.send(PrefillEvent(block=block.index + 1, blocks=blocks, tokens=block.stop))
        context.pipe.check()
    ready.prefill_seconds += time.perf_counter() - began


def _first_layer(context: JobContext, statement: Statement, job: AnswerJob, cache: Any) -> Any:
    """Prepare V3 for a cache just loaded, whole or its first `job.tokens` tokens."""
    from kvswap.artifact.assembly import load
    from kvswap.worker.document import of_prefix, of_text
    from kvswap.worker.first_layer import FirstLayer

    loaded, manifest, tokens, text = context.loaded, statement.manifest, job.tokens, str(job.text)
    document = of_text(loaded, manifest, text) if tokens is None else of_prefix(loaded, manifest, text, tokens)

    def again() -> Any:
        source = chunk_source(job.chunks)
        return load(manifest, source, tokens=tokens, predictors=context.predictors, seal=statement.seal)

    position = manifest.prefix.tokens if tokens is None else tokens
    return FirstLayer(loaded, loaded.identity.digest, manifest, cache, document, position, again)
