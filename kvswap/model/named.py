"""The twenty most used open models of 2026, and which model type each of them is.

Put together from lists of downloads and of requests; what kvswap does with each type is in `families`.
"""

from __future__ import annotations

NAMED: dict[str, str] = {
    "Qwen3-0.6B": "qwen3",
    "Qwen3-4B": "qwen3",
    "Qwen2.5-7B": "qwen2",
    "Llama-3.1-8B": "llama",
    "Gemma 4 26B-A4B": "gemma4",
    "Gemma 4 31B": "gemma4",
    "Gemma 4 E4B": "gemma4",
    "DeepSeek-V3, R1": "deepseek_v3",
    "gpt-oss-20b": "gpt_oss",
    "gpt-oss-120b": "gpt_oss",
    "Qwen3-VL-2B": "qwen3_vl",
    "Mistral Small 3.x": "mistral3",
    "Kimi K2.5": "kimi_k25",
    "Qwen3.6-35B-A3B": "qwen3_5_moe",
    "Qwen3.6-27B": "qwen3_5",
    "Qwen3.5-4B, 9B": "qwen3_5",
    "Nemotron 3": "nemotron_h",
    "GLM-5.x": "glm_moe_dsa",
    "MiniMax-M3": "minimax_m3_vl",
    "DeepSeek V4": "deepseek_v4",
}
"""The model types, by the names that people know."""
