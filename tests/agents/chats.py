"""Tiny models with chat templates of the kinds that are about: with tools, without, with a token before every text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

# As of ChatML: system text, then tools, then turns.
TOOLS_TEMPLATE = (
    "{{ bos }}{% if messages[0]['role'] == 'system' or tools %}<|im_start|>system\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n{% endif %}"
    "{% if tools %}# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}{{ call['function']['arguments']['x'] }}{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As of Qwen3: what an assistant thought is shown only in the last of its turns.
THINKING_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and not loop.last %}{{ message['content'].split('</think>')[-1] }}"
    "{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM = {"role": "system", "content": "You are the agent of a small workshop. " * 30}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": f"To {name} things.", "parameters": {"minimum": 0.5}},
    }
    for name in ("read", "write", "list")
]
TURNS = [
    {"role": "user", "content": "What is in the box? " * 10},
    {"role": "assistant", "content": "Nails and screws. " * 10},
    {"role": "user", "content": "How many? " * 10},
]
MESSAGES = [SYSTEM, *TURNS]


def with_template(source: Path, target: Path, template: str, *, begins: bool = False) -> Path:
    """A copy of a tiny model with a chat template, whose marks are tokens; `begins`: its tokenizer puts <s> first."""
    from tokenizers import AddedToken, Tokenizer, processors

    shutil.copytree(source, target)
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in ("<|im_start|>", "<|im_end|>")])
    if begins:
        first = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", first)])
    tokenizer.save(str(target / "tokenizer.json"))
    (target / "chat_template.jinja").write_text(template.replace("{{ bos }}", "{{ bos_token }}" if begins else ""))
    config = json.loads((target / "config.json").read_text())
    return target if config["vocab_size"] >= tokenizer.get_vocab_size() else _wider(target, tokenizer.get_vocab_size())


def _wider(target: Path, vocabulary: int) -> Path:
    """Give a model embeddings for more tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    model.save_pretrained(target)
    return target
