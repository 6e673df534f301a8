"""Runs the five commands of the README on two real nodes and pastes what they print: `python docs/tools/readme.py`.

Both nodes run on this machine, on loopback, with homes of their own in a temporary directory.  Ids are shortened.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- made by docs/tools/readme.py: begin -->", "<!-- made by docs/tools/readme.py: end -->"
DOCUMENT = ROOT / "examples" / "documents" / "python-special-methods.txt"
QUESTION = "When is __del__ called?"
_LONG = re.compile(r"\b(12D3KooW\w{4}|bafkr4i\w{4}|[0-9a-f]{8})\w{20,}")


class Machine:
    """A node with a home, and the command line beside it."""

    def __init__(self, name: str, place: Path, *flags: str) -> None:
        self.name, self.place, self.home = name, place, place / name
        # A node assumes 100 Mbit/s of a peer from which it never fetched: this is loopback.
        self.env = os.environ | {"KVSWAP_HOME": str(self.home), "KVSWAP_ASSUMED_LINK_BYTES_PER_SECOND": "1000000000"}
        self.env |= {"PYTHONPATH": str(ROOT), "KVSWAP_ALSO_CODEC": ""}
        command = [sys.executable, "-m", "kvswap", "daemon", "--json", "--no-mdns", *flags]
        self.daemon = subprocess.Popen(command, env=self.env, stdout=subprocess.PIPE, text=True)
        assert self.daemon.stdout is not None
        self.daemon.stdout.readline()

    def run(self, command: str, *, quiet: bool = False) -> str:
        """What the command prints, on both streams.  Ends the program where it fails."""
        words = [sys.executable, "-m", *shlex.split(command)]
        done = subprocess.run(
            words, env=self.env, cwd=self.place, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode:
            raise SystemExit(f"{self.name}: {command} ended with {done.returncode}: {done.stdout}")
        return done.stdout if quiet else shortened(done.stdout.replace(str(self.place), "~"))

    def stop(self) -> None:
        self.daemon.send_signal(signal.SIGTERM)
        self.daemon.wait(30)


def transcript(place: Path) -> str:
    """The commands, and under each what it printed."""
    shutil.copy(DOCUMENT, place / "manual.txt")
    digest = hashlib.sha256(DOCUMENT.read_bytes()).hexdigest()
    ada = Machine("ada", place)
    out = []
    try:
        identity = ada.run("kvswap id", quiet=True)
        publisher = re.findall(r"publisher\s+(\S+)", identity)[0]
        address = re.findall(r"(/ip4/\S+/p2p/\S+)", identity)[0]
        bob = Machine("bob", place, "--bootstrap", address)
        try:
            while " 0 connected" in bob.run("kvswap status", quiet=True):
                time.sleep(0.2)
            for machine, command in (
                (ada, "kvswap publish manual.txt"),
                (bob, f"kvswap trust add {publisher} --label ada"),
                (bob, f"kvswap fetch sha256:{digest} --force"),
                (bob, f'kvswap ask sha256:{digest} "{QUESTION}" --max-tokens 32'),
                (bob, "kvswap ls"),
            ):
                print(f"{machine.name}$ {command}", file=sys.stderr)
                said = machine.run(command)
                out.append(f"{machine.name}$ {_LONG.sub(_short, command)}\n{said}")
        finally:
            bob.stop()
    finally:
        ada.stop()
    return "\n\n".join(out)


def shortened(text: str) -> str:
    """What was printed, with ids cut short and the columns of a table put under each other again."""
    lines = _LONG.sub(_short, text).rstrip().splitlines()
    cells = [re.split(r" {2,}", line.strip()) for line in lines]
    table = [row for row in cells if len(row) > 4]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for number, row in enumerate(cells):
        if len(row) > 4:
            lines[number] = "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
    return "\n".join(lines)


def _short(found: re.Match[str]) -> str:
    return f"{found.group(1)}…"


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        made = transcript(Path(place))
    text = README.read_text()
    start, stop = text.index(BEGIN) + len(BEGIN), text.index(END)
    README.write_text(f"{text[:start]}\n\n```console\n{made}\n```\n\n{text[stop:]}")


if __name__ == "__main__":
    main()
