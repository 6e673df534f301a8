"""CPU instructions for narrow floats, which change how bfloat16 and float16 are summed and rounded."""

from __future__ import annotations

import os

from kvswap.model.precision import LIMITS_OF_ONEDNN

_NARROW = ("amx_tile", "amx_fp16", "avx512_bf16", "avx512_fp16", "avx_ne_convert", "bf16", "sve_bf16", "fp16_arith")
_NAME = 40  # characters of a limit


def isa(device: str, dtype: str) -> str:
    """Return the CPU instruction sets that determine the bits of a computation in `dtype`; empty for other devices.

    They are those of torch's own kernels (`AVX2`, `AVX512`) and, for narrow floats, those that the libraries below it
    use, each by name: a processor with AMX computes bfloat16 differently from one without.
    """
    import torch

    if device != "cpu":
        return ""
    plain = str(torch.backends.cpu.get_cpu_capability())
    if dtype == "float32":
        return plain
    limits = [os.environ[name][:_NAME].lower() for name in LIMITS_OF_ONEDNN if os.environ.get(name)]
    return " ".join([plain, *_narrow(), *(f"onednn<={limit}" for limit in limits[:1])])


def _narrow() -> list[str]:
    import torch

    get_capabilities = getattr(torch.cpu, "get_capabilities", None)
    if get_capabilities is not None:
        capabilities = get_capabilities()
        return [name for name in _NARROW if capabilities.get(name) is True]
    asked = {name: getattr(torch.cpu, f"_is_{name}_supported", None) for name in _NARROW}  # an older torch
    return [name for name, ask in asked.items() if ask is not None and ask()]
