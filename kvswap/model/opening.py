"""Loading a directory through transformers, without the guesses that transformers makes.

transformers fills weights that are missing from the files at random, and drops weights that no layer takes, both
without an error; here both are refused.  Code that a directory contains is never run, and no prompt asks whether it may
be.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvswap.core.errors import Incompatible, KvswapError
from kvswap.model import adapters, adapting, files, quantisation
from kvswap.model.identity import headers, tokenizer_home

logger = logging.getLogger("kvswap.model")

_INSTALL = re.compile(r"pip install (?:(?:-U|--upgrade) )?['\"`]?([A-Za-z][\w.-]*)")
_MADE_ANEW = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$|\.(masked_)?bias_mask$")  # tables, not weights
_NAMED = 4  # names in a message


def open_model(directory: Path, label: str, dtype: Any) -> tuple[Any, Any]:
    """Load model and tokenizer, with all weights from the files, and the adapter in the directory on its base.

    Raises `Incompatible` naming what is wrong.
    """
    adapter = adapters.adapter_in(directory)
    if adapter is None:
        return open_base(directory, label, dtype), open_tokenizer(directory, label)
    adapting.require_peft(repr(label))
    model = open_base(adapter.base, label, dtype)
    _by_library(directory, label, None, lambda: adapting.put_on(model, adapter, label))
    return model, open_tokenizer(directory, label)


def open_base(directory: Path, label: str, dtype: Any, quantise: Any = None) -> Any:
    """Load the model of a directory without an adapter that may lie beside it.

    `quantise` is a configuration of transformers by which plain weights are quantised now.  Raises `Incompatible`
    naming what is wrong.
    """
    config = _configuration(directory, label)
    quantisation.check(config.get("quantization_config"), label)
    kind, attention = _way(open_configuration(directory))
    more = {} if quantise is None else {"quantization_config": quantise}
    with _without_adapter(directory) as home:
        model, info = _by_library(
            directory,
            label,
            config.get("quantization_config"),
            lambda: kind.from_pretrained(
                str(home),
                dtype=dtype,
                attn_implementation=attention,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # `_check_weights` refuses them by name
                **more,
            ),
        )
    if config.get("quantization_config") and quantisation.in_memory(model) is None:
        _cast_widened(model, dtype)
    if home != directory:
        model.name_or_path = model.config._name_or_path = str(directory)
    _check_weights(model, info, label)
    return model


def _cast_widened(model: Any, dtype: Any) -> None:
    """Give weights that were widened the dtype that was asked for: transformers leaves them in that of their file.

    Those that a model keeps in float32 stay; tables, which a cast would round, are no parameters.
    """
    kept = {
        *(getattr(model, "_keep_in_fp32_modules", None) or ()),
        *(getattr(model, "_keep_in_fp32_modules_strict", None) or ()),
    }
    for name, value in model.named_parameters():
        if value.is_floating_point() and not any(part in name for part in kept):
            value.data = value.data.to(dtype)


@contextmanager
def _without_adapter(directory: Path) -> Iterator[Path]:
    """Yield the directory, or one of links to all its files but an adapter's.

    transformers would put the adapter on by itself where `peft` is installed, and then not tell whether the base's
    weights were all there.
    """
    if not (directory / files.ADAPTER).exists():
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="kvswap-base-") as scratch:
        home = Path(scratch)
        for path in directory.iterdir():
            if path.name not in (files.ADAPTER, files.ADAPTER_WEIGHTS) and path.is_file():
                (home / path.name).symlink_to(path.resolve())
        yield home


def _way(config: Any) -> tuple[Any, str]:
    """Return the class of transformers that makes this model, and the attention that it is computed with.

    A model that reads pictures as well is taken for its text alone.  Attention is `sdpa` (PyTorch's fused one) where
    the model's class has it, else `eager`, and the numerics of what is published name it.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    for way in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in way._model_mapping:
            made = way._model_mapping[type(config)]
            kinds = made if isinstance(made, tuple) else (made,)
            return way, "sdpa" if all(kind._supports_sdpa for kind in kinds) else "eager"
    return AutoModelForCausalLM, "sdpa"


def open_tokenizer(directory: Path, label: str) -> Any:
    """Load the directory's tokenizer, or its base's.  Raises `Incompatible` if transformers cannot."""
    from transformers import AutoTokenizer

    _configuration(directory, label)
    if (adapter := adapters.adapter_in(directory)) is not None:
        directory = tokenizer_home(directory, adapter.base)
    return _by_library(
        directory,
        label,
        None,
        lambda: AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False),
    )


