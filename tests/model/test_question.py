from __future__ import annotations

from pathlib import Path

from kvswap.model.question import PLAIN, question_text


class Template:
    """A tokenizer with a chat template that misbehaves."""

    def __init__(self, rendered: str | None) -> None:
        self._rendered = rendered

    def apply_chat_template(self, turns: list[dict[str, str]], **_: object) -> str:
        if self._rendered is None:
            raise ValueError("no template")
        return self._rendered.format(before=turns[1]["content"], mark=turns[2]["content"])


def test_a_chat_model_gets_a_user_turn(default_model: Path) -> None:
    from transformers import AutoTokenizer

    text = question_text(AutoTokenizer.from_pretrained(default_model), "Why {}?")
    assert text == "<|im_end|>\n<|im_start|>user\nWhy {}?<|im_end|>\n<|im_start|>assistant\n"


def test_without_a_usable_template_it_is_plain_text() -> None:
    for rendered in (None, "nothing", "{mark}{before}", "{before}{mark}{mark}"):
        assert question_text(Template(rendered), "Why?") == PLAIN.format(question="Why?")
    assert question_text(Template("{mark} {before}|{mark}|"), "Why?") == "|Why?|"
