"""The effect of a cache that differs from the model's own bits on the answers, measured against one that does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvswap.artifact.manifest import Divergence, Probe

STEPS = 32


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
