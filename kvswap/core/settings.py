"""Configuration: flags > environment `KVSWAP_*` > `config.toml` > default; and where files live.

`KVSWAP_HOME` (or `--home`) puts everything of one node under one directory.  Without it the XDG base
directories are used.  Model files are shared by all homes of a user, because they are large and
addressed by content: `$XDG_CACHE_HOME/kvswap/models`, or `KVSWAP_MODELS`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from kvswap.core.errors import UsageError
from kvswap.core.limits import LIMITS

GB = 1_000_000_000


def _xdg(env: Mapping[str, str], name: str, fallback: str) -> Path:
    value = env.get(name, "")
    base = Path(value) if value.startswith("/") else Path(env.get("HOME", "/")) / fallback
    return base / "kvswap"


def home_directory(flag: str | None = None, env: Mapping[str, str] | None = None) -> Path:
    """The directory that holds this node's keys, store and configuration."""
    env = os.environ if env is None else env
    chosen = flag or env.get("KVSWAP_HOME")
    return Path(chosen).expanduser().absolute() if chosen else _xdg(env, "XDG_DATA_HOME", ".local/share")


def models_directory(env: Mapping[str, str] | None = None) -> Path:
    """The directory of model files, shared by all homes of a user."""
    env = os.environ if env is None else env
    chosen = env.get("KVSWAP_MODELS")
    return Path(chosen).expanduser().absolute() if chosen else _xdg(env, "XDG_CACHE_HOME", ".cache") / "models"


@dataclass(frozen=True, slots=True)
class Settings:
    """What one node is told.  Units are in the names; prices are in US dollars."""

    home: Path
    models: Path
    model: str = "smollm2-135m"
    dtype: str = "bfloat16"
    device: str = "cpu"
    threads: int = 0  # 0: as many as torch chooses
    block_tokens: int = 256
    codec: str = "planes"
    also_codec: str = "predictive"  # published beside it, in the background, where there is a predictor; "": nothing
    group: str = ""  # for which to publish, and in which to look, unless a request names another; "": openly
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    bootstrap: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    relays: tuple[str, ...] = ()  # multiaddrs of relays through which this node can be reached
    relay: bool = False  # relay for others
    hole_punching: bool = True  # try to turn a relayed connection into a direct one
    mdns: bool = True
    p2p: bool = True
    bulk: bool = True  # serve and fetch chunks over HTTPS; without it over libp2p streams only
    bulk_port: int = 0
    upload_bytes_per_second: int = 0  # to all peers together; 0: as fast as they take it
    api_port: int = 0
    quota_bytes: int = 10 * GB
    idle_unload_seconds: float = 600.0
    model_processes: int = 2  # models loaded at the same time, where there is memory for them
    artifact_days: int = 30
    price_per_gb: float = 0.0  # what a fetched gigabyte costs this node
    asks_per_gb: float = 0.0  # what this node tells others that a gigabyte from it costs
    price_per_second: float = 0.0  # what a second of this machine's prefill costs
    price_per_million_tokens: float = 0.0  # of prefill, where that is bought by the token
    value_per_second: float = 0.0005  # what a second of waiting is worth (1.80 an hour)
    assumed_link_bytes_per_second: float = 12.5e6  # until a peer was measured: 100 Mbit/s

    @classmethod
    def load(
        cls,
        home: str | None = None,
        env: Mapping[str, str] | None = None,
        **flags: Any,
    ) -> Settings:
        """Read the layers.  Raises `UsageError` naming the key and where it came from."""
        env = os.environ if env is None else env
        root = home_directory(home, env)
        settings = cls(home=root, models=models_directory(env))
        path = root / "config.toml"
        layers: list[tuple[str, dict[str, Any]]] = []
        if path.is_file():
            if path.stat().st_size > LIMITS.config_bytes:
                raise UsageError(f"{path} is larger than {LIMITS.config_bytes} bytes")
            try:
                layers.append((str(path), tomllib.loads(path.read_text())))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise UsageError(f"{path} is not valid TOML: {error}") from error
        names = {f.name for f in fields(cls)} - {"home", "models"}
        from_env = {n: env[f"KVSWAP_{n.upper()}"] for n in names if f"KVSWAP_{n.upper()}" in env}
        layers += [("the environment", from_env), ("the command line", flags)]
        for where, layer in layers:
            for name, value in layer.items():
                if value is None or value == ():
                    continue
                if name not in names:
                    raise UsageError(f"unknown setting {name!r} in {where}", cause="a typing error")
                settings = replace(settings, **{name: _coerce(name, value, getattr(settings, name), where)})
        return settings


def _coerce(name: str, value: Any, default: Any, where: str) -> Any:
    try:
        if isinstance(default, tuple):
            items = value.split(",") if isinstance(value, str) else value
            return tuple(str(v).strip() for v in items if str(v).strip())
        if isinstance(default, bool):
            if isinstance(value, bool):
                return value
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[str(value).lower()]
        number = type(default)(value)
        if isinstance(default, int | float) and number < 0:
            raise ValueError("negative")
        return number
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"setting {name}={value!r} from {where} is not a {type(default).__name__}") from error
