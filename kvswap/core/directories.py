"""The places of a user's files.  Every command imports this module, so it imports little.

Where the user names none, it is where the platform keeps such files: on Linux by the XDG variables, as `platformdirs`
has it too, without being imported; elsewhere `platformdirs` says it, and what an earlier version made in the XDG places
stays in use (ADR 33).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from kvswap.core.errors import UsageError

_APP = "kvswap"
_DATA, _CACHE = "XDG_DATA_HOME", "XDG_CACHE_HOME"


def _account_directory(env: Mapping[str, str]) -> Path:
    """Return HOME, or the account's directory where HOME is not set, as under some service managers."""
    typed = env.get("HOME", "")
    if typed.startswith("/"):
        return Path(typed)
    import pwd

    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        raise UsageError(
            "it is not known where this user's files are",
            cause="HOME is not set, and the account is not in the user database",
            hint="--home DIRECTORY, and KVSWAP_MODELS=DIRECTORY",
        ) from None


def _usual(env: Mapping[str, str], name: str, fallback: str) -> Path:
    """Return the platform's directory for data or cached files; `name` is its XDG variable, `fallback` where without.

    A relative path in the variable is ignored, as its specification wants.
    """
    value = env.get(name, "")
    if value.startswith("/"):
        return Path(value) / _APP
    if sys.platform == "win32":
        return _native(name)
    earlier = _account_directory(env) / fallback / _APP
    return _native(name) if sys.platform == "darwin" and not earlier.exists() else earlier


def _native(name: str) -> Path:
    from platformdirs import PlatformDirs  # as much as all of this module to import, and Linux needs it not

    found = PlatformDirs(_APP, appauthor=False)
    return Path(found.user_cache_dir if name == _CACHE else found.user_data_dir)


def _typed(chosen: str, name: str) -> Path:
    """Make a directory that a user typed absolute.  Raises `UsageError` for what no path can be."""
    try:
        if "\0" in chosen:
            raise ValueError("a NUL character")
        return Path(chosen).expanduser().absolute()
    except (RuntimeError, ValueError, OSError) as error:
        from kvswap.core.failures import brief

        raise UsageError(f"{name} is no directory's name: {brief(error)}", cause="a typing error") from error


def home_directory(flag: str | None = None, env: Mapping[str, str] | None = None) -> Path:
    """Return the directory that holds this node's keys, store and configuration.

    `flag` is the value of `--home`; `env` replaces the environment.  Raises `UsageError` for what no path can be.
    """
    env = os.environ if env is None else env
    chosen = flag or env.get("KVSWAP_HOME")
    return _typed(chosen, "the home") if chosen else _usual(env, _DATA, ".local/share")


def models_directory(env: Mapping[str, str] | None = None) -> Path:
    """Return the directory of model files, which all homes of a user share.

    Raises `UsageError` for what no path can be.
    """
    env = os.environ if env is None else env
    chosen = env.get("KVSWAP_MODELS")
    return _typed(chosen, "KVSWAP_MODELS") if chosen else _usual(env, _CACHE, ".cache") / "models"
