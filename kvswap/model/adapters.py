"""LoRA adapters as files: where one is, which base it changes, and the digest that names it in a model's identity.

An adapter is `adapter_config.json` and `adapter_model.safetensors`, beside the weights of its base or in a directory of
their own that names the base.  Its digest covers every number of its tensors and each setting that changes the
computation.  Narrow floats are widened to float32 before they are hashed, as `peft` does when it loads them: an adapter
has one digest in its files and in memory.  Neither torch nor peft is imported here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvswap.core.directories import models_directory
from kvswap.core.errors import Incompatible, NotFound
from kvswap.core.ids import blake3_digest
from kvswap.model import files

CONFIG, WEIGHTS = files.ADAPTER, files.ADAPTER_WEIGHTS
_PREFIX = "base_model.model."
# Settings that change what is computed.  Which modules have an adapter, and of which rank, stands in the tensors.
_MEANT = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
# Labels, choices of what is trained, and values to begin training with.
_IDLE = frozenset(
    {
        *("base_model_name_or_path", "revision", "task_type", "auto_mapping", "peft_version", "inference_mode"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
        *("megatron_core", "qalora_group_size", "eva_config", "loftq_config", "ensure_weight_tying"),
    }
)
_INITIAL = (True, False, None, "gaussian", "eva", "orthogonal")  # others change the base when they are loaded


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter on disk: its directory, its settings, and the base model's directory."""

    directory: Path
    config: dict[str, Any]
    base: Path

    @property
    def weights(self) -> Path:
        """The file of the adapter's tensors."""
        return self.directory / WEIGHTS


def adapter_in(directory: Path) -> Adapter | None:
    """Return the adapter that a directory holds, or None.

    Raises `Incompatible` for one that kvswap does not know how to compute, `NotFound` if its base is not here.
    """
    path = directory / CONFIG
    if not os.path.lexists(path):
        return None
    config = files.read_json(path)
    if not isinstance(config, dict):
        raise files.unfit(f"{path} is not a configuration", "adapters")
    check_config(config, str(directory))
    if not (directory / WEIGHTS).is_file():  # opening a pipe would wait
        raise files.unfit(f"{directory} holds {CONFIG} without {WEIGHTS}", "adapters")
    if (directory / "config.json").is_file():
        return Adapter(directory, config, directory)
    base = _base(directory, config.get("base_model_name_or_path"))
    if os.path.lexists(base / CONFIG):
        raise Incompatible(
            f"the base of the adapter in {directory}, {base}, holds an adapter itself",
            cause="kvswap computes one adapter on a base",
            hint="merge the base's adapter into its weights and save them elsewhere",
            field="adapters",
        )
    return Adapter(directory, config, base)


def state(directory: Path) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and modification time of every file of a model, its base's among them; see `files.state`."""
    adapter = adapter_in(directory)
    own = files.state(directory)
    return own if adapter is None or adapter.base == directory else own + files.state(adapter.base)


def _base(directory: Path, named: Any) -> Path:
    """Return the directory of an adapter's base: an absolute path, or a model that was pulled."""
    name = named if isinstance(named, str) else ""
    path = Path(name) if name.startswith("/") else models_directory() / name.replace("/", "--")
    if name and (path / "config.json").is_file():
        return path
    raise NotFound(
        f"the base model of the adapter in {directory} is not on this machine: {name[:120]!r}",
        cause="base_model_name_or_path in adapter_config.json is neither an absolute path nor a pulled model",
        hint=f"kvswap model pull {name[:120]}" if name and not name.startswith((".", "/")) else "correct the path",
    )


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Check that an adapter is a LoRA whose every setting is known here.  Raises `Incompatible` naming one that is not.

    A setting that is off, empty or null says nothing.
    """
    kind = str(config.get("peft_type"))
    if kind != "LORA":
        raise _unknown(where, f"is of the kind {kind[:40]}", "kvswap knows LoRA")
    if config.get("bias", "none") != "none":
        raise _unknown(where, f"changes biases of its base (bias = {str(config['bias'])[:40]!r})")
    initial = config.get("init_lora_weights", True)
    if initial not in _INITIAL:
        raise _unknown(
            where,
            f"was begun by {str(initial)[:40]!r}, which changes its base's weights",
            hint="convert it to a plain LoRA: save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )
    for name, value in config.items():
        if name not in (*_MEANT, *_IDLE, "bias", "init_lora_weights") and _says_something(value):
            raise _unknown(where, f"has the setting {str(name)[:60]!r}")


def _says_something(value: Any) -> bool:
    return any(map(_says_something, value.values())) if isinstance(value, dict) else bool(value)


def _unknown(where: str, what: str, cause: str | None = None, hint: str | None = None) -> Incompatible:
    return Incompatible(
        f"the adapter in {where} {what}",
        cause=cause or "kvswap does not know how that is computed, and would name one model for two",
        hint=hint or "merge it into the weights and save them elsewhere (merge_and_unload)",
        field="adapters",
    )


TensorValue = tuple[str, str, list[int], bytes]  # name, safetensors dtype, shape, little-endian data


def digest_of(config: Mapping[str, Any], tensors: Iterable[TensorValue]) -> bytes:
    """Return the digest of an adapter: BLAKE3 over its settings and its tensors, widened to float32, by name."""
    settings = {name: config[name] for name in _MEANT if _says_something(config.get(name))}
    lines = [[short_name(name), *_widened(dtype, shape, data)] for name, dtype, shape, data in tensors]
    return blake3_digest(json.dumps([settings, sorted(lines)], sort_keys=True, separators=(",", ":")).encode())


def short_name(name: str) -> str:
    """Return the name of an adapter's tensor as in memory; files put a prefix before it."""
    return name.removeprefix(_PREFIX)


def _widened(dtype: str, shape: list[int], data: bytes) -> tuple[str, list[int], str]:
    """Return dtype, shape and digest of a tensor, in float32 where that loses nothing."""
    if dtype == "BF16":
        data, dtype = (np.frombuffer(data, "<u2").astype("<u4") << 16).astype("<u4").tobytes(), "F32"
    elif dtype == "F16":
        data, dtype = np.frombuffer(data, "<f2").astype("<f4").tobytes(), "F32"
    return dtype, shape, blake3_digest(data).hex()


def adapter_digest(adapter: Adapter) -> bytes:
    """Return the digest of an adapter on disk, reading its weights once.  Raises `Incompatible` for a damaged file."""
    return digest_of(adapter.config, _tensors(adapter.weights))


def _tensors(path: Path) -> Iterator[TensorValue]:
    with path.open("rb") as file:
        for name, entry in files.read_header(path).items():
            if ".lora_" not in name:
                raise Incompatible(
                    f"the adapter in {path.parent} replaces weights of its base: {name[:120]!r}",
                    cause="peft saves embeddings beside an adapter of them, or of a longer vocabulary",
                    hint="save it with save_embedding_layers=False, or merge it and save the whole model",
                    field="adapters",
                )
            file.seek(entry["at"])
            data = file.read(entry["bytes"])
            if len(data) != entry["bytes"]:
                raise files.unfit(f"{path} is truncated", "adapters")
            yield name, entry["dtype"], entry["shape"], data
