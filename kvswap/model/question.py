"""How a question is put after a document that is already in the cache.

The document stands at the beginning, as plain text, so that its cache serves every question.  Models
with a chat template get the question as the next user turn; others as a line of text.
"""

from __future__ import annotations

from typing import Any

_BEFORE, _MARK = "kvswap-before", "kvswap-question"
PLAIN = "\n\nQuestion: {question}\nAnswer:"


def question_text(tokenizer: Any, question: str) -> str:
    """The text that follows the document: a user turn of the tokenizer's chat template, or `PLAIN`."""
    turns = [
        {"role": "user", "content": "kvswap-document"},
        {"role": "assistant", "content": _BEFORE},
        {"role": "user", "content": _MARK},
    ]
    try:
        rendered: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception:  # noqa: BLE001 - templates are programs of strangers; without one, plain text will do
        return PLAIN.format(question=question)
    _, _, turn = rendered.rpartition(_BEFORE)
    if turn.count(_MARK) != 1:
        return PLAIN.format(question=question)
    return turn.replace(_MARK, question)
