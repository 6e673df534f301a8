"""Responses in OpenAI's format: whole, or as server-sent events."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any


class Answer:
    """The response to one request, in the format of chat completions if `chat`, otherwise of completions."""

    def __init__(self, model: str, *, chat: bool) -> None:
        self._chat = chat
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def piece(self, text: str, ids: tuple[int, ...], finish: str | None) -> bytes:
        """Return one event of a stream, with a piece of the text."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "token_ids": list(ids)}
        choice |= {"delta": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        return self._event({"choices": [choice]})

    def end(self, usage: dict[str, Any] | None) -> bytes:
        """Return the last events of a stream: the usage, if given, and the end mark."""
        return (self._event({"choices": [], "usage": usage}) if usage is not None else b"") + b"data: [DONE]\n\n"

    def _event(self, body: dict[str, Any]) -> bytes:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return f"data: {json.dumps({**self._head, 'object': kind, **body})}\n\n".encode()

    def whole(self, text: str, ids: list[int], finish: str | None, usage: dict[str, Any]) -> dict[str, Any]:
        """Return the whole response as a JSON object."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "token_ids": ids}
        choice |= {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": [choice], "usage": usage}


def error_event(error: dict[str, Any]) -> bytes:
    """Return the event that ends a stream which failed after it had begun."""
    return f"data: {json.dumps({'error': error})}\n\n".encode()
