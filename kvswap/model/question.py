"""The prompt format for a question after a document that is already in the cache.

The document stands at the start, as plain text, so that its cache serves every question.  Models with a chat template
get the question as the next user turn; others as a line of text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvswap.core.errors import UsageError
from kvswap.core.failures import brief

_BEFORE, _MARK = "kvswap-before", "kvswap-question"
_ROLES = {"user": "\n\nQuestion: {}", "assistant": "\nAnswer: {}"}
PLAIN = _ROLES["user"].format("{question}") + "\nAnswer:"


def question_text(tokenizer: Any, question: str) -> str:
    """Return the text that follows the document: a user turn of the tokenizer's chat template, or `PLAIN`."""
    return conversation_text(tokenizer, [("user", question)])


def conversation_text(tokenizer: Any, turns: Sequence[tuple[str, str]]) -> str:
    """Return the text that follows the document for several turns, with the tokenizer's chat template or as plain text.

    `turns` are (role, content) with the roles `user` and `assistant`; the last one is `user`.
    """
    marks = [f"{_MARK}-{number}-" for number in range(len(turns))]
    shown = [
        {"role": "user", "content": "kvswap-document"},
        {"role": "assistant", "content": _BEFORE},
        *({"role": role, "content": mark} for (role, _), mark in zip(turns, marks, strict=True)),
    ]
    try:
        rendered = rendered_turns(tokenizer, shown)
    except (UsageError, ImportError):  # without a template that takes them, plain text will do
        return _plain(turns)
    _, _, rest = rendered.rpartition(_BEFORE)
    out = []
    for (_, content), mark in zip(turns, marks, strict=True):
        before, found, rest = rest.partition(mark)
        if not found or mark in rest:
            return _plain(turns)
        out += [before, content]
    return "".join([*out, rest])


def rendered_turns(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    """Render turns with a model's chat template, up to where the answer begins.

    Raises `UsageError` for turns that the template does not accept, and for a tokenizer without one.
    """
    try:
        rendered: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (ImportError, MemoryError):
        raise  # a fault of this machine
    except Exception as error:
        raise UsageError(
            f"the model's chat template does not take these turns: {brief(error)}",
            cause="many models want user and assistant in turns and the user first, some no system message",
            hint="other turns, or /v1/completions with the text as it should be",
        ) from error
    return rendered


def _plain(turns: Sequence[tuple[str, str]]) -> str:
    return "".join(_ROLES[role].format(content) for role, content in turns) + "\nAnswer:"
