"""The places of a user's files.  Every command imports this module, so it imports little."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from kvswap.core.errors import UsageError


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


def _xdg(env: Mapping[str, str], name: str, fallback: str) -> Path:
    value = env.get(name, "")
    base = Path(value) if value.startswith("/") else _account_directory(env) / fallback
    return base / "kvswap"


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
    return _typed(chosen, "the home") if chosen else _xdg(env, "XDG_DATA_HOME", ".local/share")


def models_directory(env: Mapping[str, str] | None = None) -> Path:
    """Return the directory of model files, which all homes of a user share.

    Raises `UsageError` for what no path can be.
    """
    env = os.environ if env is None else env
    chosen = env.get("KVSWAP_MODELS")
    return _typed(chosen, "KVSWAP_MODELS") if chosen else _xdg(env, "XDG_CACHE_HOME", ".cache") / "models"
