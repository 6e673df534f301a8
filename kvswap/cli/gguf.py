"""Verbs with a GGUF model: llama.cpp computes, beside this command, and the node finds, fetches, signs and keeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvswap.cli.output import Output
from kvswap.core.errors import UsageError

if TYPE_CHECKING:
    from kvswap.api import AskResult, PublishResult

_CODECS = (None, "planes", "predictive", "raw")  # those that lose nothing
_SAID_TOKENS = 1_024


def is_gguf(model: str | None) -> bool:
    """Return True for the path of a GGUF file, which llama.cpp computes, and not the model process."""
    return model is not None and model.lower().endswith(".gguf")


def require_plain(**given: Any) -> None:
    """Raise `UsageError` naming the options that are given and do nothing with a GGUF model."""
    named = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if named:
        raise UsageError(
            f"{' and '.join(named)} cannot be used with a GGUF model",
            cause="llama.cpp computes it, not the model process",
            hint="docs/llamacpp.md",
        )


def publish(
    output: Output, text: str, model: str, *, codec: str | None, source: str | None, group: str | None
) -> PublishResult:
    """Publish a document that llama.cpp computes."""
    from kvswap.integrations.llamacpp.verbs import (
        PublishChoices,
        publish_document,
    )  # numpy, which most commands have no use for

    if codec not in _CODECS:
        require_plain(**{f"codec {codec}": True})
    said = 0

    def progress(tokens: int) -> None:
        nonlocal said
        if tokens - said >= _SAID_TOKENS:
            said = tokens
            output.note(f"prefill: {tokens} tokens")

    choices = PublishChoices(codec or "planes", source, group, progress=progress)
    return publish_document(output.client, text, Path(model).expanduser(), choices)


def ask(output: Output, text: str | None, question: str, model: str, **how: Any) -> AskResult:
    """Answer a question with llama.cpp; `how` are the fields of `AskChoices`."""
    from kvswap.integrations.llamacpp.verbs import AskChoices, ask_document

    if not is_gguf(model):
        raise UsageError(
            f"--model {model} is no GGUF file",
            cause="the daemon answers with its own model; another one is llama.cpp's",
            hint="kvswap daemon --model NAME, or kvswap ask FILE QUESTION --model MODEL.gguf",
        )
    if text is None:
        raise UsageError(
            "with a GGUF model a document is given as its file",
            cause="its tokens have to be known, to find what is published of them",
            hint="kvswap ask FILE QUESTION --model MODEL.gguf",
        )
    return ask_document(output.client, text, question, Path(model).expanduser(), AskChoices(**how))
