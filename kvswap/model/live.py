"""The identity of a model in memory: its directory's, once the object is shown to be what its directory loads as.

A model object can be changed by its owner: weights through `.data`, which no version counter records, adapters, hooks,
settings, or a cast that rounds its rotary table.  So everything that it computes with is hashed at every call, and
compared with the directory when the hash is new.  On the CPU BLAKE3 reads some GB/s; on a device, sums weighted by
position are computed there, which change with any change of one number, row or column.
"""

from __future__ import annotations

import copy
import json
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from msgspec.structs import replace

from kvswap.core.errors import Incompatible, KvswapError
from kvswap.model import adapting, opening, precision, probing, quantisation, reach
from kvswap.model.files import read_json, state, weight_files
from kvswap.model.identity import base_identity, config_digest
from kvswap.model.kernels import initialize_kernels

_known: weakref.WeakKeyDictionary[Any, tuple[bytes, bytes]] = weakref.WeakKeyDictionary()
_PIECE = 1 << 24
# configuration keys that are labels, or that only `generate` and training use
_IDLE = ("_", "pad_token", "bos_token", "eos_token", "sep_token", "decoder_start", "use_cache", "dtype", "torch_dtype")
_IDLE_TOO = {
    "transformers_version",
    "architectures",
    "auto_map",
    "id2label",
    "label2id",
    "problem_type",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "is_decoder",
    "use_return_dict",
    "attn_implementation",
    "experts_implementation",
    "initializer_range",
    "tie_word_embeddings",
}


def live_identity(model: Any) -> bytes:
    """Return the identity digest of a transformers model in memory.

    The model is compared with its files at the first call; later calls hash what is in memory and compare that.  LoRA
    adapters that are at work are part of it, by the digest of their tensors; weights quantised while they were loaded
    are, by their configuration.  Raises `Incompatible` if the model is not what its directory loads as: fine-tuned,
    merged with an adapter, cast, hooked, or in training mode.
    """
    initialize_kernels()
    model = adapting.base_of(model)
    _check_state(model)
    if _known.get(model) is None and quantisation.in_memory(model) is not None:
        probing.check_cache(model)  # some quantisers lay weights out anew in the first pass, and round their scales
    state = fingerprint(model)
    known = _known.get(model)
    if known is None or known[0] != state:
        _known.pop(model, None)
        known = _known[model] = (state, _compare(model))
    return known[1]


def fingerprint(model: Any) -> bytes:
    """Return a digest of everything that the model computes with: tensors, buffers, modules, configuration."""
    hasher = blake3(max_threads=blake3.AUTO)
    for name, module in model.named_modules():
        hasher.update(f"{name}\0{type(module).__module__}.{type(module).__qualname__}\0".encode())
    hasher.update(json.dumps(_settings(model.config), sort_keys=True, default=str).encode())
    hasher.update(repr(adapting.state(model)).encode())
    for name, plain in _numbers(model):
        hasher.update(f"{name}\0{plain.dtype}\0{list(plain.shape)}\0".encode())
        if plain.device.type == "cpu":
            hasher.update(_bytes(plain))
        else:
            hasher.update(repr(sums(plain)).encode())
    return hasher.digest()


