"""Parsing of OpenAI requests to token ids.

Unknown parameters are refused, as an engine accepts many that a client must not set.  A request may name a document,
`"document": "sha256:<hex>"`: then the document's tokens come first, and the conversation continues from there, as with
`kvswap ask`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvswap.core.defaults import HOSTED_ANSWER_TOKENS
from kvswap.core.documents import check_unicode
from kvswap.core.errors import UsageError
from kvswap.core.limits import LIMITS
from kvswap.host.usage_log import HostedDocument
from kvswap.model.load import continuation_ids, document_ids
from kvswap.model.question import conversation_text, rendered_turns

_SAMPLING: dict[str, tuple[type, ...]] = {
    "temperature": (int, float),
    "top_p": (int, float),
    "seed": (int,),
    "presence_penalty": (int, float),
    "frequency_penalty": (int, float),
    "ignore_eos": (bool,),
}
_OTHERS = {"model", "document", "messages", "prompt", "max_tokens", "max_completion_tokens", "stop", "stream"}
_IGNORED = {"n", "stream_options", "user"}
_DOCUMENTS_KEPT = 64


@dataclass(frozen=True, slots=True)
class ParsedPrompt:
    """A parsed request: the prompt's token ids, and the sampling options for the engine."""

    ids: list[int]
    document: str | None
    document_tokens: int
    options: dict[str, Any]
    most: int  # tokens of the answer
    stream: bool
    usage: bool  # whether a stream ends with the usage


class Prompts:
    """The parser of requests for one model.

    `find` returns a hosted document, or raises `NotFound`.
    """

    def __init__(self, tokenizer: Any, model: str, find: Callable[[str], HostedDocument]) -> None:
        self._tokenizer, self._model, self._find = tokenizer, model, find
        self._ids: OrderedDict[str, list[int]] = OrderedDict()
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()  # tokenizers are not thread-safe

    def tokens(self, reference: str) -> int:
        """Return the number of tokens of a hosted document.  Raises `NotFound`."""
        count = self._counts.get(reference)
        return count if count is not None else len(self.document(reference))

    def document(self, reference: str) -> list[int]:
        """Return the token ids of a hosted document, cached.  Raises `NotFound`."""
        document = self._find(reference)
        with self._lock:
            ids = self._ids.pop(reference, None)
            if ids is None:
                ids = document_ids(self._tokenizer, document.text)
            self._ids[reference] = ids
            self._counts[reference] = len(ids)
            while len(self._ids) > _DOCUMENTS_KEPT:
                self._ids.popitem(last=False)
        return ids

    def _continuation(self, text: str) -> list[int]:
        with self._lock:
            return continuation_ids(self._tokenizer, text)

    def chat(self, body: dict[str, Any]) -> ParsedPrompt:
        """Parse the body of `/v1/chat/completions`.

        Raises `UsageError`, or `NotFound` for a document that is not hosted.
        """
        turns = _turns(body.get("messages"))
        reference = self._named(body)
        if reference is None:
            messages = [{"role": role, "content": content} for role, content in turns]
            rendered = rendered_turns(self._tokenizer, messages)
            return self._asked(body, None, self._continuation(rendered))
        if turns[0][0] == "system" or turns[-1][0] != "user":
            raise UsageError(
                "after a document come turns of user and assistant, the last of them the user's",
                cause="the document stands at the very beginning, where a system message would be",
            )
        return self._asked(body, reference, self._continuation(conversation_text(self._tokenizer, turns)))

    def completion(self, body: dict[str, Any]) -> ParsedPrompt:
        """Parse the body of `/v1/completions`.

        Raises `UsageError`, or `NotFound` for a document that is not hosted.
        """
        prompt, reference = body.get("prompt"), self._named(body)
        if not isinstance(prompt, str) or not prompt:
            raise UsageError("prompt is a text")
        check_unicode(prompt, "prompt")
        if reference is not None:
            return self._asked(body, reference, self._continuation(prompt))
        with self._lock:
            ids = document_ids(self._tokenizer, prompt)
        return self._asked(body, None, ids)

    def _named(self, body: dict[str, Any]) -> str | None:
        for name in body:
            if name == "cache_salt":
                raise UsageError("cache_salt is the host's to set", cause="it keeps what clients read apart")
            if name not in _OTHERS and name not in _SAMPLING and name not in _IGNORED:
                raise UsageError(f"this host does not take {name[:40]!r}")
        if body.get("n") not in (None, 1):
            raise UsageError("n is 1: one answer to a request")
        if body.get("model") not in (None, "", self._model):
            raise UsageError(f"this host serves {self._model}, not {str(body['model'])[:80]!r}")
        document = body.get("document")
        if document is not None and not isinstance(document, str):
            raise UsageError('document is "sha256:<hex>"')
        return document

    def _asked(self, body: dict[str, Any], reference: str | None, following: list[int]) -> ParsedPrompt:
        before = self.document(reference) if reference is not None else []
        if not following:
            raise UsageError("the question is empty")
        options: dict[str, Any] = {}
        for name, kinds in _SAMPLING.items():
            if body.get(name) is not None:
                if not isinstance(body[name], kinds) or isinstance(body[name], bool) != (kinds == (bool,)):
                    raise UsageError(f"{name} cannot be {str(body[name])[:40]!r}")
                options[name] = body[name]
        if body.get("stop") is not None:
            options["stop"] = _stops(body["stop"])
        limits = (body.get("max_completion_tokens"), body.get("max_tokens"), HOSTED_ANSWER_TOKENS)
        most = next(value for value in limits if value is not None)
        if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= LIMITS.host_tokens:
            raise UsageError(f"max_tokens is a number from 1 to {LIMITS.host_tokens}")
        streaming = body.get("stream_options")
        return ParsedPrompt(
            ids=[*before, *following],
            document=reference,
            document_tokens=len(before),
            options=options | {"max_tokens": most},
            most=most,
            stream=bool(body.get("stream")),
            usage=bool(streaming.get("include_usage")) if isinstance(streaming, dict) else False,
        )


def _turns(messages: Any) -> list[tuple[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise UsageError("messages is a list of turns")
    turns = []
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):  # content parts, of which only texts are accepted
            texts = [p["text"] for p in content if isinstance(p, dict) and isinstance(p.get("text"), str)]
            content = "".join(texts) if len(texts) == len(content) else None
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise UsageError(f"messages[{number}] is no text of system, user or assistant")
        if role == "system" and number:
            raise UsageError("a system message is the first")
        check_unicode(content, f"messages[{number}]")
        turns.append((str(role), content))
    return turns


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > 4 or not all(isinstance(s, str) and 0 < len(s) < 256 for s in stops):
        raise UsageError("stop is a text, or up to four")
    for stop in stops:
        check_unicode(stop, "stop")
    return stops
