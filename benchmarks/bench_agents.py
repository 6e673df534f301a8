"""What agents wait for: `ask` as a tool beside the command line's, and `advise` on a long log.

    python benchmarks/bench_agents.py [ask] [advise]

`ask`: one question about a document in the store, 16 tokens, by `kvswap ask` and by the tool of `kvswap mcp` over
pipes, in turns; medians.  What the model computes is the same, so the difference is what each face adds.

`advise`: a log of 10,000 requests of 200 conversations that grow, 300 MB, by the template and tokenizer of the default
model; the seconds are those of the command from its start on, the memory is the most that its process had.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mcp import Client, StdioServerParameters

from benchmarks.common import ROOT, machine, text_table
from kvswap.core.ids import document_digest
from tests.support import DOCUMENT, Daemon, tiny_model

ROUNDS = 9
QUESTION = "When is __del__ called?"


async def asked(home: Path, digest: str) -> tuple[list[float], list[float]]:
    """Seconds of each ask: the command line's, and the tool's."""
    words = [sys.executable, "-m", "kvswap", "ask", "--home", str(home), digest, QUESTION, "--max-tokens", "16"]
    program = StdioServerParameters(
        command=sys.executable, args=["-m", "kvswap", "mcp", "--home", str(home)], cwd=ROOT, env=dict(os.environ)
    )
    by_command, by_tool = [], []
    async with Client(program) as client:
        for _ in range(ROUNDS):
            began = time.perf_counter()
            await asyncio.to_thread(subprocess.run, words, check=True, capture_output=True, cwd=ROOT)
            by_command.append(time.perf_counter() - began)
            began = time.perf_counter()
            await client.call_tool("ask", {"ref": digest, "question": QUESTION, "max_tokens": 16})
            by_tool.append(time.perf_counter() - began)
    return by_command, by_tool


def bench_ask() -> None:
    text = DOCUMENT.read_text()[:2_000]
    with tempfile.TemporaryDirectory() as place:
        model = tiny_model(Path(place) / "model", "llama")
        node = Daemon(Path(place) / "home", ["--no-p2p", "--model", str(model)]).start()
        try:
            node.client.publish(text)
            by_command, by_tool = asyncio.run(asked(node.home, document_digest(text.encode())))
        finally:
            node.stop()
    rows = [
        (name, f"{statistics.median(times):.3f} s", f"{min(times):.3f} s")
        for name, times in (("kvswap ask", by_command), ("the tool ask", by_tool))
    ]
    print(text_table(("ask, 16 tokens, tiny model", "median", "best"), rows))


CONVERSATIONS, TURNS, LETTERS = 200, 50, 1_150


def write_log(path: Path) -> None:
    """Conversations with one system text, each of its own words, whose requests come in turns."""
    words = DOCUMENT.read_text().split()
    system = {"role": "system", "content": " ".join(words[:400])}
    said: list[list[dict[str, str]]] = [[] for _ in range(CONVERSATIONS)]
    with path.open("w") as log:
        for turn in range(TURNS):
            for number, messages in enumerate(said):
                place = (number * 7919 + turn * 104_729) % (len(words) - 300)
                text = f"{number}.{turn} " + " ".join(words[place : place + 300])[: LETTERS // 2]
                if messages:
                    messages.append({"role": "assistant", "content": text[::-1][: LETTERS // 2]})
                messages.append({"role": "user", "content": text})
                log.write(json.dumps({"model": "x", "messages": [system, *messages]}) + "\n")


def bench_advise() -> None:
    with tempfile.TemporaryDirectory() as place:
        log = Path(place) / "requests.jsonl"
        write_log(log)
        command = [sys.executable, "-m", "kvswap", "advise", str(log), "--model", "smollm2-135m", "--json"]
        began = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        seconds = time.perf_counter() - began
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        made, size = json.loads(done.stdout), log.stat().st_size
    rows = [
        ("requests", f"{made['requests']:,}"),
        ("log", f"{size / 1e6:.0f} MB"),
        ("tokens, distinct", f"{made['tokens']:,}, {made['distinct_tokens']:,}"),
        ("seconds", f"{seconds:.1f}"),
        ("CPU-seconds", f"{used.ru_utime + used.ru_stime:.1f}"),
        ("memory", f"{used.ru_maxrss / 1e3:.0f} MB"),
    ]
    print(text_table(("advise", ""), rows))


if __name__ == "__main__":
    print(machine())
    for name, bench in {"ask": bench_ask, "advise": bench_advise}.items():
        if name in (sys.argv[1:] or [name]):
            bench()
