"""Conversion of GGUF to safetensors, once.  transformers does the arithmetic; model identity is over the result."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from kvswap.model.load import quiet_transformers


def gguf_to_safetensors(gguf: Path, target: Path, dtype: str) -> None:
    """De-quantise the file `gguf` to `dtype`, and write model and tokenizer to the directory `target`."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    quiet_transformers()
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        trust_remote_code=False,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    model.to(getattr(torch, dtype)).save_pretrained(target)
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name, trust_remote_code=False).save_pretrained(
        target
    )
