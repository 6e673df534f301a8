"""What the benchmarks share: real KV of the default model, timing, tables.

Figures are ratios of things measured side by side in one run; the machine is named above them.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvswap.core.defaults import BLOCK_TOKENS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "examples" / "documents" / "python-special-methods.txt"
LENGTHS = (255, 485, 945, 1888, 3774)


def machine() -> str:
    import os

    import torch

    model = (
        next(
            (
                line.split(":")[1].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")
            ),
            platform.processor(),
        )
        if Path("/proc/cpuinfo").exists()
        else platform.processor()
    )
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}"


def seconds(function: Callable[[], Any], repeat: int = 5) -> float:
    """Median of `repeat` calls after one warm-up."""
    function()
    samples = []
    for _ in range(repeat):
        began = time.perf_counter()
        function()
        samples.append(time.perf_counter() - began)
    return statistics.median(samples)


def once(function: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    value = function()
    return time.perf_counter() - began, value


def nginx(root: Path, listen: str, wrapper: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """nginx with a certificate of its own, in `root`, that serves what is below `root/data` over HTTPS."""
    run = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    run += ["-keyout", str(root / "key.pem"), "-out", str(root / "cert.pem"), "-days", "3", "-subj", "/CN=localhost"]
    subprocess.run(run, check=True, capture_output=True)
    (root / "nginx.conf").write_text(
        f"worker_processes auto; daemon off; pid {root}/pid; error_log {root}/error.log; user root;\n"
        "events { worker_connections 256; }\n"
        f"http {{ access_log off; sendfile on; server {{ listen {listen} ssl; root {root}/data; "
        f"ssl_certificate {root}/cert.pem; ssl_certificate_key {root}/key.pem; }} }}\n"
    )
    process = subprocess.Popen([*wrapper, "nginx", "-c", str(root / "nginx.conf")])
    time.sleep(1)
    return process


def table(headers: list[str], rows: list[list[Any]]) -> None:
    """A Markdown table, ready for the README."""
    print(text_table(headers, rows))


def text_table(headers: list[str], rows: list[list[Any]]) -> str:
    lines = ["| " + " | ".join(headers) + " |", "|" + "---|" * len(headers)]
    return "\n".join(lines + ["| " + " | ".join(str(c) for c in row) + " |" for row in rows])


def text_of(tokens: int) -> str:
    """A text of so many tokens for the default model, of prose and code; no two lengths begin alike."""
    from tokenizers import Tokenizer

    from kvswap.core.directories import models_directory
    from kvswap.model.pull import pull

    tokenizer = Tokenizer.from_file(str(pull("smollm2-135m", models_directory()) / "tokenizer.json"))
    sources = [DOCUMENT, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "kvswap" / "codec").glob("*.py"))]
    text = f"Document of {tokens} tokens.\n\n" + "\n\n".join(path.read_text() for path in sources)
    ends = tokenizer.encode(text, add_special_tokens=False).offsets
    if len(ends) < tokens:
        raise SystemExit(f"the sources have only {len(ends)} tokens")
    return text[: ends[tokens - 1][1]]


def load_default(dtype: str = "bfloat16") -> Any:
    from kvswap.core.directories import models_directory
    from kvswap.model.load import load_model
    from kvswap.model.pull import pull

    return load_model(pull("smollm2-135m", models_directory()), "smollm2-135m", dtype)


def ids_of(loaded: Any, count: int) -> list[int]:
    """`count` real token ids: the shipped document, repeated where it is too short."""
    ids = loaded.tokenize(DOCUMENT.read_text())
    while len(ids) < count:
        ids = ids + ids
    return ids[:count]


class Stored:
    """An artifact of these ids in a directory of chunk files, written by the publisher's own steps."""

    def __init__(self, loaded: Any, ids: list[int], codec: str = "planes") -> None:
        from kvswap.store import Store
        from tests.support import publish_ids

        self.directory = tempfile.TemporaryDirectory()
        self.store = Store.open(Path(self.directory.name))
        self.made = publish_ids(loaded, ids, BLOCK_TOKENS, codec)
        for cid, wire in self.made.chunks.items():
            self.store.put_chunk(wire, cid)
        self.manifest = self.made.manifest
        self.raw_bytes = self.manifest.raw_bytes

    def read(self, cid: Any) -> bytes:
        from kvswap.store.files import chunk_path

        return chunk_path(self.store.chunks_directory, cid).read_bytes()
