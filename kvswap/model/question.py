"""How a question is put after a document that is already in the cache.

The document stands at the beginning, as plain text, so that its cache serves every question.  Models
with a chat template get the question as the next user turn; others as a line of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BEFORE, _MARK = "kvswap-before", "kvswap-question"
_ROLES = {"user": "\n\nQuestion: {}", "assistant": "\nAnswer: {}"}
PLAIN = _ROLES["user"].format("{question}") + "\nAnswer:"


def question_text(tokenizer: Any, question: str) -> str:
    """The text that follows the document: a user turn of the tokenizer's chat template, or `PLAIN`."""
    return conversation_text(tokenizer, [("user", question)])


def conversation_text(tokenizer: Any, turns: Sequence[tuple[str, str]]) -> str:
    """The same for several turns, (role, content) with the roles `user` and `assistant`, the last of them `user`."""
    marks = [f"{_MARK}-{number}-" for number in range(len(turns))]
    shown = [
        {"role": "user", "content": "kvswap-document"},
        {"role": "assistant", "content": _BEFORE},
        *({"role": role, "content": mark} for (role, _), mark in zip(turns, marks, strict=True)),
    ]
    try:
        rendered: str = tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=True)
    except Exception:  # noqa: BLE001 - templates are programs of strangers; without one, plain text will do
        return _plain(turns)
    _, _, rest = rendered.rpartition(_BEFORE)
    out = []
    for (_, content), mark in zip(turns, marks, strict=True):
        before, found, rest = rest.partition(mark)
        if not found or mark in rest:
            return _plain(turns)
        out += [before, content]
    return "".join([*out, rest])


def _plain(turns: Sequence[tuple[str, str]]) -> str:
    return "".join(_ROLES[role].format(content) for role, content in turns) + "\nAnswer:"
