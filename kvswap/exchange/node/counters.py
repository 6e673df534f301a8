"""Totals since start, for metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """The totals of a node since `started` (Unix seconds): artifacts, plans, chunk bytes in and out, and refusals."""

    published: int = 0
    fetched: int = 0
    plans_prefill: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    rejected_chunks: int = 0
    publishers_caught: int = 0
    started: float = field(default_factory=time.time)
