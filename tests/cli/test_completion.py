"""Completion: what each word may be, the scripts, and bash itself with a TAB."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import resource
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.shell_completion import FishComplete, ShellComplete, ZshComplete

from kvswap.cli.completing import ReferenceType
from kvswap.cli.main import VERBS, cli, main
from kvswap.cli.shells import HOW, SHELLS, VARIABLE, Bash
from kvswap.core.settings import CODECS
from kvswap.model import catalogue
from tests.exchange.test_fetch import DOCUMENT
from tests.support import ROOT, Daemon, Ingested, group, key, kvswap, make_artifact, stock

ADA = str(key(1).peer_id)


@pytest.fixture(scope="module")
def made() -> Ingested:
    return make_artifact(tokens=40)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, made: Ingested) -> Path:
    """A home in which no daemon runs, with an artifact, a publisher, a group and a host."""
    home = tmp_path_factory.mktemp("home")
    stock(home, made)
    (home / "trust.json").write_text(json.dumps({"publishers": [{"peer": ADA, "label": "ada"}]}))
    for folder, name in (("groups", "team.group"), ("hosts", f"{key(5).peer_id}.host")):
        (home / "keys" / folder).mkdir(parents=True, exist_ok=True)
        (home / "keys" / folder / name).write_text(group().to_text())
    return home


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]) -> Path:
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny_models["llama"], root / "org--tiny")
    return root


@pytest.fixture(autouse=True)
def where(home: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVSWAP_HOME", str(home))
    monkeypatch.setenv("KVSWAP_MODELS", str(models))


def offered(line: str, kind: type[ShellComplete] = Bash) -> list[str]:
    """The completions of the last word of a line, as a shell's class has them."""
    *arguments, incomplete = line.split(" ")[1:]
    made = kind(cli, {}, "kvswap", VARIABLE)
    return [
        item.value if item.type == "plain" else f"<{item.type}>" for item in made.get_completions(arguments, incomplete)
    ]


CODEC = list(CODECS)
CASES: dict[str, list[str]] = {
    "kvswap sta": ["status"],
    "kvswap un": ["unpin", "unblock"],
    "kvswap --js": ["--json"],
    "kvswap fetch --max-b": ["--max-bytes"],
    "kvswap trust a": ["add", "audits"],
    "kvswap publish --codec ": CODEC,
    "kvswap publish --codec int8": ["int8", "int8-channel"],
    "kvswap publish ": ["<file>"],
    "kvswap publish --model smol": [n for n in catalogue.entries() if n.startswith("smol")],
    "kvswap publish --model org": ["org/tiny"],
    "kvswap publish --model ./": ["<dir>"],
    "kvswap model pull smollm2-135": [n for n in catalogue.entries() if n.startswith("smollm2-135")],
    "kvswap model rm ": ["org/tiny"],
    "kvswap daemon --dtype f": ["float16", "float32"],
    "kvswap fetch sha256:": [DOCUMENT],
    "kvswap fetch manu": ["<file>"],
    "kvswap find --publisher 12D3": [ADA],
    "kvswap trust rm ": [ADA],
    "kvswap block ": [],
    "kvswap fetch --group ": ["team"],
    "kvswap group export t": ["team"],
    "kvswap ask x y --host ": ["auto", str(key(5).peer_id)],
    "kvswap config quota": ["quota_bytes"],
    "kvswap completion ": ["bash", "fish", "zsh"],
    "kvswap nonsense ": list(VERBS),  # as if it were not there
}


@pytest.mark.parametrize("kind", [Bash, ZshComplete, FishComplete])
@pytest.mark.parametrize("line", CASES)
def test_what_a_word_may_be(line: str, kind: type[ShellComplete]) -> None:
    assert offered(line, kind) == CASES[line]


@pytest.mark.parametrize("verb", ["fetch", "show", "pin", "rm", "export", "verify", "find", "withdraw", "plan", "ask"])
def test_references_are_those_of_the_store(verb: str, made: Ingested) -> None:
    assert offered(f"kvswap {verb} ") == [made.id, DOCUMENT]
    assert offered(f"kvswap {verb} {made.id[:-5]}") == [made.id]
    assert offered(f"kvswap {verb} {made.id[:-5]}zzzzz") == ["<file>"]


def test_of_another_home_where_the_line_names_one(tmp_path: Path, made: Ingested) -> None:
    assert offered(f"kvswap --home {tmp_path} show ") == ["<file>"]
    other = make_artifact(tokens=9, text=b"another", seed=8)
    stock(tmp_path / "other", other)
    for line in (f"kvswap --home {tmp_path}/other show bafk", f"kvswap show --home {tmp_path}/other bafk"):
        assert offered(line) == [other.id]


def test_verbs_say_what_they_do_and_none_is_imported() -> None:
    script = (
        "import sys; from kvswap.cli.main import cli; from kvswap.cli.shells import Bash;"
        "print([i.help for i in Bash(cli, {}, 'kvswap', 'X').get_completions([], '')]);"
        "print([m for m in sys.modules if m.startswith('kvswap.cli.') and m.endswith('_')"
        " or m in ('kvswap.client', 'torch', 'numpy', 'aiohttp', 'libp2p', 'sqlite3')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    helps, loaded = done.stdout.splitlines()
    assert helps == str([text for _, text in VERBS.values()]) and loaded == "[]"


def test_a_damaged_home_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "index.sqlite3").write_bytes(b"no database" * 1000)
    (tmp_path / "trust.json").write_text("{")
    monkeypatch.setenv("KVSWAP_HOME", str(tmp_path))
    assert offered("kvswap show ") == ["<file>"] and offered("kvswap trust rm ") == []
    monkeypatch.setenv("KVSWAP_HOME", "a\\0b")
    assert offered("kvswap show ") == ["<file>"]


