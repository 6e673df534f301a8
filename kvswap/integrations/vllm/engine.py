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
from kvswap.model.opening import open_configuration

# How transformers keeps the rotary key of a latent, by model type: as [firsts, seconds] of the pairs, or in pairs.
_ROTARY_HALVES = {"deepseek_v2": False, "deepseek_v3": True}
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
    latent: bool = False  # K is a latent and V its rotary key (MLA), in one row of the paged cache
    halves: bool = False  # whether artifacts have that rotary key as [firsts, seconds]; vLLM keeps pairs
    heads_in_all: int = 0  # of the model, where `heads` are those of this rank (tensor parallelism); 0: no others

    def heads_of_rank(self, rank: int, ranks: int) -> slice:
        """Return which of the model's heads this rank keeps."""
        first = rank * (self.heads_in_all or self.heads) // ranks if self.heads_in_all else 0
        return slice(first, first + self.heads)


@dataclass(frozen=True, slots=True)
class Engine:
    """The model as this engine runs it."""

    identity: ModelIdentity
    dtype: str
    groups: tuple[KVCacheGroup, ...]
    rope: str = "null"  # RoPE parameters, in the form of manifests
    ranks: int = 1  # processes that share each layer's heads (tensor parallelism)

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
                "full" if group.window is None else "sliding",
                group.heads_in_all or group.heads,
                group.k_dim,
                group.v_dim,
                group.window,
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
    for name in ("pipeline_parallel_size", "decode_context_parallel_size"):
        _require(getattr(parallel, name, 1) == 1, f"{name} above 1")
    _require(config.speculative_config is None, "speculative decoding")
    _require(config.lora_config is None, "LoRA adapters")
    # The identity covers the directory's files: whatever else changes the computation is refused.
    overrides = getattr(model, "hf_overrides", None)
    _require(not overrides, "--hf-overrides", "put the change into config.json, which makes another model of it")
    load = getattr(config.load_config, "load_format", "auto")
    load = str(getattr(load, "value", load))
    _require(load in _FILES, f"--load-format {load}", f"--load-format {_FILES[0]}")
    precision.check(str(getattr(config.device_config, "device_type", "cpu")))
    dtype = str(model.dtype).removeprefix("torch.")
    groups = tuple(_group(group, dtype, config) for group in cache.kv_cache_groups)
    flat = sorted(index for group in groups for index in group.layers)
    _require(flat == list(range(len(flat))), "layers without a cache of their own, or shared ones")
    windows = {getattr(g.kv_cache_spec, "sliding_window", None) for g in cache.kv_cache_groups}
    managed = not config.scheduler_config.disable_hybrid_kv_cache_manager
    # Without the manager, a block of a sliding layer that was not loaded would be taken for a cached one.
    _require(managed or windows == {None}, "sliding layers and --disable-hybrid-kv-cache-manager")
    directory = model_directory(str(model.model), model.revision)
    _check_files(directory)
    _check_quantised(directory, model.quantization)
    _check_rope(model)
    rope = rope_text(model.hf_text_config) if hasattr(model, "hf_text_config") else "null"
    if any(group.latent for group in groups):  # vLLM writes names of its own over the type of their RoPE
        rope = rope_text(open_configuration(directory).get_text_config(decoder=True))
    identity = base_identity(directory, directory.name)  # vLLM puts no adapter on by itself
    return Engine(identity, dtype, groups, rope, parallel.tensor_parallel_size)


def _check_quantised(directory: Path, method: str | None) -> None:
    """Refuse weights that the engine quantises itself: the identity is of the files, which say nothing of that."""
    if method is None or (read_json(directory / "config.json").get("quantization_config") is not None):
        return
    raise Incompatible(
        f"kvswap does not work in an engine that quantises the weights itself ({method})",
        cause="the model's files are not quantised, and kvswap knows a model by its files",
        hint="serve a directory whose files are quantised",
        field="engine",
    )


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


def _group(group: Any, dtype: str, config: Any) -> KVCacheGroup:
    from vllm.model_executor.models.utils import extract_layer_index
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, MLAAttentionSpec, SlidingWindowSpec

    spec = group.kv_cache_spec
    kind = type(spec).__name__
    if type(spec) is MambaSpec:
        _refuse_states(spec)
    # By type: what inherits from these (sinks, random windows) holds something else in the same pages.
    _require(type(spec) in (FullAttentionSpec, SlidingWindowSpec, MLAAttentionSpec), f"a cache of kind {kind}")
    _require(not group.is_eagle_group, "draft layers")
    _require(getattr(spec, "attention_chunk_size", None) is None, "chunked attention")
    held = str(spec.dtype).removeprefix("torch.")
    _require(held == dtype, f"a cache in {held} of a model in {dtype}", "--kv-cache-dtype auto")
    names, layers = tuple(group.layer_names), tuple(extract_layer_index(name) for name in group.layer_names)
    if type(spec) is MLAAttentionSpec:
        return _latents(names, layers, spec, config.model_config)
    ranks, in_all = config.parallel_config.tensor_parallel_size, 0
    if ranks > 1:
        in_all = config.model_config.get_total_num_kv_heads()
        of_one = max(1, in_all // ranks)
        _require(spec.num_kv_heads == of_one, f"{spec.num_kv_heads} heads on each of {ranks} ranks, of {in_all}")
    return KVCacheGroup(
        names=names,
        layers=layers,
        block_tokens=spec.block_size,
        heads=spec.num_kv_heads,
        k_dim=spec.head_size,
        v_dim=spec.head_size_v,
        window=spec.sliding_window,
        heads_in_all=in_all,
    )


def _latents(names: tuple[str, ...], layers: tuple[int, ...], spec: Any, model: Any) -> KVCacheGroup:
    """Describe layers of latents (MLA): artifacts have the latent as K and the rotary key as V, one head each."""
    text: Any = getattr(model, "hf_text_config", None)
    kind = str(getattr(text, "model_type", None))
    _require(kind in _ROTARY_HALVES, f"latents of model type {kind}")
    plain = spec.cache_dtype_str in (None, "auto") and spec.model_version is None
    _require(plain and not spec.sliding_window, "latents that are quantised, compressed, or slide")
    halves = _ROTARY_HALVES[kind]
    _require(not halves or bool(text.rope_interleave), "a rotary key that does not interleave")
    return KVCacheGroup(
        names=names,
        layers=layers,
        block_tokens=spec.block_size,
        heads=spec.num_kv_heads,
        k_dim=text.kv_lora_rank,
        v_dim=spec.head_size - text.kv_lora_rank,
        window=None,
        latent=True,
        halves=halves,
    )


def _refuse_states(spec: Any) -> None:
    kind = str(getattr(spec.mamba_type, "value", spec.mamba_type)).lower()
    raise Incompatible(
        f"kvswap does not work in an engine with states ({kind}, mamba_cache_mode {spec.mamba_cache_mode})",
        cause="vLLM keeps a state with other axes than transformers, and a convolution's without its oldest input: "
        "neither is turned into the other yet",
        hint="`kvswap ask` and Client.get_cache exchange this model's states, without vLLM",
        field="engine",
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
