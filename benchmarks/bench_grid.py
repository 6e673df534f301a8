"""Prefill, fetch, both at once, and what the planner chose, over document lengths and links.

    sudo python benchmarks/bench_grid.py [--tokens 512,1024] [--links 10,100] [--kills N] [--write DIR]

Two nodes with the default model, each in a network namespace, their links shaped with `tc tbf`.  A cell is
one document and one link, and everything in it is measured one after the other on the same nodes:
`ask --prefill`, `ask --force` by digest (all of it fetched), `ask --force` with the text (both at once), and
plain `ask` with the text (what the planner chooses).  Seconds are until the cache is ready for the question,
look-up included; between two measurements the artifact is removed from the reader's store.  Where fetching takes
less than 3 s, medians of three rounds.  `--kills` then cuts the link at random moments of further runs, each beside a
prefill of its own.  `--write` keeps grid.md, grid.json and a picture for each link there.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import machine, text_of, text_table
from benchmarks.shaped import Network, answer
from kvswap.core.directories import models_directory
from kvswap.report import lines

TOKENS = (512, 1_024, 2_048, 4_096, 7_500)
LINKS = (10, 30, 100, 300, 1_000)
KILL_LINK = 100
ROUNDS, SHORT_SECONDS = 3, 3.0  # of cells that are over so soon that a moment's load shows, the medians of so many
QUESTION = "What does this text describe?"


class Cell:
    """One reader, one provider, one document."""

    def __init__(self, network: Network, home: Path, document: Path) -> None:
        self.network, self.home, self.document = network, home, document

    def ask(self, *flags: str, digest: str | None = None) -> dict[str, Any]:
        """One measurement.  The process of the model is there already."""
        return answer(self.start(*flags, digest=digest))

    def start(self, *flags: str, digest: str | None = None) -> Any:
        reference = digest or str(self.document)
        return self.network.run("reader", self.home, "ask", reference, QUESTION, "--max-tokens", "1", *flags)

    def forget(self) -> None:
        rows = self.network.ask("reader", self.home, "ls")["artifacts"]
        for row in rows:
            self.network.ask("reader", self.home, "rm", "-y", row["artifact"])


def digest_of(path: Path) -> str:
    import hashlib

    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def published(network: Network, home: Path, documents: list[Path]) -> None:
    """Everything on the provider, in both codecs."""
    for document in documents:
        network.ask("provider", home, "publish", str(document))
    while True:
        rows = network.ask("provider", home, "ls")["artifacts"]
        if len(rows) >= 2 * len(documents):
            return
        time.sleep(1.0)


def measure(cell: Cell, tokens: int, link: float) -> dict[str, Any]:
    digest = digest_of(cell.document)
    prefill = cell.ask("--prefill")
    cell.forget()
    rounds: list[list[dict[str, Any]]] = []
    while not rounds or (len(rounds) < ROUNDS and rounds[0][0]["ready_seconds"] < SHORT_SECONDS):
        rounds.append([])
        for flags, name in ((("--force",), digest), (("--force",), None), ((), None)):
            rounds[-1].append(cell.ask(*flags, digest=name))
            cell.forget()
    fetch, hybrid, chosen = (
        sorted(way, key=lambda a: a["ready_seconds"])[len(way) // 2] for way in zip(*rounds, strict=True)
    )
    if len({a["logits_digest"] for a in (prefill, *(a for r in rounds for a in r))}) != 1:
        raise SystemExit(f"{tokens} tokens, {link} Mbit/s: the answers differ")
    return {
        "tokens": prefill["tokens"],
        "link": link,
        "prefill": prefill["ready_seconds"],
        "fetch": fetch["ready_seconds"],
        "hybrid": hybrid["ready_seconds"],
        "chosen": chosen["ready_seconds"],
        "action": chosen["plan"]["action"],
        "predicted": chosen["plan"]["seconds"],
        "fetched_bytes": fetch["wire_bytes"],
        "computed": hybrid["computed_tokens"],
        "first_token": {
            "prefill": prefill["ttft_seconds"],
            "fetch": fetch["ttft_seconds"],
            "hybrid": hybrid["ttft_seconds"],
        },
    }


def both(cell: dict[str, Any]) -> float:
    """Seconds if the two could share the work without loss: 1 / (1/prefill + 1/fetch)."""
    return 1 / (1 / cell["prefill"] + 1 / cell["fetch"])


def kill(root: Path, document: Path, link: float, seconds: float, models: dict[str, str]) -> dict[str, Any]:
    """A prefill, and an `ask` whose link is cut after so many seconds: on fresh nodes that know their link."""
    with meeting(root, link, models) as cell:
        cell.document = document
        prefill = cell.ask("--prefill")
        process = cell.start("--force")
        timer = threading.Timer(seconds, lambda: cell.network.cut("provider"))
        timer.start()
        try:
            done = answer(process)
        finally:
            timer.cancel()
        cell.forget()
    return {
        "tokens": done["tokens"],
        "link": link,
        "after": seconds,
        "ready": done["ready_seconds"],
        "computed": done["computed_tokens"],
        "prefill": prefill["ready_seconds"],
    }


@contextmanager
def meeting(root: Path, link: float, models: dict[str, str]) -> Iterator[Cell]:
    """Two nodes that have met, the reader's model in memory and its prefill and link measured."""
    with Network({"provider": link, "reader": link}) as network:
        provider = network.daemon("provider", root / "provider", **models)
        home = root / f"reader{link:g}"
        network.daemon("reader", home, "--bootstrap", provider.address, KVSWAP_IDLE_UNLOAD_SECONDS="3600", **models)
        network.meet("reader", home, 1)
        network.ask("reader", home, "trust", "add", provider.publisher)
        cell = Cell(network, home, min(root.glob("*.txt"), key=lambda p: p.stat().st_size))
        cell.ask("--prefill")
        cell.ask("--force", digest=digest_of(cell.document))
        cell.forget()
        yield cell


