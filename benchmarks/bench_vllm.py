"""What vLLM gains: time to first token, requests that hit nothing, many requests at once, and the same tokens or not.

    sudo .venv-vllm/bin/python benchmarks/bench_vllm.py [--documents 20] [--no-timings] [--write docs/results]

Two nodes in network namespaces, 1 Gbit/s between them; the first publishes (transformers) and hosts, the second stands
beside the engines.  Three engines with the default model: without a connector, with kvswap's, and with vLLM's own
example that keeps KV in files; and the host's.  All is measured in one run, engines taking turns; medians.  Dollars are
those of a tariff like the large providers': a cached token a tenth of a computed one, egress as the paper has it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import machine, text_of, text_table
from benchmarks.shaped import Network
from kvswap.core.directories import models_directory
from kvswap.model.pull import pull
from tests.support import until
from tests.vllm.running import Engine, Host, Output

TOKENS = 3_774
LINK = 1_000
ROUNDS = 3
MISSES = {300: 41, 1_000: 21, 2_000: 11}  # tokens: rounds; single ones differ by 15%
REQUESTS = 16
DOCUMENT_TOKENS = 1_024
MISS_HEADERS = [
    "tokens, nothing published",
    "rounds",
    "without kvswap, s",
    "not looked up, s",
    "looked up, s",
    "the look-up",
    "one process beside another",
]
STEPS = 256
OWN_DOCUMENTS = 10
PRICES = {"read": 0.03, "prefill": 0.30, "make": 0.60}  # dollars a million tokens
EGRESS = 0.09  # dollars a GB
QUESTION = "\n\nQuestion: what does this text describe?\nAnswer:"


class Bench:
    """The network, its nodes and engines."""

    def __init__(self, network: Network, root: Path) -> None:
        from tokenizers import Tokenizer

        self.model = pull("smollm2-135m", models_directory())
        self.tokenizer = Tokenizer.from_file(str(self.model / "tokenizer.json"))
        models = {"KVSWAP_MODELS": str(models_directory()), "KVSWAP_ALSO_CODEC": ""}
        self.publisher = network.daemon("publisher", root / "publisher", **models)
        self.node = network.daemon("reader", root / "reader", "--bootstrap", self.publisher.address)
        self._network, self._homes = network, {"publisher": root / "publisher", "reader": root / "reader"}
        self.kv("reader", "trust", "add", self.publisher.publisher)
        common = {"model": str(self.model), "dtype": "bfloat16", "max_model_len": 8192}
        wrapper = network.wrapper("reader")
        example = {
            "kv_connector": "ExampleConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"shared_storage_path": str(root / "example")},
        }
        self.plain = Engine(root / "plain.log", wrapper, **common)
        self.kvswap = Engine(
            root / "kvswap.log", wrapper, home=str(root / "reader"), extra={"publish": "asked"}, **common
        )
        self.example = Engine(root / "example.log", wrapper, kv_transfer_config=example, **common)

    def hosting(self, path: Path) -> tuple[Host, str]:
        """The publisher hosts a document, and the reader may ask: (host, its PeerId)."""
        flags = ["--listen", f"{self._network.address['publisher']}:8100", "--engine-arg=--enforce-eager"]
        flags += [f"--{name}-price={price}" for name, price in PRICES.items()]
        home, wrapper = self._homes["publisher"], self._network.wrapper("publisher")
        host = Host(home, "--model", str(self.model), *flags, wrapper=wrapper)
        host.run("add", str(path))
        invitation = path.with_suffix(".invitation")
        invitation.write_text(host.run("invite", "reader")["invitation"])
        return host, str(self.kv("reader", "host", "join", str(invitation))["peer"])

    def stop(self) -> None:
        for engine in (self.plain, self.kvswap, self.example):
            engine.stop()

    def kv(self, name: str, *arguments: str) -> Any:
        """A verb on a node, in its namespace."""
        return self._network.ask(name, self._homes[name], *arguments)

    def publish(self, text: str, root: Path) -> dict[str, Any]:
        path = root / "document.txt"
        path.write_text(text)
        return dict(self.kv("publisher", "publish", str(path)))

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=True).ids)

    def first(self, engine: Engine, prompt: Sequence[int], reset: bool = True) -> tuple[float, int]:
        """Seconds for one token, and how many tokens of the prompt were not computed."""
        engine.ask([prompt], 1, reset=reset)
        (output,), seconds = engine.answer()
        return seconds, output.cached

    def forget(self) -> None:
        for row in self.kv("reader", "ls")["artifacts"]:
            self.kv("reader", "rm", "-y", row["artifact"])


def first_tokens(bench: Bench, root: Path) -> list[list[Any]]:
    text = text_of(TOKENS)
    wire = bench.publish(text, root)["wire_bytes"]
    prompt = bench.ids(text + QUESTION)
    bench.first(bench.example, prompt)  # it saves
    until(lambda: bench.first(bench.kvswap, prompt)[1] > 0, 60, "the node to hear of the document")
    host, peer = bench.hosting(root / "document.txt")
    took: dict[str, list[tuple[float, int]]] = {}
    hosted: dict[str, Any] = {}

    def ask() -> tuple[float, int]:
        """Over HTTPS, a new question each time; the first of all is the client's first, and not counted."""
        hosted.update(
            bench.kv("reader", "ask", str(root / "document.txt"), QUESTION, "--host", peer, "--max-tokens", "1")
        )
        return hosted["ttft_seconds"], hosted["host"]["cached_tokens"]

    try:
        took["a host, over HTTPS, the first time"] = [ask()]
        for _ in range(ROUNDS):
            took.setdefault("cold prefill", []).append(bench.first(bench.plain, prompt))
            took.setdefault("vLLM's own prefix cache", []).append(bench.first(bench.plain, prompt, reset=False))
            took.setdefault("ExampleConnector, from files", []).append(bench.first(bench.example, prompt))
            took.setdefault("kvswap, in the node's store", []).append(bench.first(bench.kvswap, prompt))
            bench.forget()
            took.setdefault(f"kvswap, over {LINK} Mbit/s", []).append(bench.first(bench.kvswap, prompt))
            took.setdefault("a host, over HTTPS", []).append(ask())
    finally:
        host.stop()
    prefill, bill = len(prompt) * PRICES["prefill"] / 1e6, hosted["host"]["dollars"]
    dollars = {
        "cold prefill": f"${prefill:.6f}",
        f"kvswap, over {LINK} Mbit/s": f"$0, or ${wire / 1e9 * EGRESS:.6f} of egress",
        "a host, over HTTPS": f"${bill:.6f}",
    }
    cold = statistics.median(seconds for seconds, _ in took["cold prefill"])
    rows = []
    for name in sorted(took, key=list(took).index):
        median = statistics.median(seconds for seconds, _ in took[name])
        rows.append([name, f"{median:.2f}", f"{cold / median:.1f}x", took[name][-1][1], dollars.get(name, "")])
    return rows


