"""Tries one way of quantising weights: a tiny model, loaded in two processes, keys, values and logits compared.

Run it in an environment with the package in question; `docs/quantised.md` has what came of each.  What a package makes
itself is quantised by it; GPTQ, AWQ, compressed-tensors, fp8 and mxfp4 are packed here by the layout of their files.

    python benchmarks/quantised.py torchao "int8, weights"
    python benchmarks/quantised.py               # what can be tried
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
TOKENS, BLOCK, GROUP = 300, 128, 32
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _torchao(kind: str) -> dict[str, Any]:
    return {"quant_method": "torchao", "quant_type": {"default": {"_type": kind, "_data": {}}}}


def _compressed(layout: str, bits: int, kind: str, activations: bool) -> dict[str, Any]:
    strategy = {"strategy": "group", "group_size": GROUP} if bits == 4 else {"strategy": "channel"}
    weights = {"num_bits": bits, "type": kind, "symmetric": True, **strategy}
    inputs = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs if activations else None}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group | {"output_activations": None, "format": layout}},
    }


def _bitsandbytes(**fields: Any) -> dict[str, Any]:
    plain = {"load_in_8bit": False, "load_in_4bit": False, "bnb_4bit_quant_type": "fp4"}
    return {"quant_method": "bitsandbytes", **plain, **fields}


# `quantization_config` by method and kind of weights, as in the table of `kvswap.model.quantisation`
CONFIGS: dict[tuple[str, str], dict[str, Any]] = {
    ("torchao", "int4, weights"): _torchao("Int4WeightOnlyConfig"),
    ("torchao", "int8, weights"): _torchao("Int8WeightOnlyConfig"),
    ("torchao", "int8, weights and activations"): _torchao("Int8DynamicActivationInt8WeightConfig"),
    ("torchao", "float8, weights"): _torchao("Float8WeightOnlyConfig"),
    ("bitsandbytes", "int8"): _bitsandbytes(load_in_8bit=True),
    ("bitsandbytes", "nf4"): _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    ("bitsandbytes", "fp4"): _bitsandbytes(load_in_4bit=True),
    ("gptq", "int4"): {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False,
                       "checkpoint_format": "gptq"},
    ("awq", "int4"): {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    ("compressed-tensors", "int4, packed"): _compressed("pack-quantized", 4, "int", False),
    ("compressed-tensors", "int8"): _compressed("int-quantized", 8, "int", True),
    ("compressed-tensors", "fp8"): _compressed("float-quantized", 8, "float", True),
    ("fp8", "fp8 in blocks of 128 x 128"): {"quant_method": "fp8", "activation_scheme": "dynamic",
                                            "weight_block_size": [128, 128]},
    ("mxfp4", "mxfp4 (gpt-oss)"): {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    ("quanto", "int8"): {"quant_method": "quanto", "weights": "int8"},
    ("hqq", "int4"): {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
}  # fmt: skip


def pack(values: torch.Tensor, axis: int, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """Return eight numbers of 4 bits as one int32, along an axis; `order` is that of their places."""
    rows = values.movedim(axis, -1).long()
    out = torch.zeros(*rows.shape[:-1], rows.shape[-1] // 8, dtype=torch.int64)
    for place, index in enumerate(order):
        out |= (rows[..., index::8] & 15) << (4 * place)
    return torch.where(out >= 2**31, out - 2**32, out).to(torch.int32).movedim(-1, axis).contiguous()


def _int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return numbers 0 to 15 [out, in], 8 being nought, and scales [out, group]."""
    groups = weight.float().reshape(weight.shape[0], -1, GROUP)
    scale = groups.abs().amax(-1, keepdim=True) / 7
    return (torch.round(groups / scale) + 8).clamp(0, 15).reshape(weight.shape).int(), scale.squeeze(-1)


