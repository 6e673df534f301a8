"""What a model's chat template does not take is the guest's mistake (400), told with the template's own words."""

from __future__ import annotations

from typing import Any

import pytest

from kvswap.core.errors import NotFound, UsageError
from kvswap.host.prompts import Prompts
from kvswap.model.question import conversation_text, question_text
from kvswap.net.failing import for_guests

jinja2 = pytest.importorskip("jinja2")

# As those of Gemma and Mistral: user and assistant take turns, and there is no system.
ALTERNATING = (
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<{{ message['role'] }}>{{ message['content'] }}{% endfor %}<assistant>"
)


class Tokenizer:
    """One token a character; `template` None: it has no chat template."""

    def __init__(self, template: str | None) -> None:
        self._template = template

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        if self._template is None:
            raise ValueError("Cannot use chat template functions because tokenizer.chat_template is not set")

        def raise_exception(message: str) -> None:
            raise jinja2.exceptions.TemplateError(message)

        made: str = jinja2.Template(self._template).render(messages=messages, raise_exception=raise_exception)
        return made

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        text.encode()  # as tokenizers do: halves of surrogate pairs are no text
        return {"input_ids": [ord(letter) for letter in text]}


def prompts(template: str | None) -> Prompts:
    def nothing(reference: str) -> Any:
        raise NotFound("not hosted")

    return Prompts(Tokenizer(template), "m", nothing)


def turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "Why?"} for role in roles]}


@pytest.mark.parametrize("roles", [("user", "user"), ("assistant",), ("system", "user")])
def test_turns_that_a_template_does_not_take_are_the_guests(roles: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="must alternate") as caught:
        prompts(ALTERNATING).chat(turns(*roles))
    assert for_guests(caught.value, "a test") is caught.value and caught.value.http_status == 400
    assert prompts(ALTERNATING).chat(turns("user")).ids


def test_a_model_without_a_template_says_what_to_ask_instead() -> None:
    with pytest.raises(UsageError) as caught:
        prompts(None).chat(turns("user"))
    assert "/v1/completions" in caught.value.hint
    assert prompts(None).completion({"prompt": "Why?"}).ids


def test_what_this_machine_lacks_is_not_the_guests() -> None:
    class Lacking(Tokenizer):
        def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
            raise ImportError("apply_chat_template requires jinja2 to be installed")

    with pytest.raises(ImportError):
        Prompts(Lacking(None), "m", lambda reference: None).chat(turns("user"))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("body", [{"messages": [{"role": "user", "content": "\ud800"}]}, {"prompt": "a \udfff"}])
def test_halves_of_surrogate_pairs_are_the_guests(body: dict[str, Any]) -> None:
    made = prompts(ALTERNATING)
    with pytest.raises(UsageError, match="Unicode"):
        made.chat(body) if "messages" in body else made.completion(body)
    with pytest.raises(UsageError, match="Unicode"):
        prompts(ALTERNATING).completion({"prompt": "Why?", "stop": "\ud800"})


def test_a_question_after_a_document_is_put_plainly_where_the_template_does_not_take_it() -> None:
    assert "Question: Why?" in conversation_text(Tokenizer(ALTERNATING), [("user", "Why?"), ("user", "And?")])
    assert "Question: Why?" in question_text(Tokenizer(None), "Why?")
