"""Engines that share the heads among processes, and engines of quantised files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec

from kvswap.artifact.specs import LayerSpec
from kvswap.artifact.tensors import LayerTensors
from kvswap.core.errors import Incompatible
from kvswap.integrations.vllm import worker
from kvswap.integrations.vllm.capture import Captures
from kvswap.integrations.vllm.engine import KVCacheGroup, engine_of
from kvswap.integrations.vllm.settings import ConnectorSettings
from tests.support import DOCUMENT, Daemon, tiny_model
from tests.vllm.running import Engine
from tests.vllm.test_parts import configured

BLOCK, PAGE = 64, 32


def described(root: Path, spec: Any) -> Any:
    return configured(tiny_model(root / "model", "llama", head_dim=32), [spec])


def test_two_processes_load_one_artifact(tmp_path: Path) -> None:
    """The model has two heads, so that each of them has one."""
    from transformers import AutoTokenizer

    directory = tiny_model(tmp_path / "llama", "llama", head_dim=32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    env = {"KVSWAP_BLOCK_TOKENS": str(BLOCK), "KVSWAP_ALSO_CODEC": ""}
    node = Daemon(tmp_path / "node", ["--model", str(directory), "--dtype", "float32"], env).start()
    extra = {"block_tokens": BLOCK, "min_tokens": BLOCK, "lookup_seconds": 20.0, "force": True}
    engine = Engine(
        tmp_path / "engine.log",
        model=str(directory),
        dtype="float32",
        max_model_len=1024,
        block_size=PAGE,
        tensor_parallel_size=2,
        home=str(node.home),
        extra=extra,
    )
    try:
        text = DOCUMENT.read_text()[:1200]
        prompt = list(tokenizer(text + " What does it say?")["input_ids"])
        (cold,) = engine.run(prompt)
        published = node.client.publish(text)
        (loaded,) = engine.run(prompt, reset=True)
    finally:
        engine.stop()
        node.stop()
    assert cold.cached == 0 and published["tokens"] // BLOCK * BLOCK <= loaded.cached <= published["tokens"]
    assert loaded.ids == cold.ids and loaded.scores == pytest.approx(cold.scores, abs=2e-4)


@pytest.mark.parametrize(
    "heads,ranks,wanted", [(4, 2, [(0, 2), (2, 4)]), (2, 2, [(0, 1), (1, 2)]), (1, 2, [(0, 1), (0, 1)])]
)
def test_each_rank_has_its_heads(tmp_path: Path, heads: int, ranks: int, wanted: list[tuple[int, int]]) -> None:
    own = FullAttentionSpec(block_size=32, num_kv_heads=max(1, heads // ranks), head_size=32, dtype=torch.float32)
    config, cache = described(tmp_path, own)
    config.parallel_config.tensor_parallel_size = ranks
    config.model_config.get_total_num_kv_heads = lambda: heads
    engine = engine_of(config, cache)
    assert engine.ranks == ranks and engine.layers == [LayerSpec.key_value("full", heads, 32, 32)] * 3
    (group,) = engine.groups
    found = [group.heads_of_rank(rank, ranks) for rank in range(ranks)]
    assert [(one.start, one.stop) for one in found] == wanted


def test_ranks_load_and_do_not_publish(tmp_path: Path) -> None:
    engine: Any = SimpleNamespace(ranks=2, hybrid=False, groups=())
    with pytest.raises(Incompatible, match="tensor_parallel_size"):
        Captures(engine, {}, "x", ConnectorSettings(str(tmp_path)))


def test_a_rank_writes_its_heads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "check_tables", lambda: None)
    monkeypatch.setattr(worker, "_rank", lambda: 1)
    group = KVCacheGroup(("x",), (0,), 4, 2, 8, 8, None, heads_in_all=4)
    side = worker.WorkerSide(SimpleNamespace(groups=(group,), ranks=2), ConnectorSettings())  # type: ignore[arg-type]
    seen: list[Any] = []
    impl = SimpleNamespace(do_kv_cache_update=lambda *arguments: seen.append(arguments))
    side.register({"x": torch.zeros(6, 4, 2, 16)}, {"x": SimpleNamespace(impl=impl)})
    held = LayerTensors.key_value(torch.randn(4, 8, 8), torch.randn(4, 8, 8), 0, 8)
    load: Any = SimpleNamespace(first=0, stop=8)
    side._put(0, held, group, (3, 1), load)
    ((_, key, value, _, slots),) = seen
    assert torch.equal(key, held.k[2:].transpose(0, 1)) and torch.equal(value, held.v[2:].transpose(0, 1))
    assert slots.tolist() == [12, 13, 14, 15, 4, 5, 6, 7]
    side.close()


def test_quantised_weights_are_taken_where_the_files_say_so(tmp_path: Path) -> None:
    own = FullAttentionSpec(block_size=32, num_kv_heads=2, head_size=32, dtype=torch.float32)
    config, cache = described(tmp_path, own)
    config.model_config.quantization = "compressed-tensors"
    with pytest.raises(Incompatible, match="compressed-tensors"):
        engine_of(config, cache)
    path = Path(config.model_config.model) / "config.json"
    before = engine_of(*described(tmp_path / "other", own)).identity.digest
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "x"}}))
    assert engine_of(config, cache).identity.digest != before  # another model than the one of the plain files
