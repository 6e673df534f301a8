"""Exactness on real architectures: what is loaded continues bit for bit, at every block boundary."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from kvswap.artifact.assembly import load
from kvswap.artifact.manifest import Manifest
from kvswap.artifact.tensors import verify_tensors
from kvswap.core.errors import Incompatible, InvalidDocument
from kvswap.core.ids import Cid
from kvswap.model.cache import (
    PreallocatedLayer,
    build_cache,
    check_layers,
)
from kvswap.model.load import LoadedModel, load_model
from kvswap.model.prefill import canonical_prefill, check_length, forward, greedy, prefill
from tests.support import DOCUMENT, publish_ids

BLOCK = 32
KINDS = ["llama", "qwen3", "gemma3", "gemma3-wide"]


def published(loaded: LoadedModel, ids: list[int]) -> tuple[Manifest, dict[Cid, bytes]]:
    made = publish_ids(loaded, ids, BLOCK)
    return made.manifest, made.chunks


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_cache_continues_bit_for_bit_at_every_block_boundary(
    tiny_models: dict[str, Path], kind: str, dtype: str
) -> None:
    loaded = load_model(tiny_models[kind], kind, dtype)
    ids = loaded.tokenize(DOCUMENT.read_text())[: 5 * BLOCK + 11]
    question = loaded.tokenize_continuation("\n\nQuestion: what?\nAnswer:")
    manifest, chunks = published(loaded, ids)
    reference = prefill(loaded, ids, BLOCK, headroom=64)
    wanted = greedy(loaded, reference, len(ids), question, 24)
    for stop in [None, *range(BLOCK, len(ids), BLOCK)]:
        tensors = load(manifest, chunks.__getitem__, tokens=stop, headroom=len(ids) + 64)
        at = stop or len(ids)
        if stop is None:
            verify_tensors(manifest, tensors)
        cache = build_cache(loaded.model.config, tensors, at)
        assert cache.layers[0].get_seq_length() == at
        for _ in canonical_prefill(loaded, cache, ids, BLOCK, at) if at % BLOCK == 0 else ():
            pass
        made = greedy(loaded, cache, len(ids), question, 24)
        assert made.ids == wanted.ids
        assert made.logits_digest == wanted.logits_digest, f"after {at} tokens"


@pytest.mark.parametrize("kind", KINDS)
def test_our_layers_equal_the_stock_ones_bit_for_bit(tiny_models: dict[str, Path], kind: str) -> None:
    loaded = load_model(tiny_models[kind], kind, "bfloat16")
    ids = loaded.tokenize(DOCUMENT.read_text())[:150]
    stock = DynamicCache(config=loaded.model.config)
    for _ in canonical_prefill(loaded, stock, ids, BLOCK):
        pass
    roomy = prefill(loaded, ids, BLOCK, headroom=3)  # the room runs out during the continuation
    for a, b in zip(stock.layers, roomy.layers, strict=True):
        assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
    left, right = (greedy(loaded, c, 150, [5, 6], 12) for c in (stock, roomy))
    assert (left.ids, left.logits_digest) == (right.ids, right.logits_digest)


def test_generate_continues_from_a_loaded_cache(tiny_models: dict[str, Path]) -> None:
    from kvswap.integrations.transformers import inputs_after

    loaded = load_model(tiny_models["llama"], "llama", "float32")
    text = DOCUMENT.read_text()[:600]
    ids = loaded.tokenize(text)
    manifest, chunks = published(loaded, ids)
    wanted = greedy(loaded, prefill(loaded, ids, BLOCK, 64), len(ids), loaded.tokenize_continuation("Q?"), 10)
    cache = build_cache(loaded.model.config, load(manifest, chunks.__getitem__, headroom=32), len(ids))
    out = loaded.model.generate(
        **inputs_after(text, "Q?", loaded.tokenizer, cache), max_new_tokens=10, do_sample=False, eos_token_id=None
    )
    assert out[0, -10:].tolist() == wanted.ids
    with pytest.raises(Incompatible):
        inputs_after(text + "more text", "Q?", loaded.tokenizer, cache)


def test_an_edited_cache_falls_back_to_the_stock_behaviour() -> None:
    layer = PreallocatedLayer(10)
    k = torch.arange(24.0).reshape(1, 2, 4, 3)
    layer.update(k, k)
    layer.crop(-2)
    assert layer.get_seq_length() == 2
    more = torch.ones(1, 2, 1, 3)
    keys, _ = layer.update(more, more)
    assert torch.equal(keys, torch.cat([k[:, :, :2], more], 2))
    layer.batch_repeat_interleave(2)
    assert layer.keys.shape == (2, 2, 3, 3)
    keys, _ = layer.update(more.repeat(2, 1, 1, 1), more.repeat(2, 1, 1, 1))
    assert keys.shape == (2, 2, 4, 3)
    layer.reset()
    assert layer.get_seq_length() == 0
    layer.update(k, k)
    assert torch.equal(layer.keys, k)


def test_loading_twice_from_one_artifact_gives_independent_caches(tiny_models: dict[str, Path]) -> None:
    loaded = load_model(tiny_models["llama"], "llama", "float32")
    ids = loaded.tokenize(DOCUMENT.read_text())[:64]
    manifest, chunks = published(loaded, ids)
    first, second = (
        build_cache(loaded.model.config, load(manifest, chunks.__getitem__, headroom=8), 64) for _ in range(2)
    )
    forward(loaded, first, [1, 2, 3], 64)
    assert second.layers[0].get_seq_length() == 64


def test_unknown_layer_kinds_are_refused_by_name() -> None:
    from transformers.cache_utils import QuantoQuantizedLayer

    cache = DynamicCache()
    cache.layers = [QuantoQuantizedLayer.__new__(QuantoQuantizedLayer)]
    with pytest.raises(Incompatible, match="QuantoQuantizedLayer"):
        check_layers(cache)


def test_a_cache_of_another_depth_is_refused(tiny_models: dict[str, Path]) -> None:
    loaded = load_model(tiny_models["llama"], "llama", "float32")
    ids = loaded.tokenize(DOCUMENT.read_text())[:40]
    manifest, chunks = published(loaded, ids)
    tensors = load(manifest, chunks.__getitem__)
    with pytest.raises(Incompatible) as caught:
        build_cache(loaded.model.config, tensors[:-1], 40)
    assert caught.value.details["field"] == "layout.layers"


def test_documents_longer_than_the_context_are_refused(tiny_models: dict[str, Path]) -> None:
    loaded = load_model(tiny_models["llama"], "llama", "float32")
    assert loaded.context == 2048
    check_length(loaded, 2048)
    with pytest.raises(InvalidDocument, match="2049 tokens"):
        check_length(loaded, 2049)


def test_bad_dtypes_and_devices_are_named(tiny_models: dict[str, Path]) -> None:
    from kvswap.core.errors import UsageError

    with pytest.raises(UsageError, match="int8"):
        load_model(tiny_models["llama"], "x", "int8")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="cuda"):
            load_model(tiny_models["llama"], "x", "float32", "cuda")
