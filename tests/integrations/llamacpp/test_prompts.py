"""What a request asks: its kind, its prompt, and what is not looked at."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvswap.integrations.llamacpp.proxy.anthropic import as_chat
from kvswap.integrations.llamacpp.proxy.prompts import (
    CHAT,
    COMPLETION,
    KINDS,
    MESSAGES,
    OTHER,
    RequestPrompt,
    changes_computation,
    parsed,
    prompt_of,
)


class Renders:
    """Renders a chat as its texts, as a server's template does."""

    async def render(self, body: dict[str, Any], seconds: float) -> str:
        return "|".join(f"{m['role']}:{m['content']}" for m in body["messages"])


def prompt(kind: str, body: dict[str, Any]) -> RequestPrompt | None:
    return asyncio.run(prompt_of(kind, body, Renders(), 1.0))  # type: ignore[arg-type]


def test_prompts_are_texts_ids_or_unknown() -> None:
    assert prompt(COMPLETION, {"prompt": "abc"}) == RequestPrompt(text="abc")
    assert prompt(COMPLETION, {"prompt": [1, 2]}) == RequestPrompt(ids=(1, 2))
    for given in (None, [], ["a", "b"], [1, "b"], [[1], [2]], {"prompt_string": "a", "multimodal_data": []}, [True]):
        assert prompt(COMPLETION, {"prompt": given}) is None
    assert prompt(CHAT, {"messages": [{"role": "user", "content": "q"}]}) == RequestPrompt(text="user:q")
    picture = [{"type": "image_url", "image_url": {"url": "data:"}}]
    for messages in (None, "x", [{"role": "user", "content": picture}], [{"role": "user", "content": ["x"]}]):
        assert prompt(CHAT, {"messages": messages}) is None
    body = {"system": "s", "messages": [{"role": "user", "content": "q"}]}
    assert prompt(MESSAGES, body) == RequestPrompt(text="system:s|user:q", messages=body)
    assert prompt(OTHER, {"prompt": "abc"}) is None
    assert KINDS["/v1/messages"] == MESSAGES and KINDS["/v1/chat/completions"] == CHAT


def test_bodies_that_are_none_and_those_that_change_the_computation() -> None:
    assert (
        parsed(b"{") is None and parsed(b"[1]") is None and parsed(b"[" * 100_000) is None and parsed(b"\xff") is None
    )
    assert parsed(b'{"a": 1}') == {"a": 1}
    assert changes_computation({"lora": [{"id": 0}]}) and changes_computation({"n_cache_reuse": 5})
    assert not changes_computation({"lora": [], "n_cache_reuse": 0, "prompt": "lora"})


def test_anthropics_requests_become_chats() -> None:
    tool = {"name": "read", "description": "reads", "input_schema": {"type": "object"}}
    body = {
        "system": [
            {"type": "text", "text": "a"},
            {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}},
        ],
        "tools": [tool],
        "messages": [
            {"role": "user", "content": "q"},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "t"},
                    {"type": "tool_use", "id": "1", "name": "read", "input": {"x": 1}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "r"}]}],
            },
        ],
    }
    call = {"id": "1", "type": "function", "function": {"name": "read", "arguments": '{"x": 1}'}}
    function = {"name": "read", "description": "reads", "parameters": {"type": "object"}}
    assert as_chat(body) == {
        "messages": [
            {"role": "system", "content": "ab"},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": [{"type": "text", "text": "t"}], "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "r"},
        ],
        "tools": [{"type": "function", "function": function}],
    }


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": ["x"]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [], "system": [{"type": "image"}]},
        {"messages": [], "tools": ["x"]},
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [{"type": "image"}]}]}]},
    ],
)
def test_what_is_no_chat_is_not_guessed(body: dict[str, Any]) -> None:
    assert as_chat(body) is None
