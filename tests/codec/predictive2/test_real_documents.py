"""Real KV of real documents: every bit comes back, and the size is what the codec is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvswap import codec as codecs
from kvswap.codec import predictive, predictive2
from kvswap.codec.predictive2 import BACKENDS, codec
from tests.support import ROOT, captured

BLOCK = 256
TOKENS = 300  # of each: a whole block, and a short one
SUFFIXES = ("*.md", "docs/*.md", "docs/adr/*.md", "manifests/*.md", "kvswap/*/*.py", "examples/documents/*.txt")


def documents() -> list[Path]:
    """Twenty, of prose and code."""
    found = [sorted(ROOT.glob(suffix)) for suffix in SUFFIXES]
    return [path for paths in found for path in paths if path.stat().st_size > 2500][::2][:20]


@pytest.fixture(scope="module")
def trained(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """On other texts than are tested: as little as shows that it works."""
    from kvswap.model.load import load_model
    from kvswap.worker.training import train_predictor

    corpus = tmp_path_factory.mktemp("corpus")
    for number, path in enumerate(sorted(ROOT.glob("tests/*/test_*.py"))[:4]):
        (corpus / f"{number}.txt").write_text(path.read_text()[:3500])
    loaded = load_model(smollm, "smollm2-135m", "float32", "cpu", 0)
    data, _ = train_predictor(loaded, corpus, 4_000, BLOCK, lambda done: None, lambda: None)
    return data


@pytest.mark.timeout(1500)  # two cores without bf16 instructions, and busy
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_twenty_documents_come_back_to_the_bit(smollm: Path, trained: bytes, dtype: str) -> None:
    from kvswap.model.cache import new_cache
    from kvswap.model.load import load_model

    predictor = predictive.load(trained)
    assert predictor.codec == "predictive2"
    stack = predictor.stacks[0]
    loaded = load_model(smollm, "smollm2-135m", dtype, "cpu", 0)
    paths = documents()
    assert len(paths) == 20
    sizes = {"raw": 0, "planes": 0, "predictive": 0}
    for number, path in enumerate(paths):
        ids = loaded.tokenize(path.read_text())[:TOKENS]
        blocks: dict[int, list[Any]] = {}
        for block, _, parts, _ in captured(loaded, new_cache(loaded.model.config, len(ids)), ids, BLOCK):
            blocks.setdefault(block, []).extend(p.copy() for p in parts)
        for block, parts in blocks.items():
            context = predictive.Context(predictor, stack, 0, [], block * BLOCK)
            wire = predictive2.encode(context, parts, dtype)
            short = number == 0 and block  # with every backend: the plain one takes its time
            for engine in BACKENDS.values() if short else [codec.BEST]:
                out = [np.empty_like(p) for p in parts]
                predictive2.decode(context, wire, out, dtype, engine)
                assert all(a.tobytes() == b.tobytes() for a, b in zip(out, parts, strict=True)), path
            sizes["raw"] += codecs.raw_length(parts)
            sizes["planes"] += len(codecs.encode(parts, dtype, "planes")[1])
            sizes["predictive"] += len(wire)
    assert sizes["predictive"] < (0.9 if dtype == "bfloat16" else 0.97) * sizes["planes"], sizes
