"""What comes back, in OpenAI's format: whole, or as server-sent events."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any


class Answer:
    """Of one request.  `chat`: as chat completions have it, otherwise as completions do."""

    def __init__(self, model: str, *, chat: bool) -> None:
        self._chat = chat
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def piece(self, text: str, ids: tuple[int, ...], finish: str | None) -> bytes:
        """One event of a stream."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "token_ids": list(ids)}
        choice |= {"delta": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        return self._event({"choices": [choice]})

    def end(self, usage: dict[str, Any] | None) -> bytes:
        """The last events of a stream."""
        return (self._event({"choices": [], "usage": usage}) if usage is not None else b"") + b"data: [DONE]\n\n"

    def _event(self, body: dict[str, Any]) -> bytes:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return f"data: {json.dumps({**self._head, 'object': kind, **body})}\n\n".encode()

    def whole(self, text: str, ids: list[int], finish: str | None, usage: dict[str, Any]) -> dict[str, Any]:
        """The whole answer."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "token_ids": ids}
        choice |= {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": [choice], "usage": usage}


def error_event(error: dict[str, Any]) -> bytes:
    """What ends a stream that failed after it had begun."""
    return f"data: {json.dumps({'error': error})}\n\n".encode()
