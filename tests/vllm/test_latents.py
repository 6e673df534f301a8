"""Latents (MLA) in a real engine: what transformers publishes it loads, and what it publishes transformers loads.

And by their parts: the order of a rotary key, an engine that turns that key wrongly, models that are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers import rotary_embedding
from vllm.v1.kv_cache_interface import MambaSpec, MLAAttentionSpec

from kvswap.artifact import chain
from kvswap.artifact.specs import LayerSpec
from kvswap.client.loading import load_artifact
from kvswap.core.errors import Incompatible
from kvswap.integrations.vllm.engine import KVCacheGroup, engine_of
from kvswap.integrations.vllm.paged import paged_layer
from kvswap.integrations.vllm.tables import check_latent_keys
from tests.families import build
from tests.support import DOCUMENT, Daemon, tiny_model, until
from tests.vllm.running import Engine
from tests.vllm.test_parts import configured

BLOCK, PAGE = 64, 16
PLAIN = {"custom_ops": ["-rotary_embedding"]}  # see `check_latent_keys`
# The one size for which vLLM has a kernel on CPU, that of DeepSeek's own models.
SIZES = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 32, "v_head_dim": 32, "q_lora_rank": None}
EXTRA = {"block_tokens": BLOCK, "min_tokens": BLOCK, "lookup_seconds": 20.0, "force": True, "publish": "asked"}
MARK = {"kv_transfer_params": {"kvswap": {"publish": True}}}
WORDS = DOCUMENT.read_text()


class Scene:
    """A node with a model process, and an engine of the same model beside it."""

    def __init__(self, root: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.directory = build(root / "deepseek", "deepseek-v3", topk_method="noaux_tc", **SIZES)
        self.tokenizer = AutoTokenizer.from_pretrained(self.directory)
        self.model = AutoModelForCausalLM.from_pretrained(self.directory, dtype=torch.float32)
        env = {"KVSWAP_BLOCK_TOKENS": str(BLOCK), "KVSWAP_ALSO_CODEC": ""}
        self.node = Daemon(root / "node", ["--model", str(self.directory), "--dtype", "float32"], env).start()
        self.engine = Engine(
            root / "engine.log",
            model=str(self.directory),
            dtype="float32",
            max_model_len=1024,
            compilation_config=PLAIN,
            home=str(self.node.home),
            extra=EXTRA,
        )

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def stop(self) -> None:
        self.engine.stop()
        self.node.stop()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("latents"))
    yield made
    made.stop()


def test_what_transformers_published_is_loaded_and_gives_the_same_tokens(scene: Scene) -> None:
    text = WORDS[:1200]
    prompt = scene.ids(text) + scene.ids(" What does it say?")[1:]
    (cold,) = scene.engine.run(prompt, tokens=16)
    assert cold.cached == 0
    published = scene.node.client.publish(text)
    (loaded,) = scene.engine.run(prompt, tokens=16)
    assert loaded.cached == published["tokens"] and scene.engine.loads == 1
    assert loaded.ids == cold.ids and loaded.scores == pytest.approx(cold.scores, abs=2e-4)


def test_what_the_engine_publishes_transformers_loads(scene: Scene) -> None:
    ids = scene.ids("Another text. " + WORDS[2000:3000])
    whole = len(ids) // PAGE * PAGE
    scene.engine.run(ids, tokens=1, extra=MARK)
    digest = chain.token_digest(ids[:whole]).hex()

    def found() -> Any:
        shown = [scene.node.client.details(row["artifact"]) for row in scene.node.client.artifacts()]
        return next((one for one in shown if one["manifest"]["prefix"]["token_digest"] == digest), None)

    cache = load_artifact(until(found, what="the artifact"), scene.model)
    with torch.no_grad():
        own = scene.model(torch.tensor([ids[:whole]])).past_key_values
    for layer, wanted in zip(cache.layers, own.layers, strict=True):
        torch.testing.assert_close(layer.keys[:, :, :whole], wanted.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(layer.values[:, :, :whole], wanted.values, atol=1e-4, rtol=1e-4)


# -- by its parts ------------------------------------------------------------------------------------


def latents(**more: Any) -> MLAAttentionSpec:
    return MLAAttentionSpec(block_size=PAGE, num_kv_heads=1, head_size=576, dtype=torch.float32, **more)


def described(root: Path, spec: Any, kind: str = "deepseek_v3", **more: Any) -> Any:
    config, cache = configured(tiny_model(root / "model", "llama", head_dim=32), [spec])
    fields = {"model_type": kind, "kv_lora_rank": 512, "rope_interleave": True} | more
    config.model_config.hf_text_config = SimpleNamespace(rope_parameters={"rope_type": "deepseek_yarn"}, **fields)
    config.model_config.max_model_len = 512
    return config, cache


@pytest.mark.parametrize("kind,halves", [("deepseek_v2", False), ("deepseek_v3", True)])
def test_a_latent_is_a_layer_of_one_head(tmp_path: Path, kind: str, halves: bool) -> None:
    engine = engine_of(*described(tmp_path, latents(), kind))
    (group,) = engine.groups
    assert (group.heads, group.k_dim, group.v_dim, group.latent, group.halves) == (1, 512, 64, True, halves)
    assert engine.layers == [LayerSpec.key_value("full", 1, 512, 64)] * 3 and not engine.hybrid
    assert json.loads(engine.rope)["rope_type"] == "default"  # of the files, not what vLLM makes of it


@pytest.mark.parametrize(
    "kind,more,spec,what",
    [
        ("minicpm3", {}, latents(), "minicpm3"),
        ("deepseek_v3", {"rope_interleave": False}, latents(), "interleave"),
        ("deepseek_v3", {}, latents(cache_dtype_str="fp8_ds_mla"), "quantised"),
        ("deepseek_v3", {}, latents(model_version="deepseek_v4"), "compressed"),
    ],
)
def test_other_latents_are_refused_by_name(
    tmp_path: Path, kind: str, more: dict[str, Any], spec: Any, what: str
) -> None:
    with pytest.raises(Incompatible, match=what):
        engine_of(*described(tmp_path, spec, kind, **more))


class Backend:
    """Writes as vLLM's backends of latents do: a row is the latent and the rotary key."""

    def do_kv_cache_update(self, latent: Any, key: Any, cache: Any, slots: Any, dtype: str, scale: Any) -> None:
        flat = cache.view(-1, cache.shape[-1])
        flat[slots, : latent.shape[-1]] = latent
        flat[slots, latent.shape[-1] :] = key.squeeze(1)


