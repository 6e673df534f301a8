"""Quantised weights: what was tried, with which package and version, and what came of it.

Each row was tried for real on a CPU with a tiny model: the package installed, the model loaded in two processes, keys,
values and logits compared bit for bit.  What did not come out equal, or not at all, is refused by name before work
begins.  `docs/quantised.md` is made of the same table.  Neither torch nor transformers is imported here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kvswap.core.errors import Incompatible
from kvswap.model import files

PACKAGES = frozenset({"torchao", "bitsandbytes", "optimum", "hqq", "gptqmodel", "compressed_tensors"})  # to import
SCRATCH = frozenset({"idx", "subB"})  # attributes in which bitsandbytes leaves the outliers of its last pass
_CAUSE = "what computes them was not found to give equal bits in two processes"


@dataclass(frozen=True, slots=True)
class Tried:
    """One way of quantising: its `quant_method`, how to tell it, the package and version tried, and the outcome.

    `mark` is a text that this way's configuration has, and others of the method do not.  `refused` says why it is
    refused; where it is empty, `outcome` says what computes.
    """

    method: str
    scheme: str
    package: str
    version: str
    outcome: str = ""
    refused: str = ""
    mark: str = ""


_TORCH = "torch 2.13.0 and transformers 5.23.0"
_NOT_SAVED = "transformers saves and loads no such weights; quantise a model in memory instead (`get_cache`)"
_WIDENED = "widened to the compute dtype when loaded, and computed as plain weights"
_OWN = "computed by the package"

TRIED: tuple[Tried, ...] = (
    Tried("torchao", "int4, weights", "torchao", "0.18.0", "", "transformers cannot convert it on a CPU", "Int4Weight"),
    Tried("torchao", "int8, weights", "torchao", "0.18.0", _OWN, mark="Int8WeightOnlyConfig"),
    Tried("torchao", "int8, weights and activations", "torchao", "0.18.0", _OWN, mark="Int8DynamicActivation"),
    Tried("torchao", "float8, weights", "torchao", "0.18.0", _OWN),
    Tried("bitsandbytes", "int8", "bitsandbytes", "0.50.2", _OWN, mark='"load_in_8bit": true'),
    Tried("bitsandbytes", "nf4", "bitsandbytes", "0.50.2", _OWN, mark='"bnb_4bit_quant_type": "nf4"'),
    Tried("bitsandbytes", "fp4", "bitsandbytes", "0.50.2", _OWN),
    Tried("gptq", "int4", "gptqmodel", "7.6.0", _OWN + ", with optimum 2.3.0"),
    Tried("awq", "int4", "gptqmodel", "7.6.0", _OWN),
    Tried("compressed-tensors", "int4, packed", "compressed-tensors", "0.20.0", _OWN, mark='"pack-quantized"'),
    Tried("compressed-tensors", "int8", "compressed-tensors", "0.20.0", _OWN, mark='"int-quantized"'),
    Tried("compressed-tensors", "fp8", "compressed-tensors", "0.20.0", _OWN),
    Tried("fp8", "fp8 in blocks of 128 x 128", "", _TORCH, _WIDENED),
    Tried("mxfp4", "mxfp4 (gpt-oss)", "", _TORCH, _WIDENED),
    Tried("quanto", "int8", "optimum-quanto", "0.2.7", "", _NOT_SAVED),
    Tried("hqq", "int4", "hqq", "0.2.8.post1", "", "transformers 5.23.0 does not load it"),
)
# Packages that were tried as well, for methods that another one computes.
OTHERS: tuple[tuple[str, str, str, str], ...] = (
    ("gptq", "auto-gptq", "0.7.1", "transformers 5.23.0 does not use it, and gptqmodel's place beside it breaks"),
    ("awq", "autoawq", "0.2.9", "transformers 5.23.0 does not use it and asks for gptqmodel"),
)


def check(config: Any, label: str) -> None:
    """Check that weights are plain, or quantised in a way that was tried and works, its package being here.

    `config` is the value of `quantization_config`.  Raises `Incompatible` naming method, package and reason.
    """
    row = check_known(config, label)
    if row is not None and row.package and _version(row.package) is None:
        what = f"which needs the package {row.package} that is not installed"
        raise _refused(label, row.method, what, f"pip install {row.package}", f"{row.package} {row.version} was tried")


def check_known(config: Any, label: str) -> Tried | None:
    """Return the row of the table that a configuration is of, None for plain weights; see `check`.

    Raises `Incompatible` for what was not tried, or did not work.
    """
    if not config:
        return None
    method, row = method_of(config), row_of(config)
    if row is None:
        known = ", ".join(sorted({row.method for row in TRIED if not row.refused}))
        raise _refused(label, method, "which kvswap was not tried with", None, f"known: {known}")
    if row.refused:
        raise _refused(label, method, f"which is refused: {row.refused}", None, _CAUSE)
    return row


def row_of(config: Any) -> Tried | None:
    """Return the row of the table that a `quantization_config` is of, or None."""
    method, text = method_of(config), json.dumps(config, sort_keys=True, default=str)
    rows = [row for row in TRIED if row.method == method]
    return next((row for row in rows if not row.mark or row.mark in text), None)


def method_of(config: Any) -> str:
    """Return the `quant_method` of a configuration; older files of bitsandbytes do not name theirs."""
    method = config.get("quant_method") if isinstance(config, Mapping) else None
    if method is None and isinstance(config, Mapping) and (config.get("load_in_8bit") or config.get("load_in_4bit")):
        return "bitsandbytes"
    return str(getattr(method, "value", method))[:60]


def _refused(label: str, method: str, what: str, hint: str | None, cause: str) -> Incompatible:
    return Incompatible(f"{label!r} is quantised with {method}, {what}", cause=cause, hint=hint, field="quantization")


def in_memory(model: Any) -> Any:
    """Return the configuration by which a model in memory is quantised, as transformers keeps it, or None."""
    return getattr(getattr(model, "config", None), "quantization_config", None)


def plain(config: Any) -> dict[str, Any]:
    """Return a quantisation's configuration as values of JSON."""
    given = config if isinstance(config, dict) else config.to_dict()
    value: dict[str, Any] = json.loads(json.dumps(given, sort_keys=True, default=str))
    return value


