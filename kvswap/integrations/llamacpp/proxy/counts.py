"""What `kvswap llama` counts, and shows at `/kvswap/status`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """The counts of what happened since the start."""

    requests: int = 0
    restores: int = 0
    restored_tokens: int = 0
    restores_without_effect: int = 0
    left_alone: int = 0  # requests that go on with what a slot holds
    saves: int = 0
    kept_tokens: int = 0
    bytes_written: int = 0
    not_kept: int = 0  # saved slots that are not understood, or that the disk did not take
    damaged_segments: int = 0
    given_up: int = 0  # requests that went through as they came, because something took too long or failed
    unlike: int = 0  # Anthropic requests that the server renders otherwise
    refused_actions: int = 0  # of clients on /slots
    longest_save_ms: float = 0.0
    server_starts: int = 0
