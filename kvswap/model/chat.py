"""Conversations as text and tokens, by a model's own chat template, and where parts of them end.

A conversation's *prefix* is the template's text of its first messages, without the start of an answer: what every
longer conversation with the same beginning has as well.  It is a document like any other: the special tokens that the
tokenizer puts before every text are left out of it, as they come back with its tokens.

Templates are rendered as transformers does, without loading torch: `kvswap advise` reads ten thousand requests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvswap.core.errors import Incompatible, UsageError
from kvswap.core.failures import brief
from kvswap.model import files

Message = Mapping[str, Any]
Encode = Callable[[str], list[int]]

_MARK = "\u2402kvswap"  # what no text ends with by chance
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_MESSAGES = 10_000


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The end of a part of a conversation: `system`, `tools`, or the message with this number, from 0."""

    part: str
    message: int
    end: int
    """Characters of the text up to it."""


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """A model's way to write conversations: its template, and how its tokenizer begins a text.

    `encode` returns the ids of a text without special tokens; `leading` is the text of those that come before.
    """

    template: str | Mapping[str, str]
    specials: Mapping[str, Any]
    encode: Encode
    leading: str = ""
    before: int = 0
    """The number of special tokens before every text."""
    marks: tuple[str, ...] = ()
    """The texts of tokens that a text is cut at before it is tokenised."""

    def render(self, messages: Sequence[Message], tools: Sequence[Any] = (), *, prompt: bool = False) -> str:
        """Render a conversation as a document's text; with `prompt` up to where the answer begins.

        Raises `UsageError` for messages that the template does not take, `Incompatible` where the tokenizer begins
        texts in another way than the template does.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        shown = [{name: value for name, value in message.items() if value is not None} for message in messages]
        try:
            (text,), _ = render_jinja_template(
                conversations=[shown],
                tools=list(tools) or None,
                chat_template=self._chosen(bool(tools)),
                add_generation_prompt=prompt,
                **self.specials,
            )
        except (ImportError, MemoryError):
            raise  # a fault of this machine
        except Exception as error:
            raise UsageError(
                f"the model's chat template does not take these messages: {brief(error)}",
                cause="many models want user and assistant in turns, the user first, and some no system message",
                hint="other messages, or the text as it should be, as a document",
            ) from error
        if not text.startswith(self.leading):
            raise Incompatible(
                "the model's chat template does not begin with the token that its tokenizer begins texts with",
                cause=f"a document of this model begins with {self.leading!r}, its conversations do not",
                field="tokenizer",
            )
        return str(text[len(self.leading) :])

    def _chosen(self, tools: bool) -> str:
        """Return the template for conversations with tools, or without."""
        if isinstance(self.template, str):
            return self.template
        named = self.template.get("tool_use") if tools else None
        if (found := named or self.template.get("default")) is None:
            raise UsageError("the model has several chat templates, and none by default")
        return found

    def part_ends(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[PartEnd]:
        """Return where system text, tools and messages end in `render(messages, tools)`, in their order.

        That is as far as it is the same as with another text there: more system text, one more tool, fewer messages.
        """
        text = self.render(messages, tools)
        found = []
        first = messages[0]
        if first.get("role") == "system":
            longer = [{**first, "content": f"{first.get('content', '')}{_MARK}"}, *messages[1:]]
            found.append(PartEnd("system", 0, alike(text, self.render(longer, tools))))
        if tools:
            another = {"type": "function", "function": {"name": _MARK, "description": "", "parameters": {}}}
            found.append(PartEnd("tools", 0, alike(text, self.render(messages, [*tools, another]))))
        for count in range(1, len(messages)):
            try:
                shorter = self.render(messages[:count], tools)
            except UsageError:  # such a template takes no half of a turn
                continue
            found.append(PartEnd("message", count - 1, alike(text, shorter)))
        found.append(PartEnd("message", len(messages) - 1, len(text)))
        ends = {part.end: part for part in found if part.end}  # of two that end together the larger part
        return [ends[end] for end in sorted(ends)]

    def continuation(self, messages: Sequence[Message], tools: Sequence[Any], question: str) -> str:
        """Return the text that follows a conversation's prefix for one more question of the user's.

        Raises `UsageError` where the template writes the messages before it in another way then.
        """
        text = self.render(messages, tools)
        whole = self.render([*messages, {"role": "user", "content": question}], tools, prompt=True)
        if not whole.startswith(text):
            raise UsageError(
                "the model's chat template writes these messages in another way when one more follows",
                cause="it leaves out what an assistant thought, or joins messages",
                hint="end the messages before the last assistant's one",
            )
        return whole[len(text) :]

    def token_ends(self, text: str, ends: Sequence[int]) -> list[int]:
        """Return for each of these ends in a text, in order, how many tokens of the document are whole by then.

        Special tokens before it are counted.  Where a part alone makes other tokens than in the whole, as many are
        counted as are the same.
        """
        whole = self.encode(text)
        pieces = [self.encode(text[start:end]) for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
        if [token for piece in pieces for token in piece] == whole:
            counts, total = [], self.before
            for piece in pieces[:-1]:
                total += len(piece)
                counts.append(total)
            return counts
        return [self.before + alike(whole, self.encode(text[:end])) for end in ends]


def alike(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Count how many items, or characters, two sequences begin with together."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low < high:  # comparing slices is fast: some twenty of them, and no loop over all
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def plain_messages(value: Any, what: str = "messages") -> list[dict[str, Any]]:
    """Return messages in the form of OpenAI's API as templates take them: contents as one text, arguments as objects.

    Raises `UsageError` naming the message that is wrong; pictures and sounds are not text.
    """
    if not isinstance(value, list) or not value or len(value) > _MESSAGES:
        raise UsageError(f"{what} is a list of one to {_MESSAGES} messages")
    return [_plain_message(one, f"{what}[{number}]") for number, one in enumerate(value)]


def _plain_message(message: Any, what: str) -> dict[str, Any]:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise UsageError(f"{what} has no role of {', '.join(sorted(_ROLES))}", cause="another format than OpenAI's")
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        if len(texts) != len(content) or not all(isinstance(text, str) for text in texts):
            raise UsageError(f"{what} has content that is no text", cause="a picture, a sound or a file")
        content = "".join(map(str, texts))
    if content is not None and not isinstance(content, str):
        raise UsageError(f"{what} has content that is no text")
    out = {**message, "content": content}
    if message["role"] == "developer":  # OpenAI's newer word
        out["role"] = "system"
    if isinstance(calls := message.get("tool_calls"), list):
        out["tool_calls"] = [_plain_call(call, what) for call in calls]
    return out


def _plain_call(call: Any, what: str) -> Any:
    """Return a tool call with its arguments as an object, which OpenAI's API has as a text of JSON."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise UsageError(f"{what} has a tool call without a function")
    given = function.get("arguments")
    if not isinstance(given, str):
        return call
    try:
        return {**call, "function": {**function, "arguments": json.loads(given or "{}")}}
    except ValueError as error:
        raise UsageError(f"{what} has a tool call whose arguments are not JSON") from error