def test_peers_are_asked_of_the_daemon(daemon: Callable[..., Daemon]) -> None:
    a = daemon("a")
    b = daemon("b", "--bootstrap", a.address)
    peer = a.client.id()["peer"]
    for _ in range(200):
        if [p["peer"] for p in b.client.peers()] == [peer]:
            break
        time.sleep(0.05)
    assert offered(f"kvswap --home {b.home} block ") == [peer]
    b.stop()
    assert offered(f"kvswap --home {b.home} block ") in ([peer], [])  # by the ledger, where it was worth noting
    assert offered(f"kvswap --home {b.home} show ") == ["<file>"]


def test_a_reference_is_never_a_pattern() -> None:
    for text in ("*", "[a-z]", "'", '";--', "%", "\x1b", "a" * 100):
        assert offered(f"kvswap show {text}") == ["<file>"]
    assert ReferenceType().convert("any text", None, None) == "any text"


# -- the scripts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", sorted(SHELLS))
def test_the_script_says_how_to_switch_it_on(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert (
        text.startswith(HOW[shell]) and f"kvswap completion {shell}" in text and f"{VARIABLE}={shell}_complete" in text
    )
    assert main(["completion", shell, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["script"].strip() == text.strip()
    assert kvswap(ROOT, "completion", shell).stdout == text


def test_another_shell_is_a_usage_error() -> None:
    assert main(["completion", "tcsh"]) == 2


@pytest.mark.parametrize(("shell", "line"), [("zsh", "plain\nstatus\nState of the running node."), ("fish", "status")])
def test_zsh_and_fish_are_answered(shell: str, line: str) -> None:
    words = {"COMP_WORDS": "kvswap sta", "COMP_CWORD": "1" if shell == "zsh" else "sta"}
    done = subprocess.run(
        [sys.executable, "-m", "kvswap"],
        capture_output=True,
        text=True,
        env={**os.environ, **words, VARIABLE: f"{shell}_complete"},
    )
    assert done.returncode == 0 and line in done.stdout, (done.stdout, done.stderr)


# -- bash itself -------------------------------------------------------------------------------------

BIN = Path(sys.executable).parent


def reply(line: str, home: Path) -> list[str]:
    """What bash would offer: its function is called with a line as bash calls it, cut into words where bash cuts."""
    script = f"""
        eval "$(kvswap completion bash)"
        COMP_WORDBREAKS=$' \\t\\n"\\'@><=;|&(:'
        COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}
        compopt() {{ echo "compopt $1 $2"; }}
        _kvswap_completion kvswap
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
        timeout=600,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.split("\n")[:-1]


def test_bash_is_answered_and_colons_are_no_trouble(home: Path, made: Ingested) -> None:
    assert reply("kvswap sta", home) == ["status"]
    assert reply("kvswap publish --codec=int8", home) == ["int8", "int8-channel"]
    assert reply(f"kvswap show {made.id[:20]}", home) == [made.id]
    assert reply("kvswap show sha2", home) == [DOCUMENT]
    assert reply(f"kvswap show {DOCUMENT[:12]}", home) == [DOCUMENT.removeprefix("sha256:")]
    assert reply("kvswap publish ", home) == ["compopt -o default", ""]
    assert reply("kvswap show 'unfinished", home) == ["compopt -o default", ""]


@pytest.fixture
def terminal(home: Path) -> Iterator[Callable[[str, str], str]]:
    """An interactive bash: type keys, and read until a text is on the screen."""
    pid, master = pty.fork()
    if pid == 0:
        environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "PS1": "READY> ", "TERM": "dumb"}
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 500, 0, 0))  # no line is cut
    screen = ""

    def press(keys: str, expected: str) -> str:
        nonlocal screen
        screen = ""
        os.write(master, keys.encode())
        deadline = time.monotonic() + 120
        while expected not in screen.replace("\r", "").replace("\x07", ""):
            assert time.monotonic() < deadline, f"{expected!r} does not come: {screen!r}"
            if select.select([master], [], [], 1)[0]:
                screen += os.read(master, 4096).decode(errors="replace")
        return screen

    press("", "READY> ")
    yield press
    os.close(master)
    os.kill(pid, 9)
    os.waitpid(pid, 0)


def test_a_tab_in_a_real_bash(terminal: Callable[[str, str], str], made: Ingested) -> None:
    terminal('eval "$(kvswap completion bash)"; echo switched-$((40 + 2))\n', "switched-42")
    terminal("kvswap unb\t", "kvswap unblock ")
    terminal("\x15kvswap fetch --max-b\t", "kvswap fetch --max-bytes ")
    terminal(f"\x15kvswap show {made.id[:15]}\t", made.id)
    terminal(f"\x15kvswap show {DOCUMENT[:14]}\t", DOCUMENT)
    terminal("\x15kvswap publish --codec pred\t", "--codec predictive ")


def test_a_tab_takes_less_than_a_moment(home: Path, made: Ingested) -> None:
    """In CPU-seconds, which a busy machine does not change; with a store of some size."""

    def seconds(line: str) -> float:
        environment = {**os.environ, "COMP_LINE": line, VARIABLE: "bash_complete"}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-m", "kvswap"], capture_output=True, text=True, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.stdout.startswith("plain,"), done
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    for line in ("kvswap sta", "kvswap fetch baf", "kvswap publish --model smol", "kvswap trust rm "):
        assert min(seconds(line) for _ in range(3)) < 0.6, line  # 0.1 where it was measured
