"""What config.json alone says of a model's cache is what the built model has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvswap.core.errors import Incompatible
from kvswap.model.families import FAMILIES, check, layers_of_config, text_of
from kvswap.model.load import load_model
from kvswap.model.shape import layers_of
from tests import families as tiny

# Facts of real models' files, as far as they matter here.
QWEN3_4B = {
    "model_type": "qwen3", "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "hidden_size": 2560, "sliding_window": None, "use_sliding_window": False, "max_window_layers": 36,
}  # fmt: skip
GPT_OSS_20B = {
    "model_type": "gpt_oss", "num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
    "hidden_size": 2880, "sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 12,
    "quantization_config": {"quant_method": "mxfp4"},
}  # fmt: skip
QWEN25_7B = {
    "model_type": "qwen2", "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    "hidden_size": 3584, "sliding_window": 131072, "use_sliding_window": False, "max_window_layers": 28,
}  # fmt: skip
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
    "hidden_size": 7168, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
}  # fmt: skip


@pytest.mark.parametrize("name", list(tiny.FAMILIES))
def test_the_layers_of_the_file_are_those_of_the_built_model(tmp_path: Path, name: str) -> None:
    directory = tiny.build(tmp_path / name, name)
    config = json.loads((directory / "config.json").read_text())
    for dtype in ("float32", "bfloat16"):
        assert layers_of_config(config, dtype) == list(layers_of(load_model(directory, name, dtype)))
    assert check(config).known, f"{config['model_type']} is missing in the table"


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, (_, fields) in tiny.FAMILIES.items()
        if not {"layer_types", "layers_block_type"} & {*fields, *(fields.get("text_config") or {})}
    ],
)
def test_files_that_do_not_list_their_layers_are_read_alike(name: str) -> None:
    """As those of older models: transformers fills the list in by rules of each model type."""
    import transformers

    kind, fields = tiny.FAMILIES[name]
    config: dict[str, Any] = getattr(transformers, kind)(**fields).to_dict()
    bare = {key: value for key, value in text_of(config).items() if key != "layer_types"}
    assert layers_of_config(bare) == layers_of_config(config)


MINIMAX_M3: dict[str, Any] = {  # as its file says it, every layer sparse
    "model_type": "minimax_m3_vl",
    "text_config": {
        "model_type": "minimax_m3",
        "num_hidden_layers": 60,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "hidden_size": 6144,
        "sparse_attention_config": {"sparse_attention_freq": [1] * 60, "sparse_index_dim": 128},
    },
}


@pytest.mark.parametrize(
    ("config", "token", "window"),
    [
        (QWEN3_4B, 147_456, 0),
        (QWEN25_7B, 57_344, 0),
        (GPT_OSS_20B, 24_576, 127 * 24_576),
        (DEEPSEEK_V3, 70_272, 0),
        (MINIMAX_M3, 138_240, 0),
    ],
    ids=["Qwen3-4B", "Qwen2.5-7B", "gpt-oss-20b", "DeepSeek-V3", "MiniMax-M3"],
)
def test_sizes_of_real_models(config: dict[str, Any], token: int, window: int) -> None:
    found = check(config)
    assert (found.refused, found.token_bytes, found.window_bytes) == ("", token, window)


def test_what_is_said_to_be_tested_is() -> None:
    import transformers

    built = {getattr(transformers, kind).model_type for kind, _ in tiny.FAMILIES.values()}
    assert {name for name, family in FAMILIES.items() if not family.refused} == built


def test_what_is_refused_is_refused_by_its_name() -> None:
    for model_type, family in FAMILIES.items():
        if family.refused:
            assert family.names in check({"model_type": model_type, "num_hidden_layers": 2}).refused
    odd = {**QWEN3_4B, "model_type": "new", "layer_types": ["full_attention", "retention"]}
    assert "retention" in check(odd).refused
    with pytest.raises(Incompatible, match="none of"):
        layers_of_config({"model_type": "llama"})
    assert "auto_map" in check({**QWEN3_4B, "model_type": "new", "auto_map": {"AutoConfig": "x"}}).refused


def test_the_command_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GPT_OSS_20B))
    code = f"""
import sys
for name in ("torch", "transformers"):
    sys.modules[name] = None
from kvswap.cli.main import main
main(["model", "check", {str(tmp_path)!r}, "--json"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["exchanged"] is True and said["token_bytes"] == 24_576 and said["names"].startswith("gpt-oss")


def test_the_page_of_models_is_made_from_the_table() -> None:
    from kvswap.model.page import page

    assert (Path(__file__).parents[2] / "docs" / "models.md").read_text() == page()
