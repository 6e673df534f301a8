"""The main job, end to end: publish on node A, continue from it on node B, bit for bit.

Two nodes as separate processes with separate homes talk libp2p on loopback.  B is told only the
document's digest.  Ends with a table, and with exit code 1 unless everything is as claimed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from kvswap import Client
from kvswap.api import AskResult, PlanResult, PrefillEvent, PublishResult, StoredArtifact, TransferEvent
from kvswap.core.directories import models_directory
from kvswap.core.errors import KvswapError
from kvswap.core.ids import document_digest
from kvswap.model.pull import pull

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "examples" / "documents" / "python-special-methods.txt"
QUESTION = "When is __del__ called?"
STEPS = 64
# A node assumes 100 Mbit/s of a peer from which it never fetched, and at that a fast machine prefills sooner.
ONE_MACHINE = {"KVSWAP_ASSUMED_LINK_BYTES_PER_SECOND": "1000000000"}
console = Console()


class Bars:
    """One bar for each stage that reports progress."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("  {task.description:22}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._tasks: dict[str, object] = {}
        self.planes: set[str] = set()

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, name: str, done: float, total: float, detail: str = "") -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, detail=detail)
        self._progress.update(self._tasks[name], completed=done, total=total, detail=detail)

    def on_event(self, prefill: str) -> object:
        def show(event: object) -> None:
            if isinstance(event, PrefillEvent):
                self.update(prefill, event.block, event.blocks or event.block, f"{event.tokens} tokens")
            elif isinstance(event, TransferEvent):
                self.planes.update(event.over)
                self.update("transfer A -> B", event.bytes, event.total_bytes, f"{event.bytes / 1e6:.1f} MB")

        return show


def start(home: Path, *flags: str) -> tuple[subprocess.Popen, Client]:
    """A daemon as its own process, and a client for it."""
    home.mkdir(parents=True, exist_ok=True)
    log = (home / "daemon.log").open("w")
    command = [sys.executable, "-m", "kvswap", "daemon", "--home", str(home), *flags]
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | ONE_MACHINE)
    client = Client(home)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            client.status()
            return process, client
        except KvswapError:
            time.sleep(0.1)
    raise SystemExit(f"the daemon did not start: {(home / 'daemon.log').read_text()}")


def meet(client: Client, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if client.status().peers:
            return True
        time.sleep(0.1)
    return False


def encodings(client: Client, published: PublishResult) -> list[tuple[StoredArtifact, str]]:
    """The document's artifacts: a node that has a predictor for the model makes a smaller one in the background."""
    deadline = time.monotonic() + 30
    while True:
        rows = [row for row in client.ls() if row.document == published.document]
        if len(rows) > 1 or time.monotonic() > deadline:
            return [(row, client.show(row.artifact).manifest["chunks"][0]["codec"]) for row in rows]
        time.sleep(0.1)


def main() -> int:
    homes = ROOT / ".demo"
    shutil.rmtree(homes / "B" / "store", ignore_errors=True)  # B fetches anew each time
    nodes: list[subprocess.Popen] = []
    try:
        console.print("[bold]kvswap[/]: publish once, continue anywhere\n")
        with Bars() as bars:
            pull("smollm2-135m", models_directory(), lambda stage, part: bars.update("model", part, 1, stage))
            # Default start: A and B know nothing of each other and meet by mDNS.
            node_a, a = start(homes / "A", "--mdns")
            nodes.append(node_a)
            published = a.publish(DOCUMENT.read_text(), on_event=bars.on_event("prefill on A"))
            bars.update("prefill on A", 1, 1, "already published" if published.reused else f"{published.tokens} tokens")
            offered = encodings(a, published)
            identity = a.id()
            node_b, b = start(homes / "B", "--mdns")
            nodes.append(node_b)
            if not meet(b, 12):  # a machine without multicast
                node_b.terminate()
                node_b.wait()
                node_b, b = start(homes / "B", "--no-mdns", "--bootstrap", identity.addresses[0])
                nodes.append(node_b)
                meet(b, 12)
            reference = document_digest(DOCUMENT.read_bytes())
            b.trust_add(identity.publisher, "the demo's node A")
            plan = b.plan(reference)  # loads the model and measures this machine, once
            fetched = b.ask(
                reference, QUESTION, max_tokens=STEPS, ignore_eos=True, on_event=bars.on_event("prefill on B")
            )
            prefilled = b.ask(
                reference,
                QUESTION,
                max_tokens=STEPS,
                ignore_eos=True,
                prefill=True,
                text=DOCUMENT.read_text(),
                on_event=bars.on_event("prefill on B"),
            )
        identical = fetched.logits_digest == prefilled.logits_digest and fetched.token_ids == prefilled.token_ids
        traffic = b.status().bytes_in
        chosen = next((row for row, _ in offered if row.artifact == fetched.artifact), None)
        show(published, offered, plan, fetched, prefilled, identical, traffic, sorted(bars.planes))
        whole = chosen is not None and traffic >= chosen.wire_bytes
        return 0 if identical and whole and len(fetched.token_ids) == STEPS else 1
    except KvswapError as error:
        console.print(f"[red]failed[/]: {error.message}\n  {error.hint or ''}")
        return 1
    finally:
        for node in nodes:
            node.terminate()
        for node in nodes:
            try:
                node.wait(20)
            except subprocess.TimeoutExpired:
                node.kill()


def show(
    published: PublishResult,
    offered: list[tuple[StoredArtifact, str]],
    plan: PlanResult,
    fetched: AskResult,
    prefilled: AskResult,
    identical: bool,
    traffic: int,
    planes: list[str],
) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    raw = published.raw_bytes
    by_fetch, by_prefill = fetched.ttft_seconds, prefilled.ttft_seconds
    rows = [
        ("document", f"{DOCUMENT.name}, {published.tokens} tokens"),
        ("KV cache", f"{raw / 1e6:.1f} MB"),
        *(
            (f"  as {codec}, lossless", f"{row.wire_bytes / 1e6:.1f} MB ({raw / row.wire_bytes:.2f}x)")
            for row, codec in offered
        ),
        ("transferred", f"{traffic / 1e6:.1f} MB of {plan.codec} over {' and '.join(planes)}"),
        ("first token by prefill", f"{by_prefill:.2f} s"),
        ("first token by fetch", f"{by_fetch:.2f} s"),
        ("speed-up", f"{by_prefill / by_fetch:.1f}x"),
        (f"logits identical bit for bit over {STEPS} steps", "[green]yes[/]" if identical else "[red]no[/]"),
    ]
    console.print(f"\n[bold]plan[/] {plan.reason}", highlight=False)
    for row in rows:
        table.add_row(*row)
    console.print("\n", table, sep="")
    console.print("by fetch: look-up, transfer, verification, decode and load included", style="dim")
    console.print(f"\n[bold]Q[/] {QUESTION}\n[bold]A[/] {fetched.text.strip()}\n", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
