"""Rendering: JSON lines for scripts, human-readable tables and bars.  stdout is data, stderr is progress."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import click

from kvswap.cli import streams
from kvswap.core.documents import check_document, check_size
from kvswap.core.errors import Incompatible, IntegrityError, Untrusted, UsageError
from kvswap.core.files import exists, read_file
from kvswap.core.ids import document_digest, parse_reference
from kvswap.core.limits import LIMITS
from kvswap.core.text import printable
from kvswap.core.words import size as size

if TYPE_CHECKING:
    from kvswap.api import CodecFigures, ProgressEvent, TransferEvent
    from kvswap.client import Client

_LINE_BYTES = 4_096  # of a key or an invitation
F = TypeVar("F", bound=Callable[..., Any])


class Printable(Protocol):
    """The answer of a verb: a result of `kvswap.api`, or a report of a package of its own."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, as `--json` prints it."""


@dataclass(slots=True)
class Output:
    """The manner in which one call of the command line speaks: its home, and the options that every verb takes."""

    home: str | None
    as_json: bool
    quiet: bool
    verbose: bool
    no_color: bool

    @property
    def client(self) -> Client:
        """The client of this home's daemon."""
        from kvswap.client import Client  # a third of the time that a TAB may take

        return Client(self.home)

    def result(self, value: Printable, text: str | Callable[[], str]) -> None:
        """Print the answer: one JSON line, or text without what a terminal would obey."""
        if self.as_json:
            streams.answer(json.dumps(value.to_json()), keep=True)
        else:
            streams.answer(printable(text() if callable(text) else text, "\n\t"), keep=True)

    def note(self, text: str) -> None:
        """Say a line to people, on standard error; nothing with `--quiet` or `--json`."""
        if not self.quiet and not self.as_json:
            streams.write_line(text)

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
        """Lay rows out in aligned columns, easy to read and to cut; no cell can break out of its line."""
        columns = [["" if v is None else str(v) for v in column] for column in zip(headers, *rows, strict=True)]
        columns = [c if "".join(c).isprintable() else [printable(cell) for cell in c] for c in columns]
        line = "  ".join(f"%-{max(map(len, column))}s" for column in columns)
        return "\n".join([(line % row).rstrip() for row in zip(*columns, strict=True)])

    def taken_back(self, origins: Sequence[str], still_at: Mapping[str, str]) -> None:
        """Say from which origins something was taken, and where it still is."""
        for url in origins:
            self.note(f"taken from {url}")
        for url, why in still_at.items():
            self.note(f"it is still at {url}: {why}")

    def progress(self) -> Progress:
        """Make what is called with the events of a request, and shows them."""
        return Progress(self)


