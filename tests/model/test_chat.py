"""Conversations by a model's template: rendered as transformers does, with ends that hold in longer ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvswap.core.errors import Incompatible, UsageError
from kvswap.model.chat import ChatFormat, alike, format_of, plain_messages, plain_tools, read_format
from tests.agents.chats import MESSAGES, SYSTEM, THINKING_TEMPLATE, TOOLS, TOOLS_TEMPLATE, TURNS, with_template


@pytest.fixture(scope="module")
def models(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("chats")
    plain = tiny_models["llama"]
    return {
        "tools": with_template(plain, root / "tools", TOOLS_TEMPLATE),
        "begins": with_template(plain, root / "begins", TOOLS_TEMPLATE, begins=True),
        "thinking": with_template(plain, root / "thinking", THINKING_TEMPLATE),
    }


def loaded(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("kind", ["tools", "begins", "thinking"])
def test_files_alone_give_what_transformers_gives(models: dict[str, Path], kind: str) -> None:
    """The text, and the tokens, are those of `apply_chat_template`, which engines use."""
    tokenizer, form = loaded(models[kind]), read_format(models[kind])
    tools = TOOLS if kind != "thinking" else []
    for prompt in (False, True):
        text = form.render(MESSAGES, tools, prompt=prompt)
        theirs = tokenizer.apply_chat_template(MESSAGES, tools=tools, tokenize=False, add_generation_prompt=prompt)
        assert form.leading + text == theirs
        ids = tokenizer.apply_chat_template(MESSAGES, tools=tools, add_generation_prompt=prompt)["input_ids"]
        assert tokenizer(text)["input_ids"] == ids  # as a document: its tokenizer puts what is left out before it
    other = format_of(tokenizer)
    assert (other.leading, other.before) == (form.leading, form.before)
    assert other.render(MESSAGES, tools) == form.render(MESSAGES, tools)
    assert form.before == (1 if kind == "begins" else 0)


@pytest.mark.parametrize("kind", ["tools", "begins"])
def test_parts_end_where_other_conversations_part_ways(models: dict[str, Path], kind: str) -> None:
    form, tokenizer = read_format(models[kind]), loaded(models[kind])
    text = form.render(MESSAGES, TOOLS)
    parts = form.part_ends(MESSAGES, TOOLS)
    assert [(part.part, part.message) for part in parts] == [
        ("system", 0),
        ("tools", 0),
        ("message", 0),  # the system message's, with the tools in it
        *(("message", number) for number in range(1, len(MESSAGES))),
    ]
    counts = form.token_ends(text, [part.end for part in parts])
    whole = tokenizer(text)["input_ids"]
    assert counts == sorted(counts) and counts[-1] == len(whole)
    others = {
        "system": ([{**SYSTEM, "content": SYSTEM["content"] + "Be brief."}, *TURNS], TOOLS),
        "tools": (MESSAGES, [*TOOLS, TOOLS[0]]),
        0: ([SYSTEM, {"role": "assistant", "content": "Hello"}], TOOLS),
        1: ([SYSTEM, TURNS[0], {"role": "assistant", "content": "Zero"}], TOOLS),
    }
    for part, count in zip(parts, counts, strict=True):
        if (other := others.get(part.part if part.part != "message" else part.message)) is not None:
            ids = tokenizer(form.render(*other))["input_ids"]
            assert ids[:count] == whole[:count], part
            assert alike(ids, whole) - count <= len(form.encode("<|im_start|>assistant\n")), part  # no more besides


def test_an_end_that_cuts_a_token_counts_what_is_the_same(models: dict[str, Path]) -> None:
    form = read_format(models["tools"])
    text = "an uncommon wordage"
    whole = form.encode(text)
    for end in range(1, len(text)):
        (count,) = form.token_ends(text, [end])
        assert whole[:count] == form.encode(text[:end])[:count]


def test_one_more_question_follows_exactly(models: dict[str, Path]) -> None:
    form, tokenizer = read_format(models["begins"]), loaded(models["begins"])
    before = MESSAGES[:3]
    text, more = form.render(before, TOOLS), form.continuation(before, TOOLS, "How many?")
    asked = [*before, {"role": "user", "content": "How many?"}]
    ids = tokenizer.apply_chat_template(asked, tools=TOOLS, add_generation_prompt=True)["input_ids"]
    assert tokenizer(text)["input_ids"] + form.encode(more) == ids


def test_a_template_that_rewrites_what_was_said_is_told(models: dict[str, Path]) -> None:
    form = read_format(models["thinking"])
    thought = [TURNS[0], {"role": "assistant", "content": "<think>hm</think>Nails."}]
    with pytest.raises(UsageError, match="in another way"):
        form.continuation(thought, [], "How many?")
    parts = form.part_ends([*thought, TURNS[2]])
    text = form.render([*thought, TURNS[2]])
    assert all(form.render([*thought, TURNS[0]]).startswith(text[: part.end]) for part in parts[:-1])


def test_what_is_not_of_the_form_says_which_message() -> None:
    for wrong in (None, [], [{"role": "king", "content": "x"}], [{"role": "user", "content": [{"type": "image_url"}]}]):
        with pytest.raises(UsageError):
            plain_messages(wrong)
    with pytest.raises(UsageError, match=r"messages\[1\]"):
        plain_messages([{"role": "user", "content": "x"}, {"role": "user", "content": 3}])
    call = {"id": "1", "function": {"name": "read", "arguments": '{"x": "y"}'}}
    (made,) = plain_messages([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert made["tool_calls"][0]["function"]["arguments"] == {"x": "y"}
    (made,) = plain_messages(
        [{"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    )
    assert made["role"] == "system" and made["content"] == "ab"
    with pytest.raises(UsageError):
        plain_tools({"a": 1})


def test_a_model_without_a_template_says_so(tiny_models: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="no chat template"):
        read_format(tiny_models["llama"])


def test_a_template_that_leaves_out_the_first_token_is_refused(models: dict[str, Path]) -> None:
    form = read_format(models["begins"])
    other = ChatFormat(THINKING_TEMPLATE, form.specials, form.encode, form.leading, form.before)
    with pytest.raises(Incompatible, match="does not begin"):
        other.render(TURNS)


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_alike_counts_what_two_begin_with(one: list[int], other: list[int]) -> None:
    count = alike(one, other)
    assert one[:count] == other[:count]
    assert count == min(len(one), len(other)) or one[count] != other[count]
