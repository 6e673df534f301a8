"""The paper's experiment (arXiv 2606.13361) with what it leaves out, on any model.

The paper compares prefill with one resident step, everything being in memory already.  Here a reader also fetches the
artifact, verifies, decodes and loads it, and generates whole answers; and both ways of answering are compared token by
token and logit by logit.  Prefill is measured twice: in one shot, which is the fastest, and block by block as kvswap
does it.
"""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kvswap.api.events import ProgressEvent, TokenEvent
from kvswap.bench.nodes import BenchNode
from kvswap.bench.texts import Cutter
from kvswap.core.defaults import COMPARED_TOKENS
from kvswap.core.errors import InvalidDocument, UsageError
from kvswap.core.ids import document_digest
from kvswap.core.limits import LIMITS

LENGTHS = (255, 485, 945, 1_888, 3_774, 7_500)
ANSWERS = (1, 24, 100)
CODECS = ("raw", "planes", "predictive", "int8")
QUESTION = "What does this text describe?"
_SIZED = 1_888  # tokens of the document whose sizes are compared
_REPEATS = 5  # of quick measurements; the median counts

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Answered:
    """The times of one answer in seconds, by number of tokens, and the parts that the document's cache took."""

    seconds: dict[int, float]  # by number of tokens
    ready: float  # seconds until the document's cache was ready
    load: float
    prefill: float
    tokens: int  # tokens of the document

    @property
    def step(self) -> float:
        """The mean seconds per token after the first, everything being in memory."""
        last = max(self.seconds)
        return (self.seconds[last] - self.seconds[1]) / max(1, last - 1)


@dataclass(frozen=True, slots=True)
class Row:
    """The measurements of one document length."""

    tokens: int
    raw_bytes: int
    wire_bytes: int
    one_shot: Answered
    blocks: Answered
    stored: Answered  # from the local store
    fetched: Answered  # from a peer on loopback, which costs both ends' work and no link
    fetch_seconds: float  # seconds of `fetch` alone

    @property
    def speed_up(self) -> float:
        """The time to first token of the fastest prefill, divided by that from the store."""
        return self.one_shot.seconds[1] / self.stored.seconds[1]

    @property
    def limit(self) -> float:
        """The paper's ratio: prefill divided by one resident step."""
        return self.one_shot.prefill / self.stored.step


@dataclass(frozen=True, slots=True)
class Equality:
    """The comparison of two answers on one document: from the store, and after prefilling."""

    document: str
    tokens: int
    steps: int
    equal: int  # tokens before the first difference
    logits: bool  # identical bit for bit at every step


@dataclass(frozen=True, slots=True)
class Report:
    """The results of the whole experiment."""

    date: str
    machine: str
    model: str
    dtype: str
    rows: list[Row]
    equality: list[Equality]
    sizes: dict[str, int]  # by codec; raw is what the model holds
    sized_tokens: int

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


def run(
    model: str,
    directory: Path,
    texts: Sequence[tuple[str, str]],
    *,
    dtype: str,
    lengths: Sequence[int] = LENGTHS,
    steps: int = COMPARED_TOKENS,
    documents: int = 5,
    note: Note = lambda text: None,
) -> Report:
    """Run the experiment on documents of the given lengths (in tokens), and return its report.

    `directory` has the model's files; `texts` are (name, text); `steps` tokens are compared on each of `documents`
    texts; `note` is called with what is being done.  A length for which no text is long enough is left out.
    """
    cutter = Cutter(directory)
    settings = {"model": model, "dtype": dtype, "also_codec": "", "quota_bytes": 10**12}
    cuts = {}
    for length in lengths:
        try:
            cuts[length] = _longest(cutter, texts, length)
        except InvalidDocument as error:
            note(f"{length} tokens are left out: {error.message}")
    one_shot: dict[int, Answered] = {}
    with BenchNode(**settings, block_tokens=LIMITS.block_tokens) as node:
        answer(node, cuts[min(cuts)], prefill=True, steps=1)  # the model is loaded, and its kernels are warm
        for length, text in cuts.items():
            note(f"prefill of {length} tokens in one shot")
            one_shot[length] = answer(node, text, prefill=True)
    with ExitStack() as stack:
        publisher = stack.enter_context(BenchNode(**settings, idle_unload_seconds=5))
        reader = stack.enter_context(BenchNode("--bootstrap", publisher.address, **settings))
        reader.meet(publisher)
        answer(reader, cuts[min(cuts)], prefill=True, steps=1)
        rows = []
        for length, text in cuts.items():
            note(f"{length} tokens: published, fetched, loaded, prefilled in blocks")
            rows.append(_row(publisher, reader, text, one_shot[length]))
        equality = []
        for name, text in texts[:documents]:
            note(f"{name}: {steps} steps from the store and after prefilling")
            equality.append(_equality(publisher, reader, name, cutter, text, steps))
        note("sizes by codec")
        sizes, sized = _sizes(publisher, cutter, texts)
    return Report(
        datetime.datetime.now(datetime.UTC).date().isoformat(),
        describe_machine(),
        model,
        dtype,
        rows,
        equality,
        sizes,
        sized,
    )


