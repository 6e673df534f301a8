"""Tiny random models of many architectures, with the tokenizer of the tests: one row a family.

A row is a configuration of `transformers` with sizes of a few thousand parameters.  `build` writes such a model as a
directory.  What a family is in the table for is said beside it; a family that kvswap refuses is not here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCABULARY = 400
CONTEXT = 2048
_TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_PLAIN = {
    **_TOKENS,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
_HEADS = {**_PLAIN, "head_dim": 16}
_LATENT = {
    **_PLAIN,
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
_DEEPSEEK = {
    **_LATENT,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
}
_DELTA = {
    **_HEADS,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_conv_kernel_dim": 4,
}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
_MAMBA = {
    **_PLAIN,
    "num_hidden_layers": 4,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 32,
}
_INDEXED = {**_DEEPSEEK, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 64}


def _gemma3(window: int) -> dict[str, Any]:
    return {**_HEADS, "num_hidden_layers": 6, "sliding_window": window, "query_pre_attn_scalar": 16}


# name: (class of the configuration, its arguments)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _HEADS),
    "qwen2": ("Qwen2Config", _PLAIN),
    "qwen3": ("Qwen3Config", _HEADS),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        {**_HEADS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1},
    ),
    "gemma": ("GemmaConfig", _HEADS),
    "gemma3-24": ("Gemma3TextConfig", _gemma3(24)),
    "gemma3-80": ("Gemma3TextConfig", _gemma3(80)),
    "gemma3-512": ("Gemma3TextConfig", _gemma3(512)),
    "mistral": ("MistralConfig", {**_HEADS, "sliding_window": 96}),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        {
            **_PLAIN,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "glm4-moe": (
        "Glm4MoeConfig",
        {
            **_HEADS,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "mixtral": ("MixtralConfig", {**_PLAIN, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "phi": ("PhiConfig", {**_PLAIN, "partial_rotary_factor": 0.5}),
    "phi3": ("Phi3Config", {**_PLAIN, "sliding_window": 64}),
    "gpt2": (
        "GPT2Config",
        {**_TOKENS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT},
    ),
    "opt": (
        "OPTConfig",
        {
            **_TOKENS,
            "hidden_size": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT,
            "word_embed_proj_dim": 64,
        },
    ),
    "gpt-bigcode": (
        "GPTBigCodeConfig",
        {**_TOKENS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "multi_query": True},
    ),
    "gpt-neox": ("GPTNeoXConfig", {**_PLAIN, "rotary_pct": 0.5}),
    "stablelm": ("StableLmConfig", _PLAIN),
    "falcon": ("FalconConfig", {**_PLAIN, "new_decoder_architecture": False, "multi_query": True}),
    "falcon-alibi": ("FalconConfig", {**_PLAIN, "alibi": True, "new_decoder_architecture": False}),
    "deepseek-v2": ("DeepseekV2Config", {**_DEEPSEEK, "topk_method": "greedy"}),
    "deepseek-v3": ("DeepseekV3Config", _DEEPSEEK),
    "glm4-moe-lite": ("Glm4MoeLiteConfig", _DEEPSEEK),
    "minicpm3": ("MiniCPM3Config", _LATENT),
    "olmo2": ("Olmo2Config", _PLAIN),
    "olmo3": ("Olmo3Config", {**_PLAIN, "num_hidden_layers": 4, "sliding_window": 48}),
    "cohere2": ("Cohere2Config", {**_PLAIN, "num_hidden_layers": 4, "sliding_window": 48}),
    "starcoder2": ("Starcoder2Config", {**_PLAIN, "sliding_window": 80}),
    "llama4": (
        "Llama4TextConfig",
        {
            **_HEADS,
            "num_hidden_layers": 4,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
            "intermediate_size_mlp": 128,
            "attention_chunk_size": 96,
        },
    ),
    "smollm3": ("SmolLM3Config", {**_PLAIN, "num_hidden_layers": 4}),
    "granite": ("GraniteConfig", _PLAIN),
    "nemotron": ("NemotronConfig", _HEADS),
    "glm4": ("Glm4Config", _HEADS),
}


# Made by a class that reads pictures as well; only its text is used.
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_heads": 2}
_SMALL_VISION = {**_VISION, "depth": 1, "out_hidden_size": 64, "num_position_embeddings": 16}
_PICTURES = {"image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 5, "vision_end_token_id": 6}

FAMILIES |= {
    # without sdpa: computed with eager attention, which the numerics name
    "gpt-oss": (
        "GptOssConfig",
        {
            **_HEADS,
            "num_hidden_layers": 4,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 64,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "gemma2": ("Gemma2Config", {**_gemma3(64), "num_hidden_layers": 4}),
    "mimo-v2-flash": (
        "MiMoV2FlashConfig",
        {
            **_HEADS,
            "num_hidden_layers": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "sliding_window": 64,
            "v_head_dim": 16,
        },
    ),
    "vaultgemma": ("VaultGemmaConfig", {**_HEADS, "num_hidden_layers": 4, "sliding_window": 64}),
    "gptj": (
        "GPTJConfig",
        {**_TOKENS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "rotary_dim": 8},
    ),
    "gpt-neo": (
        "GPTNeoConfig",
        {
            **_TOKENS,
            "hidden_size": 64,
            "num_layers": 4,
            "num_heads": 4,
            "max_position_embeddings": CONTEXT,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 64,
        },
    ),
    "mpt": ("MptConfig", {**_TOKENS, "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": CONTEXT}),
    "bloom": ("BloomConfig", {**_TOKENS, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    # of a class for pictures and text
    "mistral3": (
        "Mistral3Config",
        {
            "text_config": {**_HEADS, "model_type": "mistral"},
            "vision_config": {
                **_VISION,
                "model_type": "pixtral",
                "num_hidden_layers": 1,
                "image_size": 28,
                "patch_size": 14,
                "head_dim": 16,
            },
            "image_token_index": 3,
        },
    ),
    "qwen3-vl": (
        "Qwen3VLConfig",
        {
            "text_config": {
                **_HEADS,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            },
            "vision_config": {
                **_VISION,
                "depth": 2,
                "out_hidden_size": 64,
                "deepstack_visual_indexes": [0],
                "num_position_embeddings": 16,
            },
            "image_token_id": 3,
            "video_token_id": 4,
            "vision_start_token_id": 5,
            "vision_end_token_id": 6,
        },
    ),
    "gemma3": (
        "Gemma3Config",
        {
            "text_config": {**_gemma3(24), "model_type": "gemma3_text"},
            "vision_config": _SIGLIP,
            "mm_tokens_per_image": 4,
        },
    ),
    "gemma4": (
        "Gemma4Config",
        {
            "text_config": {
                **_HEADS,
                "model_type": "gemma4_text",
                "num_hidden_layers": 6,
                "sliding_window": 64,
                "global_head_dim": 32,
                "hidden_size_per_layer_input": 0,
            },
            "vision_config": None,
            "audio_config": None,
        },
    ),
    # the last layers read the keys and values of earlier ones
    "gemma3n": (
        "Gemma3nTextConfig",
        {
            **_HEADS,
            "num_hidden_layers": 6,
            "num_kv_shared_layers": 2,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": VOCABULARY,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.0] * 6,
            "altup_num_inputs": 2,
        },
    ),
    "gemma4-e": (
        "Gemma4TextConfig",
        {
            **_HEADS,
            "num_hidden_layers": 6,
            "num_kv_shared_layers": 2,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": VOCABULARY,
            "global_head_dim": 16,
        },
    ),
    # experts, and full layers whose values are their keys before the rotation, with heads of their own
    "gemma4-moe": (
        "Gemma4TextConfig",
        {
            **_HEADS,
            "num_hidden_layers": 4,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "hidden_size_per_layer_input": 0,
            "global_head_dim": 32,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
        },
    ),
    # states: a short convolution, a gated delta rule, Mamba; in layers of their own or beside keys and values
    "lfm2": (
        "Lfm2Config",
        {
            **_PLAIN,
            "num_hidden_layers": 4,
            "layer_types": ["conv", "conv", "full_attention", "conv"],
            "block_multiple_of": 8,
        },
    ),
    "lfm2-moe": (
        "Lfm2MoeConfig",
        {
            **_PLAIN,
            **_EXPERTS,
            "num_hidden_layers": 4,
            "layer_types": ["conv", "full_attention"] * 2,
            "num_dense_layers": 1,
        },
    ),
    "qwen3-next": ("Qwen3NextConfig", {**_DELTA, **_EXPERTS}),
    "qwen3.5": ("Qwen3_5TextConfig", _DELTA),
    "qwen3.5-moe": ("Qwen3_5MoeTextConfig", {**_DELTA, **_EXPERTS}),
    "olmo-hybrid": ("OlmoHybridConfig", _DELTA),
    "kimi-linear": (
        "KimiLinearConfig",
        {
            **_DEEPSEEK,
            "num_hidden_layers": 4,
            "num_local_experts": 4,
            "q_lora_rank": None,
            "layer_types": ["linear_attention"] * 3 + ["full_attention"],
            "linear_head_dim": 16,
            "linear_num_heads": 4,
        },
    ),
    "granite4-h": (
        "GraniteMoeHybridConfig",
        {
            **_MAMBA,
            "layer_types": ["mamba", "mamba", "attention", "mamba"],
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 64,
        },
    ),
    "nemotron-h": (
        "NemotronHConfig",
        {
            **_HEADS,
            "num_hidden_layers": 5,
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp", "linear_attention"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "ssm_state_size": 16,
            "n_groups": 1,
            "chunk_size": 32,
        },
    ),
    "mamba2": (  # states alone: nothing is kept of single tokens
        "Mamba2Config",
        {
            **_TOKENS,
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_heads": 4,
            "head_dim": 32,
            "state_size": 16,
            "n_groups": 1,
            "expand": 2,
            "chunk_size": 32,
        },
    ),
    "bamba": ("BambaConfig", {**_MAMBA, "attn_layer_indices": [2]}),
    "falcon-h1": (
        "FalconH1Config",
        {
            **_HEADS,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_ssm": 64,
            "ssm_out_multiplier": 8.0,
            "mamba_d_state": 16,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 32,
        },
    ),
    "zamba2": (
        "Zamba2Config",
        {
            **_PLAIN,
            "num_hidden_layers": 4,
            "num_key_value_heads": 4,
            "layers_block_type": ["mamba", "hybrid"] * 2,
            "mamba_d_state": 16,
            "n_mamba_heads": 4,
            "mamba_ngroups": 1,
            "num_mem_blocks": 1,
            "chunk_size": 32,
        },
    ),
    "zaya": ("ZayaConfig", _HEADS),
    # a third tensor beside latent and rotary key: the keys of the index that picks what is attended to
    "deepseek-v3.2": ("DeepseekV32Config", _INDEXED),
    "glm5": ("GlmMoeDsaConfig", _INDEXED),
    # an index of blocks, in a cache class of the model's own
    "minimax-m3": (
        "MiniMaxM3VLConfig",
        {
            "text_config": {
                **_HEADS,
                "num_hidden_layers": 3,
                "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
                "mlp_layer_types": ["dense", "sparse", "sparse"],
                "dense_intermediate_size": 64,
                "shared_intermediate_size": 32,
                "rotary_dim": 8,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "index_n_heads": 2,
                "index_head_dim": 8,
                "index_block_size": 16,
                "index_topk_blocks": 2,
            },
            "vision_config": {**_VISION, "num_hidden_layers": 1, "image_size": 28, "head_dim": 16},
            "projector_hidden_size": 32,
            "image_token_index": 3,
            "video_token_index": 4,
        },
    ),
    # pictures and text, of which the text alone is used
    "kimi-k2.5": (
        "Kimi_K25Config",
        {
            "text_config": {**_DEEPSEEK, "model_type": "deepseek_v3"},
            "vision_config": {
                "patch_size": 14,
                "pos_emb_height": 2,
                "pos_emb_width": 2,
                "num_attention_heads": 2,
                "num_hidden_layers": 1,
                "hidden_size": 32,
                "intermediate_size": 64,
            },
            "projection_hidden_size": 32,
            **_PICTURES,
        },
    ),
    "qwen3.6": ("Qwen3_5Config", {"text_config": _DELTA, "vision_config": _SMALL_VISION, **_PICTURES}),
    "qwen3.6-moe": (
        "Qwen3_5MoeConfig",
        {"text_config": {**_DELTA, **_EXPERTS}, "vision_config": _SMALL_VISION, **_PICTURES},
    ),
}

# refused: not the document's blocks
FORGETTING: dict[str, tuple[str, dict[str, Any]]] = {
    "jamba": (
        "JambaConfig",
        {
            **_PLAIN,
            "num_hidden_layers": 4,
            "attn_layer_period": 4,
            "attn_layer_offset": 2,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "mamba_d_state": 8,
            "mamba_expand": 2,
            "mamba_dt_rank": 4,
        },
    ),
}


def write_tokenizer(directory: Path) -> None:
    """Writes a byte-level BPE tokenizer of 400 tokens, trained on the example document, into `directory`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from tests.support import DOCUMENT

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([DOCUMENT.read_text()], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(directory)


def build(directory: Path, name: str, seed: int = 0, **changes: Any) -> Path:
    """Writes the family `name` as a model directory and returns it; `changes` replace fields of its configuration."""
    import torch
    import transformers

    kind, fields = (FAMILIES | FORGETTING)[name]
    config = getattr(transformers, kind)(**{**fields, **changes})
    torch.manual_seed(seed)
    causal, pictures = transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText
    model = (causal if type(config) in causal._model_mapping else pictures).from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for field, parameter in model.named_parameters():  # larger weights, so that logits are not all alike
            parameter.mul_(2.0 if parameter.dim() > 1 else 1.0)
            if field.endswith("A_log"):  # states that last, as those of trained models do
                parameter.fill_(-3.0)
            if field.endswith("dt_bias"):  # and are written to by every token
                parameter.fill_(1.0)
            if field.endswith(".temp"):  # of a model whose keys begin as zeros
                parameter.fill_(1.0)
    model.save_pretrained(directory)
    write_tokenizer(directory)
    return directory
