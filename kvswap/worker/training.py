"""Training a predictor: run the texts of a corpus through the model, and pass keys and values to the trainer."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvswap.api.events import TrainEvent
from kvswap.artifact.specs import LayerSpec
from kvswap.codec.predictive import dump, rope
from kvswap.codec.predictive import train as trainers
from kvswap.codec.predictive.train import COARSENESS
from kvswap.core.errors import Incompatible, UsageError
from kvswap.core.limits import LIMITS
from kvswap.worker.conversation import PredictorEvent
from kvswap.worker.inbox import JobContext
from kvswap.worker.messages import TrainedPredictor, TrainJob

_FILES = 20_000  # files considered
_FILE_BYTES = 64 * 1024  # read from each
_DOCUMENT_TOKENS = 1_536
_SHORTEST = 128  # tokens
_BEFORE = 4  # earlier layers that a prediction uses, unless that makes too many weights
_WEIGHTS = 32 << 20
TOKEN_TABLE_TOKENS = 4_096  # tokens in the token table
_COUNTED = 300_000  # tokens, to find the frequent ones


def texts(corpus: Path) -> Iterator[str]:
    """Yield the starts of the text files below a directory, in an arbitrary but fixed order.

    Raises `UsageError` if it is no directory.
    """
    if not corpus.is_dir():
        raise UsageError(f"{corpus} is not a directory", hint="kvswap codec train --corpus DIR")
    paths: list[Path] = []
    for path in corpus.rglob("*"):
        if len(paths) < _FILES and path.is_file() and not path.is_symlink():
            paths.append(path)
    for path in sorted(paths, key=lambda p: hashlib.sha256(str(p.relative_to(corpus)).encode()).digest()):
        try:
            with path.open("rb") as file:
                data = file.read(_FILE_BYTES)
        except OSError:  # one file of thousands that is not readable, or is gone
            continue
        if b"\0" not in data:
            yield data.decode(errors="ignore")


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a predictor, which trades its bytes against the bytes it saves."""

    before: int | None = None  # earlier layers that a prediction uses; None: as many as `worthwhile` says
    token_table: int = TOKEN_TABLE_TOKENS  # tokens in the token table
    coarseness: float = COARSENESS  # see `train.Trainer`


def train(context: JobContext, job: TrainJob) -> TrainedPredictor:
    """Train a predictor on the texts below a directory, and send it."""
    data, done = train_predictor(
        context.loaded,
        Path(job.corpus),
        job.tokens,
        job.block_tokens,
        lambda done: context.pipe.send(TrainEvent(tokens=done, of=job.tokens)),
        context.pipe.check,
    )
    context.pipe.send(PredictorEvent(data=data))
    return TrainedPredictor(tokens=done)


def train_predictor(
    loaded: Any,
    corpus: Path,
    tokens: int,
    block_tokens: int,
    on_progress: Callable[[int], None],
    check: Callable[[], None],
    size: Size = Size(),
) -> tuple[bytes, int]:
    """Train a predictor; return its bytes and the number of tokens it was trained on.

    `on_progress` is called with the number of tokens done so far, `check` raises to cancel.  Raises `UsageError` if the
    corpus has too little text, `Incompatible` if the model has only sliding-window layers.
    """
    from kvswap.artifact.tensors import as_part

    stacks: list[tuple[list[int], trainers.Trainer]] = []
    done = 0
    for text in texts(corpus):
        ids = loaded.tokenize(text)[: min(_DOCUMENT_TOKENS, loaded.context)] if text.strip() else []
        if len(ids) < _SHORTEST:
            continue
        held, specs = _prefill(loaded, ids, block_tokens, check)
        if not stacks:
            stacks = _stacks(loaded, corpus, specs, block_tokens, check, size)
        for layers, trainer in stacks:
            trainer.add([as_part(t) for i in layers for t in (held[i].k, held[i].v)])
            check()
        done += len(ids)
        on_progress(done)
        if done >= tokens:
            break
    if not stacks:
        raise UsageError(
            f"{corpus} has no text of {_SHORTEST} tokens or more", cause="no text files, or only short ones"
        )
    return _dumped([trainer for _, trainer in stacks], check), done


