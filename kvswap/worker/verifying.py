"""The verification levels that need the model: structure, tokens, probe, samples, fingerprint, recomputation.

A check never raises for what it finds, but returns it as its outcome; a cache that cannot be decoded at all raises
`IntegrityError`.  A check that fails is run a second time, from the signed bytes, and accuses the publisher only on the
grounds that `trust.accusation` lists: nothing on this machine's side may explain the difference.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from kvswap.api.events import CheckEvent
from kvswap.artifact import layout
from kvswap.artifact.assembly import ChunkSource
from kvswap.artifact.tensors import LayerTensors
from kvswap.core.errors import Incompatible, InvalidDocument, NotFound
from kvswap.trust import Statement, one_key, read_statement
from kvswap.trust.figures import CheckFigures, micro
from kvswap.trust.intervals import drawn, too_many_cuts
from kvswap.trust.levels import Level, LevelResult
from kvswap.trust.noise import MARGIN, Noise, Spread
from kvswap.trust.sampling import draw
from kvswap.worker.boundaries import Boundaries
from kvswap.worker.chunks import chunk_source
from kvswap.worker.document import DocumentTokens, of_layer, of_text
from kvswap.worker.first_layer import NO_KEYS, first_layer_result, first_of
from kvswap.worker.grounds import judged, static
from kvswap.worker.inbox import JobContext
from kvswap.worker.messages import CheckedArtifact, CheckResult, VerifyJob

if TYPE_CHECKING:
    from kvswap.worker.intervals import Held

Tensors = Sequence[LayerTensors]
_COMPARED = (Level.TOKENS, Level.SAMPLES, Level.RECOMPUTE)  # compared with what the model computes


def verify(context: JobContext, job: VerifyJob) -> CheckedArtifact:
    """Run the levels of verification that need the model.

    Raises `Incompatible` or `IntegrityError` if the artifact cannot be loaded for it.
    """
    checks = Checks(context, read_statement(job.envelope, one_key(job.key)), chunk_source(job.chunks), job)
    results = checks.run([Level(level) for level in job.levels])
    return CheckedArtifact(
        steps=[CheckResult.of(result) for result in results],
        fingerprint=checks.fingerprint() if Level.AGREEMENT in job.levels else b"",
        computed=checks.computed_fingerprint(),
        numerics=context.loaded.numerics(),
    )


class Checks:
    """The checks of one artifact, all of which is in memory.

    Without `noise` only checks that need none are run.  Raises `Incompatible` or `IntegrityError` if the artifact
    cannot be loaded for this model.
    """

    def __init__(self, context: JobContext, statement: Statement, source: ChunkSource, job: VerifyJob) -> None:
        loaded = context.loaded
        self._loaded, self._manifest = loaded, statement.manifest
        self._noise = Noise.of(job.noise) if job.noise is not None else None
        self._samples, self._seed, self._id = job.samples, job.seed, bytes(statement.artifact)
        self._seal, self._source, self._predictors = statement.seal, source, context.predictors
        self._pipe = context.pipe
        self._text = job.text
        self._document: DocumentTokens | None = None
        self._computed: list[LayerTensors] | None = None
        self._fingerprint = b""
        from kvswap.model.prefill import check_reach_of
        from kvswap.model.shape import misshapen

        manifest = self._manifest
        layout.check_compatible(manifest, loaded.identity.digest, loaded.dtype)
        probed = len(manifest.probe.question) + len(manifest.probe.tokens)
        check_reach_of(loaded, manifest, probed)
        self._misshapen = misshapen(loaded, manifest)
        began = time.perf_counter()
        self._load()
        self._loading = time.perf_counter() - began
        self._same = loaded.numerics().environment == manifest.numerics.environment

    def _load(self) -> None:
        """Read every tensor from the signed bytes."""
        from kvswap.artifact.assembly import load
        from kvswap.artifact.tensors import verify_tensors

        manifest, probe = self._manifest, self._manifest.probe
        headroom = len(probe.question) + len(probe.tokens)
        self._tensors: list[LayerTensors] = []  # free the former tensors before the new ones are loaded
        self._tensors = load(manifest, self._source, headroom=headroom, predictors=self._predictors, seal=self._seal)
        verify_tensors(manifest, self._tensors)

    def _again(self) -> None:
        """Read every tensor once more, and forget what was concluded from the former ones."""
        self._pipe.check()
        self._load()
        self._document = None

    def run(self, levels: Sequence[Level]) -> list[LevelResult]:
        """Run the checks of these levels in order, and return their outcomes.

        Levels that need no model are left out.
        """
        ways: dict[Level, Callable[[Tensors], LevelResult]] = {
            Level.STRUCTURE: self._structure,
            Level.TOKENS: self._first_layer,
            Level.PROBE: self._probe,
            Level.SAMPLES: lambda tensors: self._compared(Level.SAMPLES, self._sampled, tensors),
            Level.RECOMPUTE: lambda tensors: self._compared(Level.RECOMPUTE, self._recompute, tensors),
        }
        out = []
        for level in levels:
            if self._misshapen and level in ways and level != Level.STRUCTURE:
                out.append(LevelResult(level, "skipped", why=self._misshapen))
            elif level in _COMPARED and (why := too_many_cuts(self._manifest)):
                out.append(LevelResult(level, "skipped", why=why))
            elif level in _COMPARED and not self._manifest.lossless:
                out.append(LevelResult(level, "skipped", why="a lossy cache, by its publisher's own word"))
            elif level in ways:
                self._pipe.check()
                began = time.perf_counter()
                result = self._judged_result(ways[level])
                seconds = time.perf_counter() - began + (self._loading if level == Level.STRUCTURE else 0.0)
                out.append(LevelResult(level, result.verdict, seconds, result.why, result.figures, result.proven))
                self._pipe.send(CheckEvent(level=int(level), verdict=result.verdict))
        return out

    def _judged_result(self, way: Callable[[Tensors], LevelResult]) -> LevelResult:
        def control() -> str:
            if self._document_tokens().contradicted:  # nothing of the cache was compared, only the manifest with itself
                return ""
            result = way(self._own())
            return "" if result.verdict == "passed" else f"this reader's own cache of the same tokens: {result.why}"

        return judged(
            lambda: way(self._tensors),
            lambda: static(self._loaded, self._loaded.identity.digest, self._manifest, self._document_tokens()),
            self._again,
            control,
        )

    def fingerprint(self) -> bytes:
        """Return the fingerprint of the artifact's cache."""
        from kvswap.artifact.fingerprint import fingerprint

        return fingerprint(self._tensors)

    def computed_fingerprint(self) -> bytes:
        """Return the fingerprint of the cache that V7 recomputed, or empty if V7 did not run."""
        return self._fingerprint

    # -- what they need --------------------------------------------------------------------------

    def _document_tokens(self) -> DocumentTokens:
        """Return the document's token ids: from its text, or read back from layer 0."""
        if self._document is None:
            if self._misshapen:
                self._document = DocumentTokens(None, self._misshapen)
            elif self._text is not None:
                self._document = of_text(self._loaded, self._manifest, self._text)
            else:
                self._document = of_layer(self._loaded, self._manifest, self._first(self._tensors))
        return self._document

    def _first(self, tensors: Tensors) -> LayerTensors | None:
        """Return the first layer that keeps something of each token."""
        index = first_of(self._manifest.layout.layers)
        return None if index is None else tensors[index]

    def _own(self) -> list[LayerTensors]:
        """Return this reader's own cache of the document, computed once and in another way than the checks compute."""
        from kvswap.worker.noise import otherwise

        if self._computed is None:
            ids = self._document_tokens().ids
            assert ids is not None  # noqa: S101 - nothing is compared before they are known
            self._pipe.check()
            self._computed = otherwise(self._loaded, list(ids))
        return self._computed

    def _prefilled(self, boundaries: Boundaries | None) -> list[LayerTensors]:
        """Compute the document's cache again, and compare what is held before its end, unless that is None."""
        from kvswap.model.cache import held_tensors, layer_specs, new_cache
        from kvswap.model.prefill import canonical_prefill

        ids = self._document_tokens().ids
        assert ids is not None  # noqa: S101 - nothing is compared before they are known
        cache = new_cache(self._loaded.model.config, len(ids))
        cuts = self._manifest.layout.checkpoints
        for block in canonical_prefill(self._loaded, cache, ids, self._manifest.prefix.block_tokens, cuts=cuts):
            self._pipe.check()
            if boundaries is not None:
                boundaries.compare(cache, block.index, block.start, block.stop)
        return held_tensors(cache, layer_specs(cache), len(ids))

    # -- the steps -------------------------------------------------------------------------------

    def _structure(self, tensors: Tensors) -> LevelResult:
        import torch

        if self._misshapen:
            return LevelResult(Level.STRUCTURE, "failed", why=self._misshapen)
        for index, held in enumerate(tensors):
            for place, spec in enumerate(held.spec.tensors):
                if not bool(torch.isfinite(held.filled(place)).all()):
                    name = spec.name.upper() if len(spec.name) == 1 else spec.name
                    return LevelResult(
                        Level.STRUCTURE, "failed", why=f"{name} of layer {index} is not finite everywhere"
                    )
        return LevelResult(Level.STRUCTURE, "passed", figures=CheckFigures(tensors=len(tensors)))

    def _first_layer(self, tensors: Tensors) -> LevelResult:
        known = self._document_tokens()
        if known.ids is None:
            return LevelResult(Level.TOKENS, "failed" if known.contradicted else "skipped", why=known.why)
        held = self._first(tensors)
        if held is None:
            return LevelResult(Level.TOKENS, "skipped", why=NO_KEYS)
        result = first_layer_result(self._loaded, held, known.ids, self._manifest)
        figures = replace(result.figures, read_back=known.read_back)
        return LevelResult(Level.TOKENS, result.verdict, why=result.why, figures=figures)

    def _probe(self, tensors: Tensors) -> LevelResult:
        from kvswap.model.cache import build_cache
        from kvswap.model.prefill import greedy
        from kvswap.model.shape import unaskable

        manifest, loaded, probe = self._manifest, self._loaded, self._manifest.probe
        if not probe.tokens:
            return LevelResult(Level.PROBE, "skipped", why="its publisher had no model to make a probe with")
        figures = CheckFigures(tokens_equal=False, logits_equal=False, same_environment=self._same)
        if why := unaskable(loaded, manifest):
            return LevelResult(Level.PROBE, "failed", why=why, figures=figures)
        cache = build_cache(loaded.model.config, tensors, manifest.prefix.tokens, loaded.device)
        try:
            answer = greedy(loaded, cache, manifest.prefix.tokens, probe.question, len(probe.tokens))
        except Incompatible as error:  # the logits after this cache are not finite: the other checks still run
            return LevelResult(Level.PROBE, "failed", why=error.message, figures=figures)
        tokens_equal = answer.ids == list(probe.tokens)
        logits_equal = answer.logits_digest == "blake3:" + probe.logits.hex()
        figures = replace(figures, tokens_equal=tokens_equal, logits_equal=logits_equal)
        if tokens_equal:
            return LevelResult(Level.PROBE, "passed", figures=figures)
        return LevelResult(Level.PROBE, "failed", why="it does not continue as its publisher said", figures=figures)

    def _compared(
        self, level: Level, way: Callable[[Tensors, Sequence[int], Noise], LevelResult], tensors: Tensors
    ) -> LevelResult:
        """Run a check that needs the token ids and the honest noise; skip it without either."""
        known = self._document_tokens()
        if known.ids is None:
            return LevelResult(level, "skipped", why=known.why)
        if self._noise is None:
            return LevelResult(level, "skipped", why="the honest noise of this model was not measured")
        return way(tensors, known.ids, self._noise)

    def _sampled(self, tensors: Tensors, ids: Sequence[int], noise: Noise) -> LevelResult:
        """Compute single positions again, or intervals where a window, a state or the model's own mask forbids that."""
        from kvswap.model.recompute import at_positions

        if noise.samples is None or any(held.first or held.spec.has_states for held in tensors):
            return self._by_intervals(tensors, ids, noise)
        tokens = self._manifest.prefix.tokens
        positions = draw(self._seed, self._id, tokens, self._samples)
        errors = at_positions(self._loaded, tensors, tokens, ids, positions)
        return self._measured(Level.SAMPLES, errors, positions, noise.samples)

    def _by_intervals(self, tensors: Tensors, ids: Sequence[int], noise: Noise) -> LevelResult:
        from kvswap.worker.intervals import Signed, check_intervals

        if noise.intervals is None:
            return LevelResult(Level.SAMPLES, "skipped", why="the honest noise of intervals was not measured")
        manifest = self._manifest
        held: Held = Signed(manifest, self._source, self._predictors, self._seal, tensors)
        if tensors is not self._tensors:
            held = self._own_at
        drawing = drawn(manifest, self._seed, self._id, self._samples)
        try:
            return check_intervals(self._loaded, held, ids, manifest.blocks, drawing, noise.intervals, self._pipe.check)
        except NotFound as error:
            why = f"what is held at the ends of the intervals drawn is not here: {error.message}"
            return LevelResult(Level.SAMPLES, "skipped", why=why)

    def _own_at(self, tokens: int, headroom: int) -> Tensors:
        """Return what this reader's own cache holds after so many tokens, computed in another way than checks do."""
        from kvswap.worker.intervals import with_headroom
        from kvswap.worker.noise import otherwise

        ids = self._document_tokens().ids
        assert ids is not None  # noqa: S101 - nothing is compared before they are known
        own = self._own() if tokens == len(ids) else otherwise(self._loaded, list(ids[:tokens]))
        return with_headroom(own, headroom)

    def _recompute(self, tensors: Tensors, ids: Sequence[int], noise: Noise) -> LevelResult:
        from kvswap.artifact.fingerprint import fingerprint
        from kvswap.artifact.tensors import digest_layer
        from kvswap.model.recompute import differences

        # Whether this reader computes right (its own tensors) has nothing to do with what an artifact holds.
        signed = tensors is self._tensors
        boundaries = Boundaries(self._manifest, self._source, noise.recompute, self._seal) if signed else None
        try:
            computed = self._prefilled(boundaries)
        except (Incompatible, InvalidDocument) as error:
            return LevelResult(Level.RECOMPUTE, "skipped", why=f"this reader cannot compute it: {error.message}")
        self._fingerprint = fingerprint(computed)
        bitwise = all(digest_layer(c) == signed for c, signed in zip(computed, self._manifest.tensors, strict=True))
        result = self._measured(Level.RECOMPUTE, differences(tensors, computed), range(len(ids)), noise.recompute)
        verdict, why = result.verdict, result.why
        if boundaries is not None:
            bitwise = bitwise and boundaries.bitwise
            if boundaries.why and verdict == "passed":
                verdict, why = "failed", boundaries.why
        if not (why or bitwise) and self._same:
            why = "within honest noise but not the same bits, although the environment is said to be the same"
        return LevelResult(Level.RECOMPUTE, verdict, 0.0, why, replace(result.figures, bitwise=bitwise))

    def _measured(self, level: Level, errors: Any, positions: Sequence[int], spread: Spread) -> LevelResult:
        """Judge errors [position, layer, K or V] against the honest noise."""
        score = spread.score(errors.numpy())
        wrong = score.wrong
        worst = micro(round(score.worst, 2))
        figures = CheckFigures(positions=len(positions), wrong=len(wrong), worst=worst, margin=micro(MARGIN))
        if score.honest:
            return LevelResult(level, "passed", figures=figures)
        distance = f"{score.worst:.1f} times the most that honest caches show"
        if not wrong:
            why = f"layer {score.layer} is not the model's: all positions together are {distance}"
            return LevelResult(level, "failed", why=why, figures=replace(figures, layer=score.layer))
        first = positions[wrong[0]]
        of = f"{len(wrong)} of {len(positions)} positions"
        why = f"{of} are not what the model makes of the text, the first is {first}: {distance}"
        return LevelResult(level, "failed", why=why, figures=replace(figures, first=first))
