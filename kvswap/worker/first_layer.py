"""Verification level V3: layer 0 against the tokens.

It costs a hundredth of a prefill, so every reader that has the text runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvswap.artifact.manifest import Manifest
from kvswap.artifact.tensors import LayerTensors
from kvswap.trust.accusation import accuses, proof
from kvswap.trust.levels import Level, LevelResult
from kvswap.trust.noise import ROUNDING
from kvswap.worker.document import DocumentTokens
from kvswap.worker.grounds import judged, static

_ROUNDINGS = 4.0  # a position of layer 0 may differ by so many


def first_layer_result(loaded: Any, held: LayerTensors, ids: Sequence[int], block_tokens: int) -> LevelResult:
    """Compare K and V of layer 0, as held after the last of these ids, with what the model computes from the ids."""
    import torch

    from kvswap.model.recompute import first_layer, relative

    first = held.first
    made_k, made_v = (made[:, first:] for made in first_layer(loaded, ids, block_tokens))
    pairs = ((held.k[:, : held.tokens].cpu(), made_k), (held.v[:, : held.tokens].cpu(), made_v))
    errors = torch.stack([relative(*pair) for pair in pairs]).amax(0)
    errors /= _ROUNDINGS * ROUNDING[loaded.dtype]
    wrong = (errors > 1).nonzero().flatten().tolist()
    tokens = len(ids) - first
    figures = {
        "positions": tokens,
        "wrong": len(wrong),
        "worst": round(min(float(errors.max()), 1e6), 2),  # in multiples of what is allowed
        "bitwise": all(torch.equal(*pair) for pair in pairs),
    }
    if not wrong:
        return LevelResult(Level.TOKENS, "passed", figures=figures)
    why = (
        f"{len(wrong)} of {tokens} positions of layer 0 are not those of the tokens, the first is {first + wrong[0]}: "
        f"up to {figures['worst']} times as far away as rounding explains"
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
        again: Callable[[], LayerTensors],
    ) -> None:
        from kvswap.artifact.layout import held_span
        from kvswap.model.cache import caching_layers

        self._loaded, self._identity, self._manifest, self._document = loaded, identity, manifest, document
        self._again, self._tokens = again, tokens
        first, stop = held_span(manifest.layout.layers[0], tokens)
        layer = caching_layers(cache)[0]
        at = layer.keys.shape[2] - (stop - first)
        self._held = LayerTensors(layer.keys[0, :, at:], layer.values[0, :, at:], first, stop - first)

    def check(self) -> LevelResult:
        """Run V3 and return its outcome, with the judgement whether a failure proves a fault of the publisher."""
        document = self._document
        if document.ids is None:
            look = LevelResult(Level.TOKENS, "failed" if document.contradicted else "skipped", why=document.why)
            return judged(lambda: look, self._grounds, lambda: None, lambda: "")
        return judged(lambda: self._compare(self._held), self._grounds, self._reload, self._control)

    def _compare(self, held: LayerTensors) -> LevelResult:
        assert self._document.ids is not None  # noqa: S101 - looked at in `result`
        return first_layer_result(self._loaded, held, self._document.ids, self._manifest.prefix.block_tokens)

    def _grounds(self) -> Any:
        return static(self._loaded, self._identity, self._manifest, self._document)

    def _reload(self) -> None:
        self._held = self._again()

    def _control(self) -> str:
        from kvswap.model.cache import held_tensors, layer_specs
        from kvswap.model.prefill import prefill

        ids = self._document.ids
        assert ids is not None  # noqa: S101 - looked at in `result`
        own = prefill(self._loaded, ids, self._manifest.prefix.block_tokens)
        result = self._compare(held_tensors(own, layer_specs(own), len(ids))[0])
        return "" if result.verdict == "passed" else f"this reader's own cache of the same tokens: {result.why}"


def require(result: LevelResult) -> None:
    """Raise `IntegrityError` if a check's outcome proves that the publisher is at fault."""
    if accuses(result):
        raise proof(result, "the cache is of another text")