def _gptq(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    values, scale = _int4(weight)
    out, width = values.shape
    return {
        "qweight": pack(values.T.contiguous(), 0),
        "scales": scale.T.contiguous().half(),
        "qzeros": pack(torch.full((width // GROUP, out), 7), 1),
        "g_idx": (torch.arange(width) // GROUP).int(),
    }


def _awq(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    values, scale = _int4(weight)
    zeros = torch.full((values.shape[1] // GROUP, values.shape[0]), 8)
    return {
        "qweight": pack(values.T.contiguous(), 1, _AWQ_ORDER),
        "scales": scale.T.contiguous().half(),
        "qzeros": pack(zeros, 1, _AWQ_ORDER),
    }


def _packed(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    values, scale = _int4(weight)
    shape = torch.tensor(list(weight.shape))
    return {"weight_packed": pack(values, 1), "weight_scale": scale.to(torch.bfloat16), "weight_shape": shape}


def _by_row(largest: float, dtype: torch.dtype) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    def narrow(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        scale = weight.float().abs().amax(1, keepdim=True) / largest
        values = weight.float() / scale
        values = torch.round(values) if dtype == torch.int8 else values
        return {"weight": values.to(dtype), "weight_scale": scale.to(torch.bfloat16)}

    return narrow


def _fp8(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    rows, width = weight.shape
    down, across = -(-rows // 128), -(-width // 128)
    padded = torch.zeros(down * 128, across * 128)
    padded[:rows, :width] = weight.float()
    blocks = padded.reshape(down, 128, across, 128)
    scale = blocks.abs().amax((1, 3)) / 448
    values = (blocks / scale[:, None, :, None]).reshape(padded.shape)[:rows, :width]
    return {"weight": values.to(torch.float8_e4m3fn), "weight_scale_inv": scale}


PACKED: dict[str, Callable[[torch.Tensor], dict[str, torch.Tensor]]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors int4, packed": _packed,
    "compressed-tensors int8": _by_row(127, torch.int8),
    "compressed-tensors fp8": _by_row(448, torch.float8_e4m3fn),
    "fp8": _fp8,
}


def make(method: str, base: Path, target: Path, scheme: str = "") -> Path:
    """Write the Llama in `base` to `target`, quantised; mxfp4 is of a gpt-oss of its own, with the tokenizer of `base`."""
    key = next(key for key in CONFIGS if key[0] == method and scheme in ("", key[1]))
    shutil.copytree(base, target)
    if method == "mxfp4":
        _gpt_oss(target)
    pack_weight = PACKED.get(method) or PACKED.get(" ".join(key))
    if pack_weight is None and method != "mxfp4":
        return _by_package(key, base, target)
    out: dict[str, torch.Tensor] = {}
    for name, weight in load_file(target / "model.safetensors").items():
        if pack_weight is not None and name.endswith("_proj.weight"):
            stem = name.removesuffix("weight")
            out |= {stem + part: value.contiguous() for part, value in pack_weight(weight).items()}
        elif method == "mxfp4" and name.endswith(("gate_up_proj", "down_proj")):
            experts, width, wide = weight.shape
            generator = torch.Generator().manual_seed(len(out))
            shape = (experts, wide, width // 32)
            out[name + "_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
            out[name + "_scales"] = torch.randint(118, 124, shape, dtype=torch.uint8, generator=generator)
        else:
            out[name] = weight.to(torch.bfloat16)
    save_file(out, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    config |= {"quantization_config": CONFIGS[key], "dtype": "bfloat16"}
    (target / "config.json").write_text(json.dumps(config))
    return target


def _gpt_oss(target: Path) -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=400, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=64,
        max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 150000.0},
    )  # fmt: skip
    GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(target)


def _by_package(key: tuple[str, str], base: Path, target: Path) -> Path:
    import transformers

    method, scheme = key
    more: dict[str, Any] = {name: value for name, value in CONFIGS[key].items() if name != "quant_method"}
    kind = {"bitsandbytes": "BitsAndBytesConfig", "quanto": "QuantoConfig", "hqq": "HqqConfig"}.get(
        method, "TorchAoConfig"
    )
    if method == "torchao":
        import torchao.quantization

        chosen = getattr(torchao.quantization, more["quant_type"]["default"]["_type"])
        more = {"quant_type": chosen(group_size=GROUP) if scheme.startswith("int4") else chosen()}
    if method == "hqq":
        more = {"nbits": 4, "group_size": 64}
    config = getattr(transformers, kind)(**more)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base, quantization_config=config, dtype=torch.bfloat16, device_map="cpu"
    )
    model.save_pretrained(target)
    return target


def computed(directory: Path, dtype: str) -> str:
    """Return identity, numerics and a digest of the keys, values and logits of the model in a directory."""
    sys.path.insert(0, str(ROOT))
    from kvswap.client.loading import live_identity
    from kvswap.model.cache import caching_layers, new_cache
    from kvswap.model.load import load_model
    from kvswap.model.prefill import canonical_prefill

    loaded = load_model(directory, "m", dtype, threads=1)
    ids = [(i * 7919) % 400 for i in range(TOKENS)]
    cache, hasher = new_cache(loaded.model.config, TOKENS + 1), hashlib.sha256()
    for _ in canonical_prefill(loaded, cache, ids, BLOCK):
        pass
    held = [part for layer in caching_layers(cache) for part in (layer.keys, layer.values)]
    position = torch.tensor([[TOKENS]])
    logits = loaded.model(input_ids=torch.tensor([[5]]), past_key_values=cache, position_ids=position).logits
    for tensor in (*(part[..., :TOKENS, :] for part in held), logits):
        hasher.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    assert loaded.identity is not None
    same = live_identity(loaded.model) == loaded.identity.digest
    return f"{loaded.identity.digest.hex()} {loaded.numerics().attention!r} {hasher.hexdigest()} live={same}"


def main(arguments: list[str]) -> None:
    """Try one way, and print what came of it."""
    if len(arguments) == 2 and Path(arguments[0]).is_dir():
        print(computed(Path(arguments[0]), arguments[1]))
        return
    if not arguments:
        print("\n".join(f"{method} {scheme!r}" for method, scheme in CONFIGS))
        return
    sys.path.insert(0, str(ROOT))
    from tests.support import tiny_model

    with tempfile.TemporaryDirectory() as scratch:
        base = tiny_model(Path(scratch) / "base", "llama")
        directory = make(arguments[0], base, Path(scratch) / "model", *arguments[1:2])
        for dtype in ("bfloat16", "float32"):
            command = [sys.executable, __file__, str(directory), dtype]
            said = [subprocess.run(command, capture_output=True, text=True, cwd=ROOT) for _ in range(2)]
            texts = [done.stdout.strip() or done.stderr.strip().splitlines()[-1] for done in said]
            print(dtype, "equal" if texts[0] == texts[1] else "DIFFERENT", texts[0])


if __name__ == "__main__":
    main(sys.argv[1:])