def plain_tools(value: Any) -> list[dict[str, Any]]:
    """Return a list of tools in the form of OpenAI's API, checked.  Raises `UsageError`."""
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise UsageError("tools is a list of tools, each an object")
    return value


def format_of(tokenizer: Any) -> ChatFormat:
    """Return the chat format of a tokenizer that transformers has loaded.  Raises `UsageError` without a template."""
    if not (template := getattr(tokenizer, "chat_template", None)):
        raise _without_template(str(tokenizer.name_or_path))

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    marked = list(tokenizer("text", add_special_tokens=True, verbose=False)["input_ids"])
    before = _before(marked, encode("text"))
    leading = "".join(tokenizer.convert_ids_to_tokens(marked[:before]))
    marks = tuple(str(token) for token in tokenizer.added_tokens_decoder.values())
    return ChatFormat(template, dict(tokenizer.special_tokens_map), encode, leading, before, marks)


def read_format(directory: Path) -> ChatFormat:
    """Read the chat format of a model from its files, without torch.

    Raises `UsageError` without a template, `Incompatible` for a tokenizer that is in no `tokenizer.json`.
    """
    from tokenizers import Tokenizer

    config = files.read_json(directory / "tokenizer_config.json")
    try:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # it raises a plain Exception for whatever is wrong with the file
        raise Incompatible(
            f"the tokenizer of {directory.name} cannot be read: {brief(error)}",
            cause="it has no tokenizer.json, or one of another version",
            field="tokenizer",
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    marked = tokenizer.encode("text", add_special_tokens=True).ids
    before = _before(marked, tokenizer.encode("text", add_special_tokens=False).ids)
    leading = "".join(str(tokenizer.id_to_token(token)) for token in marked[:before])
    return ChatFormat(
        _template_in(directory, config),
        {name: text for name in _NAMED if (text := _content(config.get(name)))},
        lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids),
        leading,
        before,
        tuple(token.content for token in tokenizer.get_added_tokens_decoder().values()),
    )


def _template_in(directory: Path, config: Mapping[str, Any]) -> str | Mapping[str, str]:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text()
    given = config.get("chat_template")
    if isinstance(given, str):
        return given
    if isinstance(given, list):
        named = [one for one in given if isinstance(one, dict)]
        return {str(one.get("name")): str(one.get("template")) for one in named}
    raise _without_template(directory.name)


def _without_template(name: str) -> UsageError:
    return UsageError(
        f"the model {Path(name).name} has no chat template",
        cause="it was trained to continue texts, and not for conversations",
        hint="publish the text itself",
    )


def _content(token: Any) -> str | None:
    """Return the text of a special token, which files have as a text or as an object."""
    found = token.get("content") if isinstance(token, Mapping) else token
    return found if isinstance(found, str) else None


def _before(marked: Sequence[int], bare: Sequence[int]) -> int:
    """Return how many special tokens stand before a text."""
    for before in range(len(marked) - len(bare) + 1):
        if list(marked[before : before + len(bare)]) == list(bare):
            return before
    raise Incompatible("the special tokens of this tokenizer stand within texts", field="tokenizer")