def computed_as(model: Any) -> list[str]:
    """Name how a model's quantised weights are computed: the package with its version, or that they were widened."""
    config = in_memory(model)
    widened = config is None
    if widened:
        directory = Path(str(getattr(model, "name_or_path", "") or ""))
        path = directory / "config.json"
        held = files.read_json(path) if path.is_file() else None
        config = held.get("quantization_config") if isinstance(held, dict) else None
    if not config:
        return []
    method = method_of(config if isinstance(config, dict) else config.to_dict())
    package = next((row.package for row in TRIED if row.method == method and row.package), "")
    named = [f"{package} {_version(package)}"] if package and _version(package) else []
    return [*named, f"{method} dequantized"] if widened else named or [method]


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def page() -> str:
    """Return `docs/quantised.md`: every way that was tried, with its package, its version, and what came of it."""
    rows = [
        f"| `{row.method}` | {row.scheme} | {row.package or 'none'} | {row.version} "
        f"| {f'refused: {row.refused}' if row.refused else f'works, {row.outcome}'} |"
        for row in TRIED
    ]
    others = [f"| `{method}` | | {package} | {tried} | not used: {why} |" for method, package, tried, why in OTHERS]
    return "\n".join([*_HEAD, *rows, *others, *_TAIL])


_HEAD = (
    "# Quantised weights",
    "",
    "<!-- made by `python -m kvswap.model.quantisation > docs/quantised.md` -->",
    "",
    "Other bytes are another model: a quantised model has an identity of its own, by its files and the",
    "`quantization_config` in its `config.json`, and never meets the model that it was made of. `numerics` names the",
    "package that computes it with its version, and says where weights were widened because a machine has no kernel",
    "for them: caches that were computed otherwise are compared within a tolerance and not bit for bit.",
    "",
    "Each row was tried on a CPU with torch 2.13.0 and transformers 5.23.0, by installing the package and loading a",
    "tiny model in two processes. *Works* means: the same keys, values and logits in both, bit for bit, and the loaded",
    "model in memory has the identity of its directory. What does not work, and a `quant_method` that is not here, is",
    "refused by name before weights are read (exit code 7). Where the package is missing the message has the command.",
    "",
    "| `quant_method` | weights | package | version tried | outcome |",
    "|---|---|---|---|---|",
)
_TAIL = (
    "",
    "## Quantised in memory",
    "",
    "`Client.get_cache` takes a model that was quantised while it was loaded",
    "(`from_pretrained(directory, quantization_config=...)`). It is loaded and quantised once more and compared number",
    "by number; its identity is that of its directory's weights with that configuration, so it is neither the plain",
    "model nor one that was saved quantised. Tried so with torchao int8, bitsandbytes int8 and nf4, and quanto int8,",
    "in the versions above.",
    "",
    "## Notes",
    "",
    "* bitsandbytes looks for a kernel on the hub where the package `kernels` is installed and the processor has",
    "  AVX512-BF16; without it, it computes in other code. `numerics` names kernels of the hub that a process loaded.",
    "* GGUF files are widened once, when a model is pulled; from then on it is a plain model.",
    "* vLLM: quantised weights are taken where the model's own `config.json` says so ([vllm.md](vllm.md)).",
    "",
)


if __name__ == "__main__":
    print(page(), end="")
