"""What a model's cache is made of and what kvswap can do with it, from its `config.json` alone.

Neither torch nor transformers is imported: the table below names the model types that were tried, and the rules are
those by which transformers 5.23 makes a `DynamicCache`.  Tests hold both equal to built models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvswap.artifact.checkpoints import spacing, state_bytes
from kvswap.artifact.specs import LayerSpec, TensorSpec
from kvswap.core.defaults import BLOCK_TOKENS
from kvswap.core.errors import Incompatible
from kvswap.model import checking, quantisation, states
from kvswap.model.states import number

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
DTYPES = ("float32", "bfloat16")
WAYS = ("whole", "from a shorter prefix", "from each checkpoint", "both at once", "verified")
"""How each family is tested, with tiny random models: the ways that a cache comes into a model, and its checks."""
Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Family:
    """One `model_type`: the names that people know it by, and why it is refused (empty: it is exchanged)."""

    model_type: str
    names: str
    refused: str = ""


_ELSEWHERE = "it keeps its state elsewhere than in the cache that it is given"
_OWN_CACHE = "it takes a cache of its own class alone"
_PICTURES = "no class of transformers runs its text alone"
_FORGETS = "its class in transformers begins every pass of several tokens with an empty state"
_COMPRESSED = (
    "beside a window it keeps one entry for every 4 or 128 tokens, with what is not compressed yet, and a manifest has "
    "rows for each token or for each checkpoint"
)

FAMILIES: dict[str, Family] = {
    model_type: Family(model_type, names, refused)
    for refused, rows in {
        "": (
            ("llama", "Llama 1 to 3.3, SmolLM2, TinyLlama, Yi and many more"),
            ("llama4_text", "Llama 4 (text alone)"),
            ("mistral", "Mistral 7B, Mistral Nemo, Mistral Small 2"),
            ("mistral3", "Mistral Small 3.x, Devstral, Magistral (their text)"),
            ("mixtral", "Mixtral"),
            ("qwen2", "Qwen 2, Qwen 2.5, Qwen2.5-Coder, QwQ"),
            ("qwen2_moe", "Qwen 1.5 MoE, Qwen 2 MoE"),
            ("qwen3", "Qwen 3 (dense)"),
            ("qwen3_moe", "Qwen 3 MoE, Qwen3-Coder"),
            ("qwen3_vl", "Qwen3-VL (its text)"),
            ("gemma", "Gemma 1"),
            ("gemma2", "Gemma 2"),
            ("gemma3_text", "Gemma 3 270M and 1B"),
            ("gemma3", "Gemma 3 4B to 27B (their text)"),
            ("gemma3n_text", "Gemma 3n (text)"),
            ("gemma4_text", "Gemma 4 (text), E2B and E4B among them"),
            ("gemma4", "Gemma 4 (its text)"),
            ("vaultgemma", "VaultGemma"),
            ("gpt_oss", "gpt-oss 20b and 120b"),
            ("deepseek_v2", "DeepSeek V2, V2-Lite"),
            ("deepseek_v3", "DeepSeek V3, R1, V3.1"),
            ("glm4", "GLM-4"),
            ("glm4_moe", "GLM-4.5, 4.6"),
            ("glm4_moe_lite", "GLM-4.7 Flash"),
            ("minicpm3", "MiniCPM3"),
            ("mimo_v2_flash", "MiMo-V2-Flash"),
            ("phi", "Phi 1, 1.5, 2"),
            ("phi3", "Phi 3, Phi 4"),
            ("smollm3", "SmolLM3"),
            ("olmo2", "OLMo 2"),
            ("olmo3", "OLMo 3"),
            ("cohere2", "Command R7B, Command A"),
            ("granite", "Granite 3"),
            ("nemotron", "Nemotron 4, Minitron"),
            ("starcoder2", "StarCoder 2"),
            ("stablelm", "StableLM 2"),
            ("falcon", "Falcon 7B to 180B"),
            ("gpt_neox", "Pythia, GPT-NeoX"),
            ("gpt2", "GPT-2"),
            ("gpt_bigcode", "StarCoder 1, SantaCoder"),
            ("gpt_neo", "GPT-Neo"),
            ("gptj", "GPT-J"),
            ("opt", "OPT"),
            ("mpt", "MPT"),
            ("bloom", "BLOOM"),
            ("qwen3_next", "Qwen3-Next"),
            ("qwen3_5_text", "Qwen 3.5, 3.6 (text)"),
            ("qwen3_5_moe_text", "Qwen 3.5, 3.6 MoE (text)"),
            ("olmo_hybrid", "OLMo Hybrid"),
            ("kimi_linear", "Kimi Linear"),
            ("granitemoehybrid", "Granite 4-H"),
            ("nemotron_h", "Nemotron-H, Nemotron 3"),
            ("lfm2", "LFM2"),
            ("lfm2_moe", "LFM2 MoE"),
            ("falcon_h1", "Falcon-H1"),
            ("bamba", "Bamba"),
            ("mamba2", "Mamba 2, Codestral Mamba"),
            ("zamba2", "Zamba 2"),
            ("zaya", "ZAYA"),
            ("deepseek_v32", "DeepSeek V3.2"),
            ("glm_moe_dsa", "GLM-5"),
            ("minimax_m3_vl", "MiniMax-M3 (its text)"),
            ("kimi_k25", "Kimi K2.5, K2.6 (their text)"),
            ("qwen3_5", "Qwen 3.5, 3.6 (their text)"),
            ("qwen3_5_moe", "Qwen 3.5, 3.6 MoE (their text)"),
        ),
        _FORGETS: (
            ("jamba", "Jamba"),
            ("mamba", "Mamba"),
            ("falcon_mamba", "Falcon Mamba"),
        ),
        _ELSEWHERE: (
            ("recurrent_gemma", "RecurrentGemma"),
            ("rwkv", "RWKV"),
        ),
        _OWN_CACHE: (("minimax", "MiniMax-01"),),
        _COMPRESSED: (("deepseek_v4", "DeepSeek V4"),),
    }.items()
    for model_type, names in rows
}

# beside a latent for all heads and a rotary key, the key of an index that picks what is attended to
_INDEXED = {"deepseek_v32", "glm_moe_dsa"}
_LATENT = {"deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "kimi_linear", *_INDEXED}
_UNGROUPED = {
    "gpt_neox",
    "gpt2",
    "gptj",
    "gpt_neo",
    "opt",
    "mpt",
    "bloom",
}  # a key for each query, whatever the file says
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_WIDTH = ("hidden_size", "n_embd", "d_model")
_EVERY = {  # a full layer is every n-th; the others slide.  For files that do not list their layers.
    "gemma2": 2,
    "vaultgemma": 2,
    "gpt_oss": 2,
    "gemma3_text": 6,
    "gemma3n_text": 5,
    "gemma4_text": 6,
    "cohere2": 4,
    "olmo3": 4,
    "llama4_text": 4,
}
_SPARSE_BLOCKS = "minimax_m3_sparse"
_KEPT = {
    "full_attention": "full",
    "indexed_attention": "full",
    _SPARSE_BLOCKS: "full",
    "sliding_attention": "sliding",
    "chunked_attention": "sliding",
    "conv": "state",
    "linear_attention": "state",
    "hybrid": "full+state",
}
_NOTHING = ("mlp", "moe")  # layers that keep nothing


def text_of(config: Config) -> Config:
    """Return the part of a configuration that describes the text model, which of a plain model is all of it."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def layer_types(text: Config) -> list[str]:
    """Return the kind of each layer by the names of transformers, those that read earlier layers' keys left out."""
    named = states.layer_kinds(text, lambda: number(text, *_LAYERS)) or text.get("layer_types")
    if isinstance(named, Sequence) and not isinstance(named, str) and named:
        kinds = [str(kind) for kind in named]
    else:
        kinds = _usual(text, number(text, *_LAYERS))
    kinds = [kind for kind in kinds if kind not in _NOTHING]
    return kinds[: len(kinds) - int(text.get("num_kv_shared_layers") or 0)]


