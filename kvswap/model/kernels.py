"""The first computation of a process, done on one thread before anything runs in parallel.

MKL detects which kernels the processor supports in two steps without a lock.  A thread that computes its first cos or
sin between them uses other kernels, which are less accurate (https://github.com/pytorch/pytorch/issues/188792): half of
the first rotary table of a process was wrong, and so was the cache that was signed.  What is computed here first, on
one thread, completes both steps.  Importing this module imports nothing.
"""

from __future__ import annotations

import threading

_lock = threading.Lock()
_initialized = False


def initialize_kernels() -> None:
    """Compute one value of each function that MKL's vector kernels serve; it takes a millisecond once, then nothing."""
    global _initialized
    with _lock:
        if _initialized:
            return
        import torch

        for dtype in (torch.float32, torch.float64):
            value = torch.ones(1, dtype=dtype)
            for name in ("cos", "sin", "exp", "log", "sqrt", "rsqrt", "tanh", "erf", "erfc", "expm1", "log1p", "tan"):
                getattr(torch, name)(value)
        _initialized = True
