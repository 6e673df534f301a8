"""The command line's edges: streams that are closed, full or ASCII, files of every kind, words that are no Unicode."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvswap.cli import main as entry
from kvswap.cli import streams
from kvswap.cli.main import main
from kvswap.cli.output import Output, read_document, reference
from kvswap.core import log
from kvswap.core.errors import InvalidDocument, KvswapError, UsageError
from kvswap.core.files import read_file
from kvswap.core.text import is_printable, printable
from tests.core.test_failures import REAL, is_told
from tests.support import Daemon, kvswap, make_artifact

ESC = "\x1b]0;owned\x07"


def shell(command: str, home: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    """A line of bash, with `K` for the command line."""
    program = f"K() {{ {sys.executable} -m kvswap --home '{home}' \"$@\"; }}; "
    return subprocess.run(
        ["bash", "-c", program + command], capture_output=True, timeout=600, env={**os.environ, **env}
    )


def quiet(done: subprocess.CompletedProcess[bytes]) -> str:
    text = done.stderr.decode(errors="replace")
    assert "Traceback" not in text and "Exception ignored" not in text, text
    return text


# -- streams -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["manifest check --help", "model ls", "model ls --json", "--help", "economics"])
def test_a_full_stdout_is_told_and_the_answer_is_not_lost(verb: str, tmp_path: Path) -> None:
    done = shell(f"K {verb} > /dev/full", tmp_path)
    text = quiet(done)
    assert done.returncode == 12, text
    assert "No space" in text or "full" in text
    assert "Cause:" in text and "Hint:" in text
    if "help" not in verb:
        assert "smollm2-135m" in text or "option" in text.lower() or "Egress" in text


@pytest.mark.parametrize(
    "command",
    ["K model ls >&-", "K model ls 2>&-", "K model ls <&-", "K model ls <&- >&- 2>&-", "K status 2>/dev/full"],
)
def test_closed_streams_are_no_fault(command: str, tmp_path: Path) -> None:
    done = shell(command, tmp_path)
    quiet(done)
    assert done.returncode == (10 if "status" in command else 0)


def test_a_reader_that_goes_away_is_no_fault(tmp_path: Path) -> None:
    done = shell("K model ls | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}", tmp_path)
    quiet(done)
    assert done.returncode in (0, 1)


def test_an_ascii_stdout_gets_the_answer_with_escapes(tmp_path: Path) -> None:
    script = (
        "import sys; from kvswap.cli.output import Output; from kvswap.cli import streams; streams.prepare();"
        "Output(None, False, False, False, False).result({}, 'caf\\u00e9 \\U0001f600 \\ud800')"
    )
    for encoding in ("ascii", "latin-1", "utf-8"):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(b"caf") and b"\\ud800" in done.stdout


# -- what strangers write -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", [*range(0x20), 0x7F, *range(0x80, 0xA0), 0x202E, 0x2066, 0x2028, 0xFEFF, 0xD800, 0xE000]
)
def test_nothing_that_a_terminal_obeys_gets_through(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    text = f"a{chr(code)}b"
    output = Output(None, False, False, False, False)
    table = output.table(("X",), [(text,)])
    assert len(table.splitlines()) == 2 and is_printable(table.replace("\n", ""))
    output.result({}, text)
    output.note(text)
    streams.write_line(text)
    shown = capsys.readouterr()
    for got in (shown.out, shown.err):
        assert all(is_printable(c) or c in "\n\t" for c in got)


def test_letters_of_every_script_stay_as_they_are() -> None:
    for text in ("é ü ß", "日本語", "עברית", "ไทย", "می\u200cخواهم", "👩\u200d💻", "a\u00a0b", "e\u0301"):
        assert printable(text) == text


# -- files -------------------------------------------------------------------------------------------


@pytest.fixture
def kinds(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """A file of every kind that a name may lead to."""
    root = tmp_path / "kinds"
    root.mkdir()
    os.mkfifo(root / "pipe")
    (root / "directory").mkdir()
    (root / "loop").symlink_to(root / "loop")
    (root / "broken").symlink_to(root / "nothing")
    listening = socket.socket(socket.AF_UNIX)
    os.chdir(root)  # the path of a socket is short
    listening.bind("socket")
    os.chdir(Path(__file__).parents[2])
    (root / "forbidden").write_text("x")
    (root / "forbidden").chmod(0)
    yield {p: root / p for p in ("pipe", "directory", "loop", "broken", "socket", "missing", "forbidden")} | {
        "null": Path("/dev/null"),
        "full": Path("/dev/full"),
        "zero": Path("/dev/zero"),
        "long": root / ("x" * 300),
        "nul": Path("a\0b"),
        "memory": Path("/proc/self/mem"),
        "under a file": root / "forbidden" / "x",
    }
    listening.close()


NAMES = [
    "pipe",
    "directory",
    "loop",
    "broken",
    "socket",
    "missing",
    "forbidden",
    "null",
    "full",
    "zero",
    "long",
    "nul",
    "memory",
] + ["under a file"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("read", ["document", "reference", "file"])
def test_every_kind_of_file_is_read_or_told(
    name: str, read: str, kinds: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvswap.core.files._WRITER_SECONDS", 0.1)
    path = kinds[name]
    if name == "forbidden" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    how: dict[str, Callable[[], Any]] = {
        "document": lambda: read_document(path),
        "reference": lambda: reference(str(path)),
        "file": lambda: read_file(path, 100),
    }
    with pytest.raises(UsageError) as caught:
        how[read]()
    assert caught.value.exit_code == 2
    is_told(caught.value)


def test_a_pipe_that_somebody_writes_to_is_read_to_its_end(tmp_path: Path) -> None:
    done = shell("K publish <(echo one; echo two)", tmp_path)
    assert done.returncode == 10 and "no kvswap daemon" in quiet(done)  # it was read, and found to be a document
    done = shell("K publish <(printf 'x\\xff')", tmp_path)
    assert done.returncode == 2 and "UTF-8" in quiet(done)
    done = shell("echo text | K ask /dev/stdin q", tmp_path)
    assert done.returncode == 10, quiet(done)
    line = f"cd '{tmp_path}'; mkfifo p; (sleep 1; cat /dev/zero | tr '\\0' x | head -c 20000000) > p & K publish p"
    done = shell(line, tmp_path)
    assert done.returncode == 2 and "limit" in quiet(done)


def test_a_pipe_is_waited_for_with_a_word(tmp_path: Path) -> None:
    pipe, said = tmp_path / "p", []
    os.mkfifo(pipe)
    done = shell(f"K publish {pipe}", tmp_path)
    assert done.returncode == 2 and "nobody writes" in quiet(done) and "waiting for" in quiet(done)
    writer = subprocess.Popen(["bash", "-c", f"exec 3> {pipe}; sleep 2; echo late >&3"])
    assert read_document(pipe, said.append) == b"late\n"
    assert said and "pipe" in said[0]
    writer.wait()


@pytest.mark.parametrize(
    "command",
    [
        "manifest check /dev/zero",
        "manifest check pipe",
        "manifest check manifest.kvm --group /dev/zero",
        "manifest check manifest.kvm --group pipe",
        "economics --figures /dev/zero",
        "economics --figures pipe",
        "economics --html /nowhere/report.html",
        "group import nothing.txt",
        "group import binary",
        "host join binary",
        "find --text nothing.txt",
        "find --text pipe",
    ],
)
def test_every_verb_that_reads_or_writes_a_named_file_ends_with_a_word(command: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "binary").write_bytes(b"\x99\xff\0")
    made = make_artifact()
    (tmp_path / "manifest.kvm").write_bytes(made.statement.envelope)
    done = shell(f"cd {tmp_path}; K {command} < /dev/null", tmp_path / "home")
    text = quiet(done)
    assert done.returncode == 2, text
    assert "kvswap worked" not in text  # a name that is wrong is not "removed while kvswap worked"


# -- words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "K ask f $'q\\xff'",
        "K ask $'\\xff' q",
        "K publish f --source $'\\xff'",
        "K publish f --model $'\\xff'",
        "K show $'\\xff'",
        "K trust add $'\\xff'",
        "K group new $'\\xff'",
        "K withdraw $'\\xff'",
        "K group import <<< $'\\xff'",
        "PYTHONUTF8=0 LC_ALL=C K ask f é",
        "K ask ~nobodyofthisname/x q",
        "K --home $'a\\x1bb' ls",
    ],
)
def test_words_that_are_no_unicode_are_told(command: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("a text")
    done = shell(f"cd {tmp_path}; {command}", tmp_path)
    text = quiet(done)
    assert done.returncode in (2, 10), text
    assert "\x1b" not in text and ("Cause:" in text or "Error:" in text)


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("name", [n for n in REAL if n not in ("broken pipe", "group")])
def test_whatever_a_verb_raises_has_exit_code_cause_and_hint(
    name: str, as_json: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, codes = REAL[name]
    monkeypatch.setattr(Output, "client", property(lambda self: make()))
    code = main(["--home", str(tmp_path), "status", *(["--json"] if as_json else [])])
    told = capsys.readouterr()
    assert code in codes
    assert "Traceback" not in told.err and "Cause:" in told.err and "Hint:" in told.err
    assert "Traceback" in (tmp_path / log.NAME).read_text()
    if as_json:
        error = json.loads(told.out)["error"]
        assert error["message"] and error["cause"] and error["hint"]


def test_a_log_never_stands_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Output, "client", property(lambda self: len(3)))
    assert main(["--home", str(tmp_path / "nothing"), "status"]) == 1
    assert not (tmp_path / "nothing").exists()


def test_usage_errors_under_json_are_json(tmp_path: Path) -> None:
    for arguments in (["nonsense"], ["fetch"], ["ask", "x", "--nonsense"]):
        done = kvswap(tmp_path, "--json", *arguments)
        assert done.returncode == 2 and json.loads(done.stdout)["error"]["code"] == "usage"
    assert stat.S_ISDIR(tmp_path.stat().st_mode) and entry.main is main and InvalidDocument.exit_code == 2
    assert issubclass(UsageError, KvswapError)


# -- words that help ---------------------------------------------------------------------------------

WORDS = {  # a command with {binary} and {text}, which are files: what its message and its hint name
    "manifest check {text}": ("{text}", "manifest"),
    "manifest check {binary}": ("{binary}", "manifest"),
    "manifest check {text} --group {binary}": ("{binary}", "group export"),
    "group import {binary}": ("{binary}", "group export"),
    "group import {text}": ("{text}", "group export"),
    "group import http://x": ("http://x", "group export"),
    "group import {home}": ("{home}", "name a file"),
    "host join {binary}": ("{binary}", "host invite"),
    "host join {text}": ("{text}", "host invite"),
    "host join http://x": ("http://x", "host invite"),
    "trust add badid": ("badid", "kvswap id"),
    "trust rm badid": ("badid", "kvswap id"),
    "block badid": ("badid", "kvswap id"),
    "host leave badid": ("badid", "host known"),
    "group new a/b": ("a/b", "kvswap group new --help"),
}


def test_messages_name_what_was_given_and_hints_lead_on(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    node = daemon("a", "--no-p2p")
    places = {"binary": tmp_path / "some.bin", "text": tmp_path / "some.txt", "home": node.home}
    places["binary"].write_bytes(bytes(range(128, 256)))
    places["text"].write_text("a text")
    for command, (named, leads) in WORDS.items():
        done = kvswap(node.home, "--json", *command.format(**places).split(), typed="")
        told = json.loads(done.stdout.splitlines()[-1])["error"]
        is_told(KvswapError.from_dict(told))
        assert named.format(**places) in told["message"], (command, told)
        assert leads in told["hint"], (command, told)
        assert "kvswap status" not in told["hint"] and told["hint"] != "kvswap --help", (command, told)


def test_a_secret_that_is_typed_as_a_word_is_not_shown(tmp_path: Path) -> None:
    for command in ("host join", "group import"):
        done = kvswap(tmp_path, *command.split(), "kvswap-read:" + "s3cret" * 9, typed="")
        assert done.returncode == 2 and "s3cret" not in done.stderr + done.stdout
        assert "standard input" in done.stderr


@pytest.mark.parametrize("command", ["fetch", "host", "group import --nope", "host add /nowhere"])
def test_usage_errors_lead_to_the_help_of_their_verb(command: str, tmp_path: Path) -> None:
    done = kvswap(tmp_path, "--json", *command.split(), "--nope", typed="")
    verb = " ".join(word for word in command.split() if word not in ("--nope", "/nowhere"))
    assert json.loads(done.stdout.splitlines()[-1])["error"]["hint"] == f"kvswap {verb} --help"


EARLY = """
import builtins, os, signal, sys
real, count, at = builtins.__import__, 0, int(sys.argv.pop(1))
def counted(name, *rest, **named):
    global count
    count += count > 0 or name.startswith("kvswap.cli")  # from there on what runs is of this program
    if count == at:
        count += 1
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *rest, **named)
signal.signal(signal.SIGINT, signal.default_int_handler)
import runpy
builtins.__import__ = counted
runpy.run_module("kvswap", run_name="__main__")
"""


@pytest.mark.parametrize("at", [1, 3, 20, 60, 150, 400, 1_000])
def test_ctrl_c_while_the_program_starts_is_told(at: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EARLY, str(at), "--home", str(tmp_path), "model", "ls"], capture_output=True, timeout=600
    )
    text = quiet(done)
    assert done.returncode == 130 or (at >= 400 and done.returncode == 0), (done.returncode, text)
    assert "interrupted" in text or done.returncode == 0