def _usual(text: Config, count: int) -> list[str]:
    sparse = text.get("sparse_attention_config")
    if isinstance(sparse, Mapping) and isinstance(often := sparse.get("sparse_attention_freq"), list):
        return [_SPARSE_BLOCKS if each else "full_attention" for each in often]
    kind, window = text.get("model_type"), text.get("sliding_window") or text.get("sliding_window_size")
    if text.get("use_sliding_window") is False:
        window = None
    local = "chunked_attention" if text.get("attention_chunk_size") else "sliding_attention"
    if kind == "mimo_v2_flash":
        return ["full_attention" if i == 0 or (i + 1) % 6 == 0 else local for i in range(count)]
    every = text.get("sliding_window_pattern") or _EVERY.get(str(kind))
    if isinstance(every, int) and every > 1 and (window or text.get("attention_chunk_size")):
        return ["full_attention" if (i + 1) % every == 0 else local for i in range(count)]
    if str(kind).startswith(("qwen2", "qwen3")) and window:
        first = int(text.get("max_window_layers") or 0)
        return ["sliding_attention" if i >= first else "full_attention" for i in range(count)]
    return [local if window or text.get("attention_chunk_size") else "full_attention"] * count


def layers_of_config(config: Config, dtype: str = "bfloat16") -> list[LayerSpec]:
    """Return the cache layers of a model that computes in `dtype`.

    Raises `Incompatible` naming what kvswap cannot exchange or read.
    """
    text = text_of(config)
    types = {str(config.get("model_type")), str(text.get("model_type"))}
    if (family := next((FAMILIES[t] for t in types if t in FAMILIES and FAMILIES[t].refused), None)) is not None:
        raise Incompatible(f"{family.names} cannot be exchanged: {family.refused}", field="layout")
    kinds = layer_types(text)
    if other := sorted({kind for kind in kinds if kind not in _KEPT}):
        raise Incompatible(f"layers of kind {', '.join(other)} cannot be exchanged", field="layout")
    return [_layer(_own(text, index, _KEPT[kind]), kind, dtype) for index, kind in enumerate(kinds)]


