"""The description of an engine: its model's identity, its dtype, and how its layers are cut into paged blocks.

What is not supported is refused by name when the engine starts, not when a request fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvswap.artifact.manifest import Manifest, ModelIdentity
from kvswap.artifact.specs import LayerSpec
from kvswap.core.errors import Incompatible
from kvswap.model import precision, reach
from kvswap.model.files import read_json, weight_files
from kvswap.model.identity import base_identity
from kvswap.model.load import rope_text

_FILES = ("auto", "safetensors")  # the load formats of vLLM that read the files which the identity covers


@dataclass(frozen=True, slots=True)
class KVCacheGroup:
    """A group of layers that share block tables.

    `names` and `layers` correspond; `window` is None for full attention.
    """

    names: tuple[str, ...]
    layers: tuple[int, ...]  # indices of the model's layers, from 0
    block_tokens: int
    heads: int
    k_dim: int
    v_dim: int
    window: int | None


@dataclass(frozen=True, slots=True)
class Engine:
    """The model as this engine runs it."""

    identity: ModelIdentity
    dtype: str
    groups: tuple[KVCacheGroup, ...]
    rope: str = "null"  # RoPE parameters, in the form of manifests

    @property
    def hybrid(self) -> bool:
        """True if some layers keep only a window of tokens, so that a load has to end where a published block does."""
        return any(group.window is not None for group in self.groups)

    @property
    def block_tokens(self) -> int:
        """The number of tokens of the largest of vLLM's blocks."""
        return max(group.block_tokens for group in self.groups)

    def usable(self, tokens: int) -> int:
        """Return how many tokens of a published prefix can be loaded.

        With sliding layers these are whole blocks, as the tokens that such layers hold fit no others.
        """
        return tokens - tokens % self.block_tokens if self.hybrid else tokens

    @property
    def layers(self) -> list[LayerSpec]:
        """The kinds and shapes of the model's layers, as manifests describe them."""
        specs = {
            index: LayerSpec.key_value(
                "full" if group.window is None else "sliding", group.heads, group.k_dim, group.v_dim, group.window
            )
            for group in self.groups
            for index in group.layers
        }
        return [specs[index] for index in sorted(specs)]

    def check(self, manifest: Manifest) -> None:
        """Check that an artifact's layers are those of this engine.

        Raises `Incompatible` naming the first that is not.
        """
        theirs, own = manifest.layout.layers, self.layers
        for index, (have, wanted) in enumerate(zip(theirs, own, strict=False)):
            if have != wanted:
                raise Incompatible(f"layer {index} is {have}, the engine's is {wanted}", field="layout")
        if len(theirs) != len(own):
            raise Incompatible(f"the artifact has {len(theirs)} layers, the engine {len(own)}", field="layout")


def _require(condition: bool, what: str, hint: str | None = None) -> None:
    if not condition:
        raise Incompatible(f"kvswap does not work in an engine with {what}", hint=hint, field="engine")


def engine_of(config: Any, cache: Any) -> Engine:
    """Describe an engine from vLLM's configuration and its KV cache configuration.

    Raises `Incompatible` naming what is not supported.
    """
    model, parallel = config.model_config, config.parallel_config
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "decode_context_parallel_size"):
        _require(getattr(parallel, name, 1) == 1, f"{name} above 1")
    _require(config.speculative_config is None, "speculative decoding")
    _require(model.quantization is None, f"quantised weights ({model.quantization})")
    _require(config.lora_config is None, "LoRA adapters")
    # The identity covers the directory's files: whatever else changes the computation is refused.
    overrides = getattr(model, "hf_overrides", None)
    _require(not overrides, "--hf-overrides", "put the change into config.json, which makes another model of it")
    load = getattr(config.load_config, "load_format", "auto")
    load = str(getattr(load, "value", load))
    _require(load in _FILES, f"--load-format {load}", f"--load-format {_FILES[0]}")
    precision.check(str(getattr(config.device_config, "device_type", "cpu")))
    dtype = str(model.dtype).removeprefix("torch.")
    groups = tuple(_group(group, dtype) for group in cache.kv_cache_groups)
    flat = sorted(index for group in groups for index in group.layers)
    _require(flat == list(range(len(flat))), "layers without a cache of their own, or shared ones")
    windows = {getattr(g.kv_cache_spec, "sliding_window", None) for g in cache.kv_cache_groups}
    managed = not config.scheduler_config.disable_hybrid_kv_cache_manager
    # Without the manager, a block of a sliding layer that was not loaded would be taken for a cached one.
    _require(managed or windows == {None}, "sliding layers and --disable-hybrid-kv-cache-manager")
    directory = model_directory(str(model.model), model.revision)
    _check_files(directory)
    _check_rope(model)
    rope = rope_text(model.hf_text_config) if hasattr(model, "hf_text_config") else "null"
    return Engine(base_identity(directory, directory.name), dtype, groups, rope)  # vLLM puts no adapter on by itself


def _check_files(directory: Path) -> None:
    """Refuse a directory of which vLLM and transformers would read different weight files.

    vLLM reads every weight file of a directory without an index, and those of the index if there is one.
    """
    names = {path.name for path in directory.glob("*.safetensors")}
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names &= set(read_json(index).get("weight_map", {}).values())
    others = sorted(names ^ {path.name for path in weight_files(directory)})
    if others:
        raise Incompatible(
            f"vLLM and transformers read different weight files in {directory}: {', '.join(others[:4])}",
            cause="kvswap knows a model by the files that are loaded",
            hint="move the files that are not the model's away",
            field="model",
        )


def _check_rope(model: Any) -> None:
    """Refuse RoPE that depends on a text's length, unless the engine's longest text is below the threshold.

    vLLM chooses the table once for an engine, by the longest text that it accepts.
    """
    if not hasattr(model, "hf_text_config"):
        return
    for threshold in reach.thresholds(model.hf_text_config):
        short = threshold.beyond and model.max_model_len <= threshold.tokens
        hint = f"--max-model-len {threshold.tokens}" if threshold.beyond else None
        _require(short, f"{threshold.kind} RoPE for texts of more than {threshold.tokens} tokens", hint)


def _group(group: Any, dtype: str) -> KVCacheGroup:
    from vllm.model_executor.models.utils import extract_layer_index
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

    spec = group.kv_cache_spec
    kind = type(spec).__name__
    # By type: what inherits from these (sinks, latents, random windows) holds something else in the same pages.
    _require(type(spec) in (FullAttentionSpec, SlidingWindowSpec), f"a cache of kind {kind}")
    _require(not group.is_eagle_group, "draft layers")
    _require(getattr(spec, "attention_chunk_size", None) is None, "chunked attention")
    held = str(spec.dtype).removeprefix("torch.")
    _require(held == dtype, f"a cache in {held} of a model in {dtype}", "--kv-cache-dtype auto")
    return KVCacheGroup(
        names=tuple(group.layer_names),
        layers=tuple(extract_layer_index(name) for name in group.layer_names),
        block_tokens=spec.block_size,
        heads=spec.num_kv_heads,
        k_dim=spec.head_size,
        v_dim=spec.head_size_v,
        window=spec.sliding_window,
    )


def model_directory(name: str, revision: str | None) -> Path:
    """Return the directory of the model's files without downloading any.

    Raises `Incompatible` if they are not here.
    """
    path = Path(name)
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(name, revision=revision, local_files_only=True))
        except (OSError, ValueError) as error:
            raise Incompatible(
                f"the files of {name!r} are not on this machine",
                cause="kvswap knows a model by its files",
                field="model",
            ) from error
    return path
