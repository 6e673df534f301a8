"""The effect of a cache that differs from the model's own bits on the answers, measured against one that does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvswap.api.events import PrefillEvent
from kvswap.artifact import layout
from kvswap.artifact.assembly import ChunkSource
from kvswap.artifact.consistency import parse_manifest
from kvswap.artifact.manifest import Divergence, Manifest, Probe
from kvswap.artifact.sealing import TAG_BYTES, Seal
from kvswap.worker.chunks import chunk_source
from kvswap.worker.inbox import JobContext
from kvswap.worker.messages import ComparedCaches, CompareJob
from kvswap.worker.publishing import PROBE_TEXT

STEPS = 32


def compare_computed(context: JobContext, job: CompareJob) -> ComparedCaches:
    """Compare a cache that an engine computed with one computed here from the same ids."""
    from kvswap.model.cache import new_cache
    from kvswap.model.prefill import canonical_prefill, check_length, check_reach_of

    loaded, source = context.loaded, chunk_source(job.chunks)
    seal = Seal(job.key) if job.key is not None else None
    manifest = parse_manifest(job.manifest, added=TAG_BYTES if seal is not None else 0)
    layout.check_compatible(manifest, loaded.identity.digest, loaded.dtype)
    question, position = loaded.tokenize_continuation(PROBE_TEXT), manifest.prefix.tokens
    after = len(question) + STEPS
    check_reach_of(loaded, manifest, after)
    check_length(loaded, position + after)
    computed = new_cache(loaded.model.config, position + after)
    for block in canonical_prefill(loaded, computed, job.ids, manifest.prefix.block_tokens):
        context.pipe.send(PrefillEvent(block=block.index + 1, tokens=block.stop))
        context.pipe.check()
    engines = loading_anew(loaded, manifest, source, seal)
    divergence, probe = compare(loaded, lambda headroom: computed, engines, position, question)
    return ComparedCaches(divergence=divergence, probe=probe)


def loading_anew(loaded: Any, manifest: Manifest, source: ChunkSource, seal: Seal | None) -> Callable[[int], Any]:
    """Return a function that loads an artifact's cache afresh, with memory for so many more tokens."""
    from kvswap.artifact.assembly import load
    from kvswap.model.cache import build_cache

    def cache(headroom: int) -> Any:
        tensors = load(manifest, source, headroom=headroom, seal=seal)
        return build_cache(loaded.model.config, tensors, manifest.prefix.tokens, loaded.device)

    return cache


def compare(
    loaded: Any, lossless: Callable[[int], Any], lossy: Callable[[int], Any], position: int, question: Sequence[int]
) -> Any:
    """Return the divergence of a lossy cache from an exact one, and the lossy cache's probe.

    `lossless` and `lossy` each make a fresh cache with memory for so many more tokens; both continue at `position` with
    the ids `question`.
    """
    from kvswap.model.prefill import PROBE_STEPS, Hooks, greedy

    headroom = len(question) + STEPS
    right: list[Any] = []
    followed: list[Any] = []
    wanted = greedy(loaded, lossless(headroom), position, question, STEPS, hooks=Hooks(on_logits=right.append))
    greedy(
        loaded, lossy(headroom), position, question, STEPS, follow=wanted.ids, hooks=Hooks(on_logits=followed.append)
    )
    made = greedy(loaded, lossy(headroom), position, question, STEPS)
    shown = greedy(loaded, lossy(headroom), position, question, PROBE_STEPS)
    same = [a == b for a, b in zip(wanted.ids, made.ids, strict=True)]
    divergence = Divergence(
        steps=STEPS,
        equal=sum(same),
        first=same.index(False) if False in same else STEPS,
        kl=round(1e6 * sum(_divergence(a, b) for a, b in zip(right, followed, strict=True)) / STEPS),
    )
    return divergence, Probe(question=list(question), tokens=shown.ids, logits=bytes.fromhex(shown.logits_digest[7:]))


def _divergence(right: Any, other: Any) -> float:
    """Return the Kullback-Leibler divergence in nats of the next token's distributions."""
    p, q = right.double().log_softmax(0), other.double().log_softmax(0)
    return max(0.0, float((p.exp() * (p - q)).sum()))
