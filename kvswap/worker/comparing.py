"""What a cache that is not the model's own to the bit does to the answers: measured beside one that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvswap.artifact.manifest import Divergence, Probe

STEPS = 32


def compare(
    loaded: Any, exact: Callable[[int], Any], inexact: Callable[[int], Any], position: int, question: Sequence[int]
) -> Any:
    """(divergence, probe of the inexact cache) after `question`, ids.  Both make a fresh cache with so much room."""
    from kvswap.model.prefill import PROBE_STEPS, greedy

    room = len(question) + STEPS
    right: list[Any] = []
    followed: list[Any] = []
    wanted = greedy(loaded, exact(room), position, question, STEPS, on_logits=right.append)
    greedy(loaded, inexact(room), position, question, STEPS, follow=wanted.ids, on_logits=followed.append)
    made = greedy(loaded, inexact(room), position, question, STEPS)
    shown = greedy(loaded, inexact(room), position, question, PROBE_STEPS)
    same = [a == b for a, b in zip(wanted.ids, made.ids, strict=True)]
    divergence = Divergence(
        steps=STEPS,
        equal=sum(same),
        first=same.index(False) if False in same else STEPS,
        kl=round(1e6 * sum(_divergence(a, b) for a, b in zip(right, followed, strict=True)) / STEPS),
    )
    return divergence, Probe(question=list(question), tokens=shown.ids, logits=bytes.fromhex(shown.logits_digest[7:]))


def _divergence(right: Any, other: Any) -> float:
    """Kullback-Leibler, in nats, of what follows."""
    p, q = right.double().log_softmax(0), other.double().log_softmax(0)
    return max(0.0, float((p.exp() * (p - q)).sum()))