@pytest.mark.parametrize("halves", [False, True])
def test_a_rotary_key_lies_in_pairs_and_comes_back_as_it_was(halves: bool) -> None:
    group = KVCacheGroup(("x",), (0,), 4, 1, 32, 8, None, latent=True, halves=halves)
    cache = torch.zeros(6, 4, 40)
    layer = paged_layer(SimpleNamespace(impl=Backend(), _k_scale=torch.ones(1)), cache, group)
    layer.learn(group)
    k, v = torch.randn(1, 8, 32), torch.randn(1, 8, 8)
    layer.put(k, v, torch.tensor([*range(16, 20), *range(4, 8)]))
    held = [v[0, 0, at] for at in ((0, 4, 1, 5, 2, 6, 3, 7) if halves else range(8))]
    assert torch.equal(cache[4, 0], torch.cat((k[0, 0], torch.stack(held))))
    read_k, read_v = layer.get([4, 1], group)
    assert torch.equal(read_k, k) and torch.equal(read_v, v)


@pytest.mark.parametrize("ops,right", [(["+rotary_embedding"], False), (["-rotary_embedding"], True)])
def test_an_engine_that_turns_the_key_wrongly_is_refused(
    monkeypatch: pytest.MonkeyPatch, ops: list[str], right: bool
) -> None:
    """vLLM's own kernel on CPU does; if this fails because it is mended there, docs/vllm.md needs no more advice."""
    monkeypatch.setattr(rotary_embedding, "_ROPE_DICT", {})
    parameters = {"rope_type": "default", "rope_theta": 10000.0}
    with set_current_vllm_config(VllmConfig(compilation_config=CompilationConfig(custom_ops=ops))):
        rotary_embedding.get_rope(64, 512, rope_parameters=parameters, is_neox_style=False, dtype=torch.float32)
        if right:
            check_latent_keys()
            return
        with pytest.raises(Incompatible, match="MLA"):
            check_latent_keys()


def test_states_are_refused_by_name(tmp_path: Path) -> None:
    spec = MambaSpec(block_size=64, shapes=((3, 8), (2, 4, 4)), dtypes=(torch.float32,) * 2, mamba_cache_mode="align")
    with pytest.raises(Incompatible, match="states .*align"):
        engine_of(*described(tmp_path, spec))