def answer(
    node: BenchNode, text: str, *, prefill: bool = False, force: bool = False, steps: int = max(ANSWERS)
) -> Answered:
    """Ask a node a question about a text, and time each token as it comes."""
    came: list[float] = []
    began = time.perf_counter()

    def on_event(event: ProgressEvent) -> None:
        if isinstance(event, TokenEvent):
            came.append(time.perf_counter() - began)

    reference = document_digest(text.encode())
    reply = node.client.ask(
        reference,
        QUESTION,
        max_tokens=steps,
        text=text if prefill else None,
        prefill=prefill,
        force=force,
        ignore_eos=True,
        on_event=on_event,
    )
    seconds = {count: came[count - 1] for count in ANSWERS if count <= len(came)}
    return Answered(seconds, reply.ready_seconds or 0.0, reply.load_seconds, reply.prefill_seconds, reply.tokens)


def _row(publisher: BenchNode, reader: BenchNode, text: str, one_shot: Answered) -> Row:
    publisher.client.publish(text, codec="planes")
    reference = document_digest(text.encode())
    answered = answer(reader, text, force=True)  # while it is being fetched
    reader.client.rm(reference)
    got = reader.client.fetch(reference, force=True).report
    firsts = _median([answer(reader, text, force=True, steps=1) for _ in range(_REPEATS)])
    whole = answer(reader, text, force=True)
    stored = replace(firsts, seconds=whole.seconds | firsts.seconds)
    blocks = answer(reader, text, prefill=True, steps=1)
    return Row(
        tokens=stored.tokens,
        raw_bytes=got.raw_bytes,
        wire_bytes=got.wire_bytes,
        one_shot=one_shot,
        blocks=blocks,
        stored=stored,
        fetched=answered,
        fetch_seconds=got.seconds,
    )


def _median(answers: Sequence[Answered]) -> Answered:
    """Return the answer whose first token took the median time."""
    middle = statistics.median_low(a.seconds[1] for a in answers)
    return next(a for a in answers if a.seconds[1] == middle)


def _equality(publisher: BenchNode, reader: BenchNode, name: str, cutter: Cutter, text: str, steps: int) -> Equality:
    piece = _longest(cutter, [(name, text)], 1_000, at_most=True)
    publisher.client.publish(piece, codec="planes")
    reference = document_digest(piece.encode())
    loaded = reader.client.ask(reference, QUESTION, max_tokens=steps, force=True, ignore_eos=True)
    filled = reader.client.ask(reference, QUESTION, max_tokens=steps, text=piece, prefill=True, ignore_eos=True)
    pairs = zip(loaded.token_ids, filled.token_ids, strict=True)
    equal = next((i for i, (a, b) in enumerate(pairs) if a != b), len(loaded.token_ids))
    same = loaded.logits_digest == filled.logits_digest
    return Equality(name, loaded.tokens, len(loaded.token_ids), equal, same)


def _sizes(publisher: BenchNode, cutter: Cutter, texts: Sequence[tuple[str, str]]) -> tuple[dict[str, int], int]:
    text = _longest(cutter, texts[-1:], _SIZED, at_most=True)
    sizes: dict[str, int] = {}
    tokens = 0
    for codec in CODECS:
        try:
            made = publisher.client.publish(text, codec=codec)
        except UsageError:  # no predictor for this model
            continue
        sizes[codec], tokens = made.wire_bytes, made.tokens
    return sizes, tokens


def _longest(cutter: Cutter, texts: Sequence[tuple[str, str]], tokens: int, *, at_most: bool = False) -> str:
    """Cut the first text that is long enough, with a title of its own so that no two texts share a prefix."""
    failure = InvalidDocument("there is no text")
    for name, text in texts:
        try:
            return cutter.cut(text, tokens, title=f"{name}, {tokens} tokens")
        except InvalidDocument as error:
            failure = error
    if at_most:
        return texts[0][1]
    raise failure


def describe_machine() -> str:
    """Describe the machine: processor, cores, memory, and the versions of software that decide about speed."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        processor = named[0] if named else processor
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    return (
        f"{processor}, {os.cpu_count()} cores{memory}, {platform.system()}, Python {platform.python_version()}, "
        f"torch {version('torch')}, transformers {version('transformers')}"
    )