def report(cells: list[dict[str, Any]], kills: list[dict[str, Any]]) -> str:
    said = [f"{machine()}, default model, bfloat16\n"]
    said.append(
        text_table(
            [
                "tokens",
                "Mbit/s",
                "prefill s",
                "fetch s",
                "hybrid s",
                "chosen s",
                "plan",
                "predicted s",
                "chosen / best",
                "hybrid / ideal",
                "hybrid vs prefill",
            ],
            [
                [
                    c["tokens"],
                    c["link"],
                    f"{c['prefill']:.2f}",
                    f"{c['fetch']:.2f}",
                    f"{c['hybrid']:.2f}",
                    f"{c['chosen']:.2f}",
                    c["action"],
                    f"{c['predicted']:.2f}",
                    f"{c['chosen'] / best(c):.2f}",
                    f"{c['hybrid'] / both(c):.2f}",
                    f"{c['prefill'] / c['hybrid']:.1f}x",
                ]
                for c in cells
            ],
        )
    )
    count = len(cells)
    within = sum(c["chosen"] <= 1.10 * best(c) for c in cells)
    predicted = sum(abs(c["predicted"] - c["chosen"]) <= 0.2 * c["chosen"] for c in cells)
    long = [c for c in cells if min(c["prefill"], c["fetch"]) > 2]
    said.append(f"\nchosen within 10% of the best of the three: {within} of {count} cells")
    said.append(f"worst: {max(c['chosen'] / best(c) for c in cells):.2f}x of the best")
    said.append(f"predicted within 20% of measured: {predicted} of {count}")
    if long:
        worst = max(c["hybrid"] / both(c) for c in long)
        near = sum(c["hybrid"] <= 1.1 * both(c) for c in long)
        said.append(
            f"hybrid against 1/(1/prefill + 1/fetch), where both take over 2 s: "
            f"within 1.1x in {near} of {len(long)}, worst {worst:.2f}x"
        )
    fast = [c for c in cells if c["link"] == max(c["link"] for c in cells)]
    said.append(f"\nfirst token of an answer from a peer at {fast[0]['link']:g} Mbit/s\n")
    said.append(
        text_table(
            ["tokens", "wire MB", "first token s", "1.15 x wire / link + 0.2 s", "faster than prefill"],
            [
                [
                    c["tokens"],
                    f"{c['fetched_bytes'] / 1e6:.1f}",
                    f"{c['first_token']['fetch']:.3f}",
                    f"{1.15 * c['fetched_bytes'] * 8 / 1e6 / c['link'] + 0.2:.3f}",
                    f"{c['first_token']['prefill'] / c['first_token']['fetch']:.1f}x",
                ]
                for c in fast
            ],
        )
    )
    if kills:
        said.append(f"\nlink cut at a random moment, {kills[0]['tokens']} tokens at {kills[0]['link']} Mbit/s\n")
        said.append(
            text_table(
                ["cut after s", "ready after s", "computed tokens", "prefill s", "against prefill"],
                [
                    [
                        f"{k['after']:.1f}",
                        f"{k['ready']:.2f}",
                        k["computed"],
                        f"{k['prefill']:.2f}",
                        f"{k['ready'] / k['prefill']:.2f}x",
                    ]
                    for k in kills
                ],
            )
        )
    return "\n".join(said)


