"""`make soak`: one node that is never restarted, for as many fetches as are asked for, through everything that happens.

Its partner publishes, withdraws, is killed or stopped, and started again; a peer that has the same artifacts flips a
bit of each chunk; the clocks jump by twelve hours.  Every fetch is followed by a comparison of every byte and by `rm`.
An error is accounted for where an event explains just that code: a partner that is not connected again yet, what does
not come from peers; a clock that jumped, what was under way by the old time, until something worked; a withdrawal,
what is withdrawn.  The hostile peer explains nothing.

    python -m tests.swarm.soak [--fetches 20000] [--restarts 20] [--jumps 10] [--report docs/results/soak.md]
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from kvswap.core.errors import KvswapError
from kvswap.store.files import chunk_path
from tests.support import DOCUMENT, Daemon, Ingested, kvswap, make_artifact, stock, tiny_model, until
from tests.swarm.jumping import JUMP_SECONDS

STOCKED = 5  # artifacts that the partner and the hostile peer have from the start
FROM = 2_000  # the fetch from which growth counts
MOST_GROWTH = 0.05
_OF_PUBLISHED = 10  # each so many fetches, one is of what the partner published last
_LIFE = 300 * 86_400
_FROM_PEERS = frozenset({"not_found", "peer", "timeout", "busy", "token_refused", "bulk_unreachable"})
_EXPLAINED = {  # codes of errors, by what is the case when the call begins
    "the partner is not connected": _FROM_PEERS | {"integrity"},  # then only the hostile peer has it
    "the clocks jumped": _FROM_PEERS | {"quota", "took_too_long"},
    "it is withdrawn": frozenset({"not_found", "untrusted"}),
}
_LOOKS = 3  # at the counts, of which the least counts: what ends in a moment is not held


@dataclass
class Sample:
    """What the node that is not restarted held after so many fetches."""

    fetches: int
    rss: int  # bytes
    counts: dict[str, int]  # tasks, threads, descriptors
    tables: dict[str, int]  # entries by name
    kinds: dict[str, int] = field(default_factory=dict)  # tasks of trio


@dataclass
class Report:
    """How a run went."""

    fetches: int = 0
    compared: int = 0  # chunks, byte by byte
    restarts: int = 0
    jumps: int = 0
    published: int = 0
    withdrawn: int = 0
    seconds: float = 0.0
    lies: int = 0  # chunks of the hostile peer that were refused
    explained: Counter[str] = field(default_factory=Counter)  # errors by what explains them
    unexplained: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    most: dict[str, int] = field(default_factory=dict)  # bounds of the tables

    def growth(self) -> dict[str, tuple[int, int]]:
        """What grew by more than 5% from the 2,000th fetch on: the medians of the first and last three samples.

        What has a bound of its own, tables and the threads of pools, is not in it: see `filling`.
        """
        return {name: pair for name, pair in self._later().items() if not _bounded(name)}

    def filling(self) -> dict[str, tuple[int, int]]:
        """What filled further from the 2,000th fetch on, below its bound."""
        return {name: pair for name, pair in self._later().items() if _bounded(name)}

    def _later(self) -> dict[str, tuple[int, int]]:
        later = [s for s in self.samples if s.fetches >= FROM]
        if len(later) < 6:
            return {}

        def between(read: Any) -> tuple[int, int]:
            return tuple(int(statistics.median(map(read, part))) for part in (later[:3], later[-3:]))  # type: ignore[return-value]

        grown = {"rss": between(lambda s: s.rss)}
        grown |= {name: between(lambda s, n=name: s.counts[n]) for name in later[0].counts}
        grown |= {f"table: {name}": between(lambda s, n=name: s.tables.get(n, 0)) for name in later[-1].tables}
        return {name: (a, b) for name, (a, b) in grown.items() if b > a * (1 + MOST_GROWTH) and b > a + 1}


class Soak:
    """The daemons of one run, and what is done to them."""

    def __init__(self, root: Path, *, fetches: int, restarts: int, jumps: int) -> None:
        self._root = root
        self._fetches, self._restarts, self._jumps = fetches, restarts, jumps
        self.report = Report()
        self._made = [make_artifact(tokens=9, seed=n, text=b"text %d" % n, lifetime=_LIFE) for n in range(STOCKED)]
        self._model = tiny_model(root / "model", "llama")
        self._offset = 0.0
        self._apart = False  # the partner was restarted, and is not connected again
        self._jumped = False  # and nothing was fetched since
        self._ours: list[str] = []  # published by the partner and not withdrawn, the oldest first
        nothing = {"KVSWAP_MODELS": str(root / "nothing"), "SOAK_COUNTS": str(root / "counts.json")}
        program = ("tests.swarm.jumping",)
        self.node = Daemon(root / "node", program=program, env=nothing)
        listen = ["--listen", f"/ip4/127.0.0.1/tcp/{_free_port()}"]
        flags = [*listen, "--model", str(self._model), "--dtype", "float32"]
        self.partner = Daemon(root / "partner", flags, program=program, env={"KVSWAP_BLOCK_TOKENS": "64"})
        self.sends_invalid_data = Daemon(root / "liar", program=("tests.swarm.invalid_sender", "flip"), env=nothing)

    def run(self, seconds: float = float("inf"), sample_every: int = 250) -> Report:
        """Run until all fetches are done, or the time is over."""
        began = time.monotonic()
        try:
            self._start()
            every = max(1, self._fetches // (self._restarts + 1))
            jump_every = max(1, self._fetches // (self._jumps + 1))
            publish_every = max(10, self._fetches // 100)
            for number in range(1, self._fetches + 1):
                if time.monotonic() - began > seconds:
                    break
                if number % every == 0 and self.report.restarts < self._restarts:
                    self._restart()
                if number % jump_every == jump_every // 2 and self.report.jumps < self._jumps:
                    self._jump()
                if number % publish_every == publish_every // 2:
                    self._publish()
                self._one(number)
                self.report.fetches = number
                if number % sample_every == 0:
                    self._sample()
            self._end()
        finally:
            self.report.seconds = time.monotonic() - began
            for daemon in (self.node, self.partner, self.sends_invalid_data):
                daemon.stop()
        return self.report

    def _start(self) -> None:
        for home in (self.partner.home, self.sends_invalid_data.home):
            home.mkdir(parents=True)
            stock(home, *self._made)
        self.partner.start()
        self.node.flags = ["--bootstrap", self.partner.address]
        self.node.start()
        self.partner.flags += ["--bootstrap", self.node.address]
        self.sends_invalid_data.flags = ["--bootstrap", self.node.address]
        self.sends_invalid_data.start()
        until(lambda: self.node.client.status()["peers"] >= 2, 120, "the node to meet both")
        for publisher in (str(self._made[0].manifest.publisher), self.partner.publisher):
            self.node.client.trust_add(publisher)

    # -- what happens ------------------------------------------------------------------------------

    def _causes(self, *, withdrawn: bool = False) -> list[str]:
        """What is the case now that explains errors."""
        if self._apart:
            rows = {row["peer"]: row["connected"] for row in self.node.client.peers()}
            self._apart = not rows.get(self.partner.ready["peer"], False)
        told = {"it is withdrawn": withdrawn, "the clocks jumped": self._jumped}
        told["the partner is not connected"] = self._apart
        return [name for name, is_so in told.items() if is_so]

    def _restart(self) -> None:
        """Killed and stopped in turns."""
        how = signal.SIGKILL if self.report.restarts % 2 else signal.SIGTERM
        self._apart = True
        self.partner.stop(how)
        self.partner.env["SOAK_OFFSET"] = str(self._offset)
        self.partner.start()
        self.report.restarts += 1

    def _jump(self) -> None:
        self._jumped = True
        self._offset += JUMP_SECONDS
        for daemon in (self.node, self.partner):
            assert daemon.process is not None
            daemon.process.send_signal(signal.SIGUSR1)
        self.report.jumps += 1

    def _publish(self) -> None:
        """One more, and when there are three, the oldest is withdrawn."""
        start = 200 * (self.report.published % 100)
        text = f"{self.report.published} {DOCUMENT.read_text()[start : start + 300]}"
        causes = self._causes()
        try:
            self._ours.append(self.partner.client.publish(text)["artifact"])
            self.report.published += 1
            if len(self._ours) > 3:
                self._withdraw(self._ours.pop(0))
        except KvswapError as error:
            self._failed("publish", error, causes)

    def _withdraw(self, artifact: str) -> None:
        """Nobody gives it any more, which is the one error that is asked for."""
        self.partner.client.withdraw(artifact, "the soak")
        self.report.withdrawn += 1
        causes = self._causes(withdrawn=True)
        try:
            self.node.client.fetch(artifact, force=True)
        except KvswapError as error:
            self._failed("fetch", error, causes)
        else:
            self.report.unexplained.append(f"fetch {self.report.fetches}: {artifact} came though it is withdrawn")

    # -- one fetch ---------------------------------------------------------------------------------

    def _one(self, number: int) -> None:
        made: Ingested | None = self._made[number % STOCKED]
        name = made.id if made is not None else ""
        if number % _OF_PUBLISHED == 0 and self._ours:
            made, name = None, self._ours[-1]
        for _ in range(200):
            causes = self._causes()
            try:
                self.node.client.fetch(name, force=True)
                break
            except KvswapError as error:
                if not self._failed("fetch", error, causes):
                    return
                time.sleep(0.1)
        else:
            self.report.unexplained.append(f"after {causes}: {name} did not come any more")
            return
        self._jumped = False
        try:
            if made is not None:
                self._compare(made)
            self.node.client.remove(name)
        except KvswapError as error:
            self._failed("rm", error, [])

    def _failed(self, what: str, error: KvswapError, causes: list[str]) -> bool:
        """Whether something that was the case when the call began explains this very error."""
        for cause in causes:
            if error.code in _EXPLAINED[cause]:
                self.report.explained[f"{cause}: {what}: {error.code}"] += 1
                return True
        told = f"fetch {self.report.fetches}, {what}: {error.code}: {error} ({error.cause})"
        self.report.unexplained.append(f"{told}; {', '.join(causes) or 'nothing had happened'}")
        return False

    def _compare(self, made: Ingested) -> None:
        chunks = self.node.home / "store" / "chunks"
        for cid, data in made.chunks.items():
            if chunk_path(chunks, cid).read_bytes() != data:
                self.report.unexplained.append(f"fetch {self.report.fetches}: {cid} is not what was published")
            self.report.compared += 1

    # -- looking -----------------------------------------------------------------------------------

    def _sample(self) -> None:
        looks = [self._look() for _ in range(_LOOKS)]
        counts = {name: min(look["counts"][name] for look in looks) for name in looks[0]["counts"]}
        kinds = min((look["kinds"] for look in looks), key=lambda kinds: sum(kinds.values()))
        tables = self.node.client.status()["tables"]
        for row in tables:
            self.report.most[row["name"]] = row["most_entries"]
            if row["entries"] > row["most_entries"] or row["bytes"] > row["most_bytes"]:
                self.report.unexplained.append(f"the table {row['name']} is beyond its bound: {row}")
        assert self.node.process is not None
        rss = psutil.Process(self.node.process.pid).memory_info().rss
        entries: Counter[str] = Counter()
        for row in tables:
            entries[row["name"]] += row["entries"]
        self.report.samples.append(Sample(self.report.fetches, rss, counts, dict(entries), kinds))
        print(self.report.fetches, f"{rss / 1e6:.1f} MB", counts, flush=True)

    def _look(self) -> Any:
        """What the node that is not restarted says of itself."""
        assert self.node.process is not None
        target = self._root / "counts.json"
        target.unlink(missing_ok=True)
        self.node.process.send_signal(signal.SIGUSR2)
        until(target.exists, 60, "the counts")
        return json.loads(target.read_text())

    def _end(self) -> None:
        """Everything is as it should be: nothing degraded, a clean store, no traceback."""
        client = self.node.client
        self.report.lies = sum(row["lies"] for row in client.peers())
        try:
            until(lambda: not client.status()["degraded"], 60, "nothing degraded")
        except AssertionError:
            self.report.unexplained.append(f"degraded: {client.status()['degraded']}")
        checked = kvswap(self.node.home, "verify", "--store", "--json")
        if checked.returncode != 0:
            self.report.unexplained.append(f"verify --store: {checked.stdout} {checked.stderr}")
        for log in (self.node.home / "kvswap.log", self.node.home / "stderr.log"):
            if log.exists() and "Traceback" in (text := log.read_text()):
                self.report.unexplained.append(f"{log.name}: {text[text.index('Traceback') :][:2000]}")


def told(report: Report) -> str:
    """The report in Markdown."""
    rows = ["| after | RSS | tasks | trio tasks | threads | descriptors |", "| --- | --- | --- | --- | --- | --- |"]
    step = max(1, len(report.samples) // 20)
    for s in [*report.samples[::step], *report.samples[-1:]]:
        c = s.counts
        rows.append(
            f"| {s.fetches:,} | {s.rss / 1e6:.1f} MB | {c['tasks']} | {c['trio tasks']} | {c['threads']} "
            f"| {c['descriptors']} |"
        )
    grown = report.growth()
    enough = sum(s.fetches >= FROM for s in report.samples) >= 6
    lines = [
        f"{report.fetches:,} fetches in {report.seconds / 60:.0f} minutes, {report.restarts} restarts of the partner, "
        f"{report.jumps} jumps of the clocks, {report.published} publishes, {report.withdrawn} withdrawals; "
        f"{report.compared:,} chunks compared, {report.lies} lies refused.",
        "",
        *rows,
        "",
        "Errors that are explained: "
        + (", ".join(f"{name} ({n})" for name, n in sorted(report.explained.items())) or "none")
        + ".",
        "",
        f"Errors that none explains: {len(report.unexplained) or 'none'}.",
        *(f"* {line[:300]}" for line in report.unexplained[:20]),
        "",
        f"Grown by more than 5% from the {FROM:,}th fetch on: {'' if grown else 'nothing.' if enough else 'not judged.'}",
        *(f"* {n}: {a:,} to {b:,}" + _bound(report, n) for n, (a, b) in grown.items()),
        *(f"* more tasks of trio: {name} ({n})" for name, n in _more(report, "trio tasks" in grown).items()),
        "",
        "Filled further, below a bound: "
        + (", ".join(f"{n} {a:,} to {b:,}" + _bound(report, n) for n, (a, b) in report.filling().items()) or "nothing")
        + ".",
    ]
    return "\n".join(lines) + "\n"


def _bounded(name: str) -> bool:
    """Whether it has a bound of its own: a table, or the threads of pools, which are made until there are as many."""
    return name == "threads" or name.startswith("table: ")


def _bound(report: Report, name: str) -> str:
    most = report.most.get(name.removeprefix("table: "))
    return f" (bound: {most:,})" if most is not None else ""


def _more(report: Report, asked: bool) -> Counter[str]:
    """Tasks of trio by kind that are there at the end and were not when growth began to count."""
    first = next((s.kinds for s in report.samples if s.fetches >= FROM), {}) if asked else {}
    return Counter(report.samples[-1].kinds) - Counter(first) if first else Counter()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fetches", type=int, default=20_000)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--jumps", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--sample", type=int, default=250, help="fetches between two looks")
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as root:
        soak = Soak(Path(root), fetches=arguments.fetches, restarts=arguments.restarts, jumps=arguments.jumps)
        report = soak.run(arguments.seconds, arguments.sample)
    text = told(report)
    print(text)
    if arguments.report is not None:
        arguments.report.write_text(f"# Soak\n\n`make soak`: what it does is in `tests/swarm/soak.py`.\n\n{text}")
    return 1 if report.unexplained or report.growth() else 0


if __name__ == "__main__":
    sys.exit(main())