def _own(text: Config, index: int, kind: str) -> Config:
    """Return the fields of one layer, where some have their own."""
    listed = text.get("per_layer_config")
    if isinstance(listed, Mapping):
        own = listed.get(str(index))
        return {**text, **own} if isinstance(own, Mapping) else text
    if (
        kind == "full" and text.get("model_type") == "gemma4_text"
    ):  # as its files say it, before transformers saves them
        own = {"head_dim": text.get("global_head_dim") or 512}
        if text.get("attention_k_eq_v") and text.get("num_global_key_value_heads"):
            own["num_key_value_heads"] = text["num_global_key_value_heads"]
        return {**text, **own}
    return text


def _layer(text: Config, name: str, dtype: str) -> LayerSpec:
    """Describe a layer of the kind that transformers calls `name`."""
    kind = _KEPT[name]
    if name == _SPARSE_BLOCKS:
        sparse = text.get("sparse_attention_config") or {}
        index = TensorSpec("index", "token", (1, number({**text, **sparse}, "sparse_index_dim", "index_head_dim")))
        return LayerSpec(kind, (*_keys(text, kind).tensors, index))
    if kind == "state":
        return LayerSpec(kind, states.state_tensors(text, dtype))
    if kind == "full+state":
        return LayerSpec(kind, (*_keys(text, "full").tensors, *states.state_tensors(text, dtype)))
    return _keys(text, kind)