def open_configuration(directory: Path) -> Any:
    """Load the configuration of a directory, or of its base, as transformers reads it.

    Raises `Incompatible` if transformers cannot.
    """
    from transformers import AutoConfig

    if (adapter := adapters.adapter_in(directory)) is not None:
        directory = adapter.base
    _configuration(directory, directory.name)
    return _by_library(
        directory,
        directory.name,
        None,
        lambda: AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False),
    )


def _configuration(directory: Path, label: str) -> dict[str, Any]:
    """Read the configuration; refuse one that needs code of its own, or that is none."""
    from transformers import CONFIG_MAPPING

    path = directory / "config.json"
    if not path.is_file():
        return {}
    config = files.read_json(path)
    if not isinstance(config, dict):
        raise files.unfit(f"{path} is not a configuration", "config")
    kind = config.get("model_type")
    if config.get("auto_map") and kind not in CONFIG_MAPPING:
        raise Incompatible(
            f"{label!r} brings its own code (auto_map) for model_type {str(kind)[:60]!r}, and kvswap runs none",
            cause="transformers has no class of this kind",
            field="model",
        )
    return config


def _by_library(directory: Path, label: str, quantisation: Any, way: Callable[[], Any]) -> Any:
    """Call transformers, converting whatever it raises into one of the package's errors."""
    import torch

    try:
        if (directory / "config.json").is_file():
            files.check_experts(headers(directory))
        return way()
    except (KvswapError, MemoryError, torch.OutOfMemoryError):
        raise
    except ImportError as error:
        raise _not_installed(label, error, quantisation) from error
    except Exception as error:  # a configuration is untrusted, and any of it may be wrong
        text = " ".join((str(error).strip() or type(error).__name__).splitlines()[0].split())[:200]
        named = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        raise files.unfit(f"transformers cannot load {label!r}: {named}{text}", "model") from error


def _not_installed(label: str, error: ImportError, quantisation: Any) -> Incompatible:
    text = " ".join(str(error).split())
    found = _INSTALL.search(text)
    method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
    package = found[1] if found else error.name or method
    what = f"{label!r} is quantised with {method}, which" if method else f"{label!r}"
    return Incompatible(
        f"{what} needs {f'the package {package}' if package else 'a package'} that is not installed, or not usable",
        cause=text[:200],
        hint=f"pip install {package}" if package else None,
        field="quantization" if method else "model",
    )


def _check_weights(model: Any, info: dict[str, Any], label: str) -> None:
    """Check that the files set every weight of the model in its shape, and hold no weight that a layer left out."""
    if missing := sorted(info["missing_keys"]):
        raise _amiss(
            label, f"the files lack {_some(missing)}", "a name that was changed, or a download that is not whole"
        )
    if mismatched := sorted(info["mismatched_keys"], key=str):
        shapes = [f"{name} ({list(held)} instead of {list(wanted)})" for name, held, wanted in mismatched]
        raise _amiss(label, f"weights have another shape: {_some(shapes)}", "config.json is of another model")
    if info["error_msgs"]:
        raise _amiss(label, str(info["error_msgs"])[:200], None)
    unexpected = sorted(name for name in info["unexpected_keys"] if not _MADE_ANEW.search(name))
    inside = [name for name in unexpected if belongs(model, name)]
    if inside:
        raise _amiss(
            label,
            f"layers of the model do not take {_some(inside)}",
            "config.json leaves out what the weights were made for",
        )
    if unexpected:
        logger.info("%s: weights beside the model are not used: %s", label, _some(unexpected))


def _amiss(label: str, what: str, cause: str | None) -> Incompatible:
    return files.unfit(f"{label!r}: {what}", "weights", cause=cause)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - _NAMED
    return ", ".join(listed[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def belongs(model: Any, name: str) -> bool:
    """Return True if a weight of this name lies in a layer of the model, or in a module with weights of its own."""
    import torch

    parts = name.split(".")
    module = model
    for part in parts[:-1]:
        below = getattr(module, "_modules", {}).get(part)
        if below is None:
            return False
        if isinstance(module, torch.nn.ModuleList):
            return True
        module = below
    return any(True for _ in module.parameters(recurse=False))