def _stacks(
    loaded: Any, corpus: Path, specs: Sequence[LayerSpec], block_tokens: int, check: Callable[[], None], size: Size
) -> list[tuple[list[int], trainers.Trainer]]:
    """Return a trainer for each kind of layer that is predicted, with the numbers of its layers."""
    from kvswap.artifact.tensors import as_part

    stacks: dict[LayerSpec, list[int]] = {}
    for index, spec in enumerate(specs):
        if _predicted(spec):
            stacks.setdefault(spec, []).append(index)
    if not stacks:
        raise Incompatible(
            "this model has no layer that attends to all of a document and keeps keys and values alone",
            cause="nothing is predicted of sliding windows, of states, and of layers with an index",
            hint="kvswap publish --codec planes",
            field="layout",
        )
    powers = rope.powers(_frequencies(loaded))
    frequent = frequent_tokens(loaded.tokenize, corpus, size.token_table) if _predicted(specs[0]) else []
    first = [
        _prefill(loaded, frequent[at : at + _DOCUMENT_TOKENS], block_tokens, check)[0][0]
        for at in range(0, len(frequent), _DOCUMENT_TOKENS)
    ]
    out = []
    for spec, layers in stacks.items():
        known = [(as_part(t.k).copy(), as_part(t.v).copy()) for t in first] if 0 in layers else []
        before = size.before or worthwhile(spec, len(layers))
        fitting = _fitting(powers, spec)
        out.append((layers, trainers.Trainer(layers, fitting, before, loaded.dtype, known, size.coarseness)))
    return out


def _predicted(spec: LayerSpec) -> bool:
    """Return True for layers that the codec predicts: a sliding one has forgotten most of a document at its end."""
    return spec.kind == "full" and spec.is_key_value


def _dumped(each: Sequence[trainers.Trainer], check: Callable[[], None]) -> bytes:
    """Return the predictor of these trainers, as coarse as it has to be to keep its bound."""
    while True:
        finished = [trainer.finish() for trainer in each]
        data = dump(trainers.predictor([s for s, _ in finished], [c for _, c in finished]))
        if len(data) <= LIMITS.predictor_bytes:
            return data
        check()
        for trainer in each:
            trainer.coarseness *= 2


def _prefill(loaded: Any, ids: list[int], block_tokens: int, check: Callable[[], None]) -> Any:
    """Return what the layers hold after these tokens, and the layers' kinds and shapes."""
    from kvswap.model.cache import held_tensors, layer_specs, new_cache
    from kvswap.model.prefill import canonical_prefill

    cache = new_cache(loaded.model.config, len(ids))
    for _ in canonical_prefill(loaded, cache, ids, block_tokens):
        check()
    specs = layer_specs(cache)
    return held_tensors(cache, specs, len(ids)), specs


def frequent_tokens(tokenize: Callable[[str], list[int]], corpus: Path, most: int) -> list[int]:
    """Return at most `most` tokens that occur repeatedly in the corpus, the most frequent first."""
    counted: Counter[int] = Counter()
    for text in texts(corpus) if most else ():
        counted.update(tokenize(text))
        if counted.total() > _COUNTED:
            break
    return [token for token, times in counted.most_common(most) if times > 1]


def worthwhile(spec: LayerSpec, layers: int) -> int:
    """Return how many earlier layers a prediction should use: `_BEFORE`, or fewer if that makes too many weights."""
    k, v = spec.heads * spec.k_dim, spec.heads * spec.v_dim
    return next((b for b in range(_BEFORE, 1, -1) if layers * (b * (k + v) * (k + v) + k * v) <= _WEIGHTS), 1)


def _frequencies(loaded: Any) -> Any:
    """Return the RoPE frequencies of full-attention layers; empty if the model has none, or of an unknown kind."""
    base = getattr(loaded.model, "model", loaded.model)
    embedding = getattr(getattr(base, "language_model", base), "rotary_emb", None)
    for name in ("full_attention_inv_freq", "inv_freq"):
        found = getattr(embedding, name, None)
        if found is not None:
            return found.detach().double().cpu().numpy()
    return np.empty(0)


def _fitting(powers: Any, spec: LayerSpec) -> Any:
    return powers if 2 * len(powers) <= spec.k_dim else powers[:0]
