"""The states of a model's layers, from its `config.json` alone: which layers keep some, and their shapes.

The rules are those by which transformers 5.23 makes them; tests hold them equal to built models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kvswap.artifact.specs import TensorSpec
from kvswap.core.errors import Incompatible

Config = Mapping[str, Any]
Shapes = tuple[tuple[int, ...], tuple[int, ...] | None]
"""Axes of the convolution's state and of the recurrent one, None without one."""


def number(text: Config, *names: str, default: int | None = None) -> int:
    """Return the first of these fields that is a positive whole number.  Raises `Incompatible` without a default."""
    for name in names:
        value = text.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    if default is None:
        raise Incompatible(f"the configuration has none of {', '.join(names)}", field="config")
    return default


def _short(text: Config) -> Shapes:
    return (number(text, "hidden_size"), number(text, "conv_L_cache", default=3)), None


def _delta(text: Config) -> Shapes:
    keys, values = number(text, "linear_num_key_heads", default=16), number(text, "linear_num_value_heads", default=32)
    wide, deep = number(text, "linear_key_head_dim", default=128), number(text, "linear_value_head_dim", default=128)
    channels = 2 * keys * wide + values * deep
    return (channels, number(text, "linear_conv_kernel_dim", default=4)), (values, wide, deep)


def _kimi(text: Config) -> Shapes:
    listed = text.get("linear_attn_config")
    own = {**text, **listed} if isinstance(listed, Mapping) else text
    heads = number(own, "num_heads", "linear_num_heads", default=32)
    wide = number(listed if isinstance(listed, Mapping) else {}, "head_dim", default=0) or number(
        text, "linear_head_dim", default=128
    )
    kernel = number(own, "short_conv_kernel_size", "linear_conv_kernel_dim", default=4)
    return (3 * heads * wide, kernel), (heads, wide, wide)


def _mamba2(text: Config) -> Shapes:
    kind = str(text.get("model_type"))
    heads = number(text, "mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "num_heads", default=128)
    size = number(text, "ssm_state_size", "mamba_d_state", "state_size", default=_STATE_SIZE.get(kind, 128))
    groups = number(text, "n_groups", "mamba_n_groups", "mamba_ngroups", default=8 if kind == "mamba2" else 1)
    inner = number(text, "mamba_d_ssm", default=0) or _inner(text, heads)
    kernel = number(text, "conv_kernel", "mamba_d_conv", default=4)
    return (inner + 2 * groups * size, kernel), (heads, inner // heads, size)


def _inner(text: Config, heads: int) -> int:
    if text.get("model_type") == "nemotron_h":
        return heads * number(text, "mamba_head_dim", default=64)
    return number(text, "mamba_expand", "expand", default=2) * number(text, "hidden_size")


def _zaya(text: Config) -> Shapes:
    heads, groups = number(text, "num_attention_heads"), number(text, "num_key_value_heads")
    size = number(text, "head_dim", default=128)
    return ((heads + groups) * size, 2), (groups * size // 2,)


_SHAPES: dict[str, Callable[[Config], Shapes]] = {
    "lfm2": _short,
    "lfm2_moe": _short,
    "qwen3_next": _delta,
    "qwen3_5": _delta,
    "qwen3_5_text": _delta,
    "qwen3_5_moe": _delta,
    "qwen3_5_moe_text": _delta,
    "olmo_hybrid": _delta,
    "kimi_linear": _kimi,
    "granitemoehybrid": _mamba2,
    "nemotron_h": _mamba2,
    "bamba": _mamba2,
    "mamba2": _mamba2,
    "falcon_h1": _mamba2,
    "zamba2": _mamba2,
    "zaya": _zaya,
}
STATEFUL = frozenset(_SHAPES)
"""The model types whose layers, some of them, keep states."""
_STATE_SIZE = {"zamba2": 64}
_STATES_ALONE = {"mamba2"}  # every layer keeps states, whatever the file lists
_IN_MODEL_DTYPE = {"zaya"}  # the recurrent states of the others are float32
_WORDS = {"mamba": "linear_attention", "attention": "full_attention", "mamba2": "linear_attention"}
_PATTERN = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}


def keeps_states(text: Config) -> bool:
    """Return True for a model type whose layers, some of them, keep states."""
    return text.get("model_type") in STATEFUL


def state_tensors(text: Config, dtype: str) -> tuple[TensorSpec, ...]:
    """Return the states of a layer that keeps some; `dtype` is the layout's, which needs no mention."""
    kind = str(text.get("model_type"))
    conv, recurrent = _SHAPES[kind](text)
    tensors = [TensorSpec("conv.0", "checkpoint", conv)]
    if recurrent is not None:
        own = None if dtype == "float32" or kind in _IN_MODEL_DTYPE else "float32"
        tensors.append(TensorSpec("recurrent.0", "checkpoint", recurrent, own))
    return tuple(tensors)


def layer_kinds(text: Config, layers: Callable[[], int]) -> list[str] | None:
    """Return the kind of each layer by the names of transformers, or None for a model without states.

    `layers` counts them where the file does not list them all; files of before list them in their own ways.
    """
    kind = text.get("model_type")
    if not keeps_states(text):
        return None
    if kind in _STATES_ALONE:
        return ["linear_attention"] * layers()
    for name in ("layer_types", "layers_block_type"):
        listed = text.get(name)
        if isinstance(listed, Sequence) and not isinstance(listed, str) and listed:
            return [_WORDS.get(str(one), str(one)) for one in listed]
    if isinstance(pattern := text.get("hybrid_override_pattern"), str):
        return [_PATTERN.get(letter, letter) for letter in pattern]
    count = layers()
    if kind in ("falcon_h1", "zaya"):
        return ["hybrid"] * count
    full = set(_full_layers(text, count))
    other = "conv" if str(kind).startswith("lfm2") else "linear_attention"
    return ["full_attention" if index in full else other for index in range(count)]


def _full_layers(text: Config, count: int) -> Sequence[int]:
    """Return the numbers of the layers of full attention of a file that does not list all kinds."""
    for name in ("attn_layer_indices", "full_attn_idxs"):
        if isinstance(listed := text.get(name), Sequence):
            return [index for index in listed if isinstance(index, int)]
    if isinstance(listed := text.get("linear_attn_config"), Mapping) and "full_attn_layers" in listed:
        return [index - 1 for index in listed["full_attn_layers"]]
    every = number(text, "full_attention_interval", default=4)
    return range(every - 1, count, every)
