"""The precision that a process computes in: settings of torch and its libraries that round more than the dtype does.

With TF32 or bfloat16 in the place of float32, or under autocast, a correct cache differs from what is computed here,
and so does the reader's own.  The model process always computes in full precision; a caller's own process belongs to
the caller, so there such settings are refused by name.  Importing this module imports no library.
"""

from __future__ import annotations

import os
from typing import Any

from kvswap.core.errors import Incompatible

_ROUNDING = (
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "HIPBLASLT_ALLOW_TF32",
    "CUBLAS_EMULATE_SINGLE_PRECISION",
    "CUBLAS_EMULATE_DOUBLE_PRECISION",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "PYTORCH_MPS_FAST_MATH",
)
LIMITS_OF_ONEDNN = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
# Environment variables that a model process does not inherit: each changes results, and torch does not report them.
VARIABLES = (*_ROUNDING, *LIMITS_OF_ONEDNN, "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")
_FULL = ("", "0", "false", "strict")
_NEWER = ("", "mkldnn", "mkldnn.matmul", "cuda.matmul")  # backends with a precision of their own since torch 2.9
_CAUSE = "a cache is compared, bit for bit where it can be, with one that was computed in full precision"


def set_full() -> None:
    """Make torch compute float32 in full precision, in a process whose settings belong to kvswap."""
    import torch

    torch.set_float32_matmul_precision("highest")


def reduced(device: str = "cpu") -> tuple[str, str] | None:
    """Return what makes this thread compute in reduced precision on `device` and how to end it, or None.

    `device` is the name of a torch device.
    """
    for name in _ROUNDING:
        if os.environ.get(name, "").strip().lower() not in _FULL:
            return f"{name}={os.environ[name][:40]} is in force", f"unset {name}, before this process starts"
    if _autocast(device):
        return "torch.autocast is in force", "call kvswap outside of torch.autocast, or under enabled=False"
    return _of_torch()


def check(device: str = "cpu") -> None:
    """Check that this process computes in full precision.

    Raises `Incompatible` naming the setting that prevents it.
    """
    if (found := reduced(device)) is not None:
        raise Incompatible(
            f"{found[0]}: this process computes in reduced precision", cause=_CAUSE, hint=found[1], field="numerics"
        )


def _autocast(device: str) -> bool:
    import torch

    kind = device.partition(":")[0]
    try:
        return bool(torch.is_autocast_enabled(kind))
    except TypeError:  # before torch 2.4
        return bool(torch.is_autocast_cpu_enabled() if kind == "cpu" else torch.is_autocast_enabled())
    except RuntimeError:  # a device without autocast
        return False


def _of_torch() -> tuple[str, str] | None:
    import torch

    try:
        precision = str(torch.get_float32_matmul_precision())
    except RuntimeError:  # it was set through both the older and the newer API
        precision = "highest"
    if precision != "highest":
        what = f"torch's precision of float32 matrix products is {precision!r}"
        return what, 'torch.set_float32_matmul_precision("highest")'
    if getattr(torch.backends.cuda.matmul, "allow_fp16_accumulation", False) is True:
        place = "torch.backends.cuda.matmul.allow_fp16_accumulation"
        return f"{place} is on", f"{place} = False"
    for name in _NEWER:
        if (value := _newer(torch.backends, name)) in ("tf32", "bf16"):
            place = ".".join(part for part in ("torch.backends", name, "fp32_precision") if part)
            return f"{place} is {value!r}", f'{place} = "ieee"'
    return None


def _newer(of: Any, name: str) -> str:
    for part in name.split(".") if name else ():
        of = getattr(of, part, None)
    try:
        return str(getattr(of, "fp32_precision", "none"))
    except (AssertionError, RuntimeError):  # a torch without that backend
        return "none"