def sums(tensor: torch.Tensor) -> tuple[int, int, int]:
    """Return three sums over a tensor's bits, computed on its device.

    They are the plain sum, one weighted by position, and one by its square, each modulo 2**64.
    """
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    wide = next(size for size in (8, 4, 2, 1) if flat.numel() % size == 0)
    words = flat.view({8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[wide])
    totals = [0, 0, 0]
    for start in range(0, len(words), _PIECE):
        piece = words[start : start + _PIECE].to(torch.int64)
        place = torch.arange(start + 1, start + 1 + len(piece), device=piece.device, dtype=torch.int64)
        mixed = piece ^ (piece >> 29)
        for index, values in enumerate((piece, mixed * place, piece * (place * place | 1))):
            totals[index] = (totals[index] + int(values.sum())) % (1 << 64)
    return totals[0], totals[1], totals[2]


def _bytes(tensor: torch.Tensor) -> Any:
    flat = tensor.detach().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""


def _numbers(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all that the model computes with, as plain tensors: parameters, buffers, and what quantisers keep beside.

    Buffers that are not saved are among them; those that each pass overwrites are not.
    """
    volatile = _volatile(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name not in volatile:
            yield from _plain(name, tensor)
    for name, module in model.named_modules():
        if _root(module) in quantisation.PACKAGES:
            yield from _beside(name, module)


def _plain(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a tensor as plain tensors of numbers; a quantised one consists of several, or has some beside it."""
    data = tensor.detach()
    yield from _beside(name, tensor)
    if type(data) is torch.Tensor:
        yield name, data
        return
    flatten = getattr(data, "__tensor_flatten__", None)
    if flatten is None:
        raise _differs(f"{name!r} is a {type(data).__name__}, which cannot be compared with the model's files")
    inner, context = flatten()
    for part in inner:
        yield from _plain(f"{name}.{part}", getattr(data, part))
    text = repr((type(data).__name__, context)).encode()
    yield f"{name}.context", torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _beside(name: str, holder: Any, depth: int = 3) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors among the attributes of a quantised tensor or of what describes it, such as its scales."""
    for key, value in sorted(getattr(holder, "__dict__", {}).items()):
        if key in quantisation.SCRATCH:
            continue
        if type(value) is torch.Tensor:
            yield f"{name}.{key}", value
        elif depth and _root(value) in quantisation.PACKAGES:
            yield from _beside(f"{name}.{key}", value, depth - 1)


def _root(thing: Any) -> str:
    return type(thing).__module__.partition(".")[0]


def _volatile(model: Any) -> set[str]:
    """Return the names of rotary tables that every forward pass overwrites, from tables that are not."""
    found = set()
    for name, module in model.named_modules():
        kinds = getattr(module, "rope_type", None)
        if kinds == "longrope" or (isinstance(kinds, dict) and "longrope" in kinds.values()):
            for own, _ in module.named_buffers(recurse=False):
                if own.endswith("inv_freq") and "original" not in own:
                    found.add(f"{name}.{own}" if name else own)
    return found


def _settings(config: Any) -> dict[str, Any]:
    """Return the part of a configuration that affects the computation."""
    given = config.get_text_config(decoder=True).to_dict()
    given.pop("quantization_config", None)  # compared by itself: weights may be quantised, or widened, when loaded
    return _working(given)


def _working(given: Mapping[str, Any]) -> dict[str, Any]:
    """Leave the fields out that are labels; some configurations have others in them, with labels of their own."""
    return {
        name: _working(value) if isinstance(value, Mapping) else value
        for name, value in given.items()
        if not str(name).startswith(_IDLE) and name not in _IDLE_TOO
    }


def _check_state(model: Any) -> None:
    """Refuse state outside the tensors that changes the result: training mode, hooks, reduced precision."""
    precision.check(str(model.device))
    if model.training:
        raise _differs("the model is in training mode", hint="model.eval()")
    for name, module in model.named_modules():
        if module.training:
            raise _differs(f"{name!r} is in training mode", hint="model.eval()")
        if module._forward_hooks or module._forward_pre_hooks:
            raise _differs(f"{name or 'the model'!r} has forward hooks", hint="remove them")
    reach.set_back(model)


def _differs(what: str, field: str = "model", hint: str | None = None) -> Incompatible:
    return Incompatible(what, cause="kvswap knows a model by its files", field=field, hint=hint)


def _directory(model: Any) -> Path:
    directory = Path(str(getattr(model, "name_or_path", "") or model.config._name_or_path))
    if not (directory / "config.json").is_file():
        raise Incompatible(
            f"the model says it came from {str(directory)!r}, which is not a directory with config.json",
            cause="kvswap knows a model by its files",
            hint="load it with from_pretrained(directory); kvswap model ls prints directories",
            field="model",
        )
    return directory


def _compare(model: Any) -> bytes:
    directory = _directory(model)
    before = state(directory)
    named = adapting.digests(model)
    config = read_json(directory / "config.json")
    held, own = config.get("quantization_config"), quantisation.in_memory(model)
    _compare_settings(model, directory)
    if held or own or not _same_by_name(model, directory):
        _compare_with_another(model, directory, None if held else own)
    _compare_tables(model)
    probing.check_cache(model)
    identity = base_identity(directory, directory.name)
    if own is not None and not held:
        identity = replace(identity, config=config_digest({**config, "quantization_config": quantisation.plain(own)}))
    if state(directory) != before:
        raise _differs(f"the files in {directory} changed while they were read")
    return replace(identity, adapters=named).digest


def _compare_settings(model: Any, directory: Path) -> None:
    own, theirs = _settings(model.config), _settings(opening.open_configuration(directory))
    for name in sorted(own.keys() | theirs.keys()):
        if own.get(name) != theirs.get(name):
            raise _differs(f"the model in memory differs from {directory} in its configuration at {name!r}")


def _same_by_name(model: Any, directory: Path) -> bool:
    """Compare with the files tensor by tensor; False if the names do not match the files'."""
    from safetensors import safe_open

    own = _by_base_name(model.state_dict())
    seen: set[str] = set()
    for path in weight_files(directory):
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                have = own.get(name)
                if have is None:
                    if opening.belongs(model, name):
                        return False
                    continue
                if type(have.detach()) is not torch.Tensor:
                    return False
                held = file.get_tensor(name)
                if held.shape != have.shape or not torch.equal(held.to(have.dtype), have.cpu()):
                    raise _differs(f"the model in memory differs from {path} at {name!r}")
                seen.add(name)
    places = {own[name].data_ptr() for name in seen if own[name].numel()}
    return all(name in seen or value.data_ptr() in places for name, value in own.items() if value.numel())


def _by_base_name(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors under the names that they have in the base's files, without those of adapters."""
    named = ((adapting.base_name(name), value) for name, value in tensors.items())
    return {name: value for name, value in named if name is not None}


def _compare_with_another(model: Any, directory: Path, quantise: Any) -> None:
    """Compare with the directory loaded again, for weights that are joined, renamed or quantised while loading.

    The state dictionary is not asked: that of some quantisers changes the weights.
    """
    other = opening.open_base(directory, directory.name, model.dtype, copy.deepcopy(quantise))
    other.eval().to(model.device)
    if quantisation.in_memory(other) is not None:
        probing.check_cache(other)
    own, theirs = _by_base_name(dict(_numbers(model))), dict(_numbers(other))
    if odd := sorted(own.keys() ^ theirs.keys()):
        raise _differs(f"the model in memory differs from {directory}: {odd[0]!r} is in one of them alone")
    for name, value in own.items():
        if value.dtype != theirs[name].dtype or not torch.equal(value.cpu(), theirs[name].cpu()):
            raise _differs(f"the model in memory differs from {directory} at {name!r}")


def _compare_tables(model: Any) -> None:
    """Compare rotary tables with newly computed ones: a cast of the whole model rounds them without another trace."""
    volatile = _volatile(model)
    for path, module in model.named_modules():
        buffers = dict(module.named_buffers(recurse=False))
        if not any("inv_freq" in name for name in buffers):
            continue
        try:
            fresh = dict(type(module)(getattr(module, "config", model.config)).named_buffers(recurse=False))
        except KvswapError:
            raise
        except Exception:  # noqa: BLE001 - it is constructed in another way: then only its dtype can be checked
            fresh = {}
        for name, value in buffers.items():
            full = f"{path}.{name}"
            if "inv_freq" not in name or full in volatile:
                continue
            right = fresh.get(name)
            same = value.dtype == torch.float32 if right is None else torch.equal(value.cpu(), right.to(value.dtype))
            if not same or value.dtype != torch.float32:
                raise _differs(
                    f"the model's {full} is not that of its configuration",
                    hint="load it with from_pretrained(..., dtype=...) instead of casting it",
                )
