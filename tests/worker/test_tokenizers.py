"""A directory's tokenizer class is a label that no digest holds: who makes other tokens with it is no liar."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from kvswap.worker.jobs import Jobs
from kvswap.worker.messages import OpenJob, VerifyJob
from tests.support import DOCUMENT
from tests.worker import honest
from tests.worker.honest import Artifact, Shelf

TEXT = "cafe\u0301 \u212b 12345 \u1112\u1161 " + DOCUMENT.read_text()[:500]  # another class composes the letters
CLASSES = ("TokenizersBackend", "Qwen2Tokenizer")


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Jobs]:
    """One model, opened with each class."""
    root = tmp_path_factory.mktemp("tokenizers")
    built = Shelf(root).directory("llama")
    out = {}
    for name in CLASSES:
        directory = root / name
        shutil.copytree(built, directory)
        path = directory / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": name}))
        seen: list[dict[str, Any]] = []
        jobs = out[name] = Jobs(seen.append, threading.Event())
        jobs.seen = seen  # type: ignore[attr-defined]
        jobs.do(OpenJob(directory=str(directory), label="model", dtype="float32", device="cpu", threads=1))
    one, other = out.values()
    assert one.loaded.identity.digest == other.loaded.identity.digest
    assert one.loaded.tokenize(TEXT) != other.loaded.tokenize(TEXT)
    return out


def published(jobs: Jobs, root: Path) -> tuple[Shelf, Artifact]:
    shelf = Shelf(root)
    shelf._made["jobs", "llama", "model", False] = jobs
    with mock.patch.object(honest, "text_of", lambda tokenizer, tokens: TEXT):
        return shelf, shelf.artifact("llama", 0)


@pytest.mark.parametrize("publisher", CLASSES)
@pytest.mark.parametrize("reader", CLASSES)
def test_another_class_of_tokenizer_is_no_lie(
    readers: dict[str, Jobs], tmp_path: Path, publisher: str, reader: str
) -> None:
    shelf, made = published(readers[publisher], tmp_path)
    chunks, seed = str(shelf.chunks.directory), os.urandom(32)
    job = VerifyJob(envelope=made.envelope, chunks=chunks, levels=[2, 3], samples=32, seed=seed, text=TEXT)
    report = readers[reader].do(job)
    found = {step.level: step.verdict for step in report.steps}
    usual = (
        publisher == reader == CLASSES[0]
    )  # who makes other tokens than the file says tells it, and nobody can check
    assert found == {2: "passed", 3: "passed" if usual else "skipped"}, report.steps
    assert (made.manifest.prefix.template is None) is (publisher == CLASSES[0])
