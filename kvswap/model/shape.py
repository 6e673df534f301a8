"""The structure of a model's cache: the kinds and shapes of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from kvswap.artifact.manifest import Manifest
from kvswap.artifact.specs import LayerSpec, layer_words
from kvswap.core.errors import Incompatible

_known: WeakKeyDictionary[Any, Sequence[LayerSpec]] = WeakKeyDictionary()


def layers_of(loaded: Any) -> Sequence[LayerSpec]:
    """Return the layers of this model's cache, determined once by running one token through it."""
    from kvswap.model.cache import layer_specs, new_cache
    from kvswap.model.prefill import forward

    found = _known.get(loaded.model)
    if found is None:
        cache = new_cache(loaded.model.config, 1)
        forward(loaded, cache, [0], 0)
        found = _known[loaded.model] = tuple(layer_specs(cache))
    return found


def misshapen(loaded: Any, manifest: Manifest) -> str:
    """Return how a manifest's layers differ from those of its model, in words; empty if they are the same."""
    theirs, own = manifest.layout.layers, layers_of(loaded)
    if len(theirs) != len(own):
        return f"it has {len(theirs)} layers, the model has {len(own)}"
    for index, (have, wanted) in enumerate(zip(theirs, own, strict=True)):
        if have != wanted:
            return (
                f"its layers are not the model's: layer {index} is {layer_words(have)}; and not {layer_words(wanted)}"
            )
    return ""


def require_layers(loaded: Any, manifest: Manifest) -> None:
    """Raise `Incompatible` unless a manifest's layers are those of its model, tensor by tensor."""
    if why := misshapen(loaded, manifest):
        raise Incompatible(
            f"the artifact cannot be loaded: {why}",
            cause="its publisher's software made it of another model",
            hint="kvswap ask --prefill computes it here",
            field="layout.layers",
        )


def unaskable(loaded: Any, manifest: Manifest) -> str:
    """Return why a manifest's probe cannot be run on this model, in words; empty if it can."""
    probe = manifest.probe
    if not probe.question:
        return "its probe asks nothing"
    if max(probe.question) >= loaded.vocabulary:
        return f"its probe asks with tokens that the model does not have (it has {loaded.vocabulary})"
    if manifest.prefix.tokens + len(probe.question) + len(probe.tokens) > loaded.context:
        return f"its probe goes beyond the model's {loaded.context} tokens"
    return ""
