"""The steps of the ladder that need the model: structure, tokens, probe, samples, fingerprint, recomputing.

A step never raises for what it finds; it says so.  What cannot be decoded at all raises `IntegrityError`.
A step that fails is computed a second time, and counts only if it fails again: it condemns a publisher, and
must not rest on one slip of this machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kvswap.artifact import chain, layout
from kvswap.core.errors import Incompatible, IntegrityError
from kvswap.trust import Statement
from kvswap.trust.ladder import Level, Step
from kvswap.trust.noise import MARGIN, ROUNDING, Noise, Spread
from kvswap.trust.sampling import draw

if TYPE_CHECKING:
    from kvswap.artifact.assembly import ChunkSource, Predictors

_COMPARED = (Level.TOKENS, Level.SAMPLES, Level.RECOMPUTE)  # with what the model makes
_FIRST_LAYER = 4.0  # roundings that a position of layer 0 may be away


class Checks:
    """Of one artifact, all of it in memory.  `noise` None: only steps that need none."""

    def __init__(
        self,
        loaded: Any,
        statement: Statement,
        source: ChunkSource,
        predictors: Predictors,
        *,
        text: str | None,
        noise: Noise | None,
        samples: int,
        seed: bytes,
        say: Callable[..., None],
        check: Callable[[], None],
    ) -> None:
        from kvswap.artifact.assembly import load
        from kvswap.artifact.tensors import verify_tensors

        self._loaded, self._manifest, self._noise = loaded, statement.manifest, noise
        self._samples, self._seed, self._id = samples, seed, bytes(statement.artifact)
        self._say, self._check = say, check
        self._text = text
        self._ids: Sequence[int] | None = None
        self._unknown = ""  # why the ids are not known,
        self._wrong = False  # and whether that is because the cache is of something else
        manifest = self._manifest
        layout.check_compatible(manifest, loaded.identity.digest, loaded.dtype)
        began = time.perf_counter()
        probe = manifest.probe
        room = len(probe.question) + len(probe.tokens)
        self._tensors = load(manifest, source, room=room, predictors=predictors, seal=statement.seal)
        verify_tensors(manifest, self._tensors)
        self._loading = time.perf_counter() - began
        self._same = loaded.numerics().environment == manifest.numerics.environment

    def run(self, levels: Sequence[Level]) -> list[Step]:
        """These steps, in order."""
        ways: dict[Level, Callable[[], Step]] = {
            Level.STRUCTURE: self._structure,
            Level.TOKENS: self._first_layer,
            Level.PROBE: self._probe,
            Level.SAMPLES: lambda: self._compared(Level.SAMPLES, self._sampled),
            Level.RECOMPUTE: lambda: self._compared(Level.RECOMPUTE, self._recompute),
        }
        out = []
        for level in levels:
            if level in _COMPARED and not self._manifest.exact:
                out.append(Step(level, "skipped", why="an inexact cache, by its publisher's own word"))
            elif level in ways:
                self._check()
                began = time.perf_counter()
                step = twice(ways[level])
                seconds = time.perf_counter() - began + (self._loading if level == Level.STRUCTURE else 0.0)
                out.append(Step(level, step.verdict, seconds, step.why, step.figures))
                self._say("verify", step=int(level), verdict=step.verdict)
        return out

    def fingerprint(self) -> bytes:
        from kvswap.artifact.fingerprint import fingerprint

        return fingerprint(self._tensors)

    # -- the steps -------------------------------------------------------------------------------

    def _structure(self) -> Step:
        import torch

        for index, held in enumerate(self._tensors):
            for name, tensor in (("K", held.k), ("V", held.v)):
                if not bool(torch.isfinite(tensor[:, : held.tokens]).all()):
                    return Step(Level.STRUCTURE, "failed", why=f"{name} of layer {index} is not finite everywhere")
        return Step(Level.STRUCTURE, "passed", figures={"tensors": len(self._tensors)})

    def _known(self) -> Sequence[int] | None:
        """The ids of the document: from its text, or read back from layer 0."""
        if self._ids is None and not self._unknown:
            prefix, document = self._manifest.prefix, self._manifest.document
            first = self._tensors[0]
            if self._text is not None:
                ids = self._loaded.tokenize(self._text)[: prefix.tokens]
                if chain.token_digest(ids) == prefix.token_digest:
                    self._ids = ids
                else:
                    self._unknown, self._wrong = "the manifest's tokens are not those of the text", True
            elif document is None:
                self._unknown = "a private document, and its text was not given"
            elif first.first:
                self._unknown = "the text was not given, and layer 0 keeps only a window of it"
            else:
                from kvswap.model.readback import read_document

                try:
                    v = first.v[:, : first.tokens]
                    self._ids = read_document(self._loaded, v, prefix.token_digest, document.sha256)
                except (IntegrityError, Incompatible) as error:
                    self._unknown, self._wrong = error.message, isinstance(error, IntegrityError)
        return self._ids

    def _first_layer(self) -> Step:
        if self._wrong:
            self._unknown, self._wrong = "", False  # looked at before: read them again
        ids = self._known()
        if ids is None:
            return Step(Level.TOKENS, "failed" if self._wrong else "skipped", why=self._unknown)
        held = self._tensors[0]
        k, v = (tensor[:, : held.tokens] for tensor in (held.k, held.v))
        step = first_layer_step(self._loaded, k, v, ids, held.first, self._manifest.prefix.block_tokens)
        return Step(Level.TOKENS, step.verdict, why=step.why, figures=step.figures | {"read_back": self._text is None})

    def _probe(self) -> Step:
        from kvswap.model.cache import build_cache
        from kvswap.model.prefill import greedy

        manifest, loaded, probe = self._manifest, self._loaded, self._manifest.probe
        if not probe.tokens:
            return Step(Level.PROBE, "skipped", why="its publisher had no model to make a probe with")
        cache = build_cache(loaded.model.config, self._tensors, manifest.prefix.tokens, loaded.device)
        made = greedy(loaded, cache, manifest.prefix.tokens, probe.question, len(probe.tokens))
        figures = {
            "tokens_equal": made.ids == list(probe.tokens),
            "logits_equal": made.logits_digest == "blake3:" + probe.logits.hex(),
            "same_environment": self._same,
        }
        if figures["tokens_equal"]:
            return Step(Level.PROBE, "passed", figures=figures)
        return Step(Level.PROBE, "failed", why="it does not continue as its publisher said", figures=figures)

    def _compared(self, level: Level, way: Callable[[Sequence[int], Noise], Step]) -> Step:
        """A step that needs the ids and what is noise."""
        ids = self._known()
        if ids is None:
            return Step(level, "skipped", why=self._unknown)
        if self._noise is None:
            return Step(level, "skipped", why="the honest noise of this model was not measured")
        return way(ids, self._noise)

    def _sampled(self, ids: Sequence[int], noise: Noise) -> Step:
        from kvswap.model.recompute import at_positions

        if noise.samples is None or any(held.first for held in self._tensors):
            return Step(Level.SAMPLES, "skipped", why="sliding layers keep too little of the text; V7 checks them")
        tokens = self._manifest.prefix.tokens
        positions = draw(self._seed, self._id, tokens, self._samples)
        errors = at_positions(self._loaded, self._tensors, tokens, ids, positions)
        return self._judged(Level.SAMPLES, errors, positions, noise.samples)

    def _recompute(self, ids: Sequence[int], noise: Noise) -> Step:
        from kvswap.artifact.tensors import digest_layer
        from kvswap.model.cache import held_tensors, layer_specs, new_cache
        from kvswap.model.prefill import canonical_prefill
        from kvswap.model.recompute import differences

        loaded, manifest = self._loaded, self._manifest
        cache = new_cache(loaded.model.config, len(ids))
        for _ in canonical_prefill(loaded, cache, ids, manifest.prefix.block_tokens):
            self._check()
        computed = held_tensors(cache, layer_specs(cache), len(ids))
        bitwise = all(digest_layer(c) == told for c, told in zip(computed, manifest.tensors, strict=True))
        step = self._judged(Level.RECOMPUTE, differences(self._tensors, computed), range(len(ids)), noise.recompute)
        why = step.why
        if not (why or bitwise) and self._same:
            why = "within honest noise but not the same bits, although the environment is said to be the same"
        return Step(Level.RECOMPUTE, step.verdict, 0.0, why, step.figures | {"bitwise": bitwise})

    def _judged(self, level: Level, errors: Any, positions: Sequence[int], spread: Spread) -> Step:
        """By [position, layer, K or V]."""
        score = spread.score(errors.numpy())
        wrong = score.wrong
        figures = {"positions": len(positions), "wrong": len(wrong), "worst": round(score.worst, 2), "margin": MARGIN}
        if score.honest:
            return Step(level, "passed", figures=figures)
        said = f"{score.worst:.1f} times the most that honest caches show"
        if not wrong:
            why = f"layer {score.layer} is not the model's: all positions together are {said}"
            return Step(level, "failed", why=why, figures=figures | {"layer": score.layer})
        first = positions[wrong[0]]
        of = f"{len(wrong)} of {len(positions)} positions"
        why = f"{of} are not what the model makes of the text, the first is {first}: {said}"
        return Step(level, "failed", why=why, figures=figures | {"first": first})


def twice(look: Callable[[], Step]) -> Step:
    """What this look finds; of a failure, what a second one finds."""
    step = look()
    return look() if step.verdict == "failed" else step


def first_layer_step(loaded: Any, k: Any, v: Any, ids: Sequence[int], first: int, block_tokens: int) -> Step:
    """V3: K and V of layer 0, [head, token, dim], which hold the tokens from `first` on, against those of the ids."""
    import torch

    from kvswap.model.recompute import first_layer, relative

    made_k, made_v = (made[:, first:] for made in first_layer(loaded, ids, block_tokens))
    pairs = ((k.cpu(), made_k), (v.cpu(), made_v))
    errors = torch.stack([relative(*pair) for pair in pairs]).amax(0)
    errors /= _FIRST_LAYER * ROUNDING[loaded.dtype]
    wrong = (errors > 1).nonzero().flatten().tolist()
    tokens = len(ids) - first
    figures = {
        "positions": tokens,
        "wrong": len(wrong),
        "worst": round(min(float(errors.max()), 1e6), 2),  # in multiples of what is allowed
        "bitwise": all(torch.equal(*pair) for pair in pairs),
    }
    if not wrong:
        return Step(Level.TOKENS, "passed", figures=figures)
    why = (
        f"{len(wrong)} of {tokens} positions of layer 0 are not those of the tokens, the first is {first + wrong[0]}: "
        f"up to {figures['worst']} times as far away as rounding explains"
    )
    return Step(Level.TOKENS, "failed", why=why, figures=figures)


def check_first_layer(loaded: Any, cache: Any, ids: Sequence[int], block_tokens: int) -> None:
    """V3 of the beginning of a cache, if its first layer keeps all of it.  Raises `IntegrityError`."""
    layer = cache.layers[0]
    if layer.keys.shape[2] < len(ids):
        return
    k, v = (tensor[0, :, : len(ids)] for tensor in (layer.keys, layer.values))
    step = twice(lambda: first_layer_step(loaded, k, v, ids, 0, block_tokens))
    if step.verdict == "failed":
        raise IntegrityError(step.why, cause="the cache is of another text", step="V3")
