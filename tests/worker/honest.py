"""One honest artifact and one reader of it, through the model process's own jobs, with a signed manifest between them."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from kvswap.artifact import dsse
from kvswap.artifact.manifest import Manifest
from kvswap.core import wire
from kvswap.core.ids import Cid
from kvswap.store.files import ChunkFiles
from kvswap.trust import read_statement
from kvswap.worker.jobs import Jobs
from kvswap.worker.messages import AnswerJob, NoiseJob, OpenJob, PublishJob, VerifyJob
from tests.families import FAMILIES, build
from tests.support import DOCUMENT, key, manifest_of

BLOCK = 64
WORDS = DOCUMENT.read_text()
OTHER = WORDS[9000:11000]  # a text that no artifact here is of

AXES: dict[str, Sequence[str]] = {
    "family": list(FAMILIES),
    "extent": ("whole", "prefix"),
    "way": ("ask", "fetch", "prefix", "verify"),
    "length": ("block - 1", "block", "block + 1", "window - 1", "window", "window + 1", "blocks"),
    "reader": ("same", "threads", "label", "directory", "no text", "wrong text"),
}


@dataclass
class Artifact:
    """A published document: its text, its envelope, its tokens."""

    text: str
    envelope: bytes
    manifest: Manifest


@dataclass
class Shelf:
    """Models, artifacts and noise of one test session, each made once."""

    root: Path
    dtypes: dict[str, str] = field(default_factory=dict)  # float32 unless it is named
    noise_tokens: int = 512
    _made: dict[Any, Any] = field(default_factory=dict)

    def dtype(self, family: str) -> str:
        return self.dtypes.get(family, "float32")

    def directory(self, family: str) -> Path:
        path = self.root / "models" / family
        return path if path.exists() else build(path, family)

    def jobs(self, family: str, label: str = "model", threads: int = 1, elsewhere: bool = False) -> Jobs:
        def make() -> Jobs:
            seen: list[dict[str, Any]] = []
            jobs = Jobs(seen.append, threading.Event())
            jobs.seen = seen  # type: ignore[attr-defined]
            directory = self.directory(family)
            if elsewhere:
                moved = self.root / "moved" / f"renamed {family}"
                moved.parent.mkdir(exist_ok=True)
                if not moved.exists():
                    moved.symlink_to(directory)
                directory = moved
            dtype = self.dtype(family)
            jobs.do(OpenJob(directory=str(directory), label=label, dtype=dtype, device="cpu", threads=threads))
            return jobs

        import torch

        jobs: Jobs = self._once(("jobs", family, label, elsewhere), make)
        torch.set_num_threads(threads)
        return jobs

    def noise(self, family: str) -> Any:
        def measure() -> Any:
            with mock.patch("kvswap.worker.noise.TOKENS", self.noise_tokens):
                return self.jobs(family).do(NoiseJob()).noise

        return self._once(("noise", family), measure)

    @property
    def chunks(self) -> ChunkFiles:
        return self._once("chunks", lambda: ChunkFiles(self.root / "chunks"))  # type: ignore[no-any-return]

    def artifact(self, family: str, tokens: int) -> Artifact:
        return self._once(("artifact", family, tokens), lambda: self._publish(family, tokens))  # type: ignore[no-any-return]

    def _publish(self, family: str, tokens: int) -> Artifact:
        jobs = self.jobs(family)
        return self.publish(jobs, text_of(jobs.loaded.tokenizer, tokens))

    def publish(self, jobs: Jobs, text: str, checkpoints: Sequence[int] = ()) -> Artifact:
        """An honest artifact of a text, made with as many threads as torch has now."""
        seen: list[dict[str, Any]] = jobs.seen  # type: ignore[attr-defined]
        seen.clear()
        job = PublishJob(text=text, block_tokens=BLOCK, codec="planes", checkpoints=list(checkpoints))
        result = jobs.run(wire.plain(job))
        chunks = [m for m in seen if m["event"] == "chunk"]
        (mark,) = (m["data"] for m in seen if m["event"] == "fingerprint")
        for data in (*(m["data"] for m in chunks), mark):
            self.chunks.write(Cid.of(data), data)
        refs = sorted((m["ref"] for m in chunks), key=lambda r: (r["block"], r["run"]))
        now = int(time.time())
        names = ("model", "prefix", "layout", "numerics", "tensors", "probe")
        raw = text.encode()
        fields = {name: result[name] for name in names} | {
            "extensions": [],
            "chunks": refs,
            "document": {
                "sha256": hashlib.sha256(raw).digest(),
                "length": len(raw),
                "media_type": "text/plain",
                "source": None,
                "etag": None,
            },
            "fingerprint": {"cid": bytes(Cid.of(mark)), "length": len(mark)},
            "life": {"issued": now, "expires": now + 100_000, "sequence": 1, "supersedes": None},
            "publisher": str(key().peer_id),
        }
        manifest = manifest_of(fields)
        return Artifact(text, dsse.seal(manifest.encode(), manifest.publisher, key().sign), manifest)

    def _once(self, name: Any, make: Any) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


@cache
def _cuts(words: str) -> dict[int, str]:
    return {}


def text_of(tokenizer: Any, tokens: int) -> str:
    """A text that has exactly so many tokens."""
    known = _cuts(WORDS)
    if tokens not in known:
        for end in range(tokens, 8 * tokens + 8):
            count = len(tokenizer(WORDS[:end])["input_ids"])
            known.setdefault(count, WORDS[:end])
            if count > tokens + 4:
                break
    return known[tokens]


def window_of(family: str) -> int:
    """The window of layer 0, or one to go around where every token is kept."""
    fields = FAMILIES[family][1]
    return int(fields.get("sliding_window") or fields.get("attention_chunk_size") or 80)


def length_of(family: str, length: str) -> int:
    window = window_of(family)
    return {
        "block - 1": BLOCK - 1,
        "block": BLOCK,
        "block + 1": BLOCK + 1,
        "window - 1": window - 1,
        "window": window,
        "window + 1": window + 1,
        "blocks": 3 * BLOCK + 5,
    }[length]


def condemned(shelf: Shelf, case: dict[str, str]) -> list[str]:
    """What a reader says against an honest artifact: nothing, or it is a false accusation."""
    family, differs = case["family"], case["reader"]
    made = shelf.artifact(family, length_of(family, case["length"]))
    label = "another name" if differs == "label" else "model"
    threads = 2 if differs == "threads" else 1
    reader = shelf.jobs(family, label, threads, differs == "directory")
    text = {"no text": None, "wrong text": OTHER}.get(differs, made.text)
    tokens = made.manifest.prefix.tokens
    part = (tokens - 1) // BLOCK * BLOCK if case["extent"] == "prefix" and tokens > BLOCK else None
    try:
        if case["way"] in ("fetch", "verify"):
            return _verify(shelf, reader, family, made, text, case["way"])
        if case["way"] == "ask":
            _ask(shelf, reader, family, made, text, part)
        else:
            _prefix(shelf, reader, made, text, part)
    except Exception as error:
        return _accusing(error)
    return []


def _accusing(error: Exception) -> list[str]:
    from kvswap.core.errors import Incompatible, IntegrityError, UsageError

    if isinstance(error, IntegrityError):
        return [error.message]
    if isinstance(error, (Incompatible, UsageError)):  # "this is not the text": nobody is accused
        return []
    raise error


def _verify(shelf: Shelf, reader: Jobs, family: str, made: Artifact, text: str | None, way: str) -> list[str]:
    levels = [2, 3, 5, 6] if way == "fetch" else [2, 3, 4, 5, 7]
    report = reader.do(
        VerifyJob(
            envelope=made.envelope,
            chunks=str(shelf.chunks.directory),
            levels=levels,
            samples=32,
            seed=os.urandom(32),
            text=text,
            noise=shelf.noise(family),
        )
    )
    return [f"V{step.level}: {step.why}" for step in report.steps if step.verdict == "failed"]


def _ask(shelf: Shelf, reader: Jobs, family: str, made: Artifact, text: str | None, part: int | None) -> None:
    if text is None:
        part = None  # nobody asks for a beginning of a text that is not at hand
    steps = max(12, min(window_of(family) - made.manifest.prefix.tokens + 8, 160))  # until the window has moved
    reader.do(
        AnswerJob(
            question="What?",
            steps=steps,
            block_tokens=BLOCK,
            text=text,
            envelope=made.envelope,
            chunks=str(shelf.chunks.directory),
            tokens=part,
            ignore_eos=True,
            check=text is not None,
        )
    )


def _prefix(shelf: Shelf, reader: Jobs, made: Artifact, text: str | None, part: int | None) -> None:
    from kvswap.client.loading import LocalPrefill, load_artifact, load_for

    statement = read_statement(made.envelope)
    details = SimpleNamespace(
        artifact=str(statement.artifact),
        envelope=base64.b64encode(made.envelope).decode(),
        chunks_directory=str(shelf.chunks.directory),
        key=None,
        standing="trusted",
    )
    model, tokenizer = reader.loaded.model, reader.loaded.tokenizer
    if text is None:
        load_artifact(details, model)
    elif part is None:
        load_for(text, details, model, tokenizer, 64)
    else:
        LocalPrefill(text, model, tokenizer, BLOCK).cache(64, details, part)
