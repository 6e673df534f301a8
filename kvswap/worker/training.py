"""Training a predictor: texts of a corpus through the model, their keys and values to the trainer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kvswap.artifact.manifest import LayerSpec
from kvswap.codec.predictive import dump, rope, train
from kvswap.core.errors import UsageError

_FILES = 20_000  # looked at
_FILE_BYTES = 64 * 1024  # read of one
_DOCUMENT_TOKENS = 1_536
_SHORTEST = 128  # tokens
BEFORE = 2  # layers that a prediction looks back


def texts(corpus: Path) -> Iterator[str]:
    """Beginnings of the text files below a directory, in an order that is arbitrary and always the same."""
    if not corpus.is_dir():
        raise UsageError(f"{corpus} is not a directory", hint="kvswap codec train --corpus DIR")
    paths: list[Path] = []
    for path in corpus.rglob("*"):
        if len(paths) < _FILES and path.is_file() and not path.is_symlink():
            paths.append(path)
    for path in sorted(paths, key=lambda p: hashlib.sha256(str(p.relative_to(corpus)).encode()).digest()):
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES)
        if b"\0" not in data:
            yield data.decode(errors="ignore")


def make(
    loaded: Any, corpus: Path, tokens: int, block_tokens: int, told: Callable[[int], None], check: Callable[[], None]
) -> tuple[bytes, int]:
    """The predictor's bytes and how many tokens it was trained on.  Raises `UsageError` without enough text."""
    from kvswap.artifact.tensors import as_part
    from kvswap.model.cache import held_tensors, layer_specs, new_cache
    from kvswap.model.prefill import canonical_prefill

    stacks: dict[LayerSpec, list[int]] = {}
    trainers: list[train.Trainer] = []
    done = 0
    for text in texts(corpus):
        ids = loaded.tokenize(text)[: min(_DOCUMENT_TOKENS, loaded.context)] if text.strip() else []
        if len(ids) < _SHORTEST:
            continue
        cache = new_cache(loaded.model.config, len(ids))
        for _ in canonical_prefill(loaded, cache, ids, block_tokens):
            check()
        specs = layer_specs(cache)
        if not trainers:
            for index, spec in enumerate(specs):
                if spec.kind == "full":  # a sliding layer has forgotten most of a document at its end
                    stacks.setdefault(spec, []).append(index)
            turns = rope.powers(_frequencies(loaded))
            trainers = [
                train.Trainer(layers, _fitting(turns, spec), BEFORE, loaded.dtype) for spec, layers in stacks.items()
            ]
        held = held_tensors(cache, specs, len(ids))
        for trainer, layers in zip(trainers, stacks.values(), strict=True):
            trainer.add([as_part(t) for i in layers for t in (held[i].k, held[i].v)])
            check()
        done += len(ids)
        told(done)
        if done >= tokens:
            break
    if not trainers:
        raise UsageError(
            f"{corpus} has no text of {_SHORTEST} tokens or more", cause="no text files, or only short ones"
        )
    finished = [trainer.finish() for trainer in trainers]
    return dump(train.predictor([s for s, _ in finished], [c for _, c in finished])), done


def _frequencies(loaded: Any) -> Any:
    """Of the rotary embedding of full layers; none where the model has none, or one that is not known."""
    base = getattr(loaded.model, "model", loaded.model)
    embedding = getattr(getattr(base, "language_model", base), "rotary_emb", None)
    for name in ("full_attention_inv_freq", "inv_freq"):
        found = getattr(embedding, name, None)
        if found is not None:
            return found.detach().double().cpu().numpy()
    return np.empty(0)


def _fitting(turns: Any, spec: LayerSpec) -> Any:
    return turns if 2 * len(turns) <= spec.k_dim else turns[:0]
