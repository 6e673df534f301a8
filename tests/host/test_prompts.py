"""What clients send, as token ids; what is not theirs to say is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvswap.core.errors import NotFound, UsageError
from kvswap.host.prompts import Prompts
from kvswap.host.usage_log import HostedDocument
from kvswap.model.load import load_tokenizer
from kvswap.model.question import question_text

DOCUMENT = HostedDocument("sha256:" + "1" * 64, "manual", "The manual of a machine.", "bafk")


def find(reference: str) -> HostedDocument:
    if reference != DOCUMENT.document:
        raise NotFound("not hosted")
    return DOCUMENT


@pytest.fixture(scope="module")
def tokenizer(default_model: Path) -> Any:
    return load_tokenizer(default_model)


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> Prompts:
    return Prompts(tokenizer, "m", find)


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **more}


def test_a_document_comes_first_and_then_the_question_as_ask_puts_it(prompts: Prompts, tokenizer: Any) -> None:
    asked = prompts.chat(user("Why?", document=DOCUMENT.document, max_tokens=5, temperature=0, stop="x"))
    before = tokenizer(DOCUMENT.text)["input_ids"]
    assert asked.ids == before + tokenizer(question_text(tokenizer, "Why?"), add_special_tokens=False)["input_ids"]
    assert (asked.document, asked.document_tokens, asked.most) == (DOCUMENT.document, len(before), 5)
    assert asked.options == {"temperature": 0, "stop": ["x"], "max_tokens": 5}
    assert prompts.chat(user([{"type": "text", "text": "Why?"}], document=DOCUMENT.document)).ids == asked.ids


def test_a_conversation_goes_on_after_a_document(prompts: Prompts, tokenizer: Any) -> None:
    turns = [("user", "Why?"), ("assistant", "Because {}."), ("user", "And then?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    asked = prompts.chat({"messages": messages, "document": DOCUMENT.document})
    following = tokenizer.decode(asked.ids[asked.document_tokens :])
    assert following.startswith(question_text(tokenizer, "Why?"))
    assert following.endswith("Because {}.<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n")


def test_without_a_document(prompts: Prompts, tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(prompts.chat({"messages": messages}).ids) == wanted
    assert prompts.completion({"prompt": "One two"}).ids == tokenizer("One two")["input_ids"]
    onward = prompts.completion({"prompt": " and", "document": DOCUMENT.document})
    assert tokenizer.decode(onward.ids) == DOCUMENT.text + " and"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": "Why?"},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]},
        user("Why?", cache_salt="mine"),
        user("Why?", kv_transfer_params={}),
        user("Why?", prompt_logprobs=1),
        user("Why?", n=2),
        user("Why?", model="other"),
        user("Why?", max_tokens=0),
        user("Why?", max_tokens=True),
        user("Why?", max_tokens=10**9),
        user("Why?", temperature="hot"),
        user("Why?", seed=1.5),
        user("Why?", stop=["x"] * 5),
        user("Why?", stop=[""]),
        user("Why?", document=7),
        {"messages": [{"role": "system", "content": "a"}], "document": DOCUMENT.document},
        {"messages": [{"role": "assistant", "content": "a"}], "document": DOCUMENT.document},
    ],
)
def test_what_is_refused(prompts: Prompts, body: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        prompts.chat(body)


def test_what_is_not_hosted(prompts: Prompts) -> None:
    with pytest.raises(NotFound):
        prompts.chat(user("Why?", document="sha256:" + "2" * 64))
    for prompt in (None, "", ["a"], [1, 2]):
        with pytest.raises(UsageError):
            prompts.completion({"prompt": prompt})
