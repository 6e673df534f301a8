"""Configuration: flags > environment `KVSWAP_*` > `config.toml` > default; and where files live.

`KVSWAP_HOME` (or `--home`) puts everything of one node under one directory.  Without it that is the platform's
directory for data (`kvswap.core.directories`).  Model files are shared by all homes of a user, because they are large
and addressed by content: in the platform's directory for caches, or `KVSWAP_MODELS`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from kvswap.core import checks
from kvswap.core.checks import Check, shown
from kvswap.core.defaults import BLOCK_TOKENS
from kvswap.core.directories import home_directory, models_directory
from kvswap.core.errors import InvalidSettings, UsageError
from kvswap.core.failures import brief
from kvswap.core.files import read_file
from kvswap.core.limits import LIMITS
from kvswap.core.origin_settings import OriginSettings, origins

GB = 1_000_000_000
CODECS = (
    "planes",
    "predictive",
    "raw",
    "int8",
    "int8-channel",
)  # as named in `kvswap.codec`, a package above
_MOST = 1 << 62
_PRICE = checks.number(0, 1e9)


@dataclass(frozen=True, slots=True)
class Fault:
    """A setting that cannot be used: its name, where it was given, and why."""

    name: str
    place: str
    why: str


@dataclass(frozen=True, slots=True)
class _Given:
    name: str
    value: Any
    place: str
    base: Path  # for relative paths


Also = Callable[["Settings", Collection[str]], Iterable[tuple[str, str]]]


def invalid(faults: list[Fault]) -> InvalidSettings:
    """Make one error of all faults."""
    lines = [f"{fault.place}: {fault.why}" for fault in faults]
    many = f"{len(lines)} settings cannot be used: " if len(lines) > 1 else ""
    return InvalidSettings(
        many + "; ".join(lines),
        cause="a typing error, or a value out of its range",
        hint="docs/configuration.md has every setting with its range",
        faults=[asdict(fault) for fault in faults],
    )


def absolute_model(name: str, base: Path) -> str:
    """Make a path absolute, relative to where it was typed; return a model's name unchanged."""
    if not name.startswith((".", "/", "~")):
        return name
    return os.path.normpath(base / Path(name).expanduser())


def _of_file(path: Path, faults: list[Fault]) -> Iterator[_Given]:
    try:
        data = read_file(path, LIMITS.config_bytes)
    except UsageError as error:
        if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            faults.append(Fault("config.toml", str(path), error.message))
        return
    if len(data) > LIMITS.config_bytes:
        faults.append(Fault("config.toml", str(path), f"it is larger than {LIMITS.config_bytes} bytes"))
        return
    try:
        text = data.decode("utf-8-sig")  # editors on Windows begin files with a mark
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        faults.append(Fault("config.toml", str(path), f"not valid TOML: {brief(error)}"))
        return
    for name, value in values.items():
        line = _line_of(name, text)
        yield _Given(name, value, f"{path}" + (f" line {line}" if line else ""), path.parent)


def _line_of(name: str, text: str) -> int | None:
    """Find the line on which a key, or a table of this name, begins."""
    word = re.escape(name)
    key = re.compile(rf"""\s*(?:\[+\s*)?(?:{word}|"{word}"|'{word}')\s*[=\].]""")
    return next((n for n, line in enumerate(text.splitlines(), 1) if key.match(line)), None)


def _of_env(env: Mapping[str, str], names: Iterable[str]) -> Iterator[_Given]:
    for name in names:
        variable = f"KVSWAP_{name.upper()}"
        if variable in env:
            yield _Given(name, env[variable], f"{variable} in the environment", Path.cwd())


def _of_flags(flags: Mapping[str, Any]) -> Iterator[_Given]:
    for name, value in flags.items():
        if value is not None and value != ():
            no = "no-" if value is False else ""
            yield _Given(name, value, f"--{no}{name.replace('_', '-')}", Path.cwd())


def _places_of_directories(home: str | None, env: Mapping[str, str]) -> dict[str, str]:
    """Say where the two directories came from, as `home_directory` and `models_directory` choose them."""
    places: dict[str, str] = {}
    if home or env.get("KVSWAP_HOME"):
        places["home"] = "--home" if home else "KVSWAP_HOME in the environment"
    elif env.get("XDG_DATA_HOME", "").startswith("/"):
        places["home"] = "XDG_DATA_HOME in the environment"
    if env.get("KVSWAP_MODELS"):
        places["models"] = "KVSWAP_MODELS in the environment"
    elif env.get("XDG_CACHE_HOME", "").startswith("/"):
        places["models"] = "XDG_CACHE_HOME in the environment"
    return places


