"""Runs the commands of a tutorial as they are written: `python docs/tools/run_tutorial.py [PAGE]`.

Each block that is titled with a machine's name is typed into a shell of that machine, line by line; every line has to
end well, and what the next `<!-- prints: PATTERN -->` says has to be in what the block printed.  The machines are two
network namespaces with a cable between them, so this needs Linux, root, and `ip`.  Only what a reader has to fill in
is filled in: lines `NAME=...` of what the other machine printed.  Models come from this machine, as nothing else is
reached from there.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "tutorials" / "two-laptops.md"
MACHINES = {"ada": "10.77.0.1", "bob": "10.77.0.2"}
DOCUMENT = ROOT / "examples" / "documents" / "python-special-methods.txt"
CHARACTERS = 6_000  # of it: what is to be shown is not how long reading takes
_MOST_SECONDS = 900  # only ends what hangs
_BLOCK = re.compile(r'^```sh title="(\w+)"\n(.*?)^```$|^<!-- prints: (.*?) -->$', re.M | re.S)


@dataclass
class Shell:
    """A shell on one machine."""

    name: str
    home: Path
    namespace: str
    process: subprocess.Popen[str] = field(init=False)
    said: str = ""

    def __post_init__(self) -> None:
        self.home.mkdir()
        scripts = self.home / "bin"
        scripts.mkdir()
        (scripts / "kvswap").write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m kvswap "$@"\n')
        (scripts / "kvswap").chmod(0o755)
        from kvswap.core.directories import models_directory

        env = {k: v for k, v in os.environ.items() if not k.startswith(("KVSWAP_", "XDG_"))}
        env |= {"HOME": str(self.home), "KVSWAP_MODELS": str(models_directory())}
        env["PATH"] = f"{scripts}{os.pathsep}{env['PATH']}"
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, "bash", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
            cwd=self.home,
            start_new_session=True,
        )

    def type(self, line: str) -> tuple[int, str]:
        """Exit code and output of a line."""
        assert self.process.stdin is not None and self.process.stdout is not None
        mark = f"=={os.urandom(6).hex()}=="
        self.process.stdin.write(f"{line}\ncode=$?; echo; echo {mark} $code\n")
        self.process.stdin.flush()
        said = []
        for out in self.process.stdout:
            if out.startswith(mark):
                return int(out.split()[1]), "".join(said).rstrip()
            said.append(out)
        raise SystemExit(f"{self.name}: the shell ended at: {line}")

    def end(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(30)


def blocks(text: str) -> list[tuple[str, str]]:
    """(machine, commands) and ("", pattern), in the order of the page."""
    return [(m.group(1) or "", m.group(2) or m.group(3)) for m in _BLOCK.finditer(text)]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _connect(namespaces: dict[str, str]) -> None:
    """Two namespaces and a cable, with multicast over it."""
    for namespace in namespaces.values():
        _ip("netns", "add", namespace)
    (ada, at_ada), (bob, at_bob) = ((namespaces[name], address) for name, address in MACHINES.items())
    _ip("link", "add", "lan0", "netns", ada, "type", "veth", "peer", "name", "lan0", "netns", bob)
    for namespace, address in ((ada, at_ada), (bob, at_bob)):
        _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "lan0")
        for link in ("lo", "lan0"):
            _ip("-n", namespace, "link", "set", link, "up")
        _ip("-n", namespace, "route", "add", "224.0.0.0/4", "dev", "lan0")


def _wait(shell: Shell, line: str, pattern: str) -> None:
    """Until the line prints the pattern, as a reader would look again."""
    deadline = time.monotonic() + _MOST_SECONDS
    while time.monotonic() < deadline:
        code, said = shell.type(line)
        if code == 0 and re.search(pattern, said):
            return
        time.sleep(0.5)
    raise SystemExit(f"{shell.name}: {line} does not print {pattern!r}: {said}")


def _filled(line: str, shells: dict[str, Shell]) -> str:
    """A line that the reader fills in."""
    if line.startswith("PUBLISHER="):
        return "PUBLISHER=" + re.findall(r"publisher +(\S+)", shells["ada"].type("kvswap id")[1])[0]
    if line.startswith("DIGEST="):
        return f"DIGEST=sha256:{hashlib.sha256((shells['ada'].home / 'manual.txt').read_bytes()).hexdigest()}"
    raise SystemExit(f"nobody knows what to fill in: {line}")


def follow(text: str, shells: dict[str, Shell]) -> int:
    """Type all blocks; how many lines that were."""
    count, said = 0, ""
    for machine, content in blocks(text):
        if not machine:
            if not re.search(content, said):
                raise SystemExit(f"it should print {content!r}, and printed:\n{said}")
            continue
        said = ""
        for line in content.strip().splitlines():
            line = _filled(line, shells) if re.match(r"[A-Z]+=.*\.\.\.$", line) else line
            print(f"{machine}$ {line}", flush=True)
            if line == "kvswap peers":
                _wait(shells[machine], line, "12D3KooW")
            code, out = shells[machine].type(line)
            if out:
                print(out, flush=True)
            if code:
                raise SystemExit(f"{machine}: {line} ended with {code}")
            if line.startswith("kvswap daemon"):
                _wait(shells[machine], "kvswap status", "publisher")
            said += out + "\n"
            count += 1
    return count


def main() -> None:
    if os.geteuid() or shutil.which("ip") is None:
        raise SystemExit("this needs Linux, root and `ip`: two network namespaces are made")
    pages = [a for a in sys.argv[1:] if not a.startswith("-")]
    sys.path.insert(0, str(ROOT))
    tag = os.urandom(3).hex()
    namespaces = {name: f"kvswap-{name}-{tag}" for name in MACHINES}
    shells: dict[str, Shell] = {}
    with tempfile.TemporaryDirectory() as place:
        try:
            _connect(namespaces)
            shells = {name: Shell(name, Path(place) / name, namespaces[name]) for name in MACHINES}
            (Path(place) / "ada" / "manual.txt").write_text(DOCUMENT.read_text()[:CHARACTERS])
            count = follow(Path(pages[0] if pages else PAGE).read_text(), shells)
            print(f"\nall {count} lines of the tutorial ran as written")
        finally:
            for shell in shells.values():
                shell.end()
            for namespace in namespaces.values():
                subprocess.run(["ip", "netns", "del", namespace], check=False)


if __name__ == "__main__":
    main()
