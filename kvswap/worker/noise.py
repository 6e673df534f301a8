"""The honest noise of one model on this machine: the same text computed in other correct ways.

Other thread counts, block sizes and attention implementations give other bits, as another machine does.  What is
measured is by how much such caches differ from what the model computes on top of them (V5: single positions, or
intervals where those cannot be), from each other (V7), and in their fingerprints (V6).
"""

from __future__ import annotations

import contextlib
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kvswap.core.errors import KvswapError
from kvswap.trust.agreement import apart
from kvswap.trust.noise import Errors, Noise, Spread

Way = Callable[[Any], AbstractContextManager[int]]  # a way of computing, in force within it; yields the block size
Places = dict[int, list[Any]]  # what a cache holds after so many tokens

TOKENS = 1024
_EVERY = 4  # every fourth position is sampled
_TEXTS = ("argparse.py", "typing.py", "inspect.py")  # present on every machine, half prose and half code
_BLOCKS = 512
_POINTS = (8, 64, 128, 256, 512, 520)  # between which intervals are measured: very short ones and long ones
_FAR = 0.1  # relative: if a layer's median error on a correct cache is larger, V5 does not compute what the model does


def measure(loaded: Any, check: Callable[[], None]) -> Noise:
    """Measure the noise with four prefills of 1,024 tokens; `check` raises to cancel."""
    from kvswap.artifact.fingerprint import fingerprint
    from kvswap.artifact.layout import fingerprint_rows
    from kvswap.model.recompute import differences
    from kvswap.worker.intervals import honest_errors

    ids = _ids(loaded)
    right = _computed(loaded, ids, _BLOCKS)
    own, rows = fingerprint(right), fingerprint_rows([held.spec for held in right])
    recompute: list[Errors] = []
    fingerprints: list[Errors] = []
    first = _at_positions(loaded, right, ids)
    samples = [first] if first is not None else []
    by_intervals = first is None or not all(held.spec.window is None for held in right)
    points = [point for point in _POINTS if point < len(ids)] if by_intervals else []
    intervals: list[Errors] = []
    for way in (_one_thread, _small_blocks, _eager):
        check()
        held: Places = {point: [] for point in points}
        other = _by(way, loaded, ids, held)
        if other is None:
            continue
        if by_intervals:
            intervals += honest_errors(loaded, held | {len(ids): other}, ids, _BLOCKS)
        if samples and (errors := _at_positions(loaded, other, ids)) is not None:
            samples.append(errors)
        recompute.append(differences(other, right).numpy())
        fingerprints.append(apart(fingerprint(other), own, rows))
    dtype = loaded.dtype
    return Noise(
        Spread.measure(samples, dtype) if samples else None,
        Spread.measure(recompute, dtype),
        Spread.measure(fingerprints, "float16" if dtype == "float32" else dtype),  # its numbers are float16
        Spread.measure(intervals, dtype) if intervals else None,
    )


def _at_positions(loaded: Any, tensors: list[Any], ids: list[int]) -> Errors | None:
    """Return the errors of V5 on a correct cache, or None if this model's positions cannot be computed one by one.

    That is so with sliding layers, and with masks that a model builds itself (ALiBi): some models fail, and some ignore
    the mask they are given, which shows as large errors on a correct cache.
    """
    from kvswap.model.recompute import at_positions

    if any(held.first or held.spec.has_states for held in tensors):
        return None
    try:
        errors: Errors = at_positions(loaded, tensors, len(ids), ids, range(0, len(ids), _EVERY)).numpy()
    except KvswapError:
        raise
    except Exception:  # noqa: BLE001 - the mask of V5 is unusual, and models may raise anything for it
        return None
    return errors if float(np.median(errors, axis=0).max()) <= _FAR else None


def _ids(loaded: Any) -> list[int]:
    library = Path(sysconfig.get_paths()["stdlib"])
    text = "".join((library / name).read_text() for name in _TEXTS if (library / name).is_file())
    if not text:  # a Python without its sources
        return [i * 7919 % loaded.model.config.get_text_config(decoder=True).vocab_size for i in range(TOKENS)]
    return list(loaded.tokenize(text[: 40 * TOKENS])[: min(TOKENS, loaded.longest)])


def _computed(loaded: Any, ids: list[int], blocks: int, places: Places | None = None) -> list[Any]:
    """Compute what a cache of these ids holds; `places` are filled with what it holds after so many of them."""
    from kvswap.model.cache import held_tensors, layer_specs, new_cache
    from kvswap.model.prefill import canonical_prefill

    cache, places = new_cache(loaded.model.config, len(ids)), places if places is not None else {}
    for block in canonical_prefill(loaded, cache, ids, blocks, cuts=tuple(places)):
        if block.stop in places:
            places[block.stop] = _copied(held_tensors(cache, layer_specs(cache), block.stop))
    return held_tensors(cache, layer_specs(cache), len(ids))


def _copied(tensors: list[Any]) -> list[Any]:
    """Copy tensors out of a cache that goes on in their memory."""
    return [replace(held, tensors=tuple(tensor.clone() for tensor in held.tensors)) for held in tensors]


def otherwise(loaded: Any, ids: list[int]) -> list[Any]:
    """Compute a cache in another correct way than the usual one: with another attention implementation if there is one.

    A fault that is the same in every computation, such as a broken kernel of this machine, shows in no cache made the
    usual way.
    """
    other = _by(_eager, loaded, ids) if loaded.model.config._attn_implementation != "eager" else None
    return other or _by(_small_blocks, loaded, ids) or _computed(loaded, ids, _BLOCKS)


def _by(way: Way, loaded: Any, ids: list[int], places: Places | None = None) -> list[Any] | None:
    """Compute a cache in this way, or return None if the model cannot, as not every model has another attention."""
    try:
        with way(loaded) as blocks:
            return _computed(loaded, ids, blocks, places)
    except KvswapError:
        raise
    except Exception:  # noqa: BLE001 - each fails in its own way
        return None


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