def misses(bench: Bench) -> list[list[Any]]:
    """Prompts that nobody published, each other ones, in turns.

    Two processes differ by some percent for as long as they live, whatever they run, so what a look-up takes is told
    by requests of one engine, every other of which is not looked up.
    """
    rows = []
    number = 0
    unasked = {"kv_transfer_params": {"kvswap": {"lookup": False}}}
    for tokens, rounds in MISSES.items():
        took: dict[str, list[float]] = {"without": [], "unasked": [], "with": []}
        ways = [("without", bench.plain, {}), ("unasked", bench.kvswap, unasked), ("with", bench.kvswap, {})]
        for round_ in range(rounds):
            for name, engine, extra in ways if round_ % 2 else ways[::-1]:
                number += 1
                prompt = [(number * 7_919 + i * 104_729) % 40_000 + 100 for i in range(tokens)]
                took[name].append(engine.run(prompt, tokens=1, reset=True, extra=extra)[0].first)

        def more(one: str, other: str, took: dict[str, list[float]] = took) -> str:
            ratio = statistics.median(b / a for a, b in zip(took[one], took[other], strict=True))
            return f"{100 * (ratio - 1):+.1f}%"

        medians = [f"{statistics.median(seconds):.3f}" for seconds in took.values()]
        rows.append([tokens, rounds, *medians, more("unasked", "with"), more("without", "unasked")])
    return rows


def together(bench: Bench) -> list[list[Any]]:
    """So many questions on one document at once, nothing of it in the engine.

    vLLM shares what it computes among its requests; "one alone" is what a request costs that shares nothing.
    """
    text = text_of(TOKENS)
    prompts = [bench.ids(text + f"\n\nQuestion {n}: what does this text describe?\nAnswer:") for n in range(REQUESTS)]
    bench.plain.ask(prompts[:1], 16, reset=True)
    _, cold = bench.plain.answer()
    rows = [["one alone, cold", f"{cold:.2f}", f"{1 / cold:.2f}", "1.0x", ""]]
    for name, engine in (("cold, shared within vLLM", bench.plain), ("kvswap", bench.kvswap)):
        bench.forget()
        served = bench.kv("publisher", "status")["bytes_out"]
        engine.ask(prompts, 16, reset=True)
        _, seconds = engine.answer()
        fetched = (bench.kv("publisher", "status")["bytes_out"] - served) / 1e6
        rows.append(
            [
                name,
                f"{seconds:.2f}",
                f"{REQUESTS / seconds:.2f}",
                f"{REQUESTS * cold / seconds:.1f}x",
                f"{fetched:.1f} MB",
            ]
        )
    return rows


