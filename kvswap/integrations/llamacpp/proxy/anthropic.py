"""Anthropic's requests as chats of OpenAI's form, so that the server's template can render them.

llama-server converts them itself before it answers; this is only to know the ids beforehand, and its count of tokens
says whether it did the same.
"""

from __future__ import annotations

import json
from typing import Any


def as_chat(body: dict[str, Any]) -> dict[str, Any] | None:
    """Return the chat of a request, or None where it has something that no chat has."""
    messages: list[dict[str, Any]] = []
    system = body.get("system")
    if system:
        text = _text(system)
        if text is None:
            return None
        messages.append({"role": "system", "content": text})
    given = body.get("messages")
    for message in given if isinstance(given, list) else [None]:
        converted = _message(message) if isinstance(message, dict) else None
        if converted is None:
            return None
        messages += converted
    chat: dict[str, Any] = {"messages": messages}
    tools = body.get("tools")
    if isinstance(tools, list) and tools:
        if not all(isinstance(tool, dict) for tool in tools):
            return None
        chat["tools"] = [_tool(tool) for tool in tools]
    return chat


def _text(content: Any) -> str | None:
    """Return text that is given as such or in blocks; None for other blocks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = [str(block.get("text", "")) for block in content if isinstance(block, dict) and block.get("type") == "text"]
    return "".join(texts) if len(texts) == len(content) else None


def _message(message: dict[str, Any]) -> list[dict[str, Any]] | None:
    role, content = message.get("role"), message.get("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        return None
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for block in content:
        kind = block.get("type")
        if kind == "text" and isinstance(block.get("text"), str):
            texts.append(block["text"])
        elif kind == "tool_use":
            function = {"name": block.get("name", ""), "arguments": json.dumps(block.get("input", {}))}
            calls.append({"id": block.get("id", ""), "type": "function", "function": function})
        elif kind == "tool_result":
            result = _text(block.get("content", ""))
            if result is None:
                return None
            results.append({"role": "tool", "tool_call_id": block.get("tool_use_id", ""), "content": result})
        else:
            return None
    converted: list[dict[str, Any]] = []
    if texts or calls:
        turn: dict[str, Any] = {"role": role}
        if texts:
            turn["content"] = [{"type": "text", "text": text} for text in texts]
        if calls:
            turn["tool_calls"] = calls
            turn.setdefault("content", "")
        converted.append(turn)
    return converted + results


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = {"name": tool.get("name", ""), "description": tool.get("description", "")}
    return {"type": "function", "function": function | {"parameters": tool.get("input_schema", {})}}
