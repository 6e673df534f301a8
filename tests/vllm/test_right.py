"""In an engine: tables, files, frequencies and captured blocks are right, or nothing is published and loaded."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, Phi3Config
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers import rotary_embedding

from kvswap.artifact.specs import LayerSpec
from kvswap.artifact.tensors import LayerTensors
from kvswap.core.errors import Incompatible
from kvswap.integrations.vllm import capture
from kvswap.integrations.vllm.engine import engine_of
from kvswap.integrations.vllm.settings import ConnectorSettings
from kvswap.integrations.vllm.tables import check_tables
from kvswap.integrations.vllm.worker import WorkerSide
from tests.support import tiny_model
from tests.vllm.test_parts import configured

FACTORS = {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16, "original_max_position_embeddings": 128}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128},
}


@pytest.fixture
def ropes(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[Any, Any]]:
    """The tables of a process, none yet."""
    monkeypatch.setattr(rotary_embedding, "_ROPE_DICT", {})
    with set_current_vllm_config(VllmConfig()):
        yield rotary_embedding._ROPE_DICT


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("right") / "llama", "llama", head_dim=32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", sorted(ROPES))
def test_a_table_with_one_wrong_row_is_found(ropes: dict[Any, Any], kind: str, dtype: torch.dtype) -> None:
    rope = rotary_embedding.get_rope(32, 512, rope_parameters=ROPES[kind], dtype=dtype)
    check_tables()
    rope.cos_sin_cache[77, 3] += 0.01
    with pytest.raises(Incompatible, match="cos and sin"):
        check_tables()


def test_an_engine_with_a_wrong_table_does_not_start(ropes: dict[Any, Any]) -> None:
    rope = rotary_embedding.get_rope(32, 512, rope_parameters=ROPES["default"], dtype=torch.float32)
    worker = WorkerSide(SimpleNamespace(groups=(), ranks=1), ConnectorSettings())  # type: ignore[arg-type]
    worker.register({}, {})
    rope.cos_sin_cache[200:] *= 1.0001
    with pytest.raises(Incompatible):
        worker.register({}, {})
    worker.close()


def test_the_connector_settles_by_itself() -> None:
    code = "import kvswap.integrations.vllm.connector, kvswap.model.kernels as s; assert s._initialized"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


def test_vllm_settles_before_a_model_is_made() -> None:
    """Through the entry point, which an installation of this version has."""
    assert "kvswap" in {point.name for point in entry_points(group="vllm.general_plugins")}
    code = (
        "from vllm.plugins import load_general_plugins; load_general_plugins(); import kvswap.model.kernels as s, sys\n"
        "assert s._initialized and 'kvswap.integrations.vllm' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


@pytest.mark.parametrize("longest,right", [(128, True), (129, False), (4096, False)])
def test_longrope_is_refused_where_the_engine_takes_long_factors(model: Path, longest: int, right: bool) -> None:
    config, cache = configured(model)
    config.model_config.hf_text_config = Phi3Config(
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **FACTORS},
        original_max_position_embeddings=128,
        hidden_size=128,
        num_attention_heads=4,
    )
    config.model_config.max_model_len = longest
    if right:
        engine_of(config, cache)
    else:
        with pytest.raises(Incompatible, match="longrope"):
            engine_of(config, cache)


def test_dynamic_rope_is_refused(model: Path) -> None:
    config, cache = configured(model)
    config.model_config.hf_text_config = LlamaConfig(
        max_position_embeddings=512, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    )
    config.model_config.max_model_len = 256
    with pytest.raises(Incompatible, match="dynamic"):
        engine_of(config, cache)


def test_files_that_vllm_reads_beside_the_models_own_are_refused(model: Path, tmp_path: Path) -> None:
    import shutil

    directory = Path(shutil.copytree(model, tmp_path / "model"))
    engine_of(*configured(directory))
    held = load_file(directory / "model.safetensors")
    save_file({name: value * 2 for name, value in held.items()}, directory / "other.safetensors")
    with pytest.raises(Incompatible, match=r"other\.safetensors"):
        engine_of(*configured(directory))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_captured_block_that_is_not_finite_is_not_sent(value: float, caplog: pytest.LogCaptureFixture) -> None:
    sent: list[Any] = []
    captures = capture.Captures.__new__(capture.Captures)
    spec = LayerSpec.key_value("full", 2, 8, 8)
    captures._engine = SimpleNamespace(dtype="float16", layers=[spec] * 3)  # type: ignore[assignment]
    captures._client = SimpleNamespace(publish_computed=sent.append)  # type: ignore[assignment]
    captures._take = lambda size: True  # type: ignore[method-assign,assignment]
    tensors = [LayerTensors.key_value(torch.zeros(2, 40, 8), torch.zeros(2, 40, 8), 0, 40) for _ in range(3)]
    tensors[1].v[1, 33, 2] = value
    with caplog.at_level("WARNING"):
        captures._send(capture._Captured([1] * 40, tensors, 1))
    assert not sent and "V of layer 1" in caplog.text and "float16" in caplog.text
