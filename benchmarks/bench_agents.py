"""What agents wait for: `ask` as a tool beside the command line's, and `advise` on a long log.

    python benchmarks/bench_agents.py [ask]

`ask`: one question about a document in the store, 16 tokens, by `kvswap ask` and by the tool of `kvswap mcp` over
pipes, in turns; medians.  What the model computes is the same, so the difference is what each face adds.
"""

from __future__ import annotations

import asyncio
import os
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


if __name__ == "__main__":
    print(machine())
    for name, bench in {"ask": bench_ask}.items():
        if name in (sys.argv[1:] or [name]):
            bench()