def _keys(text: Config, kind: str) -> LayerSpec:
    window = int(text.get("sliding_window") or text.get("attention_chunk_size") or 0) if kind == "sliding" else None
    if text.get("model_type") in _LATENT:
        latent = LayerSpec.key_value(kind, 1, number(text, "kv_lora_rank"), number(text, "qk_rope_head_dim"), window)
        if text.get("model_type") not in _INDEXED:
            return latent
        return LayerSpec(kind, (*latent.tensors, TensorSpec("index", "token", (number(text, "index_head_dim"),))))
    queries = number(text, *_HEADS)
    grouped = () if text.get("model_type") in _UNGROUPED else ("num_key_value_heads", "num_kv_heads")
    heads = number(text, *grouped, default=queries)
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        heads = 1
    elif text.get("model_type") == "falcon" and not text.get("new_decoder_architecture"):
        heads = queries
    size = number(text, "head_dim", default=number(text, *_WIDTH) // queries)
    if text.get("model_type") == "zamba2":  # whose attention reads the embedding beside the layer's input
        size = number(text, "attention_head_dim", default=2 * size)
    values = number(text, "v_head_dim", default=size)
    if kind == "sliding" and text.get("model_type") == "mimo_v2_flash":
        heads = 2 * heads
    return LayerSpec.key_value(kind, heads, size, values, window)


@dataclass(frozen=True, slots=True)
class Checked:
    """The verdict on one model.  `refused` says why it cannot be exchanged, and is empty where it can."""

    model_type: str
    names: str
    known: bool  # whether this model type was tried
    layers: tuple[LayerSpec, ...]
    token_bytes: int  # for each token, as long as the text grows: of layers without a window
    window_bytes: int  # at most, however long the text is: of layers with one
    state_bytes: int  # at every checkpoint, the end among them: of layers that keep states
    checkpoint_tokens: int  # between two checkpoints, by default; 0: only the end is one
    sampled: str  # what V5 draws of an artifact and computes again: "positions" or "intervals"
    by_digest: str  # whether it is verified by the document's digest alone: "yes", "within the window" or "no"
    latent: bool  # whether it keeps a latent for all heads (MLA) as its keys, and a rotary key as its values
    refused: str
    without: tuple[str, ...]  # what does not work although it is exchanged, with the reason


def check(config: Config, dtype: str = "bfloat16") -> Checked:
    """Say what a model's cache is made of, how large it is, and what works.  `config` is its parsed `config.json`."""
    kind = str(config.get("model_type") or "?")[:60]
    family = FAMILIES.get(kind) or FAMILIES.get(str(text_of(config).get("model_type")))
    names = family.names if family is not None else ""
    try:
        layers = tuple(layers_of_config(config, dtype))
        refused = ""
        if config.get("auto_map") and family is None:
            raise Incompatible("it brings its own code (auto_map), and kvswap runs none")
        quantisation.check_known(config.get("quantization_config"), kind)
    except Incompatible as error:
        layers, refused = (), error.message
    size = BYTES[dtype]
    each = [(layer.window, layer.token_numbers * size) for layer in layers]
    return Checked(
        model_type=kind,
        names=names,
        known=family is not None,
        layers=layers,
        token_bytes=sum(width for window, width in each if window is None),
        window_bytes=sum((window - 1) * width for window, width in each if window is not None),
        state_bytes=state_bytes(layers, dtype),
        checkpoint_tokens=BLOCK_TOKENS * spacing(layers, dtype, BLOCK_TOKENS),
        sampled=checking.sampled(text_of(config), layers) if layers else "",
        by_digest=checking.by_digest(text_of(config), layers) if layers else "",
        latent=bool(layers) and text_of(config).get("model_type") in _LATENT,
        refused=refused,
        without=tuple(_without(config, layers)) if layers else (),
    )


def _without(config: Config, layers: Sequence[LayerSpec]) -> list[str]:
    said = []
    if all(layer.kind == "state" for layer in layers):
        said.append("what an untrusted publisher made: no layer keeps anything of single tokens to check")
    elif any(layer.window is not None or layer.has_states for layer in layers):
        said.append("resuming before the end of what an untrusted publisher made: it is used whole or not at all")
    if any(layer.window is not None for layer in layers):
        said.append("the codec `predictive` on sliding layers, which are packed by `planes`")
    if any(layer.kind == "full" and not layer.is_key_value for layer in layers):
        said.append("the codec `predictive` on layers with an index, which are packed by `planes`")
    if any(layer.has_states for layer in layers):
        said.append("the codec `predictive` on states, which are packed by `planes`")
        said.append("vLLM: states are refused by the connector")
    kind = text_of(config).get("model_type")
    if kind in _LATENT and kind not in ("deepseek_v2", "deepseek_v3"):
        said.append("vLLM: the latents (MLA) of this model type are refused by the connector")
    return said
