"""How much sooner the first token comes after a restart, with `kvswap llama`: python benchmarks/llama_restart.py X.gguf

It runs where xllamacpp is installed (`.ci/setup-llama DIRECTORY`).  A prompt of so many tokens is prefilled by the server,
then asked again after a restart: over HTTP through the proxy both times, to the first token of a stream.  Beside them what
the proxy adds where nothing is kept: the first token of short prompts through it and directly, in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.llama.proxies import Proxy  # noqa: E402

WORDS = [
    "alpha",
    "river",
    "stone",
    "winter",
    "engine",
    "garden",
    "paper",
    "signal",
    "market",
    "window",
    "copper",
    "forest",
]


def first_token(url: str, ids: list[int]) -> tuple[float, int]:
    """Seconds to the first token after these ids, and how many of them the server had cached."""
    body = {"prompt": ids, "n_predict": 2, "stream": True, "temperature": 0, "cache_prompt": True}
    request = urllib.request.Request(
        f"{url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=3600) as answer:
        answer.readline()
        took = time.perf_counter() - began
        rest = answer.read().decode()
    return took, json.loads(rest.strip().splitlines()[-1].removeprefix("data: "))["timings"]["cache_n"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=3_774)
    parser.add_argument("--question", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one = Proxy(Path(folder) / "home", options.model.absolute(), ("--cache-ram", "0"))
        one.start()
        text = " ".join(f"{WORDS[n % 12]} {n}" for n in range(options.tokens))
        ids = one.post("/tokenize", {"content": text})["tokens"][: options.tokens]
        question = ids[: options.question]
        first_token(one.url, question)
        server = str(json.loads((one.home / "llama.json").read_text())["server"])
        added = []
        for turn in range(20):
            other = [*ids[turn + 100 : turn + 132]]
            through, direct = first_token(one.url, other)[0], first_token(server, other[::-1])[0]
            added.append(1e3 * (through - direct))
        prefilled, _ = first_token(one.url, ids)
        one.until_saved()
        one.restart()
        restored, cached = first_token(one.url, ids + question)
        counts = one.until_saved()
        one.end()
    print(
        json.dumps(
            {
                "model": options.model.name,
                "tokens": options.tokens,
                "prefill_seconds": round(prefilled, 3),
                "restored_seconds": round(restored, 3),
                "cached": cached,
                "ratio": round(prefilled / restored, 1),
                "added_ms_without_a_hit": round(statistics.median(added), 1),
                "longest_save_ms": counts["longest_save_ms"],
            }
        )
    )


if __name__ == "__main__":
    main()
