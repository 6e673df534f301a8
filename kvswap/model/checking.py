"""How artifacts of a model are verified, from its `config.json` alone: what V5 draws, whether a digest is enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvswap.artifact.specs import LayerSpec
from kvswap.model import states

POSITIONS, INTERVALS = "positions", "intervals"
YES, IN_WINDOW, NO = "yes", "within the window", "no"

_OWN_MASK = {"bloom", "mpt", "gpt_neo"}  # made by the model itself, so that it cannot be given that of V5
_LEARNED = {"gpt2", "gpt_bigcode", "gpt_neo", "opt"}  # positions are added to the embedding, so layer 0 tells no token
_SLIDING_FIRST = {
    *("llama4_text", "mistral", "mistral3", "gemma2", "gemma3_text", "gemma3", "gemma3n_text", "gemma4_text", "gemma4"),
    *("vaultgemma", "gpt_oss", "phi3", "olmo3", "cohere2", "starcoder2"),
}
_FULL_FIRST = {"mimo_v2_flash", "deepseek_v32", "glm_moe_dsa", "minimax_m3_vl"}

_BY_INTERVALS = {*states.STATEFUL, *_SLIDING_FIRST, *_FULL_FIRST, *_OWN_MASK}


def drawn_of(model_type: str) -> str:
    """Return what V5 draws of a tested model type, in words."""
    if model_type == "falcon":
        return f"{POSITIONS}; with ALiBi {INTERVALS}"
    return INTERVALS if model_type in _BY_INTERVALS else POSITIONS


def of_digest(model_type: str) -> str:
    """Return whether artifacts of a tested model type are verified by the document's digest alone."""
    if model_type in _SLIDING_FIRST:
        return IN_WINDOW
    return NO if model_type in _LEARNED or model_type in states.STATEFUL else YES


def sampled(text: Mapping[str, Any], layers: Sequence[LayerSpec]) -> str:
    """Return what V5 draws of an artifact with these layers; `text` is the configuration of the text model."""
    own_mask = text.get("model_type") in _OWN_MASK or bool(text.get("alibi"))
    kept = all(layer.is_key_value and layer.window is None for layer in layers)
    return POSITIONS if kept and not own_mask else INTERVALS


def by_digest(text: Mapping[str, Any], layers: Sequence[LayerSpec]) -> str:
    """Return whether an artifact with these layers can be verified by the document's digest alone."""
    if text.get("model_type") in _LEARNED or layers[0].has_states:
        return NO
    return YES if layers[0].window is None else IN_WINDOW
