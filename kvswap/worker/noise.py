"""Honest noise of one model on this machine: the same text by other right ways of computing it.

Other numbers of threads, other blocks and another attention implementation give other bits, as another
machine does.  Kept is what such caches differ by from what the model computes on top of them (V5), from each
other (V7), and in their fingerprints (V6).
"""

from __future__ import annotations

import contextlib
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kvswap.trust.agreement import apart
from kvswap.trust.noise import Errors, Noise, Spread

TOKENS = 1024
_EVERY = 4  # positions
_TEXTS = ("argparse.py", "typing.py", "inspect.py")  # on every machine, half prose and half code
_BLOCKS = 512


def measure(loaded: Any, check: Callable[[], None]) -> Noise:
    """A few prefills of 1,024 tokens."""
    from kvswap.artifact.fingerprint import fingerprint
    from kvswap.model.recompute import at_positions, differences

    ids = _ids(loaded)
    right = _computed(loaded, ids, _BLOCKS)
    full = not any(held.first for held in right)
    own = fingerprint(right)
    where = range(0, len(ids), _EVERY)
    samples: list[Errors] = []
    recompute: list[Errors] = []
    fingerprints: list[Errors] = []
    if full:
        samples.append(at_positions(loaded, right, len(ids), ids, where).numpy())
    for way in (_one_thread, _small_blocks, _eager):
        check()
        with way(loaded) as blocks:
            other = _computed(loaded, ids, blocks)
        if full:
            samples.append(at_positions(loaded, other, len(ids), ids, where).numpy())
        recompute.append(differences(other, right).numpy())
        fingerprints.append(apart(fingerprint(other), own, len(right)))
    dtype = loaded.dtype
    return Noise(
        Spread.measure(samples, dtype) if full else None,
        Spread.measure(recompute, dtype),
        Spread.measure(fingerprints, "float16" if dtype == "float32" else dtype),  # its numbers are float16
    )


def _ids(loaded: Any) -> list[int]:
    library = Path(sysconfig.get_paths()["stdlib"])
    text = "".join((library / name).read_text() for name in _TEXTS if (library / name).is_file())
    if not text:  # a Python without its sources
        return [i * 7919 % loaded.model.config.get_text_config(decoder=True).vocab_size for i in range(TOKENS)]
    return list(loaded.tokenize(text[: 40 * TOKENS])[: min(TOKENS, loaded.context)])


def _computed(loaded: Any, ids: list[int], blocks: int) -> list[Any]:
    from kvswap.model.cache import held_tensors, layer_specs
    from kvswap.model.prefill import prefill

    cache = prefill(loaded, ids, blocks)
    return held_tensors(cache, layer_specs(cache), len(ids))


@contextlib.contextmanager
def _small_blocks(loaded: Any) -> Iterator[int]:
    yield 64


@contextlib.contextmanager
def _one_thread(loaded: Any) -> Iterator[int]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield _BLOCKS
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _eager(loaded: Any) -> Iterator[int]:
    usual = loaded.model.config._attn_implementation
    loaded.model.set_attn_implementation("eager")
    try:
        yield _BLOCKS
    finally:
        loaded.model.set_attn_implementation(usual)