class Progress:
    """A view of events: JSON lines, a bar on a terminal, or nothing."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._bar: Any = None
        self._task: Any = None
        self._stage = ""
        self._reported: set[str] = set()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: ProgressEvent) -> None:
        """Show an event."""
        from kvswap.api import events  # there is one: it has been imported

        output = self._output
        if output.as_json:
            streams.answer(json.dumps(event.to_json()))
            return
        if output.quiet:
            return
        match event:
            case events.PrefillEvent(blocks=int(blocks)):
                self._advance("prefill", event.block, blocks, f"{event.tokens} tokens")
            case events.TrainEvent():
                self._advance("train", min(event.tokens, event.of), event.of, f"{event.tokens} tokens")
            case events.TransferEvent():
                self._advance("transfer", event.bytes + event.arriving, event.total_bytes, _transferred(event))
            case events.ExportEvent(total_bytes=int(total)) | events.ImportEvent(total_bytes=int(total)) if total:
                rate = event.bytes / max(event.seconds, 1e-3)
                self._advance(event.kind, event.bytes, total, f"{size(event.bytes)} of {size(total)}, {size(rate)}/s")
            case events.PushEvent():
                rate = event.uploaded_bytes / max(event.seconds, 1e-3)
                detail = f"{event.done} of {event.files} files, {size(event.uploaded_bytes)} new, {size(rate)}/s"
                self._advance("push", event.done, event.files, detail)
            case events.NoiseEvent():
                output.note(f"measuring how far apart right caches of {event.model} are on this machine (once) ...")
            case events.IntervalsEvent():
                output.note(
                    f"computing {event.intervals} of {event.of} intervals again: about {event.cost:.0%} of a prefill, "
                    f"which finds a wrong one with a chance of {event.chance:.0%}"
                )
            case events.FoundEvent() if event.peers:
                output.note(f"found {event.artifact} at {sources(event.peers)}")
            case events.UncheckableEvent():
                output.note(f"not checked of {event.artifact}: {event.reason}")
            case events.PlanEvent():
                output.note(f"plan: {event.action} - {event.reason}")

    def _advance(self, stage: str, done: int, total: int, detail: str) -> None:
        if sys.stderr is None or not sys.stderr.isatty():
            if done == total and stage not in self._reported:  # one line for each stage in a log
                self._reported.add(stage)
                streams.write_line(f"{stage}: {detail}")
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            plain = self._output.no_color or "NO_COLOR" in os.environ
            self._bar = Bar(
                TextColumn("{task.description:10}"),
                BarColumn(),
                TextColumn("{task.percentage:3.0f}%"),
                TextColumn("{task.fields[detail]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True, no_color=plain),
            )
            self._bar.start()
        if stage != self._stage:
            self._stage = stage
            self._task = self._bar.add_task(stage, total=total, detail=detail)
        self._bar.update(self._task, completed=done, detail=detail)


def _transferred(event: TransferEvent) -> str:
    whole = event.bytes == event.total_bytes
    rate = event.bytes / max(event.seconds, 1e-3) if whole else event.rate
    detail = f"{size(event.bytes + event.arriving)} of {size(event.total_bytes)}, {size(rate)}/s"
    if whole:
        return f"{detail} from {sources(event.sent)} over {' and '.join(event.over)}"
    if event.peers:
        channels = ", ".join(sorted({peer.channel for peer in event.peers}))
        return f"{detail} from {sources([peer.peer for peer in event.peers])} over {channels}"
    return detail


def sources(names: Iterable[str]) -> str:
    """Count who gives something: origins, which are named by URLs, and peers."""
    names = list(names)
    origins = sum("://" in name for name in names)
    counts = [f"{len(names) - origins} peer(s)"] if origins < len(names) or not names else []
    return " and ".join(counts + ([f"{origins} origin(s)"] if origins else []))


def verb(function: F) -> F:
    """Give a command the common options, before or after its name, as one `Output` argument."""

    @click.option("--home", default=None, help="Directory of the node.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="No progress and no hints.")
    @click.option("-v", "--verbose", is_flag=True, help="Say what is done, and how long it takes.")
    @click.option("--no-color", is_flag=True, help="No colours.")
    @functools.wraps(function)
    def wrapped(**options: Any) -> Any:
        root = click.get_current_context().find_root()
        root.obj = {} if root.obj is None else root.obj
        names = ("home", "as_json", "quiet", "verbose", "no_color")
        chosen = {name: options.pop(name) or root.obj.get(name) for name in names}
        root.obj |= chosen  # what goes wrong is written down in that home
        root.obj["command"] = click.get_current_context().command_path
        output = Output(chosen["home"], *(bool(chosen[name]) for name in names[1:]))
        if not output.verbose:
            return function(output, **options)
        from kvswap.cli.verbose import verbosely

        with verbosely(root.obj["command"], output.home):
            return function(output, **options)

    return cast(F, wrapped)


def rates(codec: CodecFigures) -> str:
    """Format what was measured of a codec."""
    parts = [f"{codec.ratio:.2f}x"] if codec.ratio is not None else []
    both = {"encode": codec.encode, "load": codec.load}
    parts += [f"{verb} {size(int(rate))}/s" for verb, rate in both.items() if rate is not None]
    return ", ".join(parts)


def secret_of(word: str, what: str, hint: str) -> str:
    """Return the text of the file that `word` names, or of standard input for `-`: one line that another verb printed.

    `what`: how it is called, and `hint`: which verb prints it.  Raises `UsageError`; no secret is in its message.
    """
    name = printable(word)[:200]
    if word == "-":
        data = sys.stdin.buffer.read(_LINE_BYTES) if sys.stdin is not None else b""
    elif exists(Path(word)):
        data = read_file(Path(word), _LINE_BYTES, streams=True, note=streams.write_line)
    else:
        given = "the word that was given" if word.startswith("kvswap") else repr(name)
        raise UsageError(
            f"{given} names no file: {what} is read from a file, or from standard input",
            cause="it was typed as a word, which other users and the shell's history see, or the file is elsewhere",
            hint=hint,
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} does not hold {what}", cause="it is another file", hint=hint) from error


@contextlib.contextmanager
def naming(name: str | Path) -> Iterator[None]:
    """Let what is wrong with the content of a file that somebody named tell its name."""
    try:
        yield
    except (UsageError, Untrusted, Incompatible, IntegrityError) as error:
        error.about("standard input" if name == "-" else printable(str(name)))
        raise


def read_document(path: Path, note: Callable[[str], None] = streams.write_line) -> bytes:
    """Read a document and check its bytes before they are sent anywhere.  Raises `InvalidDocument`.

    The file may be a pipe, as `<(...)` is; `note` is told when one keeps us waiting.
    """
    name = printable(str(path))
    try:
        size_here = path.stat().st_size
    except (OSError, ValueError):
        size_here = 0  # read_file says what is wrong with it
    check_size(size_here, name)
    data = read_file(path, LIMITS.document_bytes, streams=True, note=note)
    check_document(data, name)
    return data


def reference(ref: str) -> tuple[str, str | None]:
    """Return the id that a user named, and the text where it was a file's path.

    It is an artifact's id, a document's digest, or the path of a text file or of a folder of them.  Raises
    `UsageError`, `InvalidDocument`.
    """
    try:
        path = Path(ref).expanduser()
    except RuntimeError:  # of a user who is not known here
        path = Path(ref)
    here = exists(path)
    if here and path.is_dir():
        from kvswap.core.folders import read_folder

        text = read_folder(path).text
        return document_digest(text.encode()), text
    if here:
        data = read_document(path)
        return document_digest(data), data.decode()
    try:
        return str(parse_reference(ref)), None
    except UsageError as error:
        raise UsageError(
            f"{printable(ref)!r} is neither an artifact id, nor sha256:<hex>, nor a file or folder",
            cause="a typing error, or the file is somewhere else",
            hint="kvswap ls",
        ) from error
