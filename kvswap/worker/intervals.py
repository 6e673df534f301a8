"""V5 of caches with windows and states: an interval is computed from what is signed before it, and compared after it.

At the first of two places that readers resume at the cache is as it was signed; the model computes the tokens up to the
second; their keys and values, the windows and the states there have to be those that were signed.  Memory: the cache a
second time, up to one interval's end.  Work: the interval's tokens, and decoding what is held at its two ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from msgspec.structs import replace

from kvswap.artifact import layout as layouts
from kvswap.artifact.blocks import Blocks
from kvswap.artifact.manifest import Manifest
from kvswap.artifact.sealing import Seal
from kvswap.artifact.tensors import LayerTensors
from kvswap.core.errors import Incompatible
from kvswap.trust.figures import CheckFigures, micro
from kvswap.trust.intervals import Draw, Interval
from kvswap.trust.levels import Level, LevelResult
from kvswap.trust.noise import MARGIN, Errors, Score, Spread

if TYPE_CHECKING:
    from kvswap.artifact.assembly import ChunkSource, Predictors

Held = Callable[[int, int], Sequence[LayerTensors]]
"""What a cache holds after so many tokens, with memory for so many more behind what grows."""


@dataclass(frozen=True, slots=True)
class Signed:
    """The tensors that an artifact holds at a place where readers resume, from its signed bytes.

    `end` is what it holds at its end, loaded already; what grows is copied from there.  Raises `NotFound` for a chunk
    that is not here, `IntegrityError` for one that does not decode to what was signed.
    """

    manifest: Manifest
    source: ChunkSource
    predictors: Predictors
    seal: Seal | None
    end: Sequence[LayerTensors]

    def __call__(self, tokens: int, headroom: int) -> Sequence[LayerTensors]:
        """Return the tensors of every layer after `tokens` tokens."""
        from kvswap.artifact.assembly import Assembly

        manifest, layout = self.manifest, self.manifest.layout
        if tokens == manifest.prefix.tokens and not headroom:
            return self.end
        chunks = layouts.needed(manifest, tokens)
        with Assembly(
            manifest, self.source, tokens=tokens, headroom=headroom, predictors=self.predictors, seal=self.seal
        ) as assembly:
            if manifest.predictor is None:  # with one, chunks of a block are coded against each other
                chunks = [i for i in chunks if not self._grows(manifest.chunks[i].run)]
                for group in filter(self._grows, range(len(layout.groups))):
                    for layer, place in layout.members[group]:
                        assembly.tensors[layer].tensors[place][:, :tokens] = self.end[layer].tensors[place][:, :tokens]
            assembly.fill(chunks)
            assembly.wait()
            return assembly.tensors

    def _grows(self, group: int) -> bool:
        layout = self.manifest.layout
        return not layout.is_state(group) and layout.layers[layout.groups[group].layers[0]].window is None


def check_intervals(
    loaded: Any,
    held: Held,
    ids: Sequence[int],
    passes: Blocks,
    draw: Draw,
    spread: Spread,
    check: Callable[[], None],
) -> LevelResult:
    """Compute the drawn intervals in the publisher's passes and judge their differences; `check` raises to cancel.

    Returns V5's outcome, with how many intervals there are and the chance of finding one that is wrong.
    """
    figures = CheckFigures(
        intervals=len(draw.intervals),
        of_intervals=draw.of,
        chance=micro(round(draw.chance, 4)),
        positions=sum(interval.tokens for interval in draw.intervals),
        wrong=0,
        worst=0,
        margin=micro(MARGIN),
    )
    farthest = 0.0
    for interval in draw.intervals:
        check()
        score, why = _judge(loaded, held, ids, passes, interval, spread)
        worst = score.worst if score is not None else np.inf
        farthest = max(farthest, round(min(float(worst), 1e6), 2))
        figures = replace(figures, worst=micro(farthest))
        if why:
            wrong = len(score.wrong) if score is not None else interval.tokens
            return LevelResult(
                Level.SAMPLES, "failed", why=why, figures=replace(figures, wrong=wrong, first=interval.start)
            )
    return LevelResult(Level.SAMPLES, "passed", figures=figures)


def _judge(
    loaded: Any, held: Held, ids: Sequence[int], passes: Blocks, interval: Interval, spread: Spread
) -> tuple[Score | None, str]:
    start, stop = interval.start, interval.stop
    before = held(start, stop - start) if start else []
    if not all(bool(torch.isfinite(part).all()) for layer in before for part in layer.each_filled()):
        return None, f"what it holds after {start} tokens is not finite everywhere"
    try:
        computed = computed_on(loaded, before, ids[:stop], start, passes.block_tokens, passes.cuts)
    except Incompatible as error:  # of finite numbers that no right cache has, or of this machine: the control tells
        return None, f"computed on from what it holds after {start} tokens: {error.message}"
    score = spread.score(interval_errors(held(stop, 0), computed, start))
    if score.honest:
        return score, ""
    return score, (
        f"tokens {start} to {stop} are not what the model makes of them from what it holds before: "
        f"{score.worst:.1f} times the most that honest caches show"
    )


def computed_on(
    loaded: Any,
    before: Sequence[LayerTensors],
    ids: Sequence[int],
    start: int,
    block_tokens: int,
    cuts: Sequence[int] = (),
) -> list[LayerTensors]:
    """Compute tokens from `start` to the end of `ids` on top of what is held before, and return what is held then.

    The tensors of `before` that grow become the cache's memory.  Raises `Incompatible` if what comes out is not finite.
    """
    from kvswap.model.cache import build_cache, held_tensors, layer_specs, new_cache
    from kvswap.model.prefill import canonical_prefill

    config = loaded.model.config
    cache = build_cache(config, before, start, loaded.device) if start else new_cache(config, len(ids))
    for _ in canonical_prefill(loaded, cache, ids, block_tokens, start, cuts):
        pass
    return held_tensors(cache, layer_specs(cache), len(ids))


def interval_errors(supplied: Sequence[LayerTensors], computed: Sequence[LayerTensors], start: int) -> Errors:
    """Return the relative differences of two caches at the tokens from `start` on, [position, layer, tensor].

    Not a number where a layer keeps nothing of a token.  That of a state is the same at each of them.
    """
    from kvswap.model.recompute import relative

    stop = max(held.first + held.tokens for held in computed)
    width = max(len(held.tensors) for held in computed)
    out = np.full((stop - start, len(computed), width), np.nan, np.float32)
    for layer, (one, other) in enumerate(zip(supplied, computed, strict=True)):
        first = max(start, other.first)
        for place, spec in enumerate(other.spec.tensors):
            if spec.rows is not None:
                far = relative(one.filled(place).reshape(1, 1, -1), other.filled(place).reshape(1, 1, -1))
                out[:, layer, place] = far.numpy()
            elif first < stop:
                a, b = (t.tensors[place][:, first - t.first : stop - t.first].cpu() for t in (one, other))
                out[first - start :, layer, place] = relative(a, b).numpy()
    return out


def honest_errors(
    loaded: Any, held: Mapping[int, Sequence[LayerTensors]], ids: Sequence[int], block_tokens: int
) -> list[Errors]:
    """Return the errors that a right cache of these ids shows, given what it holds after several token counts."""
    out: list[Errors] = []
    start, before = 0, list[LayerTensors]()
    for stop, after in sorted(held.items()):
        made = computed_on(loaded, with_headroom(before, stop - start), ids[:stop], start, block_tokens)
        out.append(interval_errors(after, made, start))
        start, before = stop, list(after)
    return out


def with_headroom(held: Sequence[LayerTensors], headroom: int) -> list[LayerTensors]:
    """Copy tensors with memory for further tokens behind those that keep every token."""
    out = []
    for layer in held:
        grown = layer.spec.window is None
        tensors = tuple(
            torch.cat([t, t.new_zeros((t.shape[0], headroom, t.shape[2]))], 1)
            if grown and spec.rows is None
            else t.clone()
            for spec, t in zip(layer.spec.tensors, layer.each_filled(), strict=True)
        )
        out.append(LayerTensors(layer.spec, tensors, layer.first, layer.tokens))
    return out