def divergence(bench: Bench, root: Path, count: int) -> dict[str, Any]:
    """Greedy tokens from a cache that transformers made, beside those after vLLM's own prefill."""
    text = text_of(TOKENS + count * 200)
    documents = [text[200 * 4 * n :][: DOCUMENT_TOKENS * 4] for n in range(count)]
    prompts = [bench.ids(d)[:DOCUMENT_TOKENS] + bench.ids(QUESTION) for d in documents]
    bench.plain.ask(prompts, STEPS, reset=True)
    own, _ = bench.plain.answer()
    bench.plain.ask(prompts, STEPS)
    again, _ = bench.plain.answer()
    for document in documents:
        bench.publish(document, root)
    until(lambda: bench.first(bench.kvswap, prompts[-1])[1] > 0, 60, "the node to hear of the documents")
    bench.kvswap.ask(prompts, STEPS, reset=True)
    loaded, _ = bench.kvswap.answer()

    def firsts(others: Sequence[Output]) -> list[int]:
        return [
            next((i for i, (a, b) in enumerate(zip(x.ids, y.ids, strict=True)) if a != b), STEPS)
            for x, y in zip(own, others, strict=True)
        ]

    def apart(others: Sequence[Output]) -> list[float]:
        """Nats between the log probabilities of the first token."""
        pairs = [(x.scores[0], y.scores[0]) for x, y in zip(own, others, strict=True) if x.ids[0] == y.ids[0]]
        return sorted(round(abs(a - b), 4) for a, b in pairs)

    return {
        "documents": count,
        "steps": STEPS,
        "loaded_tokens": [output.cached for output in loaded],
        "first_other_token_from_transformers_cache": sorted(firsts(loaded)),
        "first_other_token_from_vllm_prefix_cache": sorted(firsts(again)),
        "nats_at_the_first_token_from_transformers_cache": apart(loaded),
        "nats_at_the_first_token_from_vllm_prefix_cache": apart(again),
    }


def own_kind(bench: Bench, count: int) -> dict[str, Any]:
    """Greedy tokens from what vLLM itself published, beside those from its own prefix cache; one request at a time."""
    text = text_of(TOKENS + count * 200)
    mark = {"kv_transfer_params": {"kvswap": {"publish": {"tokens": DOCUMENT_TOKENS}}}}
    equal, marked, plain = 0, [], []
    for n in range(count):
        ids = bench.ids(text[200 * 4 * n + 77 :][: DOCUMENT_TOKENS * 5])[:DOCUMENT_TOKENS]
        prompt = [*ids, *bench.ids(QUESTION)]
        plain.append(bench.first(bench.plain, prompt)[0])
        known = len(bench.kv("reader", "ls")["artifacts"])
        bench.kvswap.ask([prompt], 1, reset=True, extra=mark)
        marked.append(bench.kvswap.answer()[1])
        until(lambda known=known: len(bench.kv("reader", "ls")["artifacts"]) > known, 60, "the artifact")  # type: ignore[misc]
        (hit,) = bench.kvswap.run(prompt, tokens=STEPS)
        loads = bench.kvswap.loads
        (loaded,) = bench.kvswap.run(prompt, tokens=STEPS, reset=True)
        equal += hit.ids == loaded.ids and bench.kvswap.loads == loads + 1
    return {
        "documents": count,
        "steps": STEPS,
        "equal_to_its_own_prefix_cache": equal,
        "seconds_of_prefill": round(statistics.median(plain), 3),
        "and_while_it_is_copied_to_be_published": round(statistics.median(marked), 3),
    }


def timings(bench: Bench, root: Path) -> list[str]:
    tables = [
        (
            [f"{TOKENS} tokens and a question", "first token, s", "of cold", "not computed", "dollars"],
            first_tokens(bench, root),
        ),
        ([f"{REQUESTS} requests at once, 16 tokens each", "s", "a second", "", "fetched"], together(bench)),
        (MISS_HEADERS, misses(bench)),
    ]
    texts = [text_table(headers, rows) for headers, rows in tables]
    print("\n\n".join(texts), flush=True)
    return texts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--no-timings", action="store_true", help="only the tokens")
    parser.add_argument("--misses", action="store_true", help="only what a request that hits nothing costs")
    parser.add_argument("--write", type=Path)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, Network({"publisher": LINK, "reader": LINK}) as network:
        root = Path(directory)
        bench = Bench(network, root)
        try:
            parts = [machine()]
            if wanted.misses:
                print(text_table(MISS_HEADERS, misses(bench)))
                return
            if not wanted.no_timings:
                parts += timings(bench, root)
            if wanted.documents:
                made = own_kind(bench, min(OWN_DOCUMENTS, wanted.documents))
                parts.append("```\n" + json.dumps(made, indent=1) + "\n```")
                print(parts[-1], flush=True)
                parts.append("```\n" + json.dumps(divergence(bench, root, wanted.documents), indent=1) + "\n```")
                print(parts[-1], flush=True)
        finally:
            bench.stop()
    if wanted.write:
        (wanted.write / "vllm.md").write_text("\n\n".join(["# kvswap inside vLLM", *parts]) + "\n")


if __name__ == "__main__":
    main()