def picture(cells: list[dict[str, Any]]) -> str:
    """Seconds over tokens for one link."""
    names = {"prefill": "prefill", "fetch": "fetch", "hybrid": "both at once"}
    curves = {name: [(float(c["tokens"]), c[way]) for c in cells] for way, name in names.items()}
    return lines(curves, f"tokens, at {cells[0]['link']:g} Mbit/s", "seconds until the cache is ready") + "\n"


def best(cell: dict[str, Any]) -> float:
    return float(min(cell["prefill"], cell["fetch"], cell["hybrid"]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=lambda s: tuple(int(v) for v in s.split(",")), default=TOKENS)
    parser.add_argument("--links", type=lambda s: tuple(float(v) for v in s.split(",")), default=LINKS)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    models = {"KVSWAP_MODELS": str(models_directory())}
    cells: list[dict[str, Any]] = []
    kills: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        documents = {}
        for tokens in options.tokens:
            documents[tokens] = root / f"{tokens}.txt"
            documents[tokens].write_text(text_of(tokens))
        with Network({"provider": 0}) as network:
            network.daemon("provider", root / "provider", **models)
            published(network, root / "provider", list(documents.values()))
        for link in options.links:
            with meeting(root, link, models) as cell:
                for tokens, document in documents.items():
                    cell.document = document
                    cells.append(measure(cell, tokens, link))
                    print(json.dumps(cells[-1]), file=sys.stderr, flush=True)
        tokens, link = max(options.tokens), KILL_LINK if KILL_LINK in options.links else options.links[0]
        for _ in range(options.kills):
            expected = max(c["hybrid"] for c in cells if c["link"] == link)
            after = random.uniform(0.05, 0.95) * expected
            kills.append(kill(root, documents[tokens], link, after, models))
            print(json.dumps(kills[-1]), file=sys.stderr, flush=True)
    page = report(cells, kills)
    print(page)
    if options.write:
        options.write.mkdir(parents=True, exist_ok=True)
        (options.write / "grid.md").write_text(page + "\n")
        (options.write / "grid.json").write_text(json.dumps({"cells": cells, "kills": kills}, indent=1) + "\n")
        for link in dict.fromkeys(c["link"] for c in cells):
            (options.write / f"grid-{link:g}.svg").write_text(picture([c for c in cells if c["link"] == link]))


if __name__ == "__main__":
    main()
