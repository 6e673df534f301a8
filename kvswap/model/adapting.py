"""LoRA adapters in a model in memory: loading one from its directory, and naming those that are at work.

`peft` computes them; it is not needed for models without one.  Importing this module imports neither torch nor peft.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from kvswap.core.errors import Incompatible
from kvswap.model import adapters, files

_NAME = "default"
_PARTS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
_WORDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_BASE = ".base_layer"


def require_peft(where: str) -> None:
    """Raise `Incompatible` with the command that helps unless `peft` is installed; `where` names what needs it."""
    try:
        found = find_spec("peft") is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise Incompatible(
            f"{where} is a model with an adapter, and the package peft, which computes it, is not installed",
            cause="without it the base alone would run, which is another model",
            hint="pip install peft",
            field="adapters",
        )


def put_on(model: Any, adapter: adapters.Adapter, label: str) -> None:
    """Load an adapter into its base, unmerged.  Raises `Incompatible` if it is then not what its files hold."""
    from peft import PeftModel

    PeftModel.from_pretrained(model, str(adapter.directory), adapter_name=_NAME, local_files_only=True)
    layers = list(_layers(model))
    held = {adapters.short_name(name) for name in files.read_header(adapter.weights)}
    made = {name for name, *_ in _values(layers, _NAME)}
    for what, names in (("lacks", made - held), ("holds what no layer takes:", held - made)):
        if names:
            raise files.unfit(f"the adapter of {label!r} {what} {', '.join(sorted(names)[:4])}", "adapters")
    if digests(model) != [adapters.adapter_digest(adapter)]:
        raise files.unfit(f"the adapter of {label!r} was not loaded as its files hold it", "adapters")


def base_of(model: Any) -> Any:
    """Return the transformers model that a `PeftModel` wraps, its adapters in it, or the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if unwrap is not None else model


def base_name(name: str) -> str | None:
    """Return the name that a tensor has in the base's files; None for one of an adapter."""
    return None if ".lora_" in name else name.replace(_BASE, "")


def state(model: Any) -> list[tuple[Any, ...]]:
    """Return what decides how adapters are applied, beside their tensors: for each layer what is on, and its scale."""
    return [
        (name, bool(layer.disable_adapters), *map(tuple, (layer.active_adapters, layer.merged_adapters)), layer.scaling)
        for name, layer in _layers(model)
    ]


def digests(model: Any) -> list[bytes]:
    """Return the digests of the adapters that are at work in a model, in the order in which they are added.

    Empty for a model without one, or with all of them switched off.  Raises `Incompatible` for adapters that are merged
    into the weights, differ from layer to layer, or are scaled by hand.
    """
    layers = list(_layers(model))
    if not layers:
        return []
    from peft.tuners.lora import LoraLayer

    for name, layer in layers:
        if not isinstance(layer, LoraLayer):
            raise _refused(f"{name} has an adapter that is no LoRA ({type(layer).__name__})")
        if layer.merged_adapters:
            raise _refused("an adapter is merged into the weights", "model.unmerge_adapter(), or save the merged model")
    ways = {(bool(layer.disable_adapters), tuple(layer.active_adapters)) for _, layer in layers}
    if len(ways) > 1:
        raise _refused("its layers have different adapters at work", "model.set_adapter(name)")
    ((off, names),) = ways
    return [] if off else [_digest(model, layers, name) for name in names]


def _digest(model: Any, layers: list[tuple[str, Any]], name: str) -> bytes:
    config = model.peft_config[name].to_dict()
    config["peft_type"] = getattr(config.get("peft_type"), "value", config.get("peft_type"))
    adapters.check_config(config, f"memory, {name!r},")
    for path, layer in layers:
        if name in layer.scaling:
            rank = math.sqrt(layer.r[name]) if config.get("use_rslora") else layer.r[name]
            if not math.isclose(layer.scaling[name], layer.lora_alpha[name] / rank, rel_tol=1e-9):
                raise _refused(f"the adapter {name!r} is scaled by hand at {path}", "set_scale(name, 1)")
    return adapters.digest_of(config, _values(layers, name))


def _values(layers: list[tuple[str, Any]], name: str) -> Iterator[adapters.TensorValue]:
    """Yield an adapter's tensors under the names that they have in its file."""
    import torch

    for path, layer in layers:
        for part in _PARTS:
            held = getattr(layer, part)
            if name not in held:
                continue
            tensors = {"": held[name]} if isinstance(held[name], torch.Tensor) else dict(held[name].named_parameters())
            for own, tensor in tensors.items():
                data = tensor.detach().cpu().contiguous()
                flat = data.flatten().view(torch.uint8).numpy().tobytes()
                kind = str(data.dtype).removeprefix("torch.")
                suffix = f".{own}" if own and part != "lora_magnitude_vector" else ""
                yield f"{path}.{part}{suffix}", _WORDS.get(kind, kind), list(data.shape), flat


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    if "peft" not in sys.modules:  # then nothing of it is in the model
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name, module


def _refused(what: str, hint: str | None = None) -> Incompatible:
    return Incompatible(
        f"the model in memory: {what}",
        cause="kvswap names an adapter by the numbers that are added to its base",
        hint=hint,
        field="adapters",
    )
