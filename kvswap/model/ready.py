"""A model by its name, pulled and loaded as its makers' own code does: for agents that have one in their process."""

from __future__ import annotations

from typing import Any

from kvswap.core.directories import models_directory
from kvswap.model.pull import pull


def load_model(name: str, *, dtype: str = "bfloat16") -> tuple[Any, Any]:
    """Load a model by the name that `kvswap model pull` takes, and its tokenizer; download it first where needed."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = pull(name, models_directory())
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    return model, AutoTokenizer.from_pretrained(directory)
