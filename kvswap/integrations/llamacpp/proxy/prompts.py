"""What prompt a request is about: its text as the server's own template makes it, or ids that were given as such."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from kvswap.integrations.llamacpp.proxy.anthropic import as_chat
from kvswap.integrations.llamacpp.proxy.server import SlotServer

COMPLETION, CHAT, MESSAGES, OTHER = "completion", "chat", "messages", "other"
KINDS = {
    "/completion": COMPLETION,
    "/completions": COMPLETION,
    "/v1/completions": COMPLETION,
    "/chat/completions": CHAT,
    "/v1/chat/completions": CHAT,
    "/v1/messages": MESSAGES,
    "/v1/responses": OTHER,
    "/responses": OTHER,
    "/infill": OTHER,
    "/api/chat": OTHER,
    "/embedding": OTHER,
    "/embeddings": OTHER,
    "/v1/embeddings": OTHER,
    "/rerank": OTHER,
    "/reranking": OTHER,
    "/v1/rerank": OTHER,
    "/v1/reranking": OTHER,
}
"""The paths that use a slot of the server, and the form of their requests."""

_CHANGING = ("lora", "n_cache_reuse")  # fields with which a cache holds other than what the ids alone would give


@dataclass(frozen=True, slots=True)
class RequestPrompt:
    """A prompt: its text, or its ids where they were given; `messages`: an Anthropic request, to compare counts."""

    text: str = ""
    ids: tuple[int, ...] = ()
    messages: dict[str, Any] | None = None


def parsed(body: bytes) -> dict[str, Any] | None:
    """Return the fields of a request, or None if it is no JSON object: the server will say what is wrong with it."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def changes_computation(body: dict[str, Any]) -> bool:
    """Return True if a request asks for something that makes its cache another than that of its ids."""
    return any(body.get(name) for name in _CHANGING)


async def prompt_of(kind: str, body: dict[str, Any], server: SlotServer, seconds: float) -> RequestPrompt | None:
    """Return the prompt of a request, or None where that is not known: other forms, images, several prompts.

    Raises `ServerRefused` where the server does not render it within so many seconds.
    """
    if kind == COMPLETION:
        return _given(body.get("prompt"))
    chat, messages = (as_chat(body), body) if kind == MESSAGES else (body, None)
    if kind not in (CHAT, MESSAGES) or chat is None or not _all_text(chat.get("messages")):
        return None
    return RequestPrompt(text=await server.render(chat, seconds), messages=messages)


def _given(prompt: Any) -> RequestPrompt | None:
    if isinstance(prompt, str):
        return RequestPrompt(text=prompt)
    if isinstance(prompt, list) and prompt and all(type(one) is int for one in prompt):
        return RequestPrompt(ids=tuple(prompt))
    return None


def _all_text(messages: Any) -> bool:
    """Return True if messages have no images or sounds, whose tokens no template shows."""
    if not isinstance(messages, list):
        return False
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list) and not all(isinstance(p, dict) and p.get("type") == "text" for p in content):
            return False
    return True
