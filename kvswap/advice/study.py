"""The study of a log: each request rendered as the model's template does, and compared with all before it."""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvswap.advice.breaks import Breaks, CutPrompt
from kvswap.advice.log import LoggedRequest, SkippedLine, read_log
from kvswap.advice.pieces import Pieces
from kvswap.advice.tree import PrefixTree, Worth
from kvswap.api.advice import AdviceResult, PrefixAdvice, SharingBreak
from kvswap.core.atomic import write_atomic
from kvswap.core.errors import UsageError
from kvswap.model.chat import ChatFormat

_ENDS = 60  # characters of a prefix's end that are shown


@dataclass(frozen=True, slots=True)
class AdviceScope:
    """The extent of the advice: tokens of a block, and how many prefixes and breaks at most."""

    block_tokens: int
    prefixes: int = 10
    breaks: int = 10
    directory: Path | None = None
    """The directory for the texts of the prefixes, to be published."""


@dataclass(slots=True)
class LogStudy:
    """The study of one log for one model."""

    form: ChatFormat
    wanted: AdviceScope
    requests: int = 0
    tokens: int = 0
    skipped: int = 0
    why_skipped: str | None = None
    pieces: Pieces = field(init=False)
    _tree: PrefixTree = field(default_factory=PrefixTree)
    _breaks: Breaks = field(default_factory=Breaks)
    _tools: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The first list of each set of tools."""

    def __post_init__(self) -> None:
        """Prepare to cut prompts."""
        self.pieces = Pieces(self.form.encode, self.form.marks)

    def add(self, request: LoggedRequest) -> None:
        """Add a request.  Raises `UsageError` for one that the template does not take."""
        pieces = self.pieces.cut(self.form.render(request.messages, request.tools))
        parts = self.pieces.tokens(pieces)
        if len(parts) != len(pieces):  # this tokenizer does not take pieces one by one
            pieces = ["".join(pieces)]
        ids = array("I", [0] * self.form.before)  # as the tokens before every text are the same
        ends = []
        for part in parts:
            ids += part
            ends.append(len(ids))
        shared = self._tree.add(ids, request.line)
        first = self._first_tools(request.tools)
        compared, difference = pieces, ""
        if first != request.tools or json.dumps(first) != json.dumps(request.tools):
            difference = "tool order" if sorted(map(repr, first)) == sorted(map(repr, request.tools)) else "tool text"
            other = self.pieces.cut(self.form.render(request.messages, first))
            compared = other if len(other) == len(pieces) else pieces
        prompt = CutPrompt(request.line, pieces, compared, ends, request.messages, difference)
        self._breaks.add(prompt, shared)
        self.requests += 1
        self.tokens += len(ids)

    def _first_tools(self, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the list in which the same tools came first, whatever their order then."""
        key = json.dumps(sorted(json.dumps(tool, sort_keys=True) for tool in tools))
        return self._tools.setdefault(key, tools)

    def result(self, model: str, path: Path) -> AdviceResult:
        """Return the advice; `path` is the log, of which the first requests of each prefix are read again."""
        worth = self._tree.worth_publishing(self.wanted.block_tokens, self.wanted.prefixes)
        lines = {one.place.line for one in worth}
        examples = {one.line: one for one in read_log(path, lines) if isinstance(one, LoggedRequest)}
        prefixes = [self._prefix(number, one, examples[one.place.line]) for number, one in enumerate(worth, 1)]
        return AdviceResult(
            model=model,
            requests=self.requests,
            skipped=self.skipped,
            why_skipped=self.why_skipped,
            tokens=self.tokens,
            distinct_tokens=self._tree.tokens,
            saved_tokens=sum(prefix.saved_tokens for prefix in prefixes),
            prefixes=prefixes,
            breaks=[
                SharingBreak(
                    kind=place.kind,
                    message=place.message,
                    role=place.role,
                    requests=place.requests,
                    lost_tokens=place.lost,
                    line=place.line,
                    before=place.before,
                    one=place.one,
                    other=place.other,
                )
                for place in self._breaks.worst(self.wanted.block_tokens, self.wanted.breaks)
            ],
        )

    def _prefix(self, number: int, worth: Worth, example: LoggedRequest) -> PrefixAdvice:
        text = self._text(example, worth.place.depth)
        name = None
        if self.wanted.directory is not None:
            file = self.wanted.directory / f"prefix-{number:02}.txt"
            write_atomic(file, text.encode())
            name = str(file)
        return PrefixAdvice(
            tokens=worth.tokens,
            requests=worth.place.requests,
            saved_tokens=worth.saved,
            messages=messages_in(self.form, example, text),
            line=worth.place.line,
            ends=text[-_ENDS:],
            file=name,
        )

    def _text(self, example: LoggedRequest, tokens: int) -> str:
        """Return the text of a request's first tokens."""
        pieces = self.pieces.cut(self.form.render(example.messages, example.tools))
        out, left = [], tokens - self.form.before
        for piece, part in zip(pieces, self.pieces.tokens(pieces), strict=False):
            if len(part) > left:
                out.append(_cut(piece, self.form, left))
                break
            out.append(piece)
            left -= len(part)
        return "".join(out)


def _cut(piece: str, form: ChatFormat, tokens: int) -> str:
    """Return the shortest beginning of a piece that has its first tokens."""
    whole = form.encode(piece)[:tokens]
    low, high = 0, len(piece)
    while low < high:
        middle = (low + high) // 2
        if form.encode(piece[:middle])[:tokens] == whole:
            high = middle
        else:
            low = middle + 1
    return piece[:low]


def messages_in(form: ChatFormat, request: LoggedRequest, text: str) -> int:
    """Count the messages of a request that are wholly in a text that its prompt begins with."""
    if not text:
        return 0
    ends = [part for part in form.part_ends(request.messages, request.tools) if part.part == "message"]
    return max((part.message + 1 for part in ends if part.end <= len(text)), default=0)


def advise(form: ChatFormat, model: str, path: Path, wanted: AdviceScope) -> AdviceResult:
    """Read a log, and return the advice.

    Raises `UsageError` where no line of it is a request that the model's template takes.
    """
    study = LogStudy(form, wanted)
    for one in read_log(path):
        _take(study, one)
    if not study.requests:
        raise UsageError(
            f"{path.name} has no request that {model} could answer: {study.why_skipped or 'it is empty'}",
            cause="it is not a JSON object a line with the messages of OpenAI's chat API",
            hint='{"messages": [{"role": "user", "content": "…"}]}',
        )
    return study.result(model, path)


def _take(study: LogStudy, one: LoggedRequest | SkippedLine) -> None:
    try:
        if isinstance(one, LoggedRequest):
            study.add(one)
            return
        why = one.why
    except UsageError as error:
        why = error.message
    study.skipped += 1
    study.why_skipped = study.why_skipped or f"line {one.line}: {why}"