def _checked(check: Check, default: Any) -> Any:
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one node.  Units are in the names; prices are in US dollars.

    Each setting has its check beside it; `load` judges all of them before anything is started.
    """

    home: Path
    models: Path
    model: str = _checked(checks.model, "smollm2-135m")
    dtype: str = _checked(checks.choice("bfloat16", "float16", "float32"), "bfloat16")
    device: str = _checked(checks.device, "cpu")
    threads: int = _checked(checks.whole(0, 1024), 0)  # 0: as many as torch chooses
    block_tokens: int = _checked(checks.whole(1, LIMITS.block_tokens), BLOCK_TOKENS)
    codec: str = _checked(checks.choice(*CODECS), "planes")
    # a second codec to publish in, in the background, where there is a predictor; "": none
    also_codec: str = _checked(checks.choice("", *CODECS), "predictive")
    # the group to publish for and to look in, unless a request names another; "": public
    group: str = _checked(checks.group, "")
    listen: tuple[str, ...] = _checked(checks.addresses(checks.listened), ("/ip4/127.0.0.1/tcp/0",))
    bootstrap: tuple[str, ...] = _checked(checks.addresses(checks.of_peer), ())
    announce: tuple[str, ...] = _checked(checks.addresses(checks.dialled), ())
    # multiaddrs of relays through which this node can be reached
    relays: tuple[str, ...] = _checked(checks.addresses(checks.of_peer), ())
    relay: bool = _checked(checks.yes_or_no, False)  # relay for others
    hole_punching: bool = _checked(checks.yes_or_no, True)  # try to turn a relayed connection into a direct one
    mdns: bool = _checked(checks.yes_or_no, True)
    p2p: bool = _checked(checks.yes_or_no, True)
    # places that keep artifacts as files, beside peers: [[origins]] in config.toml
    origins: tuple[OriginSettings, ...] = _checked(origins, ())
    # serve and fetch chunks over HTTPS; without it over libp2p streams only
    bulk: bool = _checked(checks.yes_or_no, True)
    bulk_port: int = _checked(checks.whole(0, 65_535), 0)
    # to all peers together; 0: without limit
    upload_bytes_per_second: int = _checked(checks.whole(0, _MOST), 0)
    # of kvswap.log; standard error has warnings and errors alone
    log_level: str = _checked(checks.choice("debug", "info", "warning", "error"), "info")
    log_format: str = _checked(checks.choice("text", "json"), "text")
    api_port: int = _checked(checks.whole(0, 65_535), 0)
    quota_bytes: int = _checked(checks.whole(0, _MOST), 10 * GB)
    idle_unload_seconds: float = _checked(checks.number(0, 1e9), 600.0)
    # models loaded at the same time, where there is memory for them
    model_processes: int = _checked(checks.whole(1, 64), 2)
    artifact_days: int = _checked(checks.whole(1, LIMITS.life_seconds // 86_400), 30)
    price_per_gb: float = _checked(_PRICE, 0.0)  # cost to this node of a fetched gigabyte
    asks_per_gb: float = _checked(_PRICE, 0.0)  # price that this node asks for a gigabyte
    price_per_second: float = _checked(_PRICE, 0.0)  # cost of a second of prefill on this machine
    price_per_million_tokens: float = _checked(_PRICE, 0.0)  # of prefill, where it is bought by the token
    value_per_second: float = _checked(_PRICE, 0.0005)  # worth of a second less of waiting (1.80 an hour)
    # assumed until a peer has been measured: 100 Mbit/s
    assumed_link_bytes_per_second: float = _checked(checks.number(1, 1e15), 12.5e6)

    @classmethod
    def load(
        cls,
        home: str | None = None,
        env: Mapping[str, str] | None = None,
        *,
        also: Also | None = None,
        **flags: Any,
    ) -> Settings:
        """Read the settings from all layers and check every value.

        `also`: a further check of the settings that the user gave, by packages above this one.  Raises
        `InvalidSettings`, which names all faults at once, each with the line, the environment variable or the option it
        came from.
        """
        return cls.load_with_places(home, env, also=also, **flags)[0]

    @classmethod
    def load_with_places(
        cls,
        home: str | None = None,
        env: Mapping[str, str] | None = None,
        *,
        also: Also | None = None,
        **flags: Any,
    ) -> tuple[Settings, dict[str, str]]:
        """Read the settings as `load` does, and return them with the place that each came from.

        A setting that nobody gave has no place: it is the default.
        """
        env = os.environ if env is None else env
        settings = cls(home=home_directory(home, env), models=models_directory(env))
        kinds = {f.name: f.metadata["check"] for f in fields(cls) if "check" in f.metadata}
        faults: list[Fault] = []
        places: dict[str, str] = {}
        for given in (*_of_file(settings.home / "config.toml", faults), *_of_env(env, kinds), *_of_flags(flags)):
            if given.name not in kinds:
                faults.append(Fault(given.name, given.place, f"unknown setting {given.name!r}"))
                continue
            try:
                value = kinds[given.name](given.value)
                if given.name == "model":
                    value = absolute_model(value, given.base)
            except (ValueError, TypeError, OverflowError, RuntimeError) as error:
                faults.append(Fault(given.name, given.place, f"{given.name} = {shown(given.value)} is not {error}"))
                continue
            settings = replace(settings, **{given.name: value})
            places[given.name] = given.place
        if also is not None:
            faults += [Fault(name, places[name], why) for name, why in also(settings, places.keys())]
        if faults:
            raise invalid(faults)
        return settings, _places_of_directories(home, env) | places
