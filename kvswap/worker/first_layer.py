"""Verification level V3: the first layer of keys and values against the tokens.

In most models that is layer 0, at a hundredth of the cost of a prefill, so every reader that has the text runs it.
Where layers that keep states come before it, they are computed as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvswap.artifact.manifest import Manifest
from kvswap.artifact.specs import LayerSpec
from kvswap.artifact.tensors import LayerTensors
from kvswap.trust.accusation import accuses, proof
from kvswap.trust.figures import CheckFigures, micro
from kvswap.trust.levels import Level, LevelResult
from kvswap.trust.noise import ROUNDING
from kvswap.worker.document import DocumentTokens
from kvswap.worker.grounds import judged, static

NO_KEYS = "no layer of this model keeps anything of single tokens"
_ROUNDINGS = 4.0  # a position of layer 0 may differ by so many


def first_of(layers: Sequence[LayerSpec]) -> int | None:
    """Return the number of the first cache layer that keeps something of each token, or None without one."""
    return next((index for index, layer in enumerate(layers) if layer.kind != "state"), None)


def first_layer_result(loaded: Any, held: LayerTensors, ids: Sequence[int], manifest: Manifest) -> LevelResult:
    """Compare K and V of the first layer that keeps them with what the model computes.

    They are as held after the last of these ids, from which it computes.
    """
    import torch

    from kvswap.model.recompute import first_layer, relative

    first = held.first
    computed = first_layer(loaded, ids, manifest.prefix.block_tokens, manifest.layout.checkpoints)
    made_k, made_v = (made[:, first:] for made in computed)
    pairs = ((held.k[:, : held.tokens].cpu(), made_k), (held.v[:, : held.tokens].cpu(), made_v))
    errors = torch.stack([relative(*pair) for pair in pairs]).amax(0)
    errors /= _ROUNDINGS * ROUNDING[loaded.dtype]
    wrong = (errors > 1).nonzero().flatten().tolist()
    tokens = len(ids) - first
    worst = round(min(float(errors.max()), 1e6), 2)  # in multiples of what is allowed
    bitwise = all(torch.equal(*pair) for pair in pairs)
    figures = CheckFigures(positions=tokens, wrong=len(wrong), worst=micro(worst), bitwise=bitwise)
    if not wrong:
        return LevelResult(Level.TOKENS, "passed", figures=figures)
    why = (
        f"{len(wrong)} of {tokens} positions of layer 0 are not those of the tokens, the first is {first + wrong[0]}: "
        f"up to {worst} times as far away as rounding explains"
    )
    return LevelResult(Level.TOKENS, "failed", why=why, figures=figures)


class FirstLayer:
    """Layer 0 of a cache as it was loaded, to be compared with the tokens once the answer is complete.

    Create it before the cache is used, as further tokens move a sliding window.  `again` reads layer 0 from the signed
    bytes once more, for the second look after a failure.
    """

    def __init__(
        self,
        loaded: Any,
        identity: bytes,
        manifest: Manifest,
        cache: Any,
        document: DocumentTokens,
        tokens: int,
        again: Callable[[], Sequence[LayerTensors]],
    ) -> None:
        from kvswap.artifact.layout import held_span
        from kvswap.model.cache import caching_layers
        from kvswap.model.layers import read

        self._loaded, self._identity, self._manifest, self._document = loaded, identity, manifest, document
        self._again, self._tokens = again, tokens
        self._held: LayerTensors | None = None
        if (index := first_of(manifest.layout.layers)) is not None:
            spec = manifest.layout.layers[index]
            first, stop = held_span(spec, tokens)
            self._held = LayerTensors(
                spec, tuple(read(caching_layers(cache)[index], spec, stop - first)), first, stop - first
            )

    def check(self) -> LevelResult:
        """Run V3 and return its outcome, with the judgement whether a failure proves a fault of the publisher."""
        document = self._document
        if document.ids is None:
            look = LevelResult(Level.TOKENS, "failed" if document.contradicted else "skipped", why=document.why)
            return judged(lambda: look, self._grounds, lambda: None, lambda: "")
        if self._held is None:
            return LevelResult(Level.TOKENS, "skipped", why=NO_KEYS)
        return judged(lambda: self._compare(self._held), self._grounds, self._reload, self._control)

    def _compare(self, held: LayerTensors | None) -> LevelResult:
        assert self._document.ids is not None and held is not None  # noqa: S101 - looked at in `result`
        return first_layer_result(self._loaded, held, self._document.ids, self._manifest)

    def _grounds(self) -> Any:
        return static(self._loaded, self._identity, self._manifest, self._document)

    def _reload(self) -> None:
        self._held = self._again()[first_of(self._manifest.layout.layers) or 0]

    def _control(self) -> str:
        from kvswap.model.cache import held_tensors, layer_specs
        from kvswap.model.prefill import prefill

        ids = self._document.ids
        assert ids is not None  # noqa: S101 - looked at in `result`
        own = prefill(self._loaded, ids, self._manifest.prefix.block_tokens)
        specs = layer_specs(own)
        result = self._compare(held_tensors(own, specs, len(ids))[first_of(specs) or 0])
        return "" if result.verdict == "passed" else f"this reader's own cache of the same tokens: {result.why}"


def require(result: LevelResult) -> None:
    """Raise `IntegrityError` if a check's outcome proves that the publisher is at fault."""
    if accuses(result):
        raise proof(result, "the cache is of another text")
