"""llama-server's own flags: those that the proxy has to know, and those that the bundled server understands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvswap.core import checks
from kvswap.core.errors import UsageError
from kvswap.core.files import read_text

_HOST, _PORT = "127.0.0.1", 8080
_KEY_FILE_BYTES = 64 << 10

_VALUES = {
    "--host": "host",
    "--port": "port",
    "--api-key": "api_key",
    "--api-key-file": "api_key_file",
    "--api-prefix": "prefix",
    "--slot-save-path": "slot_directory",
    "-m": "model",
    "--model": "model",
}
_ENVIRONMENT = {
    "LLAMA_ARG_HOST": "host",
    "LLAMA_ARG_PORT": "port",
    "LLAMA_API_KEY": "api_key",
    "LLAMA_ARG_API_PREFIX": "prefix",
    "LLAMA_ARG_MODEL": "model",
}
_REFUSED = {
    "--ssl-key-file": "put something that does TLS before it",
    "--ssl-cert-file": "put something that does TLS before it",
    "--models-dir": "name one model with --model",
    "--models-preset": "name one model with --model",
}
# With these what the cache holds is not what the ids alone would give.
_NOT_KEPT = {
    "--context-shift": "LLAMA_ARG_CONTEXT_SHIFT",
    "--cache-reuse": "LLAMA_ARG_CACHE_REUSE",
    "--grp-attn-n": "LLAMA_ARG_GRP_ATTN_N",
    "-gan": "",
    "--no-slots": "LLAMA_ARG_NO_ENDPOINT_SLOTS",
}
_OFF = ("", "0", "off", "false", "disabled", "1")  # 1 as well: it is what --grp-attn-n is without


@dataclass(frozen=True, slots=True)
class ServerFlags:
    """The part of a llama-server's command line and environment that the proxy takes.

    `arguments` are the server's: those given without address and slot directory, which are the proxy's to choose.
    `not_kept` names the flag that forbids keeping anything, or is empty.
    """

    arguments: tuple[str, ...]
    host: str
    port: int
    api_key: str
    prefix: str
    model: Path | None
    slot_directory: Path | None
    not_kept: str

    @classmethod
    def read(cls, arguments: Sequence[str], environment: Mapping[str, str]) -> ServerFlags:
        """Read the flags of a llama-server.  Raises `UsageError` for those that a proxy cannot have."""
        found = {field: environment[name] for name, field in _ENVIRONMENT.items() if environment.get(name)}
        rest: list[str] = []
        not_kept = next((name for name, other in _NOT_KEPT.items() if _on(environment.get(other, ""))), "")
        words = iter(arguments)
        for word in words:
            if word in _REFUSED:
                raise UsageError(
                    f"{word} does not go with kvswap llama", cause="the proxy is in front", hint=_REFUSED[word]
                )
            field = _VALUES.get(word)
            value = next(words, None) if field else None
            if field and value is None:
                raise UsageError(f"{word} wants a value")
            if field and value is not None:
                found[field] = value
            if field in ("host", "port", "slot_directory"):
                continue
            rest += [word] if value is None else [word, value]
            not_kept = not_kept or _forbids(word, arguments)
        return cls(
            arguments=tuple(rest),
            host=found.get("host", _HOST),
            port=_port(found.get("port", str(_PORT))),
            api_key=found.get("api_key") or _first_key(found.get("api_key_file")),
            prefix=found.get("prefix", "").rstrip("/"),
            model=Path(found["model"]) if "model" in found else None,
            slot_directory=Path(found["slot_directory"]) if "slot_directory" in found else None,
            not_kept=not_kept,
        )


def _on(value: str) -> bool:
    return value.lower() not in _OFF


def _forbids(word: str, arguments: Sequence[str]) -> str:
    """Return the flag if it forbids keeping anything; one with a number does so unless that means nothing."""
    if word not in _NOT_KEPT:
        return ""
    after = arguments[arguments.index(word) + 1 :][:1]
    return word if not after or after[0].startswith("-") or _on(after[0]) else ""


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 5 or int(text) > 65_535:
        raise UsageError(f"{checks.shown(text)} is no port", hint="--port 8080")
    return int(text)


def _first_key(path: str | None) -> str:
    if path is None:
        return ""
    lines = read_text(Path(path), _KEY_FILE_BYTES).split()
    return lines[0] if lines else ""


# -- of the bundled server ---------------------------------------------------------------------------

Parse = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class BundledFlag:
    """A flag of the bundled server: the parameter that it sets, and how its value is read.

    Without `parse` it takes no value, and sets the parameter to `fixed`.
    """

    parameter: str
    parse: Parse | None = None
    fixed: Any = True


def _whole(text: str) -> int:
    return int(text)


def _layers(text: str) -> int:
    return {"auto": -1, "all": -2}.get(text, 0) or int(text)


def _attention(text: str) -> str:
    return {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO", "1": "ENABLED", "0": "DISABLED"}[text]


def _key_values(text: str) -> str:
    if text.upper() not in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "IQ4_NL", "Q5_0", "Q5_1"):
        raise ValueError(text)
    return text.upper()


_TABLE: tuple[tuple[str, BundledFlag], ...] = (
    ("-m --model", BundledFlag("model.path", str)),
    ("-a --alias", BundledFlag("model_alias", str)),
    ("-c --ctx-size", BundledFlag("n_ctx", _whole)),
    ("-n --predict --n-predict", BundledFlag("n_predict", _whole)),
    ("-b --batch-size", BundledFlag("n_batch", _whole)),
    ("-ub --ubatch-size", BundledFlag("n_ubatch", _whole)),
    ("-np --parallel", BundledFlag("n_parallel", _whole)),
    ("-t --threads", BundledFlag("cpuparams.n_threads", _whole)),
    ("-tb --threads-batch", BundledFlag("cpuparams_batch.n_threads", _whole)),
    ("--threads-http", BundledFlag("n_threads_http", _whole)),
    ("-ngl --gpu-layers --n-gpu-layers", BundledFlag("n_gpu_layers", _layers)),
    ("-mg --main-gpu", BundledFlag("main_gpu", _whole)),
    ("-fa --flash-attn", BundledFlag("flash_attn_type", _attention)),
    ("-ctk --cache-type-k", BundledFlag("cache_type_k", _key_values)),
    ("-ctv --cache-type-v", BundledFlag("cache_type_v", _key_values)),
    ("-kvu --kv-unified", BundledFlag("kv_unified")),
    ("--swa-full", BundledFlag("swa_full")),
    ("-cram --cache-ram", BundledFlag("cache_ram_mib", _whole)),
    ("--ctx-checkpoints --swa-checkpoints", BundledFlag("n_ctx_checkpoints", _whole)),
    ("--cache-reuse", BundledFlag("n_cache_reuse", _whole)),
    ("--context-shift", BundledFlag("ctx_shift")),
    ("--no-context-shift", BundledFlag("ctx_shift", fixed=False)),
    ("-gan --grp-attn-n", BundledFlag("grp_attn_n", _whole)),
    ("-gaw --grp-attn-w", BundledFlag("grp_attn_w", _whole)),
    ("--rope-freq-base", BundledFlag("rope_freq_base", float)),
    ("--rope-freq-scale", BundledFlag("rope_freq_scale", float)),
    ("-sps --slot-prompt-similarity", BundledFlag("slot_prompt_similarity", float)),
    ("--jinja", BundledFlag("use_jinja")),
    ("--no-jinja", BundledFlag("use_jinja", fixed=False)),
    ("--chat-template", BundledFlag("chat_template", str)),
    ("--metrics", BundledFlag("endpoint_metrics")),
    ("--props", BundledFlag("endpoint_props")),
    ("--slots", BundledFlag("endpoint_slots")),
    ("--no-slots", BundledFlag("endpoint_slots", fixed=False)),
    ("--no-webui --no-ui", BundledFlag("ui", fixed=False)),
    ("--no-warmup", BundledFlag("warmup", fixed=False)),
    ("--temp --temperature", BundledFlag("sampling.temp", float)),
    ("--top-k", BundledFlag("sampling.top_k", _whole)),
    ("--top-p", BundledFlag("sampling.top_p", float)),
    ("--min-p", BundledFlag("sampling.min_p", float)),
    ("-s --seed", BundledFlag("sampling.seed", _whole)),
    ("--api-key", BundledFlag("api_keys", str)),
    ("--api-prefix", BundledFlag("api_prefix", str)),
    ("--host", BundledFlag("hostnames", str)),
    ("--port", BundledFlag("port", _whole)),
    ("--slot-save-path", BundledFlag("slot_save_path", str)),
    ("-lv --verbosity", BundledFlag("verbosity", _whole)),
    ("-to --timeout", BundledFlag("timeout_read", _whole)),
)
BUNDLED = {name: flag for names, flag in _TABLE for name in names.split()}
"""The flags that the bundled server understands."""


def read_bundled(arguments: Sequence[str]) -> list[tuple[BundledFlag, Any]]:
    """Read flags of the bundled server as parameters and their values.  Raises `UsageError` naming what it has not."""
    found: list[tuple[BundledFlag, Any]] = []
    words = iter(arguments)
    for word in words:
        flag = BUNDLED.get(word)
        if flag is None:
            raise UsageError(
                f"the bundled llama-server has no flag {checks.shown(word)}",
                cause="it is started through xllamacpp, which has the most used ones",
                hint="put a llama-server of llama.cpp into PATH: all of its flags are passed through",
            )
        if flag.parse is None:
            found.append((flag, flag.fixed))
            continue
        value = next(words, None)
        try:
            if value is None:
                raise ValueError("nothing")
            found.append((flag, flag.parse(value)))
        except (ValueError, KeyError):
            raise UsageError(f"{word} does not take {checks.shown(value or '')}", cause="a typing error") from None
    return found
